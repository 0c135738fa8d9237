"""Ranks: how they are found, which GPU each one takes, how arrays are summed, and what is refused."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fake_cupy import Gpus, StandIn
from gpt.errors import ConfigError, TrainingError
from gpt.training.distributed import (
    WORLD_SIZE_VARIABLES,
    MPIGroup,
    NCCLGroup,
    SingleProcess,
    init_distributed,
    main_process_first,
    on_device,
)
from paths import SUPPORT
from processes import ended


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
            return Library(Test=iter([True]).__next__)

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


class Clock:
    """A time that passes as it is read, 20 ms each time, and during a sleep."""

    def __init__(self):
        self.now, self.naps = 1000.0, []

    def monotonic(self):
        self.now += 0.02
        assert self.now < 1100, "it waits for ever"
        return self.now

    def sleep(self, seconds):
        self.naps.append((self.now - 1000, seconds))
        self.now += max(seconds, 0.5)


def waiting_rank(monkeypatch, done_after_s, asked_after_s):
    clock, ranks = Clock(), object.__new__(MPIGroup)
    monkeypatch.setattr("gpt.training.distributed.time", clock)
    request = SimpleNamespace(Test=lambda: clock.monotonic() - 1000 > done_after_s)
    ranks.rank, ranks.mpi = 0, SimpleNamespace(IN_PLACE="in place")
    ranks.comm = SimpleNamespace(Iallreduce=lambda how, flat: request)
    ranks.asked_to_stop = lambda: clock.now - 1000 > asked_after_s
    return ranks, clock


@pytest.mark.parametrize("asked_after_s", [0, 40])
def test_a_rank_that_was_asked_to_stop_does_not_wait_for_ever(asked_after_s, monkeypatch):
    ranks, clock = waiting_rank(monkeypatch, 1e9, asked_after_s)
    with pytest.raises(TrainingError, match=rf"^ranks: rank 0 was asked to stop and has waited {asked_after_s or 30}.* s for"):
        ranks.all_reduce_(np.zeros(1))
    assert max(30, asked_after_s) < clock.now - 1000 < max(30, asked_after_s) + 1


def test_a_rank_waits_as_long_as_it_takes_and_sleeps_after_a_moment(monkeypatch):
    """Ranks are hardly ever further apart than 0.1 s: until then it looks without a pause, and then takes short naps."""
    for done_after_s, asked_after_s in ((50, 1e9), (20, 10)):
        ranks, clock = waiting_rank(monkeypatch, done_after_s, asked_after_s)
        ranks.all_reduce_(np.zeros(1))
        assert done_after_s < clock.now - 1000 < done_after_s + 1
        assert 0.1 < clock.naps[0][0] < 0.2
        assert {seconds for _, seconds in clock.naps} <= {0.001}


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
    for name in (*WORLD_SIZE_VARIABLES, "PMIX_RANK"):
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
    for name in (*WORLD_SIZE_VARIABLES, "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(init_distributed()) is SingleProcess


def test_what_pmix_started_is_what_mpi_sees(monkeypatch):
    """Its processes know their rank alone, and MPI how many they are."""
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: 4))))
    monkeypatch.setattr("gpt.training.distributed.MPIGroup", lambda mpi: "four ranks")
    for name in WORLD_SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for rank in ("0", "3"):
        monkeypatch.setenv("PMIX_RANK", rank)
        assert init_distributed() == "four ranks"
