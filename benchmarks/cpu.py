"""The CPU backends against PyTorch on this machine, all in one run, taking turns.

    python benchmarks/cpu.py [--quick] [--presets laptop shakespeare] [--threads 2] [--no-scaling]

For each preset (shakespeare at batch 8): a training step, evaluation and generation of the reference, the fast backend and PyTorch
(eager, and torch.compile), with medians and the 10th to 90th percentile; the matmuls of a step alone, the floor of them
all; and peak memory. Then how time and memory of the fast backend grow. PyTorch is optional: pip install torch.
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
from typing import Any

import numpy as np
import tyro
from threadpoolctl import threadpool_info, threadpool_limits

from gpt.analysis.cost import estimate_cost
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
    """Under a minute: laptop only, few rounds, no torch.compile, no scaling."""
    presets: tuple[str, ...] = ("laptop", "shakespeare")
    threads: int = 2
    scaling: bool = True
    """Also measure how a step grows with batch, context, width, layers and threads."""
    rank_of: bool = False
    """Used by the script itself: be a rank of the preset, and make steps as asked."""
    memory_of: str | None = None
    """Used by the script itself: print the peak memory of one implementation, preset given, and end."""


@dataclass
class Workload:
    """One configuration, and what each implementation makes of it."""

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
        """As train.py makes them: reference with one shard and BLAS threads, fast with a shard a thread or rank."""
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

        def written(prompt: np.ndarray, n: int, cached: bool = True) -> Iterator[int]:
            return generate(workers.ops, model, table.tree(state.params), prompt, n, self.config, cached=cached)

        blas = self.threads if workers.shards == 1 else 1
        return Implementation(
            backend, step, evaluation, {"cached": written, "uncached": lambda p, n: written(p, n, False)}, blas, self.threads
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

        def written(loop: Callable) -> Callable:
            return lambda prompt, n: loop(model, torch.from_numpy(prompt)[None], n, self.config)

        loops = {"uncached": written(baseline.generate), "cached": written(baseline.generate_cached)}
        return Implementation("torch.compile" if compiled else "PyTorch eager", step, evaluation, {} if compiled else loops, 1, 1)

    def implementation(self, name: str) -> "Implementation":
        return self.ours(name) if name in ("reference", "fast") else self.torch(name == "torch.compile")

    def matmuls_alone(self) -> Callable[[], None]:
        """The matmuls of one step and nothing else: each thread makes those of its share of the rows."""
        c, H = self.config, self.config.n_head
        C, T, D, V = c.n_embd, c.block_size, c.n_embd // c.n_head, c.vocab_size
        random = np.random.default_rng(0)

        def matrix(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, np.float32)

        def shard(rows: int) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
            N, jobs = rows * T, []
            for times, i, o in ((c.n_layer, C, 3 * C), (c.n_layer, C, C), (c.n_layer, C, 4 * C), (c.n_layer, 4 * C, C), (1, C, V)):
                x, w, y = matrix(N, i), matrix(i, o), matrix(N, o)
                jobs += [(times, x, w, np.empty_like(y)), (times, y, w.T, np.empty_like(x)), (times, x.T, y, np.empty_like(w))]
            q, s = matrix(rows, H, T, D), matrix(rows, H, T, T)
            kt, st = q.transpose(0, 1, 3, 2), s.transpose(0, 1, 3, 2)
            jobs += [(2 * c.n_layer, q, kt, np.empty_like(s)), (2 * c.n_layer, s, q, np.empty_like(q))]
            return [*jobs, (2 * c.n_layer, st, q, np.empty_like(q))]

        shards = [shard(len(rows)) for rows in split_evenly(range(self.train.batch_size), self.threads)]
        pool = ThreadPoolExecutor(self.threads)

        def multiply(jobs: list) -> None:
            for times, a, b, out in jobs:
                for _ in range(times):
                    np.matmul(a, b, out=out)

        return lambda: list(pool.map(multiply, shards)) and None


@dataclass
class Implementation:
    """Functions to time; each with the number of threads that NumPy's BLAS may use meanwhile."""

    name: str
    step: Callable[[], float]
    evaluation: Callable[[], float]
    writers: dict[str, Callable[[np.ndarray, int], Iterator[int]]]
    blas_threads: int  # in training and evaluation
    writing_threads: int  # in generation


def timed(work: Callable[[], Any], blas_threads: int) -> float:
    """Seconds of one call."""
    with threadpool_limits(blas_threads, user_api="blas"):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


WARM_UP = 3  # calls that are not counted at the start of a turn: the caches hold another's data
Turn = Callable[[int], list[float]]  # make so many calls, after those that warm up; the seconds of each


def turn(work: Callable[[], Any], blas_threads: int) -> Turn:
    """A turn of calls in this process."""

    def calls(n: int) -> list[float]:
        return [timed(work, blas_threads) for _ in range(WARM_UP + n)][WARM_UP:]

    return calls


def interleaved_timing(turns: dict[str, Turn], rounds: int, each: int) -> dict[str, list[float]]:
    """Times of all: rounds of each calls, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, calls in turns.items():
            times[name] += calls(each)
    return times


class Ranks:
    """The fast backend on processes of an mpiexec, one thread and one shard each: this script with --rank-of, asked for steps."""

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
    """What a rank does: wait (asleep, for the others are being timed), make as many steps as asked, tell their times."""
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


def table(title: str, times: dict[str, list[float]], unit: str, per_call: float, against: tuple[str, ...]) -> None:
    """Print medians, spread, rate, and how many times faster than some of the rows each row is."""
    ratios = [name for name in against if name in times]
    print(f"\n{title}")
    print(f"{'':18}{'ms':>9}{'10 to 90 %':>18}{unit:>14}" + "".join(f"{'x ' + name:>17}" for name in ratios))
    for name, found in times.items():
        median, (low, high) = statistics.median(found), np.quantile(found, [0.1, 0.9])
        times_faster = "".join(f"{statistics.median(times[other]) / median:17.2f}" for other in ratios)
        spread = f"{low * 1e3:.1f} to {high * 1e3:.1f}"
        print(f"{name:18}{median * 1e3:9.1f}{spread:>18}{per_call / median:14,.0f}{times_faster}")


def compare(workload: Workload, rounds: int, compiled: bool) -> None:
    """One preset: training, evaluation, generation, memory."""
    names = ["reference", "fast"] + ["PyTorch eager"] * TORCH + ["torch.compile"] * (TORCH and compiled)
    implementations = [workload.implementation(name) for name in names]
    c, train = workload.config, workload.train
    shape = f"{c.n_layer} layers, {c.n_embd} channels, context {c.block_size}, batch {train.batch_size}"
    print(f"\n=== {workload.name}: {shape}, dropout {c.dropout}, {workload.threads} threads ===")
    each = 20 if workload.name == "laptop" else 3
    against = ("PyTorch eager", "torch.compile")

    turns: dict[str, Turn] = {impl.name: turn(impl.step, impl.blas_threads) for impl in implementations}
    ranks = Ranks(workload) if MPI and workload.threads > 1 else None
    if ranks:
        turns[f"fast, {workload.threads} ranks"] = ranks
    turns["matmuls alone"] = turn(workload.matmuls_alone(), 1)
    table("training step", interleaved_timing(turns, rounds, each), "tokens/s", workload.tokens, (*against, "matmuls alone"))
    if ranks:
        ranks.end()

    turns = {impl.name: turn(impl.evaluation, impl.blas_threads) for impl in implementations}
    table("evaluation", interleaved_timing(turns, max(2, rounds // 3), 1), "tokens/s", EVAL_BATCHES * workload.tokens, against)

    T = c.block_size
    for title, prompt, n in (("generation, within the context", 1, T - 1), ("generation, beyond the context", T, 30)):
        turns = {}
        for impl in implementations:
            for kind, writer in impl.writers.items():
                if prompt == 1 or kind == "uncached":  # beyond the context there is nothing to keep
                    start = workload.data[:prompt]
                    name = f"{impl.name.split()[0]} {kind}"
                    turns[name] = turn(lambda w=writer, s=start, n=n: list(w(s, n)), impl.writing_threads)
        times = interleaved_timing(turns, max(2, rounds // 2), 1)
        table(f"{title}: {n} tokens from a prompt of {prompt}", times, "tokens/s", n, ("PyTorch uncached", "PyTorch cached"))

    print("\npeak memory of a process that trains 3 steps, above what it takes to import its libraries")
    for name in names:
        command = [sys.executable, __file__, "--memory-of", name, "--presets", workload.name, "--threads", str(workload.threads)]
        print(f"{name:18}{subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip():>9} MiB")


def memory_of(workload: Workload, name: str) -> float:
    """MiB at the highest point of three steps, less those before the implementation was made."""
    if name not in ("reference", "fast"):
        import torch
        import torch_baseline  # noqa: F401  (counted as imported)

        torch.ones(1)
    before = peak_rss()
    impl = workload.implementation(name)
    for _ in range(3):
        timed(impl.step, impl.blas_threads)
    return peak_rss() - before


def peak_rss() -> float:
    """MiB that this program held at most. (Linux's ru_maxrss would count the process that started it.)"""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def scaling(threads: int) -> None:
    """How a step of the fast backend grows when one thing does: fitted exponents beside those of the counted FLOPs and bytes."""
    base = ModelConfig(vocab_size=65, block_size=128, n_layer=4, n_head=4, n_embd=256)
    start = TrainConfig(batch_size=8)
    print("\n=== how a step of the fast backend grows (4 layers, 256 channels, context 128, batch 8, one thing changed) ===")
    print("exponent: of time or bytes as a power of the thing that grows, fitted; counted: of FLOPs, of the estimated bytes")
    print(f"{'what':9}{'values':>20}{'ms':>34}{'exponent':>10}{'counted':>9}{'MiB':>30}{'exponent':>10}{'counted':>9}")
    for what, values in {
        "batch": (4, 8, 16, 32),
        "context": (64, 128, 256, 512),
        "width": (128, 256, 512, 1024),
        "layers": (2, 4, 8, 16),
        "threads": tuple(n for n in (1, 2, 4, 8, 16) if n <= threads),
    }.items():
        ms, mib, flops, counted = [], [], [], []
        for value in values:
            fields = {"context": "block_size", "width": "n_embd", "layers": "n_layer"}
            config = override(base, {fields[what]: value}) if what in fields else base
            train = override(start, {"batch_size": value}) if what == "batch" else start
            workload = Workload("", config, train, value if what == "threads" else threads)
            impl = workload.ours("fast")
            timed(impl.step, 1)
            ms.append(min(timed(impl.step, 1) for _ in range(5)) * 1e3)
            shards = min(workload.threads, train.batch_size)
            cost = estimate_cost(config, override(train, {"shards": shards}), CPUOps.op_table)
            flops.append(cost.flops)
            counted.append(cost.peak_bytes)
            mib.append(peak_of(workload))
        numbers = [slope(values, column) for column in (ms, flops, mib, counted)]
        if what == "threads":
            numbers[1] = -1.0  # the same work on more hands
        print(
            f"{what:9}{' '.join(map(str, values)):>20}{' '.join(f'{x:.0f}' for x in ms):>34}{numbers[0]:10.2f}{numbers[1]:9.2f}"
            f"{' '.join(f'{x:.0f}' for x in mib):>30}{numbers[2]:10.2f}{numbers[3]:9.2f}"
        )


def peak_of(workload: Workload) -> float:
    """Peak memory of a process of its own that makes three steps of a configuration."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cpu; from gpt.config import ModelConfig, TrainConfig;"
        f"print(cpu.memory_of(cpu.Workload('', {workload.config!r}, {workload.train!r}, {workload.threads}), 'fast'))"
    )
    command = [sys.executable, "-c", program, __file__.rpartition("/")[0] or "."]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """b of the least-squares fit y = a x^b."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else float("nan")


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
