"""Every gradient that a line makes agrees with a finite difference of the loss, element by element."""

import numpy as np
import pytest

from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.trace import tape
from gpt.trace.differences import gradients, places
from small import config_of
from tensorlite.reference import attention
from traces import SHORT_AND_LONG, VARIANTS, calls_with_formulas, recorded


def worst(state, array):
    return np.abs(state.differences[array] - np.ravel(state.trace.arrays[array])).max()


@pytest.mark.parametrize("variant", SHORT_AND_LONG)
def test_every_gradient_agrees_with_its_differences(variant):
    state = recorded(variant, with_differences=True)
    assert {made.array for _, made, _ in gradients(state.trace)} <= set(state.differences)
    for array in state.differences:
        assert worst(state, array) < 1e-8, array
    table = ParamTable(MODELS[VARIANTS[variant]["model"]].init(config_of(**VARIANTS[variant])))
    assert sum(difference.size for difference in state.differences.values()) >= table.n_params
    assert set(state.parameters.values()) == {param.name for param in table}


def test_every_line_that_makes_a_gradient_says_of_what():
    """A name that begins with d is a gradient, but for slopes and for what is not yet one."""
    slopes = {("gelu_backward", "du"), ("gelu_backward", "dtanh"), ("gelu_backward", "dydx")}
    for variant in VARIANTS:
        for call, made, formula, parsed in calls_with_formulas(recorded(variant)):
            name = made.target.name
            if call.function.endswith("backward") and name.startswith("d") and formula.gradient_of is None:
                assert parsed.only_moves or (call.function, name) in slopes | {
                    ("cross_entropy_backward", "dz"),
                    ("position_embedding_backward", "dwpe"),
                }


def test_a_wrong_line_shows_at_that_line_and_not_before_it(monkeypatch):
    """A softmax backward without its sum: dscores, dq and dk disagree with their differences; dprobs and dv agree."""
    monkeypatch.setattr(attention, "softmax_backward", lambda dy, y: y * dy)
    recorded.cache_clear()
    state = recorded("gpt", with_differences=True)
    recorded.cache_clear()
    call = next(call for call in state.trace.calls if call.function == "attention_backward")
    made = {m.target.name: m.array for m in call.made}
    assert min(worst(state, made[name]) for name in ("dq", "dk")) > 1e-3
    assert max(worst(state, made[name]) for name in ("dp_dropped", "dv")) < 1e-8


def test_a_sum_of_gradients_belongs_to_the_value_that_was_used_twice():
    state = recorded("gpt")
    pairs = tape.pair_calls(state.trace)
    found = places(state.trace, pairs)
    adds = [call.made[-1].array for call in state.trace.calls if call.function == "add"]
    assert len(adds) == 2
    assert all(found[array].stays and found[array].name == "x" for array in adds)
    assert {state.trace.calls[found[array].call].function for array in adds} == {"layernorm_forward"}
