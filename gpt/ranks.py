"""The processes of one run, on one machine or many: started together, each with a share of every batch.

All that training needs of them is three things: which one am I, how many are we, and the sum of an array over all of us.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from gpt.errors import ConfigError

INSTALL = 'pip install -e ".[mpi]"'
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # where an mpiexec says how many it started

Result = TypeVar("Result")


class Alone:
    """A run of one process. The command line asks two things more: how many ranks share this machine, and to end them all."""

    rank, size, neighbours = 0, 1, 1

    def sum_(self, flat: Any) -> None:
        """Replace the array by its sum over the ranks, in place."""

    def end(self, status: int) -> None:
        """End all ranks at once."""


class MpiRanks(Alone):
    """The processes that an mpiexec started; NumPy arrays are summed by MPI."""

    def __init__(self, mpi: Any) -> None:
        self.mpi, self.comm = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.neighbours = self.comm.Split_type(mpi.COMM_TYPE_SHARED).Get_size()  # ranks that share this machine's cores

    def sum_(self, flat: Any) -> None:
        self.comm.Allreduce(self.mpi.IN_PLACE, flat)

    def end(self, status: int) -> None:
        self.comm.Abort(status)


class NcclRanks(MpiRanks):
    """One GPU a rank: CuPy arrays are summed by NCCL from one device's memory to another's, the rest by MPI."""

    def __init__(self, mpi: Any, cupy: Any) -> None:
        super().__init__(mpi)
        nccl = cupy.cuda.nccl
        self.stream = cupy.cuda.get_current_stream
        self.add, self.types = nccl.NCCL_SUM, {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        unique = self.comm.bcast(nccl.get_unique_id() if self.rank == 0 else None)
        self.nccl = nccl.NcclCommunicator(self.size, unique, self.rank)

    def sum_(self, flat: Any) -> None:
        if isinstance(flat, np.ndarray):
            super().sum_(flat)
        else:
            at = flat.data.ptr
            self.nccl.allReduce(at, at, flat.size, self.types[str(flat.dtype)], self.add, self.stream().ptr)


def join() -> Alone:
    """The ranks this process was started with. Raises ConfigError when there are several and mpi4py cannot reach them."""
    size = next((int(os.environ[name]) for name in SIZES if os.environ.get(name, "").isdigit()), 1)
    if size == 1:
        return Alone()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is here, the MPI library is not
        raise ConfigError(f"ranks: mpiexec started {size}, but mpi4py cannot be used ({error}); {INSTALL}") from error
    if MPI.COMM_WORLD.Get_size() != size:
        raise ConfigError(
            f"ranks: mpiexec started {size}, mpi4py sees {MPI.COMM_WORLD.Get_size()}: they belong to different MPI libraries; "
            f"use the mpiexec that came with {INSTALL}"
        )
    return MpiRanks(MPI)


def first_rank_first(ranks: Alone, work: Callable[[], Result]) -> Result:
    """Do it on the first rank, then on the others: what it fetches is there when they come. All go on from here together."""
    everybody = np.zeros(1)  # its sum waits for them
    if ranks.rank == 0:
        result = work()
    ranks.sum_(everybody)
    if ranks.rank > 0:
        result = work()
    ranks.sum_(everybody)
    return result


def on_device(ranks: Alone, xp: Any) -> Alone:
    """The same ranks, able to sum arrays of this library: on GPUs over NCCL, each rank with a device of its own."""
    if not isinstance(ranks, MpiRanks) or xp is np:
        return ranks
    devices = xp.cuda.runtime.getDeviceCount()
    if ranks.neighbours > devices:
        raise ConfigError(f"ranks: {ranks.neighbours} on a machine with {devices} GPUs; start one rank a GPU")
    xp.cuda.Device(ranks.rank % devices).use()
    return NcclRanks(ranks.mpi, xp)
