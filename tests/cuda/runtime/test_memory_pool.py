"""The memory pool of a captured step: only the step itself reuses its blocks."""

import numpy as np
import pytest

from cuda_runs import QUICK, Run, assert_same_bits, every_precision, ops_of, pair
from shim.host import HostRuntime, owner_of
from tensorlite.cuda.runtime import graph
from tensorlite.cuda.runtime.memory_pool import ROUND, GraphMemoryPool

pytestmark = pytest.mark.usefixtures("compiler")


class Requests(GraphMemoryPool):
    """Records each block that is taken, and the size that was asked for."""

    instances: list = []  # noqa: RUF012

    def __init__(self, allocate):
        super().__init__(allocate)
        self.lent, self.asked, self.made = [], 0, 0
        self.instances.append(self)

        def counted(nbytes, allocate=self._allocate):
            self.made += 1
            return allocate(nbytes)

        self._allocate = counted

    def take(self, nbytes):
        pooled = super().take(nbytes)
        self.lent.append((HostRuntime.address(pooled.block), nbytes))
        self.asked += nbytes
        return pooled


@every_precision
def test_a_graph_reuses_memory_within_the_step_and_never_asks_for_more(precision, monkeypatch):
    monkeypatch.setattr(graph, "GraphMemoryPool", Requests)
    run = Run(ops_of(precision), captured=True)
    run.step()
    pool = run.function.pool
    assert isinstance(pool, Requests)
    assert pool.nbytes < pool.asked
    made, size, requests = pool.made, pool.nbytes, [nbytes for _, nbytes in pool.lent]
    pool.lent = []
    run.step()  # the captured run asks for the same memory as the first run
    assert [nbytes for _, nbytes in pool.lent] == requests
    pool.lent = []
    run.steps(5)
    assert pool.lent == []
    assert (pool.made, pool.nbytes) == (made, size)


def blocks_of(pool):
    """Return the addresses of all blocks, none of which is in use."""
    return {HostRuntime.address(block) for free in pool._free.values() for block in free}


def test_all_blocks_come_back_after_a_step():
    run = Run(ops_of(), "small", QUICK, captured=True)
    for _ in range(4):
        run.step()
        pool = run.function.pool
        assert sum(block.nbytes for free in pool._free.values() for block in free) == pool.nbytes


def test_what_is_computed_between_two_steps_is_not_in_the_graphs_memory():
    """Nor does it disturb the captured step."""
    eager, captured = pair()
    x, held = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32), []
    for _ in range(5):
        assert eager.step() == captured.step()
        blocks = blocks_of(captured.function.pool)
        for ops in (eager.ops, captured.ops):
            y, cache = ops.gelu_forward(x)
            held += [y, ops.gelu_backward(x, cache), *ops.layernorm_backward(x, ops.layernorm_forward(x, x[0], x[1])[1])]
        assert captured.ops.runtime.pool is None
        for array in held:
            owner = owner_of(array)
            assert HostRuntime.address(owner) not in blocks
    expected = held[: len(held) // 5]
    for i, array in enumerate(held):
        np.testing.assert_array_equal(array, expected[i % len(expected)])
    assert_same_bits(eager, captured)


def test_a_block_is_lent_to_one_at_a_time():
    pool = GraphMemoryPool(lambda nbytes: bytearray(nbytes))
    one, two = pool.take(10), pool.take(10)
    assert one.block is not two.block
    assert pool.nbytes == 2 * ROUND == len(one.block) + len(two.block)
    block = one.block
    del one
    assert pool.take(ROUND).block is block  # of this rounded size, the block that was freed last
    three = pool.take(ROUND + 1)
    assert len(three.block) == 2 * ROUND
    assert pool.nbytes == 4 * ROUND
    assert len(pool.take(0).block) == ROUND
