"""The memory pool of the CPU backend: a block is reused only after the last array on it is gone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES
from cpu_results import OPS, as_tuple, normal, poison
from gpt.config import TrainConfig
from gpt.models import MODELS
from gpt.training.step import Task, train_step
from small import config_of, start, text
from tensorlite import cpu
from tensorlite.cpu import memory_pool
from tensorlite.cpu.memory_pool import SMALL, MemoryPool
from tensorlite.meta import _arrays


def address(array):
    return array.__array_interface__["data"][0]


def blocks(store):
    """Return the sorted addresses of all free blocks."""
    return sorted(block.ctypes.data for free in store._free.values() for block, _ in free)


def test_ever_new_shapes_do_not_take_ever_more_memory(monkeypatch):
    """As prompts of ever new lengths have. An array in use stays whole, and its block is not used again."""
    monkeypatch.setattr(memory_pool, "MOST_SHAPES", 3)
    store, like = MemoryPool(), np.ones(1)
    kept = store.empty((1, 1), like)
    kept[...] = 7.0
    for n in range(2, 12):
        store.empty((n, n), like)
        assert len(blocks(store)) <= 3
    assert kept == 7.0
    del kept
    assert len(blocks(store)) <= 3


def test_a_block_is_used_again_when_the_last_view_has_gone():
    store, like = MemoryPool(), np.ones(1)
    array = store.empty((3, 4), like)
    at, view = address(array), array[1:].T
    del array
    other = store.empty((3, 4), like)
    assert address(other) != at  # the view is alive
    assert blocks(store) == []
    del view
    assert blocks(store) == [at]
    assert address(store.empty((3, 4), like)) == at
    assert len(blocks(store)) == 1


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.reshape(-1),
        lambda a: a.T,
        lambda a: a[2:3, 1],
        lambda a: a.view(np.uint8)[5:],
        lambda a: a.reshape(2, 2, 3)[1].T.reshape(-1, order="F"),
        lambda a: np.asarray(memoryview(a)),
        np.atleast_3d,
    ],
)
def test_any_view_holds_the_block(view):
    store, like = MemoryPool(), np.ones(1)
    array = store.empty((4, 3), like)
    array[...] = 1.0
    held = view(array)
    before = held.copy()
    del array
    for _ in range(3):
        store.empty((4, 3), like).fill(np.nan)
    np.testing.assert_array_equal(held, before)


def test_what_is_taken_twice_is_two_blocks():
    store, like = MemoryPool(), np.ones(1)
    held = [store.empty((5,), like) for _ in range(4)]
    assert len({address(a) for a in held}) == 4
    del held
    again = [store.empty((5,), like) for _ in range(4)]
    assert len({address(a) for a in again}) == 4
    assert blocks(store) == []


def test_shapes_and_dtypes_have_blocks_of_their_own():
    store = MemoryPool()
    kinds = [((2, 3), "f8"), ((3, 2), "f8"), ((6,), "f8"), ((2, 3), "f4"), ((2, 3), "c16"), ((), "f8"), ((0, 3), "f8")]
    for _ in range(2):
        for shape, dtype in kinds:
            array = store.empty(shape, np.ones(1, dtype))
            assert (array.shape, array.dtype) == (shape, dtype)
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert type(array) is np.ndarray
            array[...] = 1
            del array
    assert len(blocks(store)) == len(kinds)


@pytest.mark.parametrize(
    ("operands", "dtype"),
    [("f4", "f4"), (["f4", "f4", None], "f4"), (["f4", "f8"], "f8"), (["f8", None, "f4"], "f8"), (["f8", "c16"], "c16")],
)
def test_a_result_has_the_dtype_that_its_operands_promote_to(operands, dtype):
    arrays = [None if kind is None else np.ones(1, kind) for kind in ([operands] if isinstance(operands, str) else operands)]
    assert MemoryPool().empty((2,), *arrays).dtype == dtype


def test_small_arrays_are_numpys_own(monkeypatch):
    monkeypatch.setattr(memory_pool, "SMALL", SMALL)
    store, like = MemoryPool(), np.ones(1)
    assert store.empty((SMALL - 1,), like).flags.owndata
    assert store.empty((SMALL - 1, 0), like).flags.owndata
    assert not store.empty((SMALL // 2, 2), like).flags.owndata


def test_memory_that_cannot_be_had_is_one_error():
    """Nor does a pooled block that never had memory raise a second error."""
    store = MemoryPool()
    with pytest.raises(MemoryError):
        store.empty((1 << 50,), np.ones(1))
    assert blocks(store) == []


def test_constants_and_scratch():
    store = MemoryPool()
    for dtype in (np.dtype("f4"), np.dtype("f8")):
        for n, value in ((3, 1.0), (3, 0.5), (4, 1.0)):
            for _ in range(2):
                full = store.constant(n, value, dtype)
                assert full.dtype == dtype
                np.testing.assert_array_equal(full, [value] * n)
    with pytest.raises(ValueError, match="read-only"):
        full[0] = 2.0
    a, b, c = (store.scratch((n,), np.dtype(kind)) for n, kind in ((3, "f8"), (3, "f4"), (4, "f8")))
    assert (a.dtype, b.dtype, c.shape) == ("f8", "f4", (4,))
    assert store.scratch((3,), np.dtype("f8")) is a
    np.testing.assert_allclose(store.column_sums(normal(0, 5, 3)), normal(0, 5, 3).sum(axis=0))


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_a_result_that_someone_holds_keeps_its_bits(name, data):
    """The value, gradients and cache survive later calls on other values of the same shapes."""
    inputs, (forward, backward) = data.draw(CASES[name].inputs), CASES[name].on(OPS)
    y, cache = forward(**inputs)
    dy = np.asarray(np.random.default_rng(0).standard_normal(y.shape))
    held = _arrays([y, *_arrays(cache), *as_tuple(backward(dy, cache))])
    before = [a.copy() for a in held]
    for _ in range(3):
        other = {k: 0.5 - v if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v for k, v in inputs.items()}
        _, other_cache = forward(**other)
        backward(-dy, other_cache)
        del other_cache
        poison(OPS)
    for a, b in zip(held, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_repeated_step_allocates_nothing(dropout):
    """From the second step on, the blocks are those of the first."""
    config, ops = config_of("gpt", dropout=dropout), cpu.CPUOps(check=False)
    train = TrainConfig(batch_size=4, max_iters=10, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 300)
    task, state = Task(MODELS["gpt"], config, train, data, seed=0), start(config, std=0.3, dtype=np.float32)
    train_step(ops, task, state)
    first = blocks(ops.memory)
    assert len(first) > 20
    assert len(set(first)) == len(first)  # no block was freed twice
    for _ in range(4):
        train_step(ops, task, state)
        assert blocks(ops.memory) == first


def test_a_cache_that_is_dropped_gives_its_memory_back():
    """Evaluation saves no cache, so a deeper model needs no more blocks. Training needs more for every layer."""
    needed = {}
    for with_cache in (True, False):
        for n_layer in (2, 6):
            config, ops = config_of("gpt", n_layer=n_layer), cpu.CPUOps(check=False)
            state = start(config)
            params = state.table.tree(state.params)
            MODELS["gpt"].forward(ops, params, *text(config, 2), config, with_cache=with_cache)
            needed[with_cache, n_layer] = len(blocks(ops.memory))
    assert needed[False, 2] == needed[False, 6]
    assert needed[True, 2] + 20 < needed[True, 6]


def test_two_memories_share_nothing():
    """So two threads, each with a backend of its own, do not share memory."""
    one, two, like = MemoryPool(), MemoryPool(), np.ones(1)
    one.empty((3,), like)
    assert len(blocks(one)) == 1
    assert blocks(two) == []
    assert one.scratch((3,), like.dtype) is not two.scratch((3,), like.dtype)
