"""The contract between forward and backward: one function per rule, which returns its violations.

A rule may call forward and backward, always on fresh copies, so that what one call writes does not reach the next. The numerical
check (`argument_check.py`) relies on some of the rules: an unrepeatable forward has no derivative, and only for a backward that is
linear in dy is one random dy enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tensorlite.arrays import Array
from tensorlite.testing.layer import Layer
from tensorlite.testing.returned import Gradients, read_gradients
from tensorlite.testing.trees import copy_tree, flatten, is_array, map_arrays, map_pairs, same_bits, unchanged

LINEARITY = 1e-10  # how exactly backward must be linear in dy, relative to the size of the gradient
ROUNDING = 1e-14  # added to it, because terms of size 1 may nearly cancel; 1e-3 atol where that is larger


class ForwardCalls(NamedTuple):
    """What two calls of forward on the same arrays returned."""

    y: Any
    y_again: Any
    wrote_inputs: bool


class BackwardCalls(NamedTuple):
    """What three calls of backward for one dy returned, and which of its arrays the first call wrote into."""

    returned: list[Any]
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
        inputs = copy_tree(self.layer.inputs)
        y, _ = self.layer.call_forward(inputs)
        y = copy_tree(y)  # forward may use its memory again
        y_again, _ = self.layer.call_forward(inputs)
        return ForwardCalls(y, y_again, wrote_inputs=not unchanged(self.layer.inputs, inputs))

    @cached_property
    def backward_calls(self) -> BackwardCalls:
        """Call backward three times on one cache, and compare its arrays with copies made before the first call."""
        inputs = copy_tree(self.layer.inputs)
        _, cache = self.layer.call_forward(inputs)
        watched = {"its cache": cache, "dy": copy_tree(self.dy), "the inputs": inputs}
        before = _copies(watched)
        returned = [self.layer.call_backward(watched["dy"], cache)]
        wrote = [name for name in before if not unchanged(before[name], watched[name])]
        for _ in range(2):
            if wrote or _is_used_up(cache):
                returned.append(self.call_backward(self.dy))
            else:
                returned.append(self.layer.call_backward(copy_tree(self.dy), cache))
        return BackwardCalls(returned, wrote)

    @cached_property
    def gradients(self) -> Gradients:
        """The gradients of the first call."""
        return read_gradients(self.backward_calls.returned[0], self.layer)

    def call_backward(self, dy: Any) -> Any:
        """Return what backward returns for this dy, on the cache of a forward call of its own."""
        _, cache = self.layer.call_forward(copy_tree(self.layer.inputs))
        return self.layer.call_backward(copy_tree(dy), cache)

    def gradients_of(self, dy: Any) -> dict[str, Array]:
        """Return the gradients for this dy, by path."""
        return read_gradients(self.call_backward(dy), self.layer).by_path


Rule = Callable[[Trial], list[str]]


def check_contract(trial: Trial, rules: Sequence[Rule] | None = None) -> list[str]:
    """Return the violations of the rules (None: all), up to a rule without which the later ones have nothing to look at."""
    violations: list[str] = []
    for rule in RULES if rules is None else rules:
        found = rule(trial)
        violations += found
        if found and rule in PRECONDITIONS:
            break
    return violations


def comparable_gradients(trial: Trial) -> dict[str, Array]:
    """Return, by path, the gradients that a numerical derivative can be compared with."""
    if any(rule(trial) for rule in PRECONDITIONS):
        return {}
    return trial.gradients.by_path


def misshapen_gradients(trial: Trial) -> dict[str, Array]:
    """Return, by path, the gradients whose shape is not that of their input."""
    if any(rule(trial) for rule in PRECONDITIONS):
        return {}
    return trial.gradients.misshapen


# ---- the rules ----


def forward_is_repeatable(trial: Trial) -> list[str]:
    """Two calls of forward return the same bits."""
    calls = trial.forward_calls
    if same_bits(calls.y, calls.y_again) or calls.wrote_inputs:
        return []
    way_out = "If it draws random values, pass it a seed or a mask as an input; for a PyTorch module, call module.eval()"
    return [f"forward is not repeatable: two calls differ. {way_out}"]


def forward_writes_nothing(trial: Trial) -> list[str]:
    """Forward leaves its inputs as they were."""
    return ["forward writes into its inputs"] if trial.forward_calls.wrote_inputs else []


def forward_is_float64(trial: Trial) -> list[str]:
    """The output of float64 inputs is float64."""
    low = [y.dtype for y in flatten(trial.forward_calls.y).values() if is_array(y) and y.dtype not in (np.float64, np.complex128)]
    if not low:
        return []
    return [f"y is rounded to {low[0]} though the inputs are float64: cast less inside forward, or check with twin="]


def backward_writes_nothing(trial: Trial) -> list[str]:
    """Backward leaves the cache, dy and the inputs of forward as they were."""
    return [f"backward writes into {name}" for name in trial.backward_calls.wrote]


def backward_is_repeatable(trial: Trial) -> list[str]:
    """Three calls of backward return the same bits."""
    first, second, third = trial.backward_calls.returned
    if same_bits(first, second) and same_bits(first, third):
        return []
    if _adds_up(first, second, third):
        text = (
            "backward adds to a buffer it keeps: the second call returned the sum of both. Start the buffer from zero in each call"
        )
        return [text]
    return ["backward is not repeatable: two calls on one cache differ"]


def gradients_can_be_told_apart(trial: Trial) -> list[str]:
    """It is clear which gradient belongs to which input."""
    return [] if trial.gradients.readable else trial.gradients.misfits


def gradients_fit_their_inputs(trial: Trial) -> list[str]:
    """Each gradient has the library, shape and dtype of its input, and is None where the input is None."""
    return trial.gradients.misfits


def backward_of_zero_is_zero(trial: Trial) -> list[str]:
    """For dy = 0 every gradient is exactly 0."""
    gradients = trial.gradients_of(map_arrays(lambda a: a * 0.0, trial.dy))
    nonzero = any(bool((g != 0).any()) for g in gradients.values())
    return ["backward of dy = 0 is not exactly 0"] if nonzero else []


def backward_is_linear(trial: Trial) -> list[str]:
    """backward(2a - 3b) = 2 backward(a) - 3 backward(b), up to rounding, for two random dy a and b."""
    mixed = trial.gradients_of(map_pairs(lambda a, b: 2.0 * a - 3.0 * b, trial.dy, trial.other_dy))
    other = trial.gradients_of(trial.other_dy)
    violations = []
    for path, ga in trial.gradients.by_path.items():
        if path not in other or path not in mixed:
            violations.append(f"d{path} changes its shape or type with dy")
            continue
        if not ga.size:
            continue
        gb, g_mixed = other[path], mixed[path]
        size = float(abs(ga).max() + abs(gb).max())
        difference = float(abs(g_mixed - (2.0 * ga - 3.0 * gb)).max())
        if not difference <= LINEARITY * size + max(ROUNDING, 1e-3 * trial.atol):  # a NaN is a violation too
            violations.append(f"backward is not linear in dy: d{path}(2a - 3b) != 2 d{path}(a) - 3 d{path}(b)")
    return violations


RULES: tuple[Rule, ...] = (
    forward_is_repeatable,
    forward_writes_nothing,
    forward_is_float64,
    backward_writes_nothing,
    backward_is_repeatable,
    gradients_can_be_told_apart,
    gradients_fit_their_inputs,
    backward_of_zero_is_zero,
    backward_is_linear,
)
# Where one of these is violated, the later rules and the numerical check have nothing to compare.
PRECONDITIONS = (
    forward_is_repeatable,
    forward_writes_nothing,
    forward_is_float64,
    backward_is_repeatable,
    gradients_can_be_told_apart,
)


# ---- helpers ----


def _copies(trees: dict[str, Any]) -> dict[str, Any]:
    """Copy each tree. A cache that contains itself is left alone."""
    copies = {}
    for name, tree in trees.items():
        try:
            copies[name] = copy_tree(tree)
        except RecursionError:
            continue
    return copies


def _is_used_up(cache: Any) -> bool:
    """Whether a second call could not read the cache again: it contains an iterator, such as a generator or an open file."""
    try:
        return any(hasattr(leaf, "__next__") for leaf in flatten(cache).values())
    except RecursionError:
        return False


def _adds_up(first: Any, second: Any, third: Any) -> bool:
    """Whether each call returned one gradient more than the call before: g + d, g + 2d, g + 3d."""
    calls = [flatten(returned) for returned in (first, second, third)]
    if not calls[0].keys() == calls[1].keys() == calls[2].keys():
        return False
    grows = False
    for a, b, c in zip(*(call.values() for call in calls), strict=True):
        if not (is_array(a) and is_array(b) and is_array(c) and a.shape == b.shape == c.shape and a.size):
            continue
        size = float(abs(a).max() + abs(b).max())
        if not float(abs((c - b) - (b - a)).max()) <= LINEARITY * size:
            return False
        grows = grows or float(abs(b - a).max()) > LINEARITY * size
    return grows
