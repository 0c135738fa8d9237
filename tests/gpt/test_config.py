"""Configurations: the presets are the lecture's, and an impossible field is refused by its name."""

import dataclasses
import math
import runpy

import pytest

from gpt import config
from gpt.config import PRESETS, STAGES, ModelConfig, TrainConfig, override
from gpt.errors import ConfigError


def test_the_presets_are_the_lectures():
    for name in STAGES:
        model, train = PRESETS[name].model, PRESETS[name].train
        assert (model.block_size, model.n_embd, train.batch_size, train.max_iters) == (8, 32, 32, 5000)
    assert [PRESETS[s].model.n_head for s in STAGES[1:4]] == [1, 4, 4]
    assert [PRESETS[s].model.n_layer for s in STAGES[4:]] == [3, 3]
    full = PRESETS["shakespeare"]
    assert (full.model.n_layer, full.model.n_head, full.model.n_embd, full.model.block_size) == (6, 6, 384, 256)
    assert (full.model.dropout, full.train.batch_size, full.train.max_iters, full.train.learning_rate) == (0.2, 64, 5000, 3e-4)
    laptop = PRESETS["laptop"]
    assert (laptop.model.n_layer, laptop.model.n_head, laptop.model.n_embd, laptop.model.block_size) == (4, 4, 128, 64)
    assert (laptop.train.batch_size, laptop.train.max_iters) == (12, 2000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((f, v) for f in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd") for v in (0, -1, 1.5, True, "8", None)),
        ("n_embd", 385),
        *(("dropout", v) for v in (1.0, -0.1, math.nan, "x")),
        ("activation", "swish"),
        ("bias", 1),
        ("tied", None),
        ("init_std", -0.1),
        ("init_std", math.inf),
    ],
)
def test_model_nonsense_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field}"):
        ModelConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((f, 0) for f in ("batch_size", "gradient_accumulation_steps", "max_iters", "eval_interval", "eval_batches")),
        *((f, -1) for f in ("warmup_iters", "weight_decay", "grad_clip", "min_lr")),
        *((f, v) for f in ("beta1", "beta2") for v in (1.0, -0.1)),
        *(("learning_rate", v) for v in (0.0, math.nan, math.inf, True)),
        ("min_lr", 1.0),
    ],
)
def test_training_nonsense_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field}"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        *((m, "n_layer", 2) for m in ("bigram", "head", "multihead", "feedforward")),
        ("head", "n_head", 2),
        ("multihead", "tied", True),
    ],
)
def test_a_stage_refuses_what_it_does_not_have(model, field, value):
    fields = {"n_layer": 1, "n_head": 1, "n_embd": 4} | {field: value}
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        ModelConfig(model, **fields)


def test_configurations_are_frozen_and_override_checks_again():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().n_embd = 12
    assert override(ModelConfig(), {"n_layer": 2}).n_layer == 2
    with pytest.raises(ConfigError, match="n_head"):
        override(ModelConfig(), {"n_head": 0})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ModelConfig, {"model": "gtp"}),
        (ModelConfig, {"n_embd": 0}),
        (ModelConfig, {"n_embd": 385}),
        (ModelConfig, {"dropout": 1}),
        (ModelConfig, {"bias": 1}),
        (ModelConfig, {"tied": 1}),
        (ModelConfig, {"activation": "swish"}),
        (ModelConfig, {"init_std": -1}),
        (TrainConfig, {"max_iters": 0}),
        (TrainConfig, {"shards": 65}),
        (TrainConfig, {"warmup_iters": -1}),
        (TrainConfig, {"learning_rate": 0}),
        (TrainConfig, {"min_lr": -1}),
        (TrainConfig, {"min_lr": 1}),
        (TrainConfig, {"grad_clip": -1}),
        (TrainConfig, {"beta2": 1}),
        (ModelConfig, {"n_layer": 10_001}),
        (ModelConfig, {"block_size": 2**40 + 1}),
        (TrainConfig, {"eval_batches": 2**40 + 1}),
    ],
)
def test_a_refusal_names_the_field_the_rule_and_the_value(kind, fields):
    ((name, value),) = fields.items()
    rule = "be one of bigram, .*, gpt" if name == "model" else ".+"
    with pytest.raises(ConfigError, match=f"^{name} must {rule}, not {value!r}$"):
        kind(**fields)


def test_what_lies_on_a_border_is_allowed():
    for model in ("residual", "gpt"):
        assert ModelConfig(model, tied=True, dropout=0, init_std=0).tied
    least = {"max_iters": 1, "eval_interval": 1, "warmup_iters": 0, "val_chars": 0, "min_lr": 0, "beta1": 0, "beta2": 0.9999}
    assert TrainConfig(batch_size=3, shards=3, weight_decay=0, grad_clip=0, **least).shards == 3
    assert (ModelConfig(n_layer=10_000).n_layer, TrainConfig(val_chars=2**40).val_chars) == (10_000, 2**40)


@pytest.mark.parametrize(
    ("name", "n_layer", "n_head", "lr"), [("bigram", 1, 4, 1e-2), ("head", 1, 1, 3e-3), ("layernorm", 3, 4, 3e-3)]
)
def test_the_small_stages_in_full(name, n_layer, n_head, lr):
    """From a fresh copy of the module, because the presets are computed when it is imported."""
    stage = runpy.run_path(config.__file__, run_name=config.__name__)["PRESETS"][name]
    model = "gpt" if name == "layernorm" else name
    sizes = {"vocab_size": 65, "block_size": 8, "n_layer": n_layer, "n_head": n_head, "n_embd": 32}
    assert dataclasses.asdict(stage.model) == dataclasses.asdict(ModelConfig(model, **sizes, init_std=0.1))
    schedule = {"learning_rate": lr, "min_lr": 1e-4, "warmup_iters": 100, "eval_interval": 500, "eval_batches": 200}
    assert dataclasses.asdict(stage.train) == dataclasses.asdict(TrainConfig(batch_size=32, max_iters=5000, **schedule))
    assert float(stage.reported) > 2
