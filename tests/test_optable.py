"""The op table against the ops, and the models on shapes alone."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES
from gpt.config import PRESETS
from gpt.estimate import _ShapeTable
from gpt.params import ParamTable
from gpt.stages import MODELS
from tensorlite import KVCache, Reference
from tensorlite.optable import ROWS
from tensorlite.shapes import ShapeArray, ShapeOps, cache_bytes

COMPOSITES = {"mlp", "self_attention", "add_layernorm", "head_loss", "activation"}


def test_every_op_has_a_row_and_a_case_and_a_backward():
    names = {name.removesuffix("_forward") for name in vars(Reference) if name.endswith("_forward")}
    assert names == {name.removesuffix("_backward") for name in vars(Reference) if name.endswith("_backward")}
    assert names - COMPOSITES == set(ROWS)
    assert names - COMPOSITES == set(CASES)


def test_composites_take_the_backend_first():
    """So that an overridden primitive is felt inside an inherited composite."""
    calls = []

    class Loud(Reference):
        @staticmethod
        def linear_forward(x, w, b=None):
            calls.append(w.shape)
            return Reference.linear_forward(x, w, b)

    r = np.random.default_rng(0).standard_normal
    Loud().mlp_forward(r((2, 3)), r((3, 5)), None, r((5, 3)), None)
    Loud().self_attention_forward(r((1, 2, 4)), r((4, 12)), None, r((4, 4)), None, 2)
    Loud().head_loss_forward(r((2, 3)), r((3, 7)), None, np.array([1, 2]))
    assert calls == [(3, 5), (5, 3), (4, 12), (4, 4), (3, 7)]


def test_signatures_of_a_backend_equal_the_reference():
    """On objects, as a model sees them; a backend may add methods, not change or lose one."""
    for backend in (ShapeOps(),):
        for name, member in inspect.getmembers(Reference(), callable):
            if not name.startswith("_"):
                theirs = inspect.signature(getattr(backend, name))
                assert list(theirs.parameters) == list(inspect.signature(member).parameters), name


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_a_row_says_what_the_op_does(name, data):
    """Output shape, gradient shapes, and the bytes kept for backward are those of the real op."""
    inputs = data.draw(CASES[name].inputs)
    shapes = {k: ShapeArray(v.shape, v.itemsize) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    ops = ShapeOps()
    y, cache = CASES[name].forward(**inputs)
    y_shape, shape_cache = getattr(ops, f"{name}_forward")(**shapes)
    assert y_shape.shape == y.shape
    kept = cache_bytes(cache, inputs)  # what it refers to of its inputs is not its own
    if ROWS[name].keeps == ("y",):
        assert cache_bytes(cache) == y.nbytes
    else:
        assert kept == cache_bytes(shape_cache, shapes), (name, inputs)
    grads = CASES[name].backward(np.ones_like(y), cache)
    shape_grads = getattr(ops, f"{name}_backward")(y_shape, shape_cache)
    for g, s in zip(as_tuple(grads), as_tuple(shape_grads), strict=True):
        assert (g is None) == (s is None)
        assert g is None or g.shape == s.shape
    assert set(ops.flops) == {f"{name}_forward", f"{name}_backward"}


def as_tuple(grads):
    return grads if isinstance(grads, tuple) else (grads,)


def shape_run(preset):
    config = PRESETS[preset].model
    table = _ShapeTable(MODELS[config.model].init(config))
    params, ops = table.tree(None), ShapeOps()
    idx = ShapeArray((4, config.block_size), 8)
    return config, table, params, ops, idx


@pytest.mark.parametrize("preset", PRESETS)
def test_models_are_made_of_op_calls_alone(preset):
    """They run on arrays that refuse arithmetic, indexing and allocation, and every gradient has its parameter's shape."""
    config, table, params, ops, idx = shape_run(preset)
    model = MODELS[config.model]
    loss, cache = model.forward(ops, params, idx, idx, config, ops.key(0, 0))
    assert loss.shape == ()
    grads = model.backward(ops, 1.0, cache)
    for param, grad in zip(table, table.leaves(grads), strict=True):
        assert grad.shape == param.shape
    scores = model.logits(ops, params, idx, config)
    assert scores.shape == (4, config.block_size, config.vocab_size)
    past = KVCache(config.n_layer, config.block_size)
    assert model.logits(ops, params, ShapeArray((4, 3), 8), config, past).shape == (4, 3, config.vocab_size)


def test_shape_arrays_refuse_arithmetic():
    a = ShapeArray((2, 3))
    for bad in (lambda: a + a, lambda: a * 2.0, lambda: a @ a, lambda: a[0], lambda: -a, lambda: np.exp(a)):
        with pytest.raises(TypeError):
            bad()


@pytest.mark.parametrize("preset", ["residual", "layernorm"])
def test_the_estimated_cache_is_the_real_one(preset):
    """Bytes counted on shapes equal the bytes of a real forward pass."""
    config, _, params, ops, idx = shape_run(preset)
    model = MODELS[config.model]
    _, cache = model.forward(ops, params, idx, idx, config)
    flat = ParamTable(model.init(config)).initial(0)
    real_params = ParamTable(model.init(config)).tree(flat)
    real_idx = np.zeros(idx.shape, np.int64)
    _, real_cache = model.forward(Reference(), real_params, real_idx, real_idx.copy(), config)
    counted = cache_bytes(cache, [params, idx])
    assert counted == cache_bytes(real_cache, [flat, real_idx]) - real_idx.nbytes  # the targets, which shapes share with idx


def test_flops_of_the_full_model_match_the_usual_count():
    """6 FLOPs per matrix parameter and token, plus 12 L C T for attention: the scaling-law papers' count, within 10 %."""
    config, table, params, ops, idx = shape_run("shakespeare")
    model = MODELS[config.model]
    _, cache = model.forward(ops, params, idx, idx, config)
    model.backward(ops, 1.0, cache)
    in_matrices = sum(int(np.prod(p.shape)) for p in table if p.decays) - config.block_size * config.n_embd
    per_token = 6 * in_matrices + 12 * config.n_layer * config.n_embd * config.block_size
    assert 1.0 < sum(ops.flops.values()) / (per_token * 4 * config.block_size) < 1.1
