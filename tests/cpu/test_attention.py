"""Attention on the CPU, with and without the shift of softmax."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_results import OPS, REFERENCE, assert_same, normal, op_results, poison, results
from tensorlite import Key, KVCache
from tensorlite.cpu import attention
from tensorlite.testing.properties import EPS32, seeds, sizes

KEY = Key(1, 2, 3)


@pytest.fixture
def shifts(monkeypatch):
    """Return a list, which grows, of the shapes of the scores that attention shifts before exp."""
    taken = []
    softmax = attention.softmax_forward
    monkeypatch.setattr(attention, "softmax_forward", lambda x: taken.append(x.shape) or softmax(x))
    return taken


def attention_results(ops, qkv, p=0.0, key=None):
    return op_results(ops, "attention", {"qkv": qkv, "n_head": 2, "p": p, "key": key})


@pytest.mark.parametrize(("size", "guarded"), [(1e-3, False), (1.0, False), (30.0, True), (1e3, True)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_at_every_size_of_the_scores(size, guarded, p, shifts):
    """Scores of a million would overflow exp. Small scores are never shifted."""
    qkv = normal(0, 2, 7, 24)
    qkv[..., :16] *= size
    assert_same(attention_results(OPS, qkv, p, KEY), attention_results(REFERENCE, qkv, p, KEY))
    assert bool(shifts) == guarded


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("row", [0, 3, 6])
def test_one_large_score_is_enough_for_the_guard(row, sign, dtype, shifts):
    """One of 28 rows of q and k is long, so exp would overflow, though the typical row is far from it."""
    qkv = normal(0, 2, 7, 24).astype(dtype)
    qkv[1, row, :4] = sign * 22.0  # one head at one position, which gives a score of 968
    qkv[1, row, 8:12] = 22.0
    tolerance = 1e-12 if dtype == np.float64 else 64 * EPS32
    assert_same(attention_results(OPS, qkv), attention_results(REFERENCE, qkv), tolerance)
    assert shifts


@given(seeds(), sizes(4), st.floats(0.9, 0.999))
def test_the_largest_unguarded_scores_are_harmless_in_float32(seed, D, nearly):
    """All scores of a row are at one end of the safe range, or at both ends."""
    qkv = np.zeros((1, 6, 3 * D), np.float32)
    unit = normal(seed, D) / np.linalg.norm(normal(seed, D))
    size = np.sqrt(nearly * attention.MAX_SAFE_SCORE * np.sqrt(D))
    qkv[0, :, :D], qkv[0, :, D : 2 * D] = size * unit, size * unit
    qkv[0, seed % 6, D : 2 * D] *= -1
    qkv[0, :, 2 * D :] = normal(seed, 6, D)
    dy = normal(seed, 1, 6, D).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="raise", under="ignore"):
        patch.setattr(attention, "softmax_forward", None)  # the path that shifts would fail
        found = results(OPS, lambda: OPS.attention_forward(qkv, 1), OPS.attention_backward, dy)
    # a score of 60 is off by 60 eps after rounding, so its probability is off by as much, relatively
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
    assert len(shifts) == sum(size > 1.0 or y.shape[1] == 1 for y in pieces)  # a single row is always shifted, which is faster
    expected, _ = REFERENCE.attention_forward(qkv, 2)
    assert_same([np.concatenate(pieces, axis=1)], [expected])


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_query_that_sees_one_key_has_no_gradient(T, p):
    """Its softmax is 1 whatever its score. AdamW divides a gradient by its size, so noise would count as much as any."""
    qkv = normal(0, 3, T, 12).astype(np.float32)
    _, cache = OPS.attention_forward(qkv, 2, p, KEY)
    dq = OPS.attention_backward(normal(1, 3, T, 4).astype(np.float32), cache)[..., :4]
    assert not dq[:, 0].any()
    assert dq[:, 1:].any() == (T > 1)


def test_float16_does_not_overflow():
    qkv = (2 * normal(0, 2, 32, 96)).astype(np.float16)
    (found, _), (expected, _) = (ops.attention_forward(qkv, 2) for ops in (OPS, REFERENCE))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)
