"""The contract between forward and backward: one function per rule, which returns its violations.

A rule may call forward and backward. The numerical check (`argument_check.py`) relies on two of the rules: an unrepeatable forward
has no derivative, and only for a backward that is linear in dy is one random dy enough.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tensorlite.arrays import Array, array_namespace
from tensorlite.testing.layer import Layer, copy_arrays, is_float_array
from tensorlite.testing.trees import as_tuple, leaves, map_arrays, map_pairs, same_values

LINEARITY = 1e-10  # how exactly backward must be linear in dy, relative to the size of the gradient
ROUNDING = 1e-14  # added to it, because terms of size 1 may nearly cancel; 1e-3 atol where that is larger


class ForwardCalls(NamedTuple):
    """What two calls of forward on the same inputs returned."""

    y: Any
    y_again: Any
    cache: Any
    wrote_inputs: bool


class BackwardCall(NamedTuple):
    """What one call of backward returned, and which of its arrays it wrote into."""

    returned: tuple
    wrote: list[str]


@dataclass
class Trial:
    """What the rules look at. A call is made when a rule first asks for its result."""

    layer: Layer
    dy: Any
    other_dy: Any  # a second random dy, for the rule of linearity
    atol: float

    @cached_property
    def forward_calls(self) -> ForwardCalls:
        """Call forward twice."""
        layer = self.layer
        before = copy_arrays(layer.inputs)
        y, cache = layer.forward(**layer.inputs)
        y_again, _ = layer.forward(**layer.inputs)
        wrote_inputs = layer.wrote_since(before)
        if wrote_inputs:  # the other rules start from the true inputs again
            layer.restore(before)
            _, cache = layer.forward(**layer.inputs)
            layer.restore(before)
        return ForwardCalls(y, y_again, cache, wrote_inputs)

    @cached_property
    def backward_call(self) -> BackwardCall:
        """Call backward once and compare its arrays with copies made before."""
        inputs_before = copy_arrays(self.layer.inputs)
        watched = {"its cache": leaves(self.forward_calls.cache), "dy": leaves(self.dy)}
        before = {name: [a.copy() for a in arrays] for name, arrays in watched.items()}
        returned = self.call_backward(self.dy)
        wrote = [name for name, arrays in watched.items() if not same_values(arrays, before[name])]
        if self.layer.wrote_since(inputs_before):
            wrote.append("the inputs")
            self.layer.restore(inputs_before)
        return BackwardCall(returned, wrote)

    @cached_property
    def order(self) -> list[str]:
        """Names of the inputs that the returned gradients belong to. An absent input (None) may be left out of the gradients."""
        with_absent = [name for name, a in self.layer.inputs.items() if a is None or is_float_array(a)]
        return with_absent if len(self.backward_call.returned) == len(with_absent) else self.layer.differentiable

    @cached_property
    def gradients(self) -> tuple:
        """The returned gradients, without a surplus of None at the end."""
        gradients = self.backward_call.returned
        while len(gradients) > len(self.order) and gradients[-1] is None:
            gradients = gradients[:-1]
        return gradients

    def call_backward(self, dy: Any) -> tuple:
        """Return the gradients for this dy and the cache of forward."""
        return as_tuple(self.layer.backward(dy, self.forward_calls.cache))

    def gradients_of(self, dy: Any) -> tuple:
        """Return the gradients for this dy, as many as there were for the first one."""
        return self.call_backward(dy)[: len(self.gradients)]


def check_contract(trial: Trial) -> list[str]:
    """Return the violations of all rules, up to a rule without which the later ones have nothing to look at."""
    violations: list[str] = []
    for rule in RULES:
        found = rule(trial)
        violations += found
        if found and rule in PRECONDITIONS:
            break
    return violations


def comparable_gradients(trial: Trial) -> dict[str, Array]:
    """Return, by name of the input, the gradients that a numerical derivative can be compared with."""
    if any(rule(trial) for rule in PRECONDITIONS):
        return {}
    gradients = zip(trial.order, trial.gradients, strict=True)
    return {name: g for name, g in gradients if g is not None and _misfit(name, trial.layer.inputs[name], g) is None}


# ---- the rules ----


def forward_is_repeatable(trial: Trial) -> list[str]:
    """Two calls of forward return equal values."""
    calls = trial.forward_calls
    return [] if same_values(calls.y, calls.y_again) else ["forward is not repeatable: two calls differ"]


def forward_writes_nothing(trial: Trial) -> list[str]:
    """Forward leaves its inputs as they were."""
    return ["forward writes into its inputs"] if trial.forward_calls.wrote_inputs else []


def backward_returns_float_arrays(trial: Trial) -> list[str]:
    """Every gradient is a float array or None."""
    returned = trial.backward_call.returned
    bad_types = [type(g).__name__ for g in returned if not (g is None or is_float_array(g))]
    return [f"backward returns a {bad_types[0]} where a float array or None belongs"] if bad_types else []


def backward_writes_nothing(trial: Trial) -> list[str]:
    """Backward leaves the cache, dy and the inputs of forward as they were."""
    return [f"backward writes into {name}" for name in trial.backward_call.wrote]


def backward_is_repeatable(trial: Trial) -> list[str]:
    """Two calls of backward on the same cache return equal values."""
    again = trial.call_backward(trial.dy)
    return [] if same_values(trial.backward_call.returned, again) else ["backward is not repeatable: two calls on one cache differ"]


def backward_returns_one_gradient_per_input(trial: Trial) -> list[str]:
    """There are as many gradients as inputs that have one."""
    n_gradients, n_inputs = len(trial.gradients), len(trial.order)
    if n_gradients == n_inputs:
        return []
    return [f"backward returns {n_gradients} gradients for the {n_inputs} inputs {trial.order}"]


def gradients_fit_their_inputs(trial: Trial) -> list[str]:
    """Each gradient has the library, shape and dtype of its input, and is None where the input is None."""
    gradients = zip(trial.order, trial.gradients, strict=True)
    misfits = [_misfit(name, trial.layer.inputs[name], g) for name, g in gradients]
    return [misfit for misfit in misfits if misfit is not None]


def backward_of_zero_is_zero(trial: Trial) -> list[str]:
    """For dy = 0 every gradient is exactly 0."""
    gradients = trial.gradients_of(map_arrays(lambda a: a * 0.0, trial.dy))
    nonzero = any(g is not None and bool((g != 0).any()) for g in gradients)
    return ["backward of dy = 0 is not exactly 0"] if nonzero else []


def backward_is_linear(trial: Trial) -> list[str]:
    """backward(2a - 3b) = 2 backward(a) - 3 backward(b), up to rounding, for two random dy a and b."""
    mixed = trial.gradients_of(map_pairs(lambda a, b: 2.0 * a - 3.0 * b, trial.dy, trial.other_dy))
    other = trial.gradients_of(trial.other_dy)
    violations = []
    for name, ga, gb, g_mixed in zip(trial.order, trial.gradients, other, mixed, strict=True):
        if ga is None or not ga.size:
            continue
        size = float(abs(ga).max() + abs(gb).max())
        difference = float(abs(g_mixed - (2.0 * ga - 3.0 * gb)).max())
        if not difference <= LINEARITY * size + max(ROUNDING, 1e-3 * trial.atol):  # a NaN is a violation too
            violations.append(f"backward is not linear in dy: d{name}(2a - 3b) != 2 d{name}(a) - 3 d{name}(b)")
    return violations


def _misfit(name: str, x: Array | None, g: Array | None) -> str | None:
    """Say in what the gradient g of the input x does not fit it; None if it does."""
    if x is None and g is None:
        return None
    if x is None:
        return f"d{name} is an array for an input that is None"
    if g is None:
        return f"d{name} is None for an input that is an array"
    if array_namespace(g) is not array_namespace(x):
        return f"d{name} is a {array_namespace(g).__name__} array, {name} a {array_namespace(x).__name__} array"
    if (g.shape, g.dtype) != (x.shape, x.dtype):
        return f"d{name} is {g.shape} {g.dtype}, {name} is {x.shape} {x.dtype}"
    return None


RULES: tuple[Callable[[Trial], list[str]], ...] = (
    forward_is_repeatable,
    forward_writes_nothing,
    backward_returns_float_arrays,
    backward_writes_nothing,
    backward_is_repeatable,
    backward_returns_one_gradient_per_input,
    gradients_fit_their_inputs,
    backward_of_zero_is_zero,
    backward_is_linear,
)
PRECONDITIONS = (backward_returns_float_arrays, backward_returns_one_gradient_per_input)  # of the rules that come after them
