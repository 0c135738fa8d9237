"""Composites are exactly their primitives in a row: every argument goes where it belongs, dropout keys included."""

import numpy as np
import pytest

from tensorlite import Key, KVCache, Reference
from tensorlite.testing import check_gradients

OPS = Reference()
KEY = Key(7, 8)
R = np.random.default_rng(0).standard_normal


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_mlp(activation):
    x, fc_w, fc_b, proj_w, proj_b, dy = R((2, 3)), R((3, 7)), R(7), R((7, 3)), R(3), R((2, 3))
    h, fc = OPS.linear_forward(x, fc_w, fc_b)
    a, act = getattr(OPS, f"{activation}_forward")(h)
    expected, proj = OPS.linear_forward(a, proj_w, proj_b)
    y, cache = OPS.mlp_forward(x, fc_w, fc_b, proj_w, proj_b, activation)
    np.testing.assert_array_equal(y, expected)
    da, *dproj = OPS.linear_backward(dy, proj)
    dx, *dfc = OPS.linear_backward(getattr(OPS, f"{activation}_backward")(da, act), fc)
    same(OPS.mlp_backward(dy, cache), (dx, *dfc, *dproj))


def test_the_mlps_default_is_gelu():
    arguments = R((2, 3)), R((3, 7)), None, R((7, 3)), None
    np.testing.assert_array_equal(OPS.mlp_forward(*arguments)[0], OPS.mlp_forward(*arguments, "gelu")[0])


def test_self_attention():
    x, qkv_w, qkv_b, proj_w, proj_b, dy = R((2, 5, 6)), R((6, 18)), R(18), R((6, 6)), R(6), R((2, 5, 6))
    h, qkv = OPS.linear_forward(x, qkv_w, qkv_b)
    a, att = OPS.attention_forward(h, 3, 0.4, KEY)
    expected, proj = OPS.linear_forward(a, proj_w, proj_b)
    y, cache = OPS.self_attention_forward(x, qkv_w, qkv_b, proj_w, proj_b, 3, 0.4, KEY)
    np.testing.assert_array_equal(y, expected)
    da, *dproj = OPS.linear_backward(dy, proj)
    dx, *dqkv = OPS.linear_backward(OPS.attention_backward(da, att), qkv)
    same(OPS.self_attention_backward(dy, cache), (dx, *dqkv, *dproj))
    past = KVCache(1, 5).layers[0]
    pieces = [OPS.self_attention_forward(x[:, s], qkv_w, qkv_b, proj_w, proj_b, 3, past=past)[0] for s in (slice(2), slice(2, 5))]
    whole, _ = OPS.self_attention_forward(x, qkv_w, qkv_b, proj_w, proj_b, 3)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-11)


def test_add_layernorm():
    x, y, w, b, ds, dh = R((4, 6)), R((4, 6)), R(6), R(6), R((4, 6)), R((4, 6))
    s, residual = OPS.residual_forward(x, y, 0.5, KEY)
    h, norm = OPS.layernorm_forward(s, w, b)
    (s2, h2), cache = OPS.add_layernorm_forward(x, y, w, b, 0.5, KEY)
    same((s2, h2), (s, h))
    assert not np.array_equal(s, x + y)
    ds_norm, dw, db = OPS.layernorm_backward(dh, norm)
    same(OPS.add_layernorm_backward((ds, dh), cache), (*OPS.residual_backward(ds + ds_norm, residual), dw, db))
    check_gradients(
        lambda **a: OPS.add_layernorm_forward(**a, p=0.5, key=KEY), OPS.add_layernorm_backward, {"x": x, "y": y, "w": w, "b": b}
    )


def test_head_loss():
    x, w, b, targets = R((2, 3, 4)), R((4, 7)), R(7), np.array([[0, 1, 2], [6, 5, 4]])
    logits, head = OPS.linear_forward(x, w, b)
    expected, xent = OPS.cross_entropy_forward(logits, targets)
    loss, cache = OPS.head_loss_forward(x, w, b, targets)
    assert loss == expected
    same(OPS.head_loss_backward(0.3, cache), OPS.linear_backward(OPS.cross_entropy_backward(0.3, xent), head))


def test_nothing_drops_by_default():
    """A key alone, without a probability, changes nothing."""
    x, y, w, qkv_w, proj_w = R((2, 5, 6)), R((2, 5, 6)), R(6), R((6, 18)), R((6, 6))
    for name, arguments in {
        "attention_forward": (R((2, 5, 18)), 3),
        "dropout_forward": (x,),
        "residual_forward": (x, y),
        "self_attention_forward": (x, qkv_w, None, proj_w, None, 3),
        "add_layernorm_forward": (x, y, w, None),
    }.items():
        forward = getattr(OPS, name)
        np.testing.assert_array_equal(forward(*arguments, key=KEY)[0], forward(*arguments, 0.0, None)[0])
