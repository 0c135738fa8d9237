"""The op table agrees with the ops, and every model runs on arrays that are only shapes."""

import dataclasses
import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import BACKENDS, CASES, every_backend
from gpt.analysis.cost import MetaParamTable
from gpt.config import PRESETS
from gpt.models import MODELS
from gpt.params import ParamTable
from tensorlite import KVCache, ReferenceOps, cpu
from tensorlite.cpu.memory_pool import SMALL
from tensorlite.meta import MetaArray, MetaOps, cache_bytes
from tensorlite.op_info import OP_INFO

COMPOSITES = {"token_position_embedding", "mlp", "self_attention", "dropout_add_layernorm", "linear_cross_entropy", "activation"}


def test_every_op_has_a_row_and_a_case_and_a_backward():
    names = {name.removesuffix("_forward") for name in vars(ReferenceOps) if name.endswith("_forward")}
    assert names == {name.removesuffix("_backward") for name in vars(ReferenceOps) if name.endswith("_backward")}
    assert names - COMPOSITES == set(OP_INFO)
    assert names - COMPOSITES == set(CASES)
    assert all(list(ops.op_table) == list(OP_INFO) for ops in BACKENDS)


def test_composites_take_the_backend_first():
    """An inherited composite must use a primitive that the backend overrides."""
    calls = []

    class Loud(ReferenceOps):
        @staticmethod
        def linear_forward(x, w, b=None):
            calls.append(w.shape)
            return ReferenceOps.linear_forward(x, w, b)

    r = np.random.default_rng(0).standard_normal
    Loud().mlp_forward(r((2, 3)), r((3, 5)), None, r((5, 3)), None)
    Loud().self_attention_forward(r((1, 2, 4)), r((4, 12)), None, r((4, 4)), None, 2)
    Loud().linear_cross_entropy_forward(r((2, 3)), r((3, 7)), None, np.array([1, 2]))
    assert calls == [(3, 5), (5, 3), (4, 12), (4, 4), (3, 7)]


def test_signatures_of_a_backend_equal_the_reference():
    """Compared on objects, as a model sees them. A backend may add methods but not change or lose one."""
    for backend in (MetaOps(), cpu.CPUOps()):
        for name, member in inspect.getmembers(ReferenceOps(), callable):
            if not name.startswith("_"):
                theirs, ours = (inspect.signature(function).parameters.values() for function in (getattr(backend, name), member))
                assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in ours], name


@pytest.mark.parametrize("name", CASES)
@every_backend
@given(data=st.data())
def test_a_row_says_what_the_op_does(ops, name, data):
    """Shapes of output and gradients, inputs that the cache refers to and bytes of its own are those of the real op."""
    inputs = data.draw(CASES[name].inputs)
    shapes = {k: MetaArray(v.shape, v.itemsize) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    row = ops.op_table[name]
    shape_ops = MetaOps(ops.op_table)
    forward, backward = CASES[name].on(ops)
    shape_forward, shape_backward = CASES[name].on(shape_ops)
    y, cache = forward(**inputs)
    y_shape, shape_cache = shape_forward(**shapes)
    assert y_shape.shape == y.shape
    own_bytes = cache_bytes(cache, inputs)
    if row.saved_refs == ("y",):
        assert cache_bytes(cache) == y.nbytes
    else:
        assert own_bytes == cache_bytes(shape_cache, shapes), (name, inputs)
    everything = cache_bytes(cache)
    refers_to = {k for k, v in inputs.items() if isinstance(v, np.ndarray) and cache_bytes(cache, [v]) < everything}
    assert refers_to == set(row.saved_refs) - {"y"}
    grads = backward(np.ones_like(y), cache)
    shape_grads = shape_backward(y_shape, shape_cache)
    for g, s in zip(as_tuple(grads), as_tuple(shape_grads), strict=True):
        assert (g is None) == (s is None)
        assert g is None or g.shape == s.shape
    assert set(shape_ops.flops) == {f"{name}_forward", f"{name}_backward"}


def as_tuple(grads):
    return grads if isinstance(grads, tuple) else (grads,)


def shape_run(preset, op_table=OP_INFO, **fields):
    config = dataclasses.replace(PRESETS[preset].model, **fields)
    table = MetaParamTable(MODELS[config.model].init(config))
    params, ops = table.tree(None), MetaOps(op_table)
    idx = MetaArray((4, config.block_size), 8)
    return config, table, params, ops, idx


@pytest.mark.parametrize("preset", PRESETS)
def test_models_consist_of_op_calls_alone(preset):
    """They run on arrays that refuse arithmetic, indexing and allocation; every gradient has the shape of its parameter."""
    config, table, params, ops, idx = shape_run(preset)
    model = MODELS[config.model]
    loss, cache = model.forward(ops, params, idx, idx, config, ops.step_key(0, 0))
    assert loss.shape == ()
    grads = model.backward(ops, 1.0, cache)
    for param, grad in zip(table, table.leaves(grads), strict=True):
        assert grad.shape == param.shape
    scores = model.logits(ops, params, idx, config)
    assert scores.shape == (4, config.block_size, config.vocab_size)
    kv_cache = KVCache(config.n_layer, config.block_size)
    assert model.logits(ops, params, MetaArray((4, 3), 8), config, kv_cache).shape == (4, 3, config.vocab_size)


def test_shape_arrays_refuse_arithmetic():
    a = MetaArray((2, 3))
    for bad in (lambda: a + a, lambda: a * 2.0, lambda: a @ a, lambda: a[0], lambda: -a, lambda: np.exp(a)):
        with pytest.raises(TypeError):
            bad()


@pytest.mark.parametrize(("preset", "dropout"), [("residual", 0.0), ("layernorm", 0.0), ("layernorm", 0.2)])
@every_backend
def test_the_estimated_cache_is_the_real_one(ops, preset, dropout):
    """The bytes counted on shapes equal those of a real forward pass."""
    config, _, params, shape_ops, idx = shape_run(preset, ops.op_table, dropout=dropout)
    model, key = MODELS[config.model], ops.step_key(0, 0)
    _, cache = model.forward(shape_ops, params, idx, idx, config, key)
    flat = ParamTable(model.init(config)).init_params(0)
    real_params = ParamTable(model.init(config)).tree(flat)
    real_idx = np.zeros(idx.shape, np.int64)
    _, real_cache = model.forward(ops, real_params, real_idx, real_idx.copy(), config, key)
    counted = cache_bytes(cache, [params, idx])
    assert counted == cache_bytes(real_cache, [flat, real_idx]) - real_idx.nbytes  # the targets; on shapes they are idx itself


def test_a_view_and_its_array_count_once():
    """Whether NumPy owns the memory, or an object that is no array."""
    own = np.ones((SMALL, 2))  # too large for the backend to take it from NumPy
    lent = cpu.CPUOps().add(own, own)
    assert not isinstance(lent.base, np.ndarray)
    for array in (own, lent):
        assert cache_bytes([array, array.reshape(2, -1), (array[1:].T, {"x": array.reshape(-1)[3:]})]) == array.nbytes
        assert cache_bytes([array.reshape(2, -1)], [array.T]) == 0


def test_flops_of_the_full_model_match_the_usual_count():
    """The scaling-law papers count 6 FLOPs per matrix parameter and token, plus 12 L C T for attention; ours is within 10 %."""
    config, table, params, ops, idx = shape_run("shakespeare")
    model = MODELS[config.model]
    _, cache = model.forward(ops, params, idx, idx, config)
    model.backward(ops, 1.0, cache)
    in_matrices = sum(int(np.prod(p.shape)) for p in table if p.decays) - config.block_size * config.n_embd
    per_token = 6 * in_matrices + 12 * config.n_layer * config.n_embd * config.block_size
    assert 1.0 < sum(ops.flops.values()) / (per_token * 4 * config.block_size) < 1.1
