"""The processes of one run, on one machine or many: started together, each with a share of every batch.

All that training needs of them is three things: which one am I, how many are we, and the sum of an array over all of us.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from gpt.errors import ConfigError, TrainingError

INSTALL = 'pip install -e ".[mpi]"'
SIZES = {  # where a launcher says how many processes it started
    "OMPI_COMM_WORLD_SIZE": "mpiexec",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpiexec",
    "SLURM_STEP_NUM_TASKS": "srun",
}
PMIX = "PMIx"
PATIENCE = 30.0  # seconds: so long a rank that was asked to stop waits for the others, which may be writing a checkpoint
SPIN = 0.1  # seconds without a pause between two looks: ranks are hardly ever further apart
FACTS_BYTES = 8192  # of a rank's facts, as JSON

Result = TypeVar("Result")


class SingleProcess:
    """A run of one process. The command line also asks which of how many ranks of this machine I am, and to end them all."""

    rank, size, local_size, local_rank = 0, 1, 1, 0
    asked_to_stop: Callable[[], bool] = staticmethod(lambda: False)

    def all_reduce_(self, flat: Any) -> None:
        """Replace the array by its sum over the ranks, in place."""

    def abort(self, status: int) -> None:
        """End all ranks at once."""


class MPIGroup(SingleProcess):
    """The processes that an mpiexec started; NumPy arrays are summed by MPI."""

    def __init__(self, mpi: Any) -> None:
        self.mpi, self.comm = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.here = self.comm.Split_type(mpi.COMM_TYPE_SHARED)  # the ranks of this machine
        self.local_size, self.local_rank = self.here.Get_size(), self.here.Get_rank()

    def all_reduce_(self, flat: Any) -> None:
        """Raises TrainingError when this rank was asked to stop and the others have not come for PATIENCE seconds.

        Python looks whether the sum is done, so that it acts on signals meanwhile: it could not within one long call of MPI's.
        """
        request, start = self.comm.Iallreduce(self.mpi.IN_PLACE, flat), time.monotonic()
        while not request.Test():
            waited = time.monotonic() - start
            if waited > PATIENCE and self.asked_to_stop():
                raise TrainingError(
                    f"ranks: rank {self.rank} was asked to stop and has waited {waited:.0f} s for the others; all end"
                )
            if waited > SPIN:
                time.sleep(0.001)

    def abort(self, status: int) -> None:
        self.comm.Abort(status)


class NCCLGroup(MPIGroup):
    """One GPU a rank: CuPy arrays are summed by NCCL from one device's memory to another's, the rest by MPI."""

    def __init__(self, mpi: Any, cupy: Any) -> None:
        super().__init__(mpi)
        with warnings.catch_warnings(action="ignore"):  # CuPy's, of what the next lines say
            from cupy.cuda import nccl  # an attribute of cupy.cuda only once it is imported
        if not nccl.available:
            major = cupy.cuda.runtime.runtimeGetVersion() // 1000
            raise ConfigError(f'ranks: several GPUs need NCCL, and CuPy finds none; on Linux: pip install "nvidia-nccl-cu{major}"')
        self.stream = cupy.cuda.get_current_stream
        self.add, self.types = nccl.NCCL_SUM, {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        unique = self.comm.bcast(nccl.get_unique_id() if self.rank == 0 else None)
        self.nccl = nccl.NcclCommunicator(self.size, unique, self.rank)

    def all_reduce_(self, flat: Any) -> None:
        if isinstance(flat, np.ndarray):
            super().all_reduce_(flat)
        else:
            at = flat.data.ptr
            self.nccl.allReduce(at, at, flat.size, self.types[str(flat.dtype)], self.add, self.stream().ptr)


def init_distributed() -> SingleProcess:
    """The ranks this process was started with. Raises ConfigError when there are several and mpi4py cannot reach them."""
    launcher, size = _started_by()
    if size == 1 and launcher != PMIX:
        return SingleProcess()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is here, the MPI library is not
        if size == 1:
            return SingleProcess()
        raise ConfigError(f"ranks: {launcher} started {size}, but mpi4py cannot be used ({error}); {INSTALL}") from error
    seen = MPI.COMM_WORLD.Get_size()
    if seen < size or (seen > size and launcher != PMIX):
        way_out = f"use the mpiexec that came with {INSTALL}"
        if launcher != "mpiexec":
            way_out += ", or srun --mpi=TYPE with a TYPE that this MPI library speaks (srun --mpi=list)"
        strangers = "the processes do not see each other, as launcher and mpi4py are of different MPI libraries"
        raise ConfigError(f"ranks: {launcher} started {size}, mpi4py sees {seen}: {strangers}; {way_out}")
    return MPIGroup(MPI) if seen > 1 else SingleProcess()


def _started_by() -> tuple[str, int]:
    """The program that started this process, and how many it started: 1 where nothing says so.

    PMIx tells a process its rank and not the number of processes: so many there are at least.
    """
    for name, launcher in SIZES.items():
        if os.environ.get(name, "").isdigit():
            return launcher, int(os.environ[name])
    rank = os.environ.get("PMIX_RANK", "")
    return (PMIX, int(rank) + 1) if rank.isdigit() else ("", 1)


def agree(ranks: SingleProcess, facts: Mapping[str, object]) -> None:
    """Compare what fixes a run on all ranks. Raises ConfigError, on all of them, naming which ranks differ in what.

    Each rank writes its facts into a row of its own of an array of zeros, whose sum holds all rows.
    """
    if ranks.size == 1:
        return
    rows = np.zeros((ranks.size, FACTS_BYTES), np.uint8)
    words = json.dumps({name: str(value) for name, value in facts.items()}).encode()
    rows[ranks.rank, : len(words)] = np.frombuffer(words, np.uint8)
    ranks.all_reduce_(rows)
    first, *others = (json.loads(row.tobytes().rstrip(b"\0")) for row in rows)
    differences = [
        f"rank {rank} has {name} {other.get(name)}, rank 0 {first.get(name)}"
        for rank, other in enumerate(others, 1)
        for name in dict.fromkeys([*first, *other])
        if other.get(name) != first.get(name)
    ]
    if differences:
        raise ConfigError(f"ranks: {'; '.join(differences)}; start all of them alike")


def main_process_first(ranks: SingleProcess, work: Callable[[], Result]) -> Result:
    """Do it on the first rank, then on the others: what it fetches is there when they come. All go on from here together."""
    everybody = np.zeros(1)  # its sum waits for them
    if ranks.rank == 0:
        result = work()
    ranks.all_reduce_(everybody)
    if ranks.rank > 0:
        result = work()
    ranks.all_reduce_(everybody)
    return result


def on_device(ranks: SingleProcess, xp: Any) -> SingleProcess:
    """The same ranks, able to sum arrays of this library: on GPUs over NCCL.

    Raises ConfigError on all ranks unless each has a GPU of its own, the current one, or none has any.
    """
    if not isinstance(ranks, MPIGroup):
        return ranks
    machine = ranks.here.bcast(ranks.rank)  # named by its first rank
    gpus = ranks.comm.allgather(None if xp is np else (machine, xp.cuda.Device().pci_bus_id))
    without = [rank for rank, gpu in enumerate(gpus) if gpu is None]
    if len(without) == ranks.size:
        return ranks
    if without:
        raise ConfigError(
            f"ranks: no CUDA on {named(without)}, and the others have it; --device cuda says why, --device cpu does without"
        )
    for gpu in gpus:
        sharing = [rank for rank, other in enumerate(gpus) if other == gpu]
        if len(sharing) > 1:
            raise ConfigError(
                f"ranks: {named(sharing)} would share one GPU ({gpu[1]}); start one rank per GPU, and let all ranks of a machine "
                "see all its GPUs, or each its own, in CUDA_VISIBLE_DEVICES"
            )
    return NCCLGroup(ranks.mpi, xp)


def named(ranks: list[int]) -> str:
    """[0, 2] -> "ranks 0, 2"."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
