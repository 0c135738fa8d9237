"""The all-reduce between processes (ranks), over MPI or NCCL, and which rank this process is.

A training step needs three things: this process's rank, the number of ranks, and the sum of an array over all ranks.
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
WORLD_SIZE_VARIABLES = {  # in which a launcher says how many processes it started
    "OMPI_COMM_WORLD_SIZE": "mpiexec",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpiexec",
    "SLURM_STEP_NUM_TASKS": "srun",
}
PMIX = "PMIx"
STOP_TIMEOUT_S = 30.0  # a rank that was asked to stop waits this long for the others, since rank 0 may be writing a checkpoint
BUSY_WAIT_S = 0.1  # poll without a pause for this long: ranks are hardly ever further apart
FACTS_BYTES = 8192  # for the facts of one rank, as JSON

Result = TypeVar("Result")


class SingleProcess:
    """A run of one process, and the interface of all groups of processes.

    rank, size: this process's index among all ranks, and their number.
    local_rank, local_size: the same among the ranks of this machine.
    asked_to_stop: whether a signal has asked this process to end the run.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    asked_to_stop: Callable[[], bool] = staticmethod(lambda: False)

    def all_reduce_(self, flat: Any) -> None:
        """Replace the array by its sum over the ranks, in place."""

    def abort(self, status: int) -> None:
        """End all ranks at once."""


class MPIGroup(SingleProcess):
    """The processes that mpiexec started. MPI sums NumPy arrays."""

    def __init__(self, mpi: Any) -> None:
        self.mpi = mpi
        self.comm = mpi.COMM_WORLD
        self.rank = self.comm.Get_rank()
        self.size = self.comm.Get_size()
        self.local_comm = self.comm.Split_type(mpi.COMM_TYPE_SHARED)  # the ranks of this machine
        self.local_rank = self.local_comm.Get_rank()
        self.local_size = self.local_comm.Get_size()

    def all_reduce_(self, flat: Any) -> None:
        """As SingleProcess.all_reduce_. The sum is asynchronous and polled, because Python handles no signal within a call of MPI.

        Raises TrainingError if this rank was asked to stop and the others have not joined the sum for STOP_TIMEOUT_S seconds.
        """
        request = self.comm.Iallreduce(self.mpi.IN_PLACE, flat)
        start = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - start
            if waited > STOP_TIMEOUT_S and self.asked_to_stop():
                raise TrainingError(
                    f"ranks: rank {self.rank} was asked to stop and has waited {waited:.0f} s for the others; all end"
                )
            if waited > BUSY_WAIT_S:
                time.sleep(0.001)

    def abort(self, status: int) -> None:
        self.comm.Abort(status)


class NCCLGroup(MPIGroup):
    """One GPU per rank. NCCL sums CuPy arrays from device memory to device memory, and MPI sums NumPy arrays."""

    def __init__(self, mpi: Any, cupy: Any) -> None:
        super().__init__(mpi)
        with warnings.catch_warnings(action="ignore"):  # CuPy warns about what the next lines report
            from cupy.cuda import nccl  # an attribute of cupy.cuda only once it is imported
        if not nccl.available:
            major = cupy.cuda.runtime.runtimeGetVersion() // 1000
            raise ConfigError(f'ranks: several GPUs need NCCL, and CuPy finds none; on Linux: pip install "nvidia-nccl-cu{major}"')
        self.stream = cupy.cuda.get_current_stream
        self.sum_op = nccl.NCCL_SUM
        self.dtypes = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        unique_id = self.comm.bcast(nccl.get_unique_id() if self.rank == 0 else None)
        self.nccl = nccl.NcclCommunicator(self.size, unique_id, self.rank)

    def all_reduce_(self, flat: Any) -> None:
        if isinstance(flat, np.ndarray):
            super().all_reduce_(flat)
        else:
            ptr = flat.data.ptr
            self.nccl.allReduce(ptr, ptr, flat.size, self.dtypes[str(flat.dtype)], self.sum_op, self.stream().ptr)


def init_distributed() -> SingleProcess:
    """Return the ranks that this process was started with. Raises ConfigError if there are several and mpi4py cannot reach them."""
    launcher, size = _launcher()
    if size == 1 and launcher != PMIX:
        return SingleProcess()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is here, the MPI library is not
        if size == 1:
            return SingleProcess()
        raise ConfigError(f"ranks: {launcher} started {size}, but mpi4py cannot be used ({error}); {INSTALL}") from error
    mpi_size = MPI.COMM_WORLD.Get_size()
    if mpi_size < size or (mpi_size > size and launcher != PMIX):
        way_out = f"use the mpiexec that came with {INSTALL}"
        if launcher != "mpiexec":
            way_out += ", or srun --mpi=TYPE with a TYPE that this MPI library speaks (srun --mpi=list)"
        mismatch = "the processes do not see each other, as launcher and mpi4py are of different MPI libraries"
        raise ConfigError(f"ranks: {launcher} started {size}, mpi4py sees {mpi_size}: {mismatch}; {way_out}")
    return MPIGroup(MPI) if mpi_size > 1 else SingleProcess()


def _launcher() -> tuple[str, int]:
    """Return the program that started this process, and how many processes it started. Without a launcher this is ("", 1).

    PMIx tells a process its rank but not the number of processes, which is then at least rank + 1.
    """
    for name, launcher in WORLD_SIZE_VARIABLES.items():
        if os.environ.get(name, "").isdigit():
            return launcher, int(os.environ[name])
    rank = os.environ.get("PMIX_RANK", "")
    if rank.isdigit():
        return PMIX, int(rank) + 1
    return "", 1


def agree(ranks: SingleProcess, facts: Mapping[str, object]) -> None:
    """Compare on all ranks what fixes a run.

    Each rank writes its facts into its own row of an array of zeros. The sum of these arrays has all rows.

    Raises ConfigError, on all ranks, with the ranks and facts that differ.
    """
    if ranks.size == 1:
        return
    table = np.zeros((ranks.size, FACTS_BYTES), np.uint8)
    encoded = json.dumps({name: str(value) for name, value in facts.items()}).encode()
    table[ranks.rank, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    ranks.all_reduce_(table)
    expected, *others = (json.loads(row.tobytes().rstrip(b"\0")) for row in table)
    differences = []
    for rank, other in enumerate(others, 1):
        for name in dict.fromkeys([*expected, *other]):
            if other.get(name) != expected.get(name):
                differences.append(f"rank {rank} has {name} {other.get(name)}, rank 0 {expected.get(name)}")
    if differences:
        raise ConfigError(f"ranks: {'; '.join(differences)}; start all of them alike")


def main_process_first(ranks: SingleProcess, work: Callable[[], Result]) -> Result:
    """Do the work on rank 0, then on the other ranks, which find the files that rank 0 has fetched. All ranks continue together."""
    barrier = np.zeros(1)  # a sum over the ranks waits for all of them
    if ranks.rank == 0:
        result = work()
    ranks.all_reduce_(barrier)
    if ranks.rank > 0:
        result = work()
    ranks.all_reduce_(barrier)
    return result


def on_device(ranks: SingleProcess, xp: Any) -> SingleProcess:
    """Return the same ranks, able to sum arrays of this library. On GPUs they do it with NCCL.

    xp: numpy or cupy.

    Raises ConfigError, on all ranks, unless each rank has a GPU of its own as its current device, or none has a GPU.
    """
    if not isinstance(ranks, MPIGroup):
        return ranks
    machine = ranks.local_comm.bcast(ranks.rank)  # identified by its first rank
    gpus = ranks.comm.allgather(None if xp is np else (machine, xp.cuda.Device().pci_bus_id))
    without = [rank for rank, gpu in enumerate(gpus) if gpu is None]
    if len(without) == ranks.size:
        return ranks
    if without:
        raise ConfigError(
            f"ranks: no CUDA on {rank_list(without)}, and the others have it; --device cuda says why, --device cpu does without"
        )
    for gpu in gpus:
        sharing = [rank for rank, other in enumerate(gpus) if other == gpu]
        if len(sharing) > 1:
            raise ConfigError(
                f"ranks: {rank_list(sharing)} would share one GPU ({gpu[1]}); start one rank per GPU, and let all ranks of a "
                "machine see all its GPUs, or each its own, in CUDA_VISIBLE_DEVICES"
            )
    return NCCLGroup(ranks.mpi, xp)


def rank_list(ranks: list[int]) -> str:
    """[0, 2] -> "ranks 0, 2"."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
