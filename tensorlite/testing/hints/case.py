"""One wrong gradient beside its true value, and all that a hint may look at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

RTOL = 1e-7  # values closer than this, relative to the root mean square of the truth, are equal
ATOL = 1e-9
ERRORS = 10.0  # an estimate of a numerical error is no bound, so it counts ten times
FEW = 3  # fewer values than this obey a rule by accident
DECISIVE = 100.0  # what tells two arrays apart must exceed the slack by this factor


@dataclass(frozen=True)
class Hint:
    """What a wrong gradient is, compared with the true one."""

    kind: str  # as in the tables of kinds.py
    text: str  # one sentence


@dataclass(frozen=True)
class Case:
    """One wrong gradient and its true value, which is numerical and so has an error."""

    label: str  # what the gradient is called in the sentence, such as dk
    wrong: np.ndarray
    true: np.ndarray
    slack: float  # two values this close are equal
    inputs: Mapping[str, Any]  # all inputs of forward, options included
    y: Sequence[np.ndarray] = ()
    dy: Sequence[np.ndarray] = ()
    other_wrong: Mapping[str, np.ndarray] = field(default_factory=dict)  # the gradients of the other inputs, by label
    other_true: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def is_decidable(self) -> bool:
        """Whether the truth stands out from its error."""
        return bool(abs(self.true).max(initial=0.0) > 10 * DECISIVE * self.slack)

    @property
    def difference(self) -> np.ndarray:
        return self.wrong - self.true

    def equal(self, a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> bool:
        """Whether two arrays are equal within `scale` times the slack, unless that is too much to tell them apart."""
        if scale > 1 and not DECISIVE * scale * self.slack < abs(self.true).max(initial=0.0):
            return False
        return a.shape == b.shape and bool((abs(a - b) <= max(1.0, scale) * self.slack).all())

    def explained_by(self, candidate: np.ndarray, scale: float = 1.0) -> bool:
        """Whether the wrong gradient is the candidate, and this is not the truth within a hair's breadth.

        A truth that is symmetric, or zero, equals its own transpose: that explains nothing.
        """
        if not self.equal(self.wrong, candidate, scale):
            return False
        return bool(abs(candidate - self.true).max(initial=0.0) > DECISIVE * max(1.0, scale) * self.slack)

    def is_constant(self, a: np.ndarray, axis: int) -> bool:
        """Whether an array has one value along the axis."""
        return self.equal(a, np.broadcast_to(a.mean(axis=axis, keepdims=True), a.shape))

    def float_arrays(self) -> dict[str, np.ndarray]:
        """Return the float arrays among the inputs, and y."""
        arrays = dict(self.inputs) | named("y", self.y)
        return {name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"}

    def index_arrays(self) -> dict[str, np.ndarray]:
        """Return the integer arrays among the inputs, such as token ids."""
        arrays = {name: a for name, a in self.inputs.items() if isinstance(a, np.ndarray) and a.dtype.kind in "iu"}
        return {name: a.astype(np.int64) for name, a in arrays.items()}

    def sources(self) -> dict[str, np.ndarray]:
        """Return what this gradient may be a sum of: dy, and the true gradients of the other inputs."""
        return named("dy", self.dy) | dict(self.other_true)

    def part(self, label: str, cut: tuple) -> "Case":
        """Return the case of one part of the gradient, with nothing to swap it with."""
        return replace(self, label=label, wrong=self.wrong[cut], true=self.true[cut], other_wrong={}, other_true={})


def named(name: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays by name: y for a single one, y[0], y[1], ... for several."""
    if len(arrays) == 1:
        return {name: arrays[0]}
    return {f"{name}[{i}]": a for i, a in enumerate(arrays)}


def slack(true: np.ndarray, error: float) -> float:
    """Return how far apart two equal values may be, given the largest estimated error of the truth."""
    rms = math.sqrt(float((true * true).mean())) if true.size else 0.0
    return ATOL + RTOL * rms + ERRORS * error
