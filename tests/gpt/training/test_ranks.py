"""Ranks as threads of this process: what they agree on, how they wait, what they compute together."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from fake_cupy import Gpus, StandIn
from gpt.config import TrainConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.training.data_parallel import Stopped, Workers
from gpt.training.distributed import FACTS_BYTES, MPIGroup, NCCLGroup, agree, init_distributed, main_process_first, on_device
from gpt.training.evaluate import split_loss, train_loss
from gpt.training.step import Task
from small import config_of, start
from tensorlite import ReferenceOps
from thread_ranks import on_ranks

ONE_MACHINE = [[0, 1, 2]]


def test_ranks_know_their_places_and_sum_in_place():
    def work(mpi):
        ranks, flat = MPIGroup(mpi), np.arange(3.0)
        flat += ranks.rank
        ranks.all_reduce_(flat)
        return (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size), flat.tolist()

    places = [(0, 3, 0, 2), (1, 3, 1, 2), (2, 3, 0, 1)]
    assert on_ranks(work, [[0, 1], [2]]) == [(place, [3.0, 6.0, 9.0]) for place in places]


def test_an_abort_ends_all_ranks_with_its_status():
    ended = []

    def work(mpi):
        mpi.COMM_WORLD.Abort = ended.append
        MPIGroup(mpi).abort(3)

    on_ranks(work, [[0]])
    assert ended == [3]


def test_ranks_that_differ_say_in_what():
    """Every rank says the same: each fact that differs from the first rank's, or that one of them lacks."""

    facts = [{"a": 1, "b": "x", "c": 5}, {"a": 1, "b": "x", "c": 5}, {"a": 2, "b": "x", "d": "é"}]
    errors = on_ranks(lambda mpi: agree(MPIGroup(mpi), facts[mpi.COMM_WORLD.rank]), ONE_MACHINE)
    assert {type(error) for error in errors} == {ConfigError}
    differences = "rank 2 has a 2, rank 0 1; rank 2 has c None, rank 0 5; rank 2 has d é, rank 0 None"
    assert {str(error) for error in errors} == {f"ranks: {differences}; start all of them alike"}


@pytest.mark.parametrize("machines", [[[0, 1]], [[0], [1]]])
def test_two_ranks_compare_as_three_do(machines):
    found = on_ranks(lambda mpi: agree(MPIGroup(mpi), {"steps": 7 + mpi.COMM_WORLD.rank}), machines)
    assert [str(error) for error in found] == ["ranks: rank 1 has steps 8, rank 0 7; start all of them alike"] * 2


def test_ranks_that_agree_go_on_however_long_the_facts():
    facts = {"data": "z" * (FACTS_BYTES - len('{"data": ""}'))}
    assert on_ranks(lambda mpi: agree(MPIGroup(mpi), facts), ONE_MACHINE) == [None] * 3
    assert on_ranks(lambda mpi: agree(MPIGroup(mpi), facts), [[0]]) == [None]


def test_the_first_rank_works_first_and_all_go_on_together():
    events = []

    def work(mpi):
        ranks = MPIGroup(mpi)

        def fetch():
            events.append(("begins", ranks.rank))
            events.append(("ends", ranks.rank))
            return 10 * ranks.rank

        found = main_process_first(ranks, fetch)
        events.append(("goes on", ranks.rank))
        return found

    assert on_ranks(work, ONE_MACHINE) == [0, 10, 20]
    assert events[:2] == [("begins", 0), ("ends", 0)]
    assert {what for what, _ in events[2:6]} == {"begins", "ends"}
    assert {what for what, _ in events[6:]} == {"goes on"}
    assert len(events) == 9


class World(SimpleNamespace):
    def Get_size(self):
        return self.size


@pytest.mark.parametrize(
    ("variables", "seen", "found"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2, "group"),
        ({"MV2_COMM_WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": "3"}, 3, "group"),
        ({"PMI_SIZE": "2"}, 3, r"mpiexec started 2, mpi4py sees 3: .*; use the mpiexec that came with [^,]*$"),
        ({"SLURM_STEP_NUM_TASKS": "3"}, 2, r"srun started 3, mpi4py sees 2: .*; use the mpiexec .*, or srun --mpi="),
        ({"PMIX_RANK": "0"}, 1, "alone"),
        ({"PMIX_RANK": "1"}, 2, "group"),
        ({"PMIX_RANK": "0"}, 2, "group"),
        ({"PMIX_RANK": "x"}, 2, "alone"),
        ({"PMIX_RANK": "0"}, None, "alone"),  # there is no MPI library
        ({"PMIX_RANK": "1"}, None, r"PMIx started 2, but mpi4py cannot be used \(cannot load MPI library\)"),
    ],
)
def test_what_the_launcher_says_is_compared_with_what_mpi_sees(variables, seen, found, monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    class Mpi4py:
        @property
        def MPI(self):
            if seen is None:
                raise RuntimeError("cannot load MPI library")
            return SimpleNamespace(COMM_WORLD=World(size=seen))

    monkeypatch.setitem(sys.modules, "mpi4py", Mpi4py())
    monkeypatch.setattr("gpt.training.distributed.MPIGroup", lambda mpi: ("group", mpi.COMM_WORLD.size))
    if found == "group":
        assert init_distributed() == ("group", seen)
    elif found == "alone":
        assert init_distributed().size == 1
    else:
        with pytest.raises(ConfigError, match=found):
            init_distributed()


def library_of(bus):
    """NumPy, or a CuPy whose current device has this number on the bus."""
    return np if bus is None else SimpleNamespace(cuda=SimpleNamespace(Device=lambda: SimpleNamespace(pci_bus_id=bus)))


@pytest.mark.parametrize(
    ("machines", "buses", "said"),
    [
        ([[0, 1]], (None, None), None),
        ([[0, 1], [2]], ("03", None, "03"), "ranks: no CUDA on rank 1, and the others have it"),
        ([[0, 1], [2]], (None, "03", None), "ranks: no CUDA on ranks 0, 2, and the others have it"),
        ([[0, 1], [2]], ("03", "03", "03"), "ranks: ranks 0, 1 would share one GPU (03)"),
        ([[0, 1], [2]], ("03", "07", "03"), "nccl"),
    ],
)
def test_each_rank_on_a_gpu_of_its_own_or_none(machines, buses, said, monkeypatch):
    monkeypatch.setattr("gpt.training.distributed.NCCLGroup", lambda mpi, xp: f"nccl {xp.cuda.Device().pci_bus_id}")

    def work(mpi):
        ranks = MPIGroup(mpi)
        found = on_device(ranks, library_of(buses[ranks.rank]))
        return None if found is ranks else found

    found = on_ranks(work, machines)
    if said == "nccl":
        assert found == [f"nccl {bus}" for bus in buses]
    else:
        assert [None if error is None else str(error)[: len(said)] for error in found] == [said] * len(buses)


def test_nccl_gets_one_id_for_all_ranks_and_the_type_of_the_array(monkeypatch):
    made, sums = [], []

    class Communicator:
        def __init__(self, size, unique, rank):
            made.append((size, unique, rank))

        def allReduce(self, *arguments):
            sums.append(arguments)

    types = {"NCCL_SUM": 0, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8}
    ids = iter(["only id"])
    nccl = StandIn("cupy.cuda.nccl", available=True, NcclCommunicator=Communicator, get_unique_id=lambda: next(ids), **types)
    cupy = Gpus().cupy
    cupy.cuda.get_current_stream = lambda: StandIn("cupy.cuda.Stream", ptr=99)
    for name, module in {"cupy": cupy, "cupy.cuda": cupy.cuda, "cupy.cuda.nccl": nccl}.items():
        monkeypatch.setitem(sys.modules, name, module)

    def work(mpi):
        flat = SimpleNamespace(data=SimpleNamespace(ptr=12), size=5, dtype=np.dtype(np.float64))
        NCCLGroup(mpi, cupy).all_reduce_(flat)

    on_ranks(work, [[0, 1]])
    assert sorted(made) == [(2, "only id", 0), (2, "only id", 1)]
    assert sums == [(12, 12, 5, 8, 0, 99)] * 2


def test_what_cupy_warns_of_nccl_is_said_once_as_an_error(monkeypatch):
    """It warns as its module is imported, and knows no more than the error does."""

    class Cuda:
        @property
        def nccl(self):
            warnings.warn("NCCL is not there", UserWarning, stacklevel=1)
            return StandIn("cupy.cuda.nccl", available=False)

    cupy = Gpus(compiler=12).cupy
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", Cuda())
    (error,) = on_ranks(lambda mpi: NCCLGroup(mpi, cupy), [[0]])
    assert str(error).endswith('pip install "nvidia-nccl-cu12"')
    assert isinstance(error, ConfigError)


CONFIG = config_of("gpt", dropout=0.2)
DATA = np.arange(400) ** 2 % CONFIG.vocab_size
TRAIN = TrainConfig(
    batch_size=4, gradient_accumulation_steps=2, shards=4, learning_rate=0.01, min_lr=0.001, grad_clip=0.1, eval_batches=150
)


def trained(mpi=None, threads=2):
    """Three steps on these ranks: losses and norms, parameters, losses of evaluations."""
    workers = Workers(ReferenceOps, 4, threads, MPIGroup(mpi) if mpi else None)
    task, state = Task(MODELS["gpt"], CONFIG, TRAIN, DATA, seed=3), start(CONFIG)
    steps = [workers.train_step(task, state) for _ in range(3)]
    params = state.table.tree(state.params)
    return steps, state.params, [split_loss(workers, task, params, DATA), train_loss(workers, task, params)]


def test_ranks_compute_what_one_rank_does():
    steps, params, evaluations = trained()
    for found in on_ranks(trained, [[0, 1], [2]]):
        np.testing.assert_allclose(found[0], steps, rtol=1e-9)
        np.testing.assert_allclose(found[1], params, atol=1e-9)
        np.testing.assert_allclose(found[2], evaluations, rtol=1e-9)


def test_ranks_decide_by_what_all_of_them_know():
    def work(mpi):
        workers = Workers(ReferenceOps, 3, 1, MPIGroup(mpi))
        rank = workers.ranks.rank
        known = workers.sum([1.0, rank]), workers.any(rank == 1), workers.any(False), workers.mean(1.0 + rank)
        return known, workers.map_over_ranks(lambda ops, item: 10.0 * item, range(7))

    assert on_ranks(work, ONE_MACHINE) == [(([3.0, 3.0], True, False, 2.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0])] * 3


def test_one_rank_that_is_asked_to_stop_stops_all():
    """It leaves what it has not begun; the others finish theirs, and get no result either."""
    done = []

    def work(mpi):
        workers = Workers(ReferenceOps, 3, 1, MPIGroup(mpi))
        rank = workers.ranks.rank
        workers.ranks.asked_to_stop = lambda: rank == 1 and (1, 4) in done
        workers.map_over_ranks(lambda ops, item: done.append((rank, item)) or 1.0, range(9))

    assert [type(error) for error in on_ranks(work, ONE_MACHINE)] == [Stopped] * 3
    assert sorted(done) == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (2, 6), (2, 7), (2, 8)]
