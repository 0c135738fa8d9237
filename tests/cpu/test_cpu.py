"""The CPU backend: the reference's numbers, on memory that is used again. What holds for any backend is in the other files."""

import inspect
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_cupy
from cases import CASES
from gpt.config import TrainConfig
from gpt.models import MODELS
from gpt.training.step import train_step
from small import config_of, start, text
from tensorlite import Key, KVCache, ReferenceOps, cpu
from tensorlite.cpu import activations, attention, memory_pool, optim
from tensorlite.cpu.memory_pool import SMALL, MemoryPool
from tensorlite.meta import _arrays
from tensorlite.testing.properties import EPS32, seeds, sizes

OPS, REFERENCE = cpu.CPUOps(), ReferenceOps()
KEY = Key(1, 2, 3)
OWN = [name for name in CASES if f"{name}_forward" in vars(cpu.CPUOps)]


@pytest.fixture(autouse=True, scope="module")
def small_arrays_too():
    """Arrays of tests are small, and are to stand on leases as the large ones of a training do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_pool, "SMALL", 0)
        yield


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def as_tuple(grads):
    return grads if isinstance(grads, tuple) else (grads,)


def assert_same(found, expected, tolerance=1e-12):
    """Equal to 1e-12 of the largest entry, or of 1 where all are smaller."""
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0.0))))


def poison(ops):
    """Fill what nobody holds with NaN: whoever reads it before writing to it, or has been promised it, is found out."""
    for free in ops.memory._free.values():
        for block, _ in free:
            block.fill(np.nan)
    for scratch in ops.memory._scratch.values():
        scratch.fill(np.nan)


def results(ops, forward, backward, dy):
    """The value and the gradients, out of memory that was used before and has been spoilt since."""
    for _ in range(2):
        y, cache = forward()
        if ops is OPS:
            poison(ops)
        grads = as_tuple(backward(dy, cache))
        del cache
        if ops is OPS:
            poison(ops)
    return y, *grads


def op_results(ops, name, inputs):
    forward, backward = CASES[name].on(ops)
    y, _ = forward(**inputs)
    return results(ops, lambda: forward(**inputs), backward, np.asarray(np.random.default_rng(0).standard_normal(y.shape)))


# ---- the reference's numbers ----


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_an_op_and_its_gradients(name, data):
    inputs = data.draw(CASES[name].inputs)
    found, expected = (op_results(ops, name, inputs) for ops in (OPS, REFERENCE))
    assert_same(found, expected)


MODEL = {"n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 19}
VARIANTS = {
    "gelu": {"model": "gpt", "dropout": 0.2},
    "relu, tied": {"model": "gpt", "dropout": 0.2, "activation": "relu", "tied": True},
    "no bias": {"model": "gpt", "dropout": 0.2, "bias": False},
    "no dropout": {"model": "gpt"},
    "before layernorm": {"model": "residual", "dropout": 0.2},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def loss_and_gradients(ops, variant, dtype=np.float64):
    config = config_of(**VARIANTS[variant], **MODEL)
    state, model = start(config, std=0.3, dtype=dtype), MODELS[config.model]
    params, batch = state.table.tree(state.params), text(config, 3)
    key = ops.step_key(1, 2, row0=3) if config.dropout else None

    def backward(dloss, cache):
        return tuple(state.table.leaves(model.backward(ops, dloss, cache)))

    return results(ops, lambda: model.forward(ops, params, *batch, config, key), backward, 0.7)


@every_variant
def test_a_model_and_every_gradient(variant):
    assert_same(loss_and_gradients(OPS, variant), loss_and_gradients(REFERENCE, variant))


@every_variant
def test_a_model_in_float32(variant):
    """No op on the way widens, or loses more than rounding."""
    found, expected = (loss_and_gradients(ops, variant, np.float32) for ops in (OPS, REFERENCE))
    assert {a.dtype for a in found} == {np.dtype(np.float32)}
    assert_same(found, expected, 1000 * EPS32)


def test_a_training_run():
    """Loss, norm before clipping and parameters over ten steps with dropout and clipping."""
    config = config_of("gpt", dropout=0.2)
    train = TrainConfig(batch_size=4, max_iters=10, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 300)
    states = [start(config, std=0.3) for _ in range(2)]
    for _ in range(10):
        steps = [train_step(o, MODELS["gpt"], s, data, config, train, 0) for o, s in zip((OPS, REFERENCE), states, strict=True)]
        assert_same(*steps, 1e-10)
    assert_same([states[0].params], [states[1].params], 1e-10)


# ---- tiles ----


@pytest.mark.parametrize("n_decay", [None, 0, 9, 23])
@pytest.mark.parametrize("tile", [1, 7, 23, 1 << 16])
def test_adamw_over_tiles(tile, n_decay, monkeypatch):
    """Whole tiles, a last one that is shorter, and one that is longer than the buffer; the decay ends within a tile."""
    monkeypatch.setattr(optim, "TILE", tile)
    options = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3, "n_decay": n_decay}
    found, expected = ([normal(0, 23), np.zeros(23), np.zeros(23)] for _ in range(2))
    for t in range(1, 6):
        grads = normal(t, 23)
        for ops, (params, m, v) in ((OPS, found), (REFERENCE, expected)):
            ops.adamw_(params, grads, m, v, t=t, **options)
    assert_same(found, expected)


@pytest.mark.parametrize("tile", [1, 7, 45, 1 << 17])
def test_gelu_over_tiles(tile, monkeypatch):
    """45 elements: six tiles of 7 and a last one of 3."""
    monkeypatch.setattr(activations, "TILE", tile)
    x = 2 * normal(0, 5, 9)
    assert_same(op_results(OPS, "gelu", {"x": x}), op_results(REFERENCE, "gelu", {"x": x}))


# ---- attention with and without the shift of softmax ----


@pytest.fixture
def shifts(monkeypatch):
    """The scores that attention has shifted before exp, as a list of their shapes that grows."""
    taken = []
    softmax = attention.softmax_forward
    monkeypatch.setattr(attention, "softmax_forward", lambda x: taken.append(x.shape) or softmax(x))
    return taken


def attention_results(ops, qkv, p=0.0, key=None):
    return op_results(ops, "attention", {"qkv": qkv, "n_head": 2, "p": p, "key": key})


@pytest.mark.parametrize(("size", "guarded"), [(1e-3, False), (1.0, False), (30.0, True), (1e3, True)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_at_every_size_of_the_scores(size, guarded, p, shifts):
    """Scores of a million overflow exp by far; small ones never pay for the search of the largest."""
    qkv = normal(0, 2, 7, 24)
    qkv[..., :16] *= size
    assert_same(attention_results(OPS, qkv, p, KEY), attention_results(REFERENCE, qkv, p, KEY))
    assert bool(shifts) == guarded


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("row", [0, 3, 6])
def test_one_large_score_is_enough_for_the_guard(row, sign, dtype, shifts):
    """Of 28 rows of q and of k one is long: exp overflows, though the usual row is far from it."""
    qkv = normal(0, 2, 7, 24).astype(dtype)
    qkv[1, row, :4] = sign * 22.0  # of one head, at one position: a score of 968
    qkv[1, row, 8:12] = 22.0
    tolerance = 1e-12 if dtype == np.float64 else 64 * EPS32
    assert_same(attention_results(OPS, qkv), attention_results(REFERENCE, qkv), tolerance)
    assert shifts


@given(seeds(), sizes(4), st.floats(0.9, 0.999))
def test_the_largest_unguarded_scores_are_harmless_in_float32(seed, D, nearly):
    """All of a row at one end of the range, and at both."""
    qkv = np.zeros((1, 6, 3 * D), np.float32)
    unit = normal(seed, D) / np.linalg.norm(normal(seed, D))
    size = np.sqrt(nearly * attention.SAFE * np.sqrt(D))
    qkv[0, :, :D], qkv[0, :, D : 2 * D] = size * unit, size * unit
    qkv[0, seed % 6, D : 2 * D] *= -1
    qkv[0, :, 2 * D :] = normal(seed, 6, D)
    dy = normal(seed, 1, 6, D).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="raise", under="ignore"):
        patch.setattr(attention, "softmax_forward", None)  # the guarded path would fail
        found = results(OPS, lambda: OPS.attention_forward(qkv, 1), OPS.attention_backward, dy)
    # the scores round where they are 60: by 60 eps, which is what a probability is off by, relatively
    assert_same(
        found, results(REFERENCE, lambda: REFERENCE.attention_forward(qkv, 1), REFERENCE.attention_backward, dy), 1e4 * EPS32
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_key_in_the_future_does_not_reach_the_past(bad):
    qkv = normal(0, 1, 5, 12)
    qkv[0, 4, 4] = bad
    with np.errstate(invalid="ignore"):
        found, expected = (ops.attention_forward(qkv, 2)[0] for ops in (OPS, REFERENCE))
    assert np.isfinite(found[:, :4]).all()
    assert_same([found[:, :4]], [expected[:, :4]])


@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("cuts", [(3,), (1, 2, 3, 4, 5, 6), (6,), (2, 5)])
def test_attention_with_a_past_equals_attention_at_once(cuts, size, shifts):
    qkv = normal(0, 2, 7, 24)
    qkv[..., :16] *= size
    kv_cache = KVCache(1, 7).layers[0]
    pieces = []
    for piece in np.split(qkv, cuts, axis=1):
        y, cache = OPS.attention_forward(piece, 2, 0.0, None, kv_cache)
        assert cache is None
        pieces.append(y)
        poison(OPS)
    assert len(shifts) == sum(size > 1.0 or y.shape[1] == 1 for y in pieces)  # for one row, the shift is the faster way
    expected, _ = REFERENCE.attention_forward(qkv, 2)
    assert_same([np.concatenate(pieces, axis=1)], [expected])


# ---- memory ----


def address(array):
    return array.__array_interface__["data"][0]


def blocks(store):
    """Addresses of all blocks that nobody holds, sorted."""
    return sorted(block.ctypes.data for free in store._free.values() for block, _ in free)


def test_a_block_is_used_again_when_the_last_view_has_gone():
    store, like = MemoryPool(), np.ones(1)
    array = store.new((3, 4), like)
    at, view = address(array), array[1:].T
    del array
    other = store.new((3, 4), like)
    assert address(other) != at  # the view lives
    assert blocks(store) == []
    del view
    assert blocks(store) == [at]
    assert address(store.new((3, 4), like)) == at
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
    array = store.new((4, 3), like)
    array[...] = 1.0
    held = view(array)
    before = held.copy()
    del array
    for _ in range(3):
        store.new((4, 3), like).fill(np.nan)
    np.testing.assert_array_equal(held, before)


def test_what_is_taken_twice_is_two_blocks():
    store, like = MemoryPool(), np.ones(1)
    held = [store.new((5,), like) for _ in range(4)]
    assert len({address(a) for a in held}) == 4
    del held
    again = [store.new((5,), like) for _ in range(4)]
    assert len({address(a) for a in again}) == 4
    assert blocks(store) == []


def test_shapes_and_dtypes_have_blocks_of_their_own():
    store = MemoryPool()
    kinds = [((2, 3), "f8"), ((3, 2), "f8"), ((6,), "f8"), ((2, 3), "f4"), ((2, 3), "c16"), ((), "f8"), ((0, 3), "f8")]
    for _ in range(2):
        for shape, dtype in kinds:
            array = store.new(shape, np.ones(1, dtype))
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
    assert MemoryPool().new((2,), *arrays).dtype == dtype


def test_small_arrays_are_numpys_own(monkeypatch):
    monkeypatch.setattr(memory_pool, "SMALL", SMALL)
    store, like = MemoryPool(), np.ones(1)
    assert store.new((SMALL - 1,), like).flags.owndata
    assert store.new((SMALL - 1, 0), like).flags.owndata
    assert not store.new((SMALL // 2, 2), like).flags.owndata


def test_memory_that_cannot_be_had_is_one_error():
    """And no second one out of a lease that never held a block."""
    store = MemoryPool()
    with pytest.raises(MemoryError):
        store.new((1 << 50,), np.ones(1))
    assert blocks(store) == []


def test_constants_and_scratch():
    store = MemoryPool()
    for dtype in (np.dtype("f4"), np.dtype("f8")):
        for n, value in ((3, 1.0), (3, 0.5), (4, 1.0)):
            for _ in range(2):
                full = store.full(n, value, dtype)
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
    """Value, gradients and cache, over later calls on other numbers of the same shapes."""
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
    """From the second step on: the blocks are those of the first."""
    config, ops = config_of("gpt", dropout=dropout), cpu.CPUOps(check=False)
    train = TrainConfig(batch_size=4, max_iters=10, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    data, state = np.random.default_rng(0).integers(0, config.vocab_size, 300), start(config, std=0.3, dtype=np.float32)
    train_step(ops, MODELS["gpt"], state, data, config, train, 0)
    first = blocks(ops.memory)
    assert len(first) > 20
    assert len(set(first)) == len(first)  # and no block was handed back twice
    for _ in range(4):
        train_step(ops, MODELS["gpt"], state, data, config, train, 0)
        assert blocks(ops.memory) == first


def test_a_cache_that_is_dropped_gives_its_memory_back():
    """Evaluation keeps no cache: a deeper model then needs no more blocks, where training needs more for every layer."""
    needed = {}
    for keep in (True, False):
        for n_layer in (2, 6):
            config, ops = config_of("gpt", n_layer=n_layer), cpu.CPUOps(check=False)
            state = start(config)
            params = state.table.tree(state.params)
            MODELS["gpt"].forward(ops, params, *text(config, 2), config, keep=keep)
            needed[keep, n_layer] = len(blocks(ops.memory))
    assert needed[False, 2] == needed[False, 6]
    assert needed[True, 2] + 20 < needed[True, 6]


def test_two_memories_share_nothing():
    """So that two threads, each with a backend of its own, cannot meet."""
    one, two, like = MemoryPool(), MemoryPool(), np.ones(1)
    one.new((3,), like)
    assert len(blocks(one)) == 1
    assert blocks(two) == []
    assert one.scratch((3,), like.dtype) is not two.scratch((3,), like.dtype)


# ---- what it takes ----


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=5)
@given(data=st.data())
def test_arrays_of_a_gpu_are_refused(name, data):
    """By what is written for NumPy's functions; what is inherited takes them."""
    inputs = data.draw(CASES[name].inputs) | ({"p": 0.5, "key": KEY} if name in ("attention", "dropout", "residual") else {})
    module = fake_cupy.module()
    moved = {k: module.asarray(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", module)
        with pytest.raises(TypeError):
            CASES[name].on(OPS)[0](**moved)


@pytest.mark.parametrize("name", OWN)
@given(data=st.data())
def test_what_the_reference_refuses_is_refused_in_its_words(name, data):
    """Each array in turn loses its last column, its last axis, or its type."""
    inputs = data.draw(CASES[name].inputs)
    for k, v in inputs.items():
        if isinstance(v, np.ndarray):
            for wrong in (v[..., :-1], v[..., 0], v.tolist()):
                said = []
                for ops in (REFERENCE, OPS):
                    try:
                        CASES[name].on(ops)[0](**inputs | {k: wrong})
                        said.append(None)
                    except (TypeError, ValueError) as error:
                        said.append((type(error), str(error)))
                assert said[0] == said[1], k


def test_every_override_has_its_pair():
    own = {name for name in vars(cpu.CPUOps) if not name.startswith("_")} - {"name"}
    assert {name.replace("_forward", "_backward") for name in own if name.endswith("_forward")} <= own
    assert own <= {name for name, _ in inspect.getmembers(ReferenceOps)}
