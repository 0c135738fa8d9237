"""Complete models: their gradients, their causality, their first loss, and what they can learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import every_backend
from gpt.analysis.check_model import check_model
from gpt.config import PRESETS, ModelConfig, TrainConfig
from gpt.models import MODELS
from gpt.params import ALIGN, ParamTable, get
from gpt.training.step import Task, train_step
from small import config_of, start, text
from tensorlite import GradcheckError, Key, ReferenceOps

OPS = ReferenceOps()
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
@every_backend
def test_gradient_of_every_parameter(ops, name):
    report = check_model(MODELS[name], config_of(name), ops=ops)
    assert len(report.arguments) == len(list(ParamTable(MODELS[name].init(config_of(name)))))


@every_model
@settings(max_examples=5)
@given(
    st.sampled_from(["gelu", "relu"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_gradients_of_every_variant(name, activation, bias, tied, dropout, rows, seed):
    """ReLU has kinks that no random draw is sure to miss: the report may then be inconclusive there, never wrong."""
    tied = tied and name in ("residual", "gpt")
    config = config_of(name, activation=activation, bias=bias, tied=tied, dropout=dropout)
    key = Key(1, 2) if dropout else None
    report = check_model(MODELS[name], config, rows, seed, key, raise_on_fail=activation == "gelu", method="auto")
    assert report.status != "fail", report


@every_model
@every_backend
def test_gradients_by_complex_step(ops, name):
    check_model(MODELS[name], config_of(name), ops=ops, method="complex", rtol=1e-10, atol=1e-12)


def test_a_wrong_gradient_is_named():
    model = MODELS["gpt"]

    class Wrong(ReferenceOps):
        @staticmethod
        def layernorm_backward(dy, cache):
            dx, dw, db = ReferenceOps.layernorm_backward(dy, cache)
            return dx, dw * 1.001, db

    with pytest.raises(GradcheckError, match=r"fail +dblocks\.1\.ln2_w"):
        check_model(model, config_of("gpt"), ops=Wrong())


@every_model
@every_backend
def test_no_position_sees_the_future(ops, name):
    config = config_of(name)
    params = start(config, std=0.5).table.tree(start(config, std=0.5).params)
    idx, _ = text(config, 3)
    scores = MODELS[name].logits(ops, params, idx, config)
    for t in range(config.block_size - 1):
        changed = idx.copy()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % config.vocab_size
        np.testing.assert_array_equal(MODELS[name].logits(ops, params, changed, config)[:, : t + 1], scores[:, : t + 1])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bigram"])
def test_every_position_sees_the_past(name):
    """The other half of causality: a model that ignored its past would pass the test above."""
    config = config_of(name)
    params = start(config, std=0.5).table.tree(start(config, std=0.5).params)
    idx, _ = text(config, 1)
    changed = idx.copy()
    changed[:, 0] = (changed[:, 0] + 1) % config.vocab_size
    moved = MODELS[name].logits(OPS, params, changed, config) - MODELS[name].logits(OPS, params, idx, config)
    assert np.abs(moved).max(axis=-1).min() > 1e-6


@every_model
@every_backend
def test_the_logits_are_those_of_the_loss(ops, name):
    config = config_of(name)
    params = start(config, std=0.5).table.tree(start(config, std=0.5).params)
    idx, targets = text(config, 3)
    loss, _ = MODELS[name].forward(ops, params, idx, targets, config)
    direct, _ = ops.cross_entropy_forward(MODELS[name].logits(ops, params, idx, config), targets)
    assert math.isclose(loss, direct, rel_tol=1e-13)
    kept_nothing, cache = MODELS[name].forward(ops, params, idx, targets, config, with_cache=False)
    assert (kept_nothing, cache) == (loss, ())


@every_model
def test_overfits_one_batch(name):
    """Any model that can look at its position learns one short text by heart; a bigram learns what follows what."""
    config = config_of(name, init_std=0.2)
    state = start(config)
    train = TrainConfig(batch_size=1, max_iters=300, learning_rate=0.3 if name == "bigram" else 0.03, min_lr=0.003)
    data = np.arange(config.block_size + 1) % config.vocab_size  # one window only
    task = Task(MODELS[name], config, train, data, seed=0)
    losses = [float(train_step(OPS, task, state)[0]) for _ in range(300)]
    assert losses[0] > 2.0
    assert losses[-1] < 0.02


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_the_full_model_has_the_lectures_size(activation):
    config = PRESETS["shakespeare"].model
    assert ParamTable(MODELS["gpt"].init(ModelConfig(activation=activation))).n_params == 10_788_929
    assert ParamTable(MODELS["gpt"].init(config)).n_params == 10_788_929


@pytest.mark.parametrize("preset", ["shakespeare", "laptop"])
def test_the_loss_starts_where_theory_says(preset):
    """Exactly ln V with a zero head; ln V + C sigma^2 / 2 with a random one: the final layernorm makes logits N(0, C sigma^2)."""
    config = PRESETS[preset].model
    state = start(config, dtype=np.float32)
    params = state.table.tree(state.params)
    idx, targets = text(config, 2)
    loss, _ = MODELS["gpt"].forward(OPS, params, idx, targets, config)
    assert abs(loss - (math.log(config.vocab_size) + config.n_embd * config.init_std**2 / 2)) < 0.05
    params["head_w"][...] = 0
    loss, _ = MODELS["gpt"].forward(OPS, params, idx, targets, config)
    assert math.isclose(loss, math.log(config.vocab_size), rel_tol=1e-6)


def test_a_tied_matrix_gets_the_gradient_of_both_uses():
    """d(wte) of the tied model is d(wte) + d(head)^T of an untied one with the same numbers."""
    config, untied = config_of("gpt", tied=True), config_of("gpt")
    tied_state, state = start(config, std=0.5), start(untied)
    params, tied_params = state.table.tree(state.params), tied_state.table.tree(tied_state.params)
    for p in tied_state.table:
        get(params, p.name)[...] = get(tied_params, p.name)
    params["head_w"][...] = params["wte"].T
    idx, targets = text(config, 2)
    loss, cache = MODELS["gpt"].forward(OPS, params, idx, targets, untied)
    tied_loss, tied_cache = MODELS["gpt"].forward(OPS, tied_params, idx, targets, config)
    d, d_tied = MODELS["gpt"].backward(OPS, 1.0, cache), MODELS["gpt"].backward(OPS, 1.0, tied_cache)
    assert math.isclose(loss, tied_loss, rel_tol=1e-14)  # a BLAS may sum in another order where a matrix is a transpose
    assert d_tied["head_w"] is None
    np.testing.assert_allclose(d_tied["wte"], d["wte"] + d["head_w"].T, rtol=1e-13)


@every_model
@every_backend
def test_backward_scales_with_its_argument_and_can_be_called_twice(ops, name):
    config = config_of(name)
    state = start(config, std=0.3)
    _, cache = MODELS[name].forward(ops, state.table.tree(state.params), *text(config, 2), config)
    once, twice, half = (state.table.leaves(MODELS[name].backward(ops, s, cache)) for s in (1.0, 1.0, 0.5))
    for a, b, c in zip(once, twice, half, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, a / 2, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("name", ["residual", "gpt"])
def test_every_dropout_has_a_site_of_its_own(name):
    """Three a layer: on the probabilities and on both branches; each with the configured probability and another key."""
    config = config_of(name, dropout=0.25, n_layer=3)
    drawn = []

    class Spy(ReferenceOps):
        @staticmethod
        def attention_forward(qkv, n_head, p=0.0, key=None, kv_cache=None):
            drawn.append((p, key))
            return ReferenceOps.attention_forward(qkv, n_head, p, key, kv_cache)

        @staticmethod
        def residual_forward(x, y, p=0.0, key=None):
            drawn.append((p, key))
            return ReferenceOps.residual_forward(x, y, p, key)

    state = start(config)
    MODELS[name].forward(Spy(), state.table.tree(state.params), *text(config, 2), config, OPS.step_key(1, 2, row0=8))
    assert {p for p, _ in drawn} == {0.25}
    assert len({key for _, key in drawn}) == len(drawn) == 9
    assert {key.row0 for _, key in drawn} == {8}


def test_the_parameter_table():
    """Decaying parameters first, aligned, no overlap; a tree and its leaves are views of one buffer."""
    config = config_of("gpt", bias=False)
    table = ParamTable(MODELS["gpt"].init(config))
    flat = np.zeros(table.size)
    for i, view in enumerate(table.views(flat), start=1):
        assert not view.any()
        view[...] = i
    assert np.count_nonzero(flat) == table.n_params
    assert all(s.start % ALIGN == 0 for s in table.slots.values())
    assert all((s.stop <= table.n_decay) == table[name].decays for name, s in table.slots.items())
    tree = table.tree(flat)
    assert tree["lnf_b"] is None
    assert tree["blocks"][1]["fc_b"] is None
    for leaf, view in zip(table.leaves(tree), table.views(flat), strict=True):
        assert leaf.base is view.base is flat


def test_parameters_start_as_the_config_says():
    state = start(config_of("gpt", n_embd=60, init_std=0.1))
    tree = state.table.tree(state.params)
    assert np.isclose(tree["blocks"][0]["fc_w"].std(), 0.1, rtol=0.05)
    assert (tree["lnf_w"] == 1).all()
    assert not tree["head_b"].any()
    np.testing.assert_array_equal(state.params, start(config_of("gpt", n_embd=60, init_std=0.1)).params)
    assert not np.array_equal(state.params, start(config_of("gpt", n_embd=60, init_std=0.1), seed=1).params)
