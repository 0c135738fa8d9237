"""The gradient check of a whole model: its loss with respect to each named parameter."""

from types import ModuleType
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.params import Param, ParamTable
from tensorlite import Array, Key, Ops, ReferenceOps, gradcheck
from tensorlite.testing.gradcheck import GradReport


def check_model(
    model: ModuleType,
    config: ModelConfig,
    rows: int = 2,
    seed: int = 0,
    key: Key | None = None,
    ops: Ops | None = None,
    **options: Any,
) -> GradReport:
    """Check the gradient of every parameter of `model` in float64, with weights of order 1, on random text.

    Gains and biases are moved away from 1 and 0, where mistakes in them would not show.

    rows: sequences in the batch.
    seed: seed of the parameters, the text and the checker.
    key: a dropout key; None: no dropout.
    ops: the backend; by default the reference.
    options: further options of gradcheck.
    Raises GradcheckError unless every parameter passes. The report lists the parameters by their dotted names.
    """
    ops = ops or ReferenceOps()
    random = np.random.default_rng(seed)
    table = ParamTable(model.init(config))
    values = {p.name: _order_one(random, p) for p in table}
    idx, targets = random.integers(0, config.vocab_size, (2, rows, config.block_size))

    def forward(**named: Array) -> tuple[Array, tuple]:
        return model.forward(ops, _tree(table, named), idx, targets, config, key)

    def backward(dloss: Array, cache: tuple) -> tuple:
        grads = table.leaves(model.backward(ops, dloss, cache))
        return tuple(grads)

    defaults = {"rng": seed, "elementwise": 16, "directions": 2}
    return gradcheck(forward, backward, values, **defaults | options)


def _order_one(random: np.random.Generator, param: Param) -> np.ndarray:
    """Draw values of a parameter that let a layer of inputs of order 1 return outputs of order 1."""
    shape = param.shape or ()
    if param.fill:
        return param.fill * random.uniform(0.5, 1.5, shape)
    is_matrix = len(shape) > 1 and param.name not in ("wte", "wpe")
    fan_in = shape[0] if is_matrix else 1
    return random.standard_normal(shape) / np.sqrt(fan_in)


def _tree(table: ParamTable, named: dict[str, Array]) -> dict[str, Any]:
    """Return the model's parameter tree for arrays that do not lie in one buffer and may be complex."""
    flat = np.zeros(table.size, np.result_type(*named.values()))
    for param in table:
        table.view(flat, param)[...] = named[param.name]
    return table.tree(flat)
