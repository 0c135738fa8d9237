"""Recorded steps of small models: every model of gpt/models, with and without biases, tied and not, GELU and ReLU."""

import functools
import string

import pytest

from gpt.trace import tape
from gpt.trace.state import State, record
from small import config_of, start

VARIANTS = {
    "gpt": {"model": "gpt", "n_layer": 1},
    "gpt-2-blocks-relu": {"model": "gpt", "activation": "relu"},
    "gpt-tied-without-biases": {"model": "gpt", "n_layer": 1, "tied": True, "bias": False},
    "residual": {"model": "residual", "n_layer": 1},
    "residual-tied": {"model": "residual", "tied": True, "n_layer": 1},
    "feedforward-relu": {"model": "feedforward", "activation": "relu"},
    "multihead": {"model": "multihead"},
    "head": {"model": "head"},
    "bigram": {"model": "bigram"},
}
QUICK = ("gpt", "feedforward-relu", "head", "bigram")
SHORT_AND_LONG = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in VARIANTS]
TEXT = "gabcad"  # a token twice in the input, T = block_size, and no input of ReLU within a step of 0


@functools.cache
def recorded(variant: str, with_differences: bool = False, text: str = TEXT) -> State:
    """The step of a model with weights of order 1 on a text. Equal calls share the result, so tests do not change it."""
    config = config_of(**VARIANTS[variant])
    params = start(config, std=0.5).params
    return record(config, params, string.ascii_lowercase[: config.vocab_size], text, 0, with_differences)


def calls_with_formulas(state: State):
    """Yield (call, made, formula, parsed) for every line that makes a value."""
    for call in state.trace.calls:
        for made in call.made:
            found = tape.formula_of(call, made)
            if found:
                yield call, made, *found
