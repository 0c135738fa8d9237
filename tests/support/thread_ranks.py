"""Ranks that are threads of this process: a stand-in of mpi4py with what distributed.py calls."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from types import SimpleNamespace

PATIENCE_S = 10.0  # a rank that waits for longer waits for one that will not come


class Comm:
    """A communicator: each rank has its own, and all of them share the barrier and the slots."""

    def __init__(self, rank, shared, machines):
        self.rank, self.shared, self.machines = rank, shared, machines

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return len(self.shared.slots)

    def allgather(self, value):
        self.shared.slots[self.rank] = value
        self.shared.barrier.wait(PATIENCE_S)
        values = list(self.shared.slots)
        self.shared.barrier.wait(PATIENCE_S)
        return values

    def bcast(self, value):
        return self.allgather(value)[0]

    def Split_type(self, kind):
        assert kind == "a machine"
        machine = next(machine for machine in self.machines if self.rank in machine)
        mates = self.allgather(self.rank)  # all ranks must call it
        mates = [rank for rank in mates if rank in machine]
        return Comm(mates.index(self.rank), self.shared.of_machine[tuple(machine)], [])

    def Iallreduce(self, how, flat):
        assert how == "in place"
        assert flat.dtype.kind in "fiu", "MPI does not add booleans"
        total = sum(self.allgather(flat.copy()))
        answers = iter([False, True])

        def test():
            done = next(answers)
            if done:
                flat[...] = total
            return done

        return SimpleNamespace(Test=test)


def shared_by(size):
    """What the ranks of a communicator share."""
    return SimpleNamespace(slots=[None] * size, barrier=Barrier(size), of_machine={})


def on_ranks(work, machines):
    """Return what work(mpi) returns or raises on each rank.

    machines: the ranks of each machine, such as [[0, 1], [2]].
    """
    size = sum(map(len, machines))
    shared = shared_by(size)
    shared.of_machine = {tuple(machine): shared_by(len(machine)) for machine in machines}

    def rank_of(rank):
        mpi = SimpleNamespace(COMM_WORLD=Comm(rank, shared, machines), COMM_TYPE_SHARED="a machine", IN_PLACE="in place")
        try:
            return work(mpi)
        except BrokenBarrierError:
            raise
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank_of, range(size)))
