"""class State: one recorded step of a model on a text, with a finite difference beside every gradient."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gpt.config import ModelConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.params import ParamTable, get
from gpt.tokenizer import CharTokenizer
from gpt.trace import tape
from gpt.trace.differences import differences
from gpt.trace.recorder import Recorder, Trace, listening
from tensorlite import ReferenceOps

MOST_VALUES = 60_000  # of one step: nobody reads more, and the page becomes slow to open


@dataclass(frozen=True)
class State:
    """One recorded step.

    step: the number of updates before it.
    loss: in nats per character.
    parameters: the name of every parameter, by its array in the trace.
    differences: a finite difference for every element of a gradient, flat, by the gradient's array. Empty if none were taken.
    """

    step: int
    loss: float
    trace: Trace
    parameters: Mapping[int, str]
    differences: Mapping[int, np.ndarray]


def record(
    config: ModelConfig, params: np.ndarray, vocabulary: str, text: str, step: int = 0, with_differences: bool = True
) -> State:
    """Run forward and backward on one text with the reference ops, unchanged, and record every value.

    config: a model without dropout.
    params: (size,) float64, flat, in the layout of the model's parameter table.
    text: T + 1 characters; each but the first is the target of the one before it.
    step: the number of updates that made these parameters.
    Raises ConfigError for a run of more than MOST_VALUES values.
    """
    model = MODELS[config.model]
    table = ParamTable(model.init(config))
    check_size(config, text, table.n_params)
    tree = table.tree(params)
    tokens = CharTokenizer(vocabulary).encode(text, "text").astype(np.int64)
    idx = tokens[None, :-1]  # (1, T)
    targets = tokens[None, 1:]  # (1, T)
    ops = ReferenceOps()

    recorder = Recorder()
    with listening(recorder):
        loss, cache = model.forward(ops, tree, idx, targets, config)
        grads = model.backward(ops, 1.0, cache)
    parameters = {recorder.array(get(tree, param.name)): param.name for param in table}
    leaves = [recorder.array(get(grads, param.name)) for param in table]
    trace = recorder.trace
    check_size(config, text, sum(array.size for array in trace.arrays))

    def loss_again() -> float:
        return float(model.forward(ops, tree, idx, targets, config)[0])

    found = {}
    if with_differences:
        found = differences(trace, tape.pair_calls(trace), loss_again, table.views(params), leaves)
    return State(step, float(loss), trace, parameters, found)


def check_size(config: ModelConfig, text: str, n_values: int) -> None:
    """Raise ConfigError if a step has too many values for a page."""
    if n_values > MOST_VALUES:
        raise ConfigError(
            f"text and model make {n_values:,} values or more, and a page holds {MOST_VALUES:,}; lower n_embd {config.n_embd}, "
            f"n_layer {config.n_layer} or the {len(text)} characters of --text "
            "(python train.py --preset head trains a model that fits)"
        )
