"""The gradient check of a whole model: its loss, one named parameter at a time."""

from types import ModuleType
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.params import Param, ParamTable
from tensorlite import Key, ReferenceOps, gradcheck
from tensorlite.testing.gradcheck import GradReport


def check_model(
    model: ModuleType,
    config: ModelConfig,
    rows: int = 2,
    seed: int = 0,
    key: Key | None = None,
    ops: Any = None,
    **options: Any,
) -> GradReport:
    """Check every parameter of `model` in float64, at weights of size about 1, on random text.

    Gains and biases are moved off 1 and 0, where their mistakes would hide. key: a dropout key. options: as for gradcheck.
    Raises GradcheckError unless every parameter passes; the report names each by its dotted name.
    """
    ops = ops or ReferenceOps()
    random = np.random.default_rng(seed)
    table = ParamTable(model.init(config))
    values = {p.name: _order_one(random, p) for p in table}
    idx, targets = random.integers(0, config.vocab_size, (2, rows, config.block_size))

    def forward(**named: Any) -> tuple[Any, tuple]:
        return model.forward(ops, _tree(table, named), idx, targets, config, key)

    def backward(dloss: Any, cache: tuple) -> tuple:
        grads = table.leaves(model.backward(ops, dloss, cache))
        return tuple(grads)

    return gradcheck(forward, backward, values, **{"rng": seed, "elementwise": 16, "directions": 2} | options)


def _order_one(random: np.random.Generator, param: Param) -> np.ndarray:
    shape = param.shape or ()
    if param.fill:
        return param.fill * random.uniform(0.5, 1.5, shape)
    fan_in = shape[0] if len(shape) > 1 and param.name not in ("wte", "wpe") else 1
    return random.standard_normal(shape) / np.sqrt(fan_in)


def _tree(table: ParamTable, named: dict[str, Any]) -> dict[str, Any]:
    """The model's parameter tree over arrays that are not in one buffer, and may be complex."""
    flat = np.zeros(table.size, np.result_type(*named.values()))
    for param in table:
        table.view(flat, param)[...] = named[param.name]
    return table.tree(flat)
