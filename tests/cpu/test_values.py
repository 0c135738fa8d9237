"""The CPU backend computes the values and gradients of the reference. Tests of every backend are in tests/reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES
from cpu_results import OPS, REFERENCE, assert_same, normal, op_results, results
from gpt.config import TrainConfig
from gpt.models import MODELS
from gpt.training.step import Task, train_step
from small import config_of, start, text
from tensorlite.cpu import activations, optim
from tensorlite.testing.properties import EPS32


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
    """No op returns a wider dtype, or loses more than rounding."""
    found, expected = (loss_and_gradients(ops, variant, np.float32) for ops in (OPS, REFERENCE))
    assert {a.dtype for a in found} == {np.dtype(np.float32)}
    assert_same(found, expected, 1000 * EPS32)


def test_a_training_run():
    """Compare the loss, the norm before clipping and the parameters over ten steps with dropout and clipping."""
    config = config_of("gpt", dropout=0.2)
    train = TrainConfig(batch_size=4, max_iters=10, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 300)
    task = Task(MODELS["gpt"], config, train, data, seed=0)
    states = [start(config, std=0.3) for _ in range(2)]
    for _ in range(10):
        steps = [train_step(o, task, s) for o, s in zip((OPS, REFERENCE), states, strict=True)]
        assert_same(*steps, 1e-10)
    assert_same([states[0].params], [states[1].params], 1e-10)


# ---- tiles ----


@pytest.mark.parametrize("n_decay", [None, 0, 9, 23])
@pytest.mark.parametrize("tile", [1, 7, 23, 1 << 16])
def test_adamw_over_tiles(tile, n_decay, monkeypatch):
    """Full tiles, a shorter last tile, and a tile longer than the buffer. The decay ends within a tile."""
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
    """45 elements are six tiles of 7 and a last tile of 3."""
    monkeypatch.setattr(activations, "TILE", tile)
    x = 2 * normal(0, 5, 9)
    assert_same(op_results(OPS, "gelu", {"x": x}), op_results(REFERENCE, "gelu", {"x": x}))


@pytest.mark.parametrize("x", [2e13, -2e13, 1e18, -1e18])
def test_gelu_is_a_line_far_from_0_in_float32_too(x):
    x = np.full(3, x, np.float32)
    with np.errstate(over="ignore"):
        _, cache = OPS.gelu_forward(x)
        assert OPS.gelu_backward(np.ones_like(x), cache).tolist() == (x > 0).tolist()


def test_a_dy_of_another_shape_is_refused():
    x, w = normal(0, 2, 3, 4), np.ones(4)
    for name, inputs in (("gelu", (x,)), ("layernorm", (x, w))):
        _, cache = getattr(OPS, f"{name}_forward")(*inputs)
        with pytest.raises(ValueError, match=rf"{name}: dy has the shape \(3, 2, 4\), x \(2, 3, 4\)"):
            getattr(OPS, f"{name}_backward")(normal(1, 3, 2, 4), cache)


def test_bfloat16_of_any_size():
    x = normal(0, 8, 1024).astype(pytest.importorskip("ml_dtypes").bfloat16)
    (found, _), (expected, _) = (ops.linear_forward(x, x.T) for ops in (OPS, REFERENCE))
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=2**-8)
