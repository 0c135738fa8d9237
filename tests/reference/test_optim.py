"""AdamW, clipping and the schedule, against scalar loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import every_backend
from tensorlite import ReferenceOps
from tensorlite.reference.optim import clip_grad_norm_, cosine_lr, global_norm
from tensorlite.testing.properties import seeds


def scalar_adamw(params, grads_of_step, lr, beta1, beta2, eps, weight_decay, n_decay):
    """AdamW on one element at a time, in the order of the textbook."""
    params, m, v = list(params), [0.0] * len(params), [0.0] * len(params)
    for t, grads in enumerate(grads_of_step, start=1):
        for i, g in enumerate(grads):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            if i < n_decay:
                params[i] = params[i] - lr * weight_decay * params[i]
            params[i] -= lr * (m[i] / (1 - beta1**t)) / (math.sqrt(v[i] / (1 - beta2**t)) + eps)
    return params, m, v


@every_backend
@given(seeds(), st.sampled_from([(0.9, 0.999), (0.9, 0.95), (0.0, 0.5)]), st.integers(0, 6), st.sampled_from([0.0, 0.1]))
def test_adamw_is_the_scalar_loop(ops, seed, betas, n_decay, weight_decay):
    random = np.random.default_rng(seed)
    start, grads = random.standard_normal(6), random.standard_normal((50, 6))
    options = {"lr": 0.01, "beta1": betas[0], "beta2": betas[1], "eps": 1e-8, "weight_decay": weight_decay, "n_decay": n_decay}
    params, m, v = start.copy(), np.zeros(6), np.zeros(6)
    for t, g in enumerate(grads, start=1):
        ops.adamw_(params, g.copy(), m, v, t=t, **options)
    expected = scalar_adamw(start, grads, **options)
    for a, b in zip((params, m, v), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@every_backend
def test_the_first_step_is_lr_times_the_sign(ops):
    grads = np.array([1e-3, -5.0, 1e3])
    params = np.zeros(3)
    ops.adamw_(params, grads, np.zeros(3), np.zeros(3), t=1, lr=0.01, eps=0.0)
    np.testing.assert_allclose(params, -0.01 * np.sign(grads), rtol=1e-12)


@every_backend
def test_decay_is_decoupled_from_the_gradient(ops):
    """Without a gradient, decay shrinks the prefix by exactly lr * weight_decay, and the moments stay zero."""
    params, m, v = np.array([1.0, 2.0, 3.0]), np.zeros(3), np.zeros(3)
    ops.adamw_(params, np.zeros(3), m, v, t=1, lr=0.1, weight_decay=0.5, n_decay=2)
    np.testing.assert_allclose(params, [0.95, 1.9, 3.0], rtol=1e-15)
    assert not m.any()
    assert not v.any()


@every_backend
def test_adamw_leaves_the_gradient_alone_and_keeps_float32(ops):
    grads = np.ones(4, np.float32)
    params = np.ones(4, np.float32)
    ops.adamw_(params, grads, np.zeros_like(grads), np.zeros_like(grads), t=1, lr=0.1, weight_decay=0.1)
    assert params.dtype == np.float32
    np.testing.assert_array_equal(grads, 1)


@given(seeds(), st.floats(0.01, 10.0))
def test_clipping_keeps_the_direction_and_bounds_the_norm(seed, most):
    grads = np.random.default_rng(seed).standard_normal(20) * 3
    before = grads.copy()
    norm = clip_grad_norm_(grads, most)
    assert math.isclose(norm, math.sqrt(math.fsum(before**2)), rel_tol=1e-13)
    assert global_norm(grads) <= most or np.array_equal(grads, before)
    np.testing.assert_allclose(grads * norm, before * global_norm(grads), rtol=1e-12)
    if norm <= most * 0.999:
        np.testing.assert_array_equal(grads, before)
    else:
        assert math.isclose(global_norm(grads), min(most, norm), rel_tol=1e-3)


def test_clipping_can_be_off_and_survives_a_zero_gradient():
    grads = np.array([3.0, 4.0])
    assert clip_grad_norm_(grads, 0.0) == 5.0
    np.testing.assert_array_equal(grads, [3.0, 4.0])
    zero = np.zeros(3)
    assert clip_grad_norm_(zero, 1.0) == 0.0
    assert np.isfinite(zero).all()


def test_clipping_never_lengthens():
    grads = np.array([0.3, 0.4])
    clip_grad_norm_(grads, 1.0)
    np.testing.assert_array_equal(grads, [0.3, 0.4])
    long = np.array([3e6, 4e6])
    clip_grad_norm_(long, 2.5)
    np.testing.assert_allclose(long, [1.5, 2.0], rtol=1e-9)


@every_backend
def test_the_defaults_are_the_papers(ops):
    grads, found, expected = np.array([1e-8, 1.0, -2.0]), [np.ones(3) for _ in range(3)], [np.ones(3) for _ in range(3)]
    ops.adamw_(found[0], grads, *found[1:], t=3, lr=0.1)
    ops.adamw_(expected[0], grads, *expected[1:], t=3, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    tiny = [np.zeros(1) for _ in range(3)]  # eps matters where a gradient is as small
    ops.adamw_(tiny[0], np.array([1e-8]), *tiny[1:], t=1, lr=1.0)
    np.testing.assert_allclose(tiny[0], -0.5, rtol=1e-6)


def test_cosine_lr():
    """A linear warm-up, half a cosine down, then min_lr; constant if min_lr equals lr."""
    lr = [cosine_lr(s, 1.0, 0.1, 10, 110) for s in range(130)]
    assert lr[0] == 1 / 11
    assert lr[9] == 10 / 11
    assert lr[10] == 1.0
    assert math.isclose(lr[60], 0.55)
    assert math.isclose(lr[35], 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert lr[110:] == [0.1] * 20
    assert all(a >= b for a, b in itertools.pairwise(lr[10:]))
    assert {cosine_lr(s, 0.3, 0.3, 0, 100) for s in range(200)} == {0.3}
    assert cosine_lr(5, 1.0, 0.1, 10, 10) == 6 / 11
    assert cosine_lr(5, 0.5, 0.1, 10, 10) == 3 / 11
    assert cosine_lr(11, 1.0, 0.1, 10, 11) == 0.1
    assert cosine_lr(10, 1.0, 0.1, 10, 10) == 1.0


def test_pack_grads_copies_or_adds():
    ops, flat = ReferenceOps(), np.full(6, 9.0)
    slots = [flat[:2], flat[2:].reshape(2, 2)]
    leaves = [np.array([1.0, 2.0]), np.array([[3.0, 4.0], [5.0, 6.0]])]
    ops.pack_grads(leaves, slots)
    np.testing.assert_array_equal(flat, [1, 2, 3, 4, 5, 6])
    ops.pack_grads(leaves, slots, add=True)
    np.testing.assert_array_equal(flat, [2, 4, 6, 8, 10, 12])
    with pytest.raises(ValueError, match="longer"):
        ops.pack_grads(leaves[:1], slots)
