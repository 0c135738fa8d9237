"""Composites equal their primitives in sequence: every argument, dropout keys included, goes where it belongs."""

import numpy as np
import pytest

from cases import every_backend
from tensorlite import Key, KVCache
from tensorlite.testing.properties import check_gradients

pytestmark = every_backend
KEY = Key(7, 8)
R = np.random.default_rng(0).standard_normal


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_token_position_embedding(ops):
    ids, wte, wpe, dx = np.array([[0, 4, 4], [2, 4, 0]]), R((5, 6)), R((9, 6)), R((2, 3, 6))
    tok, emb = ops.embedding_forward(ids, wte)
    expected, pos = ops.position_embedding_forward(tok, wpe, 2)
    x, cache = ops.token_position_embedding_forward(ids, wte, wpe, 2)
    np.testing.assert_array_equal(x, expected)
    dtok, dwpe = ops.position_embedding_backward(dx, pos)
    same(ops.token_position_embedding_backward(dx, cache), (ops.embedding_backward(dtok, emb), dwpe))
    same(ops.token_position_embedding_forward(ids, wte, wpe)[0], wte[ids] + wpe[:3])


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_mlp(ops, activation):
    x, fc_w, fc_b, proj_w, proj_b, dy = R((2, 3)), R((3, 7)), R(7), R((7, 3)), R(3), R((2, 3))
    h, fc = ops.linear_forward(x, fc_w, fc_b)
    a, act = getattr(ops, f"{activation}_forward")(h)
    expected, proj = ops.linear_forward(a, proj_w, proj_b)
    y, cache = ops.mlp_forward(x, fc_w, fc_b, proj_w, proj_b, activation)
    np.testing.assert_array_equal(y, expected)
    da, *dproj = ops.linear_backward(dy, proj)
    dx, *dfc = ops.linear_backward(getattr(ops, f"{activation}_backward")(da, act), fc)
    same(ops.mlp_backward(dy, cache), (dx, *dfc, *dproj))


def test_the_mlps_default_is_gelu(ops):
    arguments = R((2, 3)), R((3, 7)), None, R((7, 3)), None
    np.testing.assert_array_equal(ops.mlp_forward(*arguments)[0], ops.mlp_forward(*arguments, "gelu")[0])


def test_self_attention(ops):
    x, qkv_w, qkv_b, proj_w, proj_b, dy = R((2, 5, 6)), R((6, 18)), R(18), R((6, 6)), R(6), R((2, 5, 6))
    h, qkv = ops.linear_forward(x, qkv_w, qkv_b)
    a, att = ops.attention_forward(h, 3, 0.4, KEY)
    expected, proj = ops.linear_forward(a, proj_w, proj_b)
    y, cache = ops.self_attention_forward(x, qkv_w, qkv_b, proj_w, proj_b, 3, 0.4, KEY)
    np.testing.assert_array_equal(y, expected)
    da, *dproj = ops.linear_backward(dy, proj)
    dx, *dqkv = ops.linear_backward(ops.attention_backward(da, att), qkv)
    same(ops.self_attention_backward(dy, cache), (dx, *dqkv, *dproj))
    kv_cache = KVCache(1, 5).layers[0]
    pieces = [
        ops.self_attention_forward(x[:, s], qkv_w, qkv_b, proj_w, proj_b, 3, kv_cache=kv_cache)[0] for s in (slice(2), slice(2, 5))
    ]
    whole, _ = ops.self_attention_forward(x, qkv_w, qkv_b, proj_w, proj_b, 3)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-11)


def test_dropout_add_layernorm(ops):
    x, y, w, b, ds, dh = R((4, 6)), R((4, 6)), R(6), R(6), R((4, 6)), R((4, 6))
    s, residual = ops.residual_forward(x, y, 0.5, KEY)
    h, norm = ops.layernorm_forward(s, w, b)
    (s2, h2), cache = ops.dropout_add_layernorm_forward(x, y, w, b, 0.5, KEY)
    same((s2, h2), (s, h))
    assert not np.array_equal(s, x + y)
    ds_norm, dw, db = ops.layernorm_backward(dh, norm)
    same(ops.dropout_add_layernorm_backward((ds, dh), cache), (*ops.residual_backward(ds + ds_norm, residual), dw, db))
    check_gradients(
        lambda **a: ops.dropout_add_layernorm_forward(**a, p=0.5, key=KEY),
        ops.dropout_add_layernorm_backward,
        {"x": x, "y": y, "w": w, "b": b},
    )
    dx, dy = ops.residual_backward(ds_norm, residual)  # where only the layernorm uses s
    same(ops.dropout_add_layernorm_backward((None, dh), cache), (dx, dy, dw, db))


def test_dropout_add_layernorm_without_a_branch(ops):
    x, w, b, ds, dh = R((4, 6)), R(6), R(6), R((4, 6)), R((4, 6))
    h, norm = ops.layernorm_forward(x, w, b)
    (s2, h2), cache = ops.dropout_add_layernorm_forward(x, None, w, b, 0.5, KEY)
    same((s2, h2), (x, h))
    ds_norm, dw, db = ops.layernorm_backward(dh, norm)
    dx, dy, *weights = ops.dropout_add_layernorm_backward((ds, dh), cache)
    assert dy is None
    same((dx, *weights), (ds + ds_norm, dw, db))
    check_gradients(
        lambda **a: ops.dropout_add_layernorm_forward(y=None, **a, p=0.5, key=KEY),
        lambda dout, cache: (lambda dx, _, dw, db: (dx, dw, db))(*ops.dropout_add_layernorm_backward(dout, cache)),
        {"x": x, "w": w, "b": b},
    )


def test_linear_cross_entropy(ops):
    x, w, b, targets = R((2, 3, 4)), R((4, 7)), R(7), np.array([[0, 1, 2], [6, 5, 4]])
    logits, head = ops.linear_forward(x, w, b)
    expected, xent = ops.cross_entropy_forward(logits, targets)
    loss, cache = ops.linear_cross_entropy_forward(x, w, b, targets)
    assert loss == expected
    same(ops.linear_cross_entropy_backward(0.3, cache), ops.linear_backward(ops.cross_entropy_backward(0.3, xent), head))


def test_nothing_drops_by_default(ops):
    """A key without a probability changes nothing."""
    x, y, w, qkv_w, proj_w = R((2, 5, 6)), R((2, 5, 6)), R(6), R((6, 18)), R((6, 6))
    for name, arguments in {
        "attention_forward": (R((2, 5, 18)), 3),
        "dropout_forward": (x,),
        "residual_forward": (x, y),
        "self_attention_forward": (x, qkv_w, None, proj_w, None, 3),
        "dropout_add_layernorm_forward": (x, y, w, None),
    }.items():
        forward = getattr(ops, name)
        np.testing.assert_array_equal(forward(*arguments, key=KEY)[0], forward(*arguments, 0.0, None)[0])
