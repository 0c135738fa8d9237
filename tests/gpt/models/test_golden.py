"""Values and gradients of two small models against stored values that PyTorch computed.

No PyTorch is needed (golden/make_golden.py).

Weights and text come from formulas, so that the file holds results alone.
"""

import json
import math

import numpy as np
import pytest

from gpt.config import ModelConfig, TrainConfig
from gpt.models import gpt
from gpt.params import ParamTable
from paths import GOLDEN
from small import config_of
from tensorlite import ReferenceOps

OPS = ReferenceOps()

FILE = GOLDEN / "gpt.json"
VARIANTS = {
    "gelu, untied, bias": config_of("gpt"),
    "relu, tied, no bias": config_of("gpt", activation="relu", tied=True, bias=False),
}
TRAIN = TrainConfig(learning_rate=1e-2, weight_decay=0.1, beta2=0.99, grad_clip=1.0)
STEPS = 10
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def weights(table: ParamTable) -> np.ndarray:
    """The flat buffer: the sine of the squared number of an entry, counted over the model, over sqrt(fan-in); gains around 1.

    Squared, because the sine of a row number plus a column number has rank 2.
    """
    flat, n = np.zeros(table.size), 0
    for param, view in zip(table, table.views(flat), strict=True):
        fan_in = 1 if param.name in ("wte", "wpe") or view.ndim == 1 else view.shape[0]
        view[...] = param.fill + np.sin(np.arange(n, n + view.size) ** 2.0).reshape(view.shape) / math.sqrt(fan_in)
        n += view.size
    return flat


def text(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """idx and targets, both (4, T): successive squares with a drift, modulo V."""
    n = np.arange(4 * config.block_size + 1)
    tokens = (n * n + n // 3) % config.vocab_size
    return tokens[:-1].reshape(4, -1), tokens[1:].reshape(4, -1)


def expected(variant: str) -> dict:
    return json.loads(FILE.read_text())["variants"][variant]


def assert_same(ours, theirs, what):
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12, err_msg=what)


@every_variant
def test_loss_and_every_gradient(variant):
    config, golden = VARIANTS[variant], expected(variant)
    table = ParamTable(gpt.init(config))
    loss, cache = gpt.forward(OPS, table.tree(weights(table)), *text(config), config)
    grads = table.leaves(gpt.backward(OPS, 1.0, cache))
    assert_same(loss, golden["loss"], "loss")
    assert {p.name for p in table} == set(golden["gradients"])
    for param, grad in zip(table, grads, strict=True):
        assert_same(grad, np.array(golden["gradients"][param.name].split(), float).reshape(param.shape), param.name)


@every_variant
def test_ten_steps_of_training(variant):
    config, golden = VARIANTS[variant], expected(variant)
    table = ParamTable(gpt.init(config))
    flat, batch = weights(table), text(config)
    params, grads, m, v = table.tree(flat), np.zeros_like(flat), np.zeros_like(flat), np.zeros_like(flat)
    _, cache = gpt.forward(OPS, params, *batch, config)
    assert len(golden["steps"]) == STEPS
    for t, after in enumerate(golden["steps"], start=1):
        OPS.pack_grads(table.leaves(gpt.backward(OPS, 1.0, cache)), table.views(grads))
        assert_same(OPS.clip_grad_norm_(grads, TRAIN.grad_clip), after["gradient norm before clipping"], f"norm of gradient {t}")
        OPS.adamw_(
            flat,
            grads,
            m,
            v,
            t=t,
            lr=TRAIN.learning_rate,
            beta1=TRAIN.beta1,
            beta2=TRAIN.beta2,
            weight_decay=TRAIN.weight_decay,
            n_decay=table.n_decay,
        )
        loss, cache = gpt.forward(OPS, params, *batch, config)
        assert_same(loss, after["loss"], f"loss after step {t}")
        assert_same(OPS.global_norm(flat), after["parameter norm"], f"norm of parameters after step {t}")
