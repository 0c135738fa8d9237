"""The CPU backends against PyTorch on this machine, in one run, with interleaved timing.

    python benchmarks/cpu.py [--quick] [--presets laptop shakespeare] [--threads 2] [--no-scaling]

For each preset (shakespeare at batch 8) it times a training step, evaluation and generation of the reference, the fast backend and
PyTorch (eager and torch.compile), and prints medians and the 10th to 90th percentiles. It also times the matmuls of a step alone,
which no implementation can beat, and measures peak memory. Then it measures how time and memory of the fast backend grow. PyTorch
is optional: pip install torch.
"""

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from threadpoolctl import threadpool_info, threadpool_limits

from gpt.analysis.cost import estimate_cost
from gpt.analysis.format import Cell, table, table_row
from gpt.config import PRESETS, ModelConfig, TrainConfig, override
from gpt.generate import generate
from gpt.models import MODELS
from gpt.models.gpt import init
from gpt.params import ParamTable
from gpt.training.backends import select_backend
from gpt.training.data_parallel import Workers, split_evenly
from gpt.training.distributed import SingleProcess
from gpt.training.evaluate import split_loss
from gpt.training.step import Task, TrainState
from tensorlite import pick_device
from tensorlite.cpu import CPUOps

EVAL_BATCHES = 10
TORCH = importlib.util.find_spec("torch") is not None
MPI = importlib.util.find_spec("mpi4py") is not None


@dataclass
class Args:
    """Time the CPU backends beside PyTorch."""

    quick: bool = False
    """Take less than a minute: the laptop preset only, few rounds, no torch.compile, no scaling."""
    presets: tuple[str, ...] = ("laptop", "shakespeare")
    """Presets to measure."""
    threads: int = 2
    """Threads of every implementation."""
    scaling: bool = True
    """Also measure how the cost of a step grows with batch, context, width, layers and threads."""
    rank_of: bool = False
    """Used by the script itself: run as one rank and time steps on request."""
    memory_of: str | None = None
    """Used by the script itself: print the peak memory of this implementation and exit."""


@dataclass
class Workload:
    """One configuration, and its implementations."""

    name: str
    config: ModelConfig
    train: TrainConfig
    threads: int

    @classmethod
    def of(cls, name: str, threads: int) -> "Workload":
        preset = PRESETS[name]
        train = override(preset.train, {"batch_size": 8}) if name == "shakespeare" else preset.train
        return cls(name, override(preset.model, {"init_std": 0.02}), train, threads)

    @cached_property
    def data(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, self.config.vocab_size, 200_000)

    @property
    def tokens(self) -> int:
        return self.train.batch_size * self.config.block_size

    def workers(self, backend: str, ranks: SingleProcess | None = None) -> Workers:
        """Return workers as train.py creates them: one shard for the reference, one per thread or rank for the fast backend."""
        chosen = select_backend(backend, pick_device("cpu"))
        shards = min(self.threads, self.train.batch_size) if chosen.sharded else 1
        return Workers(chosen.make, shards, self.threads, ranks)

    def ours(self, backend: str, ranks: SingleProcess | None = None) -> "Implementation":
        workers, model = self.workers(backend, ranks), MODELS["gpt"]
        table = ParamTable(init(self.config))
        state = TrainState.start(table, table.init_params(0), np)
        train = override(self.train, {"shards": workers.shards, "val_chars": 0})
        task = Task(model, self.config, train, self.data, seed=0)

        def step() -> float:
            return workers.train_step(task, state)[0]

        def evaluation() -> float:
            return split_loss(workers, task, table.tree(state.params), self.data[: EVAL_BATCHES * self.tokens])

        def write(prompt: np.ndarray, n: int, cached: bool = True) -> Iterator[int]:
            return generate(workers.ops, model, table.tree(state.params), prompt, n, self.config, cached=cached)

        return Implementation(
            backend,
            step,
            evaluation,
            writers={"cached": write, "uncached": lambda prompt, n: write(prompt, n, cached=False)},
            blas_threads=self.threads if workers.shards == 1 else 1,
            writing_threads=self.threads,
        )

    def torch(self, compiled: bool) -> "Implementation":
        import torch
        import torch_baseline as baseline

        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        model, data = baseline.GPT(self.config), torch.from_numpy(self.data)
        step = baseline.training_step(model, data, self.config, self.train, compiled)
        scored = torch.compile(model) if compiled else model

        def evaluation() -> float:
            model.eval()
            return baseline.evaluate(scored, data[: EVAL_BATCHES * self.tokens], self.config, self.train.batch_size)

        def writer(loop: Callable) -> Callable:
            return lambda prompt, n: loop(model, torch.from_numpy(prompt)[None], n, self.config)

        writers = {"uncached": writer(baseline.generate), "cached": writer(baseline.generate_cached)}
        return Implementation(
            "torch.compile" if compiled else "PyTorch eager",
            step,
            evaluation,
            writers={} if compiled else writers,
            blas_threads=1,
            writing_threads=1,
        )

    def implementation(self, name: str) -> "Implementation":
        return self.ours(name) if name in ("reference", "fast") else self.torch(name == "torch.compile")

    def matmuls_alone(self) -> Callable[[], None]:
        """Return a function that computes only the matmuls of a step. Each thread computes those of its share of the rows."""
        shards = [self._matmuls(len(rows)) for rows in split_evenly(range(self.train.batch_size), self.threads)]
        pool = ThreadPoolExecutor(self.threads)

        def multiply(matmuls: list[Matmul]) -> None:
            for matmul in matmuls:
                for _ in range(matmul.times):
                    np.matmul(matmul.a, matmul.b, out=matmul.out)

        def step() -> None:
            list(pool.map(multiply, shards))

        return step

    def _matmuls(self, batch_rows: int) -> list["Matmul"]:
        """Return the matmuls of a step with these rows: three per linear layer, and six per attention."""
        c = self.config
        L, C, T, N = c.n_layer, c.n_embd, c.block_size, batch_rows * c.block_size
        random = np.random.default_rng(0)

        def matrix(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, np.float32)

        matmuls = []
        for times, n_in, n_out in ((L, C, 3 * C), (L, C, C), (L, C, 4 * C), (L, 4 * C, C), (1, C, c.vocab_size)):
            x = matrix(N, n_in)
            w = matrix(n_in, n_out)
            y = matrix(N, n_out)
            matmuls.append(Matmul(times, x, w, np.empty_like(y)))
            matmuls.append(Matmul(times, y, w.T, np.empty_like(x)))
            matmuls.append(Matmul(times, x.T, y, np.empty_like(w)))
        q = matrix(batch_rows, c.n_head, T, c.head_size)
        scores = matrix(batch_rows, c.n_head, T, T)
        matmuls.append(Matmul(2 * L, q, q.transpose(0, 1, 3, 2), np.empty_like(scores)))  # q k^T and dy v^T
        matmuls.append(Matmul(2 * L, scores, q, np.empty_like(q)))  # probs v and dscores k
        matmuls.append(Matmul(2 * L, scores.transpose(0, 1, 3, 2), q, np.empty_like(q)))  # probs^T dy and dscores^T q
        return matmuls


class Matmul(NamedTuple):
    """a @ b -> out, computed `times` times."""

    times: int
    a: np.ndarray
    b: np.ndarray
    out: np.ndarray


@dataclass
class Implementation:
    """The functions to time, and the number of threads that NumPy's BLAS may use meanwhile."""

    name: str
    step: Callable[[], float]
    evaluation: Callable[[], float]
    writers: dict[str, Callable[[np.ndarray, int], Iterator[int]]]
    blas_threads: int  # in training and evaluation
    writing_threads: int  # in generation


def timed(work: Callable[[], Any], blas_threads: int) -> float:
    """Return the seconds of one call."""
    with threadpool_limits(blas_threads, user_api="blas"):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


WARM_UP = 3  # calls at the start of a turn that do not count, because the caches hold the data of another implementation
Turn = Callable[[int], list[float]]  # makes n calls after the warm-up and returns the seconds of each


def turn(work: Callable[[], Any], blas_threads: int) -> Turn:
    """Return a turn of calls in this process."""

    def calls(n: int) -> list[float]:
        return [timed(work, blas_threads) for _ in range(WARM_UP + n)][WARM_UP:]

    return calls


def interleaved_timing(turns: dict[str, Turn], rounds: int, each: int) -> dict[str, list[float]]:
    """Time all implementations in turns. Each makes `each` calls per round."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, calls in turns.items():
            times[name] += calls(each)
    return times


class Ranks:
    """The fast backend on mpiexec processes with one thread and one shard each. They run this script with --rank-of."""

    def __init__(self, workload: "Workload") -> None:
        beside = Path(sys.executable).parent / "mpiexec"
        mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
        arguments = ["--rank-of", "--presets", workload.name, "--threads", str(workload.threads)]
        command = [mpiexec, "-n", str(workload.threads), sys.executable, __file__, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, n: int) -> list[float]:
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve_steps(workload: "Workload") -> None:
    """Run as a rank: sleep while others are timed, then make the requested number of steps and report their times."""
    from gpt.training.distributed import init_distributed

    ranks = init_distributed()
    step = workload.ours("fast", ranks).step
    while True:
        n = int(sys.stdin.readline() or 0) if ranks.rank == 0 else 0
        if ranks.rank == 0:
            for other in range(1, ranks.size):
                ranks.comm.send(n, other)
        else:
            while not ranks.comm.iprobe(0):
                time.sleep(0.001)
            n = ranks.comm.recv(source=0)
        if n == 0:
            return
        times = turn(step, 1)(n)
        if ranks.rank == 0:
            print(json.dumps(times), flush=True)


def print_times(title: str, times: dict[str, list[float]], unit: str, per_call: float, baselines: tuple[str, ...]) -> None:
    """Print the median, spread and rate of each implementation, and how many times faster than the baselines it is.

    unit: the unit of the rate, such as "tokens/s".
    per_call: units per call.
    baselines: names in `times`; a missing one is left out.
    """
    baselines = tuple(name for name in baselines if name in times)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    rows: list[list[Cell]] = []
    for name, seconds in times.items():
        median = medians[name]
        low, high = np.quantile(seconds, [0.1, 0.9])
        speedups = [medians[baseline] / median for baseline in baselines]
        rows.append([name, median * 1e3, f"{low * 1e3:.1f} to {high * 1e3:.1f}", per_call / median, *speedups])
    columns = [":18", "ms:>9.1f", "10 to 90 %:>18", f"{unit}:>14,.0f", *(f"x {name}:>17.2f" for name in baselines)]
    print(f"\n{title}\n{table(rows, columns)}")


def compare(workload: Workload, rounds: int, compiled: bool) -> None:
    """Measure one preset: training, evaluation, generation, memory."""
    names = ["reference", "fast"] + ["PyTorch eager"] * TORCH + ["torch.compile"] * (TORCH and compiled)
    implementations = [workload.implementation(name) for name in names]
    c, train = workload.config, workload.train
    shape = f"{c.n_layer} layers, {c.n_embd} channels, context {c.block_size}, batch {train.batch_size}"
    print(f"\n=== {workload.name}: {shape}, dropout {c.dropout}, {workload.threads} threads ===")
    each = 20 if workload.name == "laptop" else 3
    baselines = ("PyTorch eager", "torch.compile")

    turns: dict[str, Turn] = {impl.name: turn(impl.step, impl.blas_threads) for impl in implementations}
    ranks = Ranks(workload) if MPI and workload.threads > 1 else None
    if ranks:
        turns[f"fast, {workload.threads} ranks"] = ranks
    turns["matmuls alone"] = turn(workload.matmuls_alone(), 1)
    times = interleaved_timing(turns, rounds, each)
    print_times("training step", times, "tokens/s", workload.tokens, (*baselines, "matmuls alone"))
    if ranks:
        ranks.end()

    turns = {impl.name: turn(impl.evaluation, impl.blas_threads) for impl in implementations}
    times = interleaved_timing(turns, max(2, rounds // 3), 1)
    print_times("evaluation", times, "tokens/s", EVAL_BATCHES * workload.tokens, baselines)

    T = c.block_size
    for title, prompt, n in (("generation, within the context", 1, T - 1), ("generation, beyond the context", T, 30)):
        turns = {}
        for impl in implementations:
            for kind, writer in impl.writers.items():
                if prompt == 1 or kind == "uncached":  # beyond the context nothing can be cached
                    start = workload.data[:prompt]
                    name = f"{impl.name.split()[0]} {kind}"
                    turns[name] = turn(lambda w=writer, s=start, n=n: list(w(s, n)), impl.writing_threads)
        times = interleaved_timing(turns, max(2, rounds // 2), 1)
        print_times(f"{title}: {n} tokens from a prompt of {prompt}", times, "tokens/s", n, ("PyTorch uncached", "PyTorch cached"))

    print("\npeak memory of a process that trains 3 steps, without the memory of its imported libraries")
    for name in names:
        command = [sys.executable, __file__, "--memory-of", name, "--presets", workload.name, "--threads", str(workload.threads)]
        mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"{name:18}{mib:>9} MiB")


def memory_of(workload: Workload, name: str) -> float:
    """Return the peak memory of three steps in MiB, less the memory in use before the implementation was created."""
    if name not in ("reference", "fast"):
        import torch
        import torch_baseline  # noqa: F401  (so that it counts as imported)

        torch.ones(1)
    before = peak_rss()
    impl = workload.implementation(name)
    for _ in range(3):
        timed(impl.step, impl.blas_threads)
    return peak_rss() - before


def peak_rss() -> float:
    """Return the peak memory of this process in MiB. (Linux's ru_maxrss would include the process that started it.)"""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


SCALING_COLUMNS = (
    *("what:9", "values:>20", "ms:>34", "exponent:>10.2f", "counted:>9.2f"),
    *("MiB:>30", "exponent:>10.2f", "counted:>9.2f"),
)
FIELDS = {"context": "block_size", "width": "n_embd", "layers": "n_layer"}


def scaling(threads: int) -> None:
    """Print how a step of the fast backend grows: fitted exponents beside those of the counted FLOPs and bytes."""
    print("\n=== how a step of the fast backend grows (4 layers, 256 channels, context 128, batch 8, one thing changed) ===")
    print("exponent: time or memory grows as this power of the values (fitted); counted: so do the FLOPs or the estimated bytes")
    print(table([], SCALING_COLUMNS))
    for what, values in {
        "batch": (4, 8, 16, 32),
        "context": (64, 128, 256, 512),
        "width": (128, 256, 512, 1024),
        "layers": (2, 4, 8, 16),
        "threads": tuple(n for n in (1, 2, 4, 8, 16) if n <= threads),
    }.items():
        print(table_row(scaling_row(what, values, threads), SCALING_COLUMNS), flush=True)


def scaling_row(what: str, values: tuple[int, ...], threads: int) -> list[Cell]:
    """Measure steps with these values of one thing."""
    base = ModelConfig(vocab_size=65, block_size=128, n_layer=4, n_head=4, n_embd=256)
    start = TrainConfig(batch_size=8)
    ms, mib, flops, counted_bytes = [], [], [], []
    for value in values:
        config = override(base, {FIELDS[what]: value}) if what in FIELDS else base
        train = override(start, {"batch_size": value}) if what == "batch" else start
        workload = Workload("", config, train, value if what == "threads" else threads)
        impl = workload.ours("fast")
        timed(impl.step, 1)
        ms.append(min(timed(impl.step, 1) for _ in range(5)) * 1e3)
        shards = min(workload.threads, train.batch_size)
        cost = estimate_cost(config, override(train, {"shards": shards}), CPUOps.op_table)
        flops.append(cost.flops)
        counted_bytes.append(cost.peak_bytes)
        mib.append(peak_of(workload))
    flops_exponent = -1.0 if what == "threads" else slope(values, flops)  # the FLOPs are divided among the threads
    time_cells = [_listed(ms), slope(values, ms), flops_exponent]
    memory_cells = [_listed(mib), slope(values, mib), slope(values, counted_bytes)]
    return [what, " ".join(map(str, values)), *time_cells, *memory_cells]


def _listed(values: list[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


def peak_of(workload: Workload) -> float:
    """Return the peak memory in MiB of a separate process that makes three steps of a configuration."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cpu; from gpt.config import ModelConfig, TrainConfig;"
        f"print(cpu.memory_of(cpu.Workload('', {workload.config!r}, {workload.train!r}, {workload.threads}), 'fast'))"
    )
    command = [sys.executable, "-c", program, __file__.rpartition("/")[0] or "."]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """Return b of the least-squares fit y = a x^b."""
    if len(x) < 2:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    """Measure and print."""
    args = tyro.cli(Args)
    workloads = [Workload.of(name, args.threads) for name in (("laptop",) if args.quick else args.presets)]
    if args.rank_of:
        serve_steps(workloads[0])
        return
    if args.memory_of:
        print(f"{memory_of(workloads[0], args.memory_of):.0f}")
        return
    kernels = [library.get("architecture") for library in threadpool_info() if library["user_api"] == "blas"]
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__} with {kernels[0] if kernels else 'unknown'} kernels", end="")
    if TORCH:
        import torch

        print(f", PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", end="")
    print(f"; {args.threads} threads" + ("" if TORCH else "; PyTorch is not installed: pip install torch"))
    for workload in workloads:
        compare(workload, rounds=2 if args.quick else 8, compiled=not args.quick)
    if args.scaling and not args.quick:
        scaling(args.threads)


if __name__ == "__main__":
    main()
