"""Shards, threads and ranks compute what one worker computes: to the bit where they share a shard count, else to rounding."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from curves import BACKENDS, CONFIG, DATA, STEPS, curve
from fake_cupy import Gpus, StandIn
from gpt.config import TrainConfig
from gpt.errors import ConfigError, TrainingError
from gpt.models import MODELS
from gpt.training import checkpoint
from gpt.training.data_parallel import Workers, split
from gpt.training.distributed import SIZES, MPIGroup, NCCLGroup, SingleProcess, init_distributed, main_process_first, on_device
from gpt.training.evaluate import split_loss, train_loss
from gpt.training.step import train_step
from paths import ROOT, SUPPORT
from small import PANGRAMS, start
from tensorlite import ReferenceOps, cpu

ROWS = 6  # of one update, whatever it is split into
ROUNDING = 1e-9  # after 100 steps, in float64: they differ by 1e-13 or so, and each step carries on what the last one left


@cache
def one_worker():
    """train_step itself, on the reference."""
    train = TrainConfig(batch_size=ROWS, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    state = start(CONFIG)
    losses = [float(train_step(ReferenceOps(), MODELS["gpt"], state, DATA, CONFIG, train, 3)[0]) for _ in range(STEPS)]
    return losses, state


def assert_same_curve(losses, params):
    expected, state = one_worker()
    assert expected[0] - expected[-1] > 0.1  # it learns something: the curve is no straight line
    np.testing.assert_allclose(losses, expected, rtol=ROUNDING)
    np.testing.assert_allclose(params, state.params, atol=ROUNDING)


def more(*cases):
    """Further cases of a kind, for `make check-all`."""
    return [pytest.param(*case, marks=pytest.mark.long) for case in cases]


# ---- threads ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shards", "accumulation"), [(4, 1), (2, 2), (2, 6), *more((1, 1), (2, 1), (6, 1), (1, 2), (3, 3))])
def test_any_split_has_the_same_loss_curve(shards, accumulation, backend):
    """Four shards of six rows are uneven; six shards, and six micro-batches, are single rows."""
    losses, state, _ = curve(min(shards, ROWS // accumulation), ROWS // accumulation, accumulation, backend)
    assert_same_curve(losses, state.params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shards", [2, 4])
def test_the_bits_do_not_depend_on_the_threads(shards, backend):
    runs = [curve(shards, ROWS, 1, backend, threads) for threads in (1, 2, 3)]
    for losses, state, val in runs[1:]:
        assert losses == runs[0][0]
        assert val == runs[0][2]
        for name in ("params", "grads", "m", "v"):
            np.testing.assert_array_equal(getattr(state, name), getattr(runs[0][1], name))


def test_one_shard_is_train_step_to_the_bit():
    losses, state, _ = curve(1, ROWS, 1, "reference")
    assert losses == one_worker()[0]
    np.testing.assert_array_equal(state.params, one_worker()[1].params)


def test_shards_of_float32_agree_to_rounding():
    """As users train: in float32, on the fast backend. One gradient, before differences can grow."""
    train = TrainConfig(batch_size=ROWS, grad_clip=1.0)
    grads = []
    for shards in (1, 4):
        state = start(CONFIG, dtype=np.float32)
        Workers(cpu.CPUOps, shards, 2).train_step(MODELS["gpt"], state, DATA, CONFIG, train, 3)
        grads.append(state.grads)
        assert state.grads.dtype == np.float32
    np.testing.assert_allclose(*grads, atol=4 * np.finfo(np.float32).eps * np.abs(grads[0]).max())


def test_evaluation_does_not_depend_on_the_workers():
    """The same windows whatever the threads; the same mean to rounding whatever the shards."""
    state = start(CONFIG)
    params, model = state.table.tree(state.params), MODELS["gpt"]
    found = []
    for shards, threads in ((1, 1), (2, 1), (2, 2), (3, 2)):
        workers = Workers(cpu.CPUOps, shards, threads)
        found.append(split_loss(workers, model, params, DATA, CONFIG, 900))
        found.append(train_loss(workers, model, params, DATA, CONFIG, 5, 300, seed=1))
    np.testing.assert_allclose(found[0::2], found[0], rtol=1e-12)
    np.testing.assert_allclose(found[1::2], found[1], rtol=1e-12)
    assert found[2:4] == found[4:6]


def test_an_error_in_a_shard_is_raised_after_the_others_are_done():
    done = []

    def work(_, item):
        if item == 1:
            raise ValueError("shard 1")
        done.append(item)

    workers = Workers(ReferenceOps, 4, 2)
    with pytest.raises(ValueError, match="shard 1"):
        workers.map(work, range(4))
    assert sorted(done) == [0, 2, 3]


def test_each_gives_results_in_order_and_a_backend_one_item_at_a_time():
    workers = Workers(ReferenceOps, 3, 3)
    served = workers.map(lambda ops, item: (ops, item), range(10))
    assert [item for _, item in served] == list(range(10))
    assert [workers.backends.index(ops) for ops, _ in served] == [i % 3 for i in range(10)]


@pytest.mark.parametrize(("n", "parts"), [(6, 2), (7, 3), (2, 5), (0, 2), (10, 1)])
def test_split_covers_everything_once_and_evenly(n, parts):
    pieces = split(range(n), parts)
    assert [i for piece in pieces for i in piece] == list(range(n))
    assert len(pieces) == parts
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


# ---- ranks ----


def test_without_mpiexec_a_process_is_alone(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "1")
    ranks = init_distributed()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert on_device(ranks, np) is ranks
    assert main_process_first(ranks, lambda: 7) == 7


def test_missing_mpi4py_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ConfigError, match=r"mpiexec started 2.*\.\[mpi\]"):
        init_distributed()


def test_more_ranks_than_shards_is_a_clear_error():
    ranks = SingleProcess()
    ranks.size = 3
    with pytest.raises(ConfigError, match="set --shards 3 or more"):
        Workers(ReferenceOps, 2, 1, ranks)


def with_gpus(monkeypatch, **options):
    """CuPy of a machine with GPUs, which knows NCCL only once cupy.cuda.nccl is imported."""
    cupy = Gpus(**options).cupy
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
    return cupy


def test_nccl_that_is_not_installed_is_a_clear_error(monkeypatch):
    """CuPy's module is there all the same, and says so."""
    comm = SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 2, Split_type=lambda kind: comm, bcast=lambda value: value)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", StandIn("cupy.cuda.nccl", available=False))
    for version in (12, 13):
        cupy = with_gpus(monkeypatch, compiler=version)
        with pytest.raises(ConfigError, match=f'several GPUs need NCCL.*pip install "nvidia-nccl-cu{version}"'):
            NCCLGroup(SimpleNamespace(COMM_WORLD=comm, COMM_TYPE_SHARED=0), cupy)


def test_nccl_sums_device_arrays_and_mpi_the_rest(monkeypatch):
    """Against stand-ins of the two libraries: which buffer, of which length and type, goes where."""
    sent = []

    class Communicator:
        def __init__(self, size, unique, rank):
            assert (size, unique, rank) == (2, "id", 1)

        def allReduce(self, *args):
            sent.append(args)

    class Comm:
        def Get_rank(self):
            return 1

        def Get_size(self):
            return 2

        def Split_type(self, kind):
            return self

        def bcast(self, value):
            assert value is None  # only the first rank makes the id
            return "id"

        def Iallreduce(self, how, flat):
            sent.append((how, flat))
            return Library(Test=lambda: True)

    class Library:
        def __init__(self, **names):
            vars(self).update(names)

    mpi = Library(COMM_WORLD=Comm(), COMM_TYPE_SHARED=0, IN_PLACE="in place")
    types = {"NCCL_SUM": 0, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8}
    made = {"NcclCommunicator": Communicator, "get_unique_id": lambda: pytest.fail("rank 1")}
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", StandIn("cupy.cuda.nccl", available=True, **types, **made))
    cupy = with_gpus(monkeypatch)
    cupy.cuda.get_current_stream = lambda: StandIn("cupy.cuda.Stream", ptr=99)
    ranks = NCCLGroup(mpi, cupy)
    on_device_ = Library(data=Library(ptr=1234), size=10, dtype=np.dtype(np.float32))
    on_host = np.ones(3)
    ranks.all_reduce_(on_device_)
    ranks.all_reduce_(on_host)
    assert sent == [(1234, 1234, 10, 7, 0, 99), ("in place", on_host)]


@pytest.fixture(scope="module")
def mpiexec():
    """Start a program on two ranks; the command is what a user types."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed", exc_type=ImportError)
    beside = Path(sys.executable).parent / "mpiexec"
    command = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not command:
        pytest.skip("no mpiexec on this machine")

    def start_ranks(cwd, *programs):
        """One program for both ranks, or one for each."""
        parts = [["-n", str(2 // len(programs)), sys.executable, *map(str, program)] for program in programs]
        arguments = [word for part in parts for word in (":", *part)][1:]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(SUPPORT), str(ROOT))), "OPENBLAS_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([command, *arguments], cwd=cwd, env=environment, **pipes)

    return start_ranks


def ended(process):
    """Its exit status and what it printed."""
    stdout, stderr = process.communicate(timeout=120)
    return SimpleNamespace(returncode=process.returncode, stdout=stdout, stderr=stderr)


@pytest.mark.parametrize(("shards", "accumulation"), [(5, 1), (3, 2), *more((2, 1), (4, 1), (2, 2))])
def test_two_ranks_have_the_same_loss_curve(shards, accumulation, mpiexec, tmp_path):
    """Real processes; also uneven shards, several on a rank, and with accumulation. Both ranks end with the same bits."""
    done = ended(
        mpiexec(tmp_path, [SUPPORT / "ranks_program.py", tmp_path / "r", shards, ROWS // accumulation, accumulation, "fast"])
    )
    assert done.returncode == 0, done.stderr
    a, b = (np.load(tmp_path / f"r-{rank}.npz") for rank in (0, 1))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert_same_curve(a["losses"], a["params"])
    assert float(a["val"]) == pytest.approx(curve(shards, ROWS // accumulation, accumulation)[2], rel=ROUNDING)


SHARED = "ranks: ranks 0, 1 would share one GPU (0000:03:00.0); start one rank per GPU"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("2 3,7", "2 3,7", ("gpu 0000:03:00.0", "gpu 0000:07:00.0")),  # both see both
        ("1 3", "1 7", ("gpu 0000:03:00.0", "gpu 0000:07:00.0")),  # each sees its own
        ("2 3,7", "1 3", (SHARED, SHARED)),
        ("1 3", "1 3", (SHARED, SHARED)),
        ("1 3", "0 -", ("ranks: no CUDA on rank 1, and the others have it",) * 2),
        ("0 -", "0 -", ("cpu", "cpu")),
    ],
)
def test_each_rank_has_a_gpu_of_its_own(first, second, expected, mpiexec, tmp_path):
    """Real processes with stand-ins of CuPy and NCCL: how many devices each rank sees, and which."""
    done = ended(mpiexec(tmp_path, *([SUPPORT / "gpu_ranks_program.py", *sees.split()] for sees in (first, second))))
    assert done.returncode == 0, done.stderr
    for said, words in zip(sorted(done.stdout.splitlines()), expected, strict=True):
        assert said.startswith(words)


def test_gpus_of_two_machines_may_have_one_number(monkeypatch):
    """A number on the bus is of one machine; the second machine's is named by its first rank, 2."""
    found = [(0, "0000:03:00.0"), (0, "0000:07:00.0"), (2, "0000:03:00.0"), (2, "0000:07:00.0")]
    here = SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 2, bcast=lambda rank: rank)
    comm = SimpleNamespace(
        Get_rank=lambda: 2, Get_size=lambda: 4, Split_type=lambda kind: here, allgather=lambda own: found, bcast=lambda value: b"id"
    )
    made = {"NcclCommunicator": lambda *own: own, "get_unique_id": lambda: pytest.fail("rank 2")}
    types = {"NCCL_SUM": 0, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8}
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", StandIn("cupy.cuda.nccl", available=True, **types, **made))
    cupy = with_gpus(monkeypatch, count=2)
    ranks = MPIGroup(SimpleNamespace(COMM_WORLD=comm, COMM_TYPE_SHARED=0))
    assert (ranks.rank, ranks.local_rank) == (2, 0)
    assert on_device(ranks, cupy).nccl == (4, b"id", 2)
    found[3] = found[2]
    with pytest.raises(ConfigError, match=r"^ranks: ranks 2, 3 would share one GPU \(0000:03"):
        on_device(ranks, cupy)


SMALL = ["--preset", "layernorm", "--n-layer", "2", "--n-embd", "8", "--n-head", "2", "--batch-size", "4", "--eval-batches", "2"]
TRAIN = [ROOT / "train.py", *SMALL, "--max-iters", "20", "--eval-interval", "10", "--out", "run"]


def test_train_on_two_ranks_prints_and_writes_once_and_resumes(mpiexec, tmp_path):
    (tmp_path / "text.txt").write_text(PANGRAMS)
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "text.txt"]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 10: train loss") == 1
    assert done.stdout.count("done: step 20") == 1
    assert "over 2 ranks" in done.stdout
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.name[0] != ".") == [
        "best.safetensors",
        "last.safetensors",
        "loss.png",
        "metrics.jsonl",
    ]
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--resume", "--max-iters", "30"]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: step 30") == 1


def test_an_error_on_one_rank_ends_all(mpiexec, tmp_path):
    """The second rank has another text's name wrong; the first would wait for it for ever."""
    (tmp_path / "text.txt").write_text(PANGRAMS)
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "text.txt"], [*TRAIN, "--data", "missing.txt"]))
    assert done.returncode != 0
    assert "error: missing.txt: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_to_one_rank_stops_all_at_the_same_step(mpiexec, tmp_path):
    """What it had is saved, and a resumed run goes on from it."""
    (tmp_path / "text.txt").write_text(PANGRAMS)
    process = mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--max-iters", "100000"])
    deadline = time.time() + 60
    while not (tmp_path / "run" / "last.safetensors").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / "run" / ".lock").read_text()), signal.SIGINT)  # the first rank's number
    done = ended(process)
    assert done.returncode != 0
    assert "go on with: mpiexec -n 2 " in done.stdout
    assert "Traceback" not in done.stderr
    stopped = checkpoint.load(tmp_path / "run" / "last.safetensors").step
    assert f"stopped at step {stopped}" in done.stdout
    process = mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--resume", "--max-iters", str(stopped + 5)])
    assert f"done: step {stopped + 5}" in ended(process).stdout


def test_a_mistake_that_all_ranks_make_is_said_once(mpiexec, tmp_path):
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "missing.txt"]))
    assert done.returncode != 0
    assert done.stderr.count("error: missing.txt: no such file") == 1


OTHERS = {
    "rank 1 has the text": ["--data", "b.txt"],
    "rank 1 has seed 5, rank 0 1337": ["--seed", "5"],
    "rank 1 has max_iters 21, rank 0 20": ["--max-iters", "21"],
    "rank 1 has n_embd 16, rank 0 8": ["--n-embd", "16"],
    "rank 1 has backend reference": ["--backend", "reference"],
    "rank 1 has --profile True, rank 0 False": ["--profile"],
    "rank 1 cannot read its command line": ["--nonsense"],
}
DEFAULT = ("rank 1 has the text", "rank 1 cannot read its command line")


@pytest.mark.parametrize("words", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in OTHERS])
def test_ranks_that_differ_say_in_what_before_the_first_step(words, mpiexec, tmp_path):
    """All ranks end, and nothing has been written."""
    for name, text in (("a", PANGRAMS), ("b", PANGRAMS.upper())):
        (tmp_path / f"{name}.txt").write_text(text)
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "a.txt"], [*TRAIN, "--data", "a.txt", *OTHERS[words]]))
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_text_that_can_be_read_only_once_is_refused(mpiexec, tmp_path):
    """Each rank would read a part of it, or wait for ever."""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for data in ("-", "pipe") if hasattr(os, "mkfifo") else ("-",):
        done = ended(mpiexec(tmp_path, [*TRAIN, "--data", data]))
        assert done.returncode != 0
        assert f"error: data {data} can be read only once" in done.stderr


@pytest.mark.long
def test_ranks_with_different_checkpoints_say_so(mpiexec, tmp_path):
    """Two folders of the same name, as on two machines: one is a run, the other its copy of some steps before."""
    for name, steps in (("a", "20"), ("b", "10")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(PANGRAMS)
        alone = [sys.executable, *map(str, TRAIN), "--data", "text.txt", "--max-iters", steps, "--shards", "2"]
        subprocess.run(alone, cwd=tmp_path / name, check=True, capture_output=True)
    command = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    resume = [TRAIN[0], "--resume", "--data", "text.txt", "--out", "run", "--max-iters", "30"]
    done = ended(mpiexec(tmp_path, *(["-c", command, name, *resume] for name in ("a", "b"))))
    assert done.returncode != 0
    assert "rank 1 has the checkpoint" in done.stderr
    assert "at step 10, rank 0" in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.long)])
def test_a_rank_that_waits_for_one_that_hangs_is_ended_by_signals(name, mpiexec, tmp_path):
    """Rank 1 is stopped in its tracks; rank 0, which waits for it, notes the first signal and obeys the second."""
    (tmp_path / "text.txt").write_text(PANGRAMS)
    started = time.time()
    process = mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--max-iters", "1000000"])
    while not (tmp_path / "run" / "last.safetensors").exists() and time.time() < started + 60:
        time.sleep(0.05)
    first = int((tmp_path / "run" / ".lock").read_text())
    (other,) = [pid for pid in children(process.pid) if pid != first]
    os.kill(other, signal.SIGSTOP)
    try:
        for _ in range(2):
            time.sleep(0.5)
            os.kill(first, getattr(signal, name))
        deadline = time.time() + 10
        while running(first) and time.time() < deadline:
            time.sleep(0.05)
        assert not running(first)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)
        ended(process)


def children(pid):
    """The Python processes below a process, on Linux."""
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list a process's children")
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child] if "python" in Path(f"/proc/{child}/comm").read_text() else children(child)
    return found


def running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_rank_that_was_asked_to_stop_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr("gpt.training.distributed.PATIENCE", 0.05)
    ranks = object.__new__(MPIGroup)
    ranks.rank, ranks.mpi = 0, SimpleNamespace(IN_PLACE="in place")
    ranks.comm = SimpleNamespace(Iallreduce=lambda how, flat: SimpleNamespace(Test=lambda: False))
    ranks.asked_to_stop = lambda: True
    with pytest.raises(TrainingError, match="rank 0 was asked to stop and has waited"):
        ranks.all_reduce_(np.zeros(1))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, r"srun started 4, mpi4py sees 1: .*do not see each other.*srun --mpi="),
        ({"PMIX_RANK": "2"}, r"PMIx started 3, mpi4py sees 1: .*do not see each other"),
        ({"PMI_SIZE": "2"}, r"mpiexec started 2, mpi4py sees 1: .*use the mpiexec that came with"),
    ],
)
def test_processes_that_do_not_see_each_other_say_so(environment, words, monkeypatch):
    stand_in = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: 1)))
    monkeypatch.setitem(sys.modules, "mpi4py", stand_in)
    for name in (*SIZES, "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        init_distributed()


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_STEP_NUM_TASKS": "1"}, {"PMIX_RANK": "0"}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}]
)
def test_a_process_that_was_started_alone_is_alone(environment, monkeypatch):
    """Within the script of a batch job too, which has the job's size and not a step's."""
    stand_in = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: 1)))
    monkeypatch.setitem(sys.modules, "mpi4py", stand_in)
    for name in (*SIZES, "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(init_distributed()) is SingleProcess


def test_what_pmix_started_is_what_mpi_sees(monkeypatch):
    """Its processes know their rank alone, and MPI how many they are."""
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: 4))))
    monkeypatch.setattr("gpt.training.distributed.MPIGroup", lambda mpi: "four ranks")
    for name in SIZES:
        monkeypatch.delenv(name, raising=False)
    for rank in ("0", "3"):
        monkeypatch.setenv("PMIX_RANK", rank)
        assert init_distributed() == "four ranks"


@pytest.mark.long
def test_only_the_first_rank_needs_the_log(mpiexec, tmp_path):
    """As on two machines without a common disk: the second one has the checkpoint, and no metrics.jsonl."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(PANGRAMS)
    alone = [sys.executable, *map(str, TRAIN), "--data", "text.txt", "--shards", "2"]
    subprocess.run(alone, cwd=tmp_path / "a", check=True, capture_output=True)
    (tmp_path / "b" / "run").mkdir()
    shutil.copy(tmp_path / "a" / "run" / "last.safetensors", tmp_path / "b" / "run")
    command = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    resume = [TRAIN[0], "--resume", "--data", "text.txt", "--out", "run", "--max-iters", "30"]
    done = ended(mpiexec(tmp_path, *(["-c", command, name, *resume] for name in ("a", "b"))))
    assert done.returncode == 0, done.stderr
    assert "done: step 30" in done.stdout
