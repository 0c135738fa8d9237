"""The numerical part of a gradient check: one gradient against numerical derivatives of forward."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace, to_numpy
from tensorlite.testing.layer import Layer
from tensorlite.testing.numerical import Derivative, complex_step, finite_difference
from tensorlite.testing.report import FAIL, INCONCLUSIVE, PASS, Argument, Entry
from tensorlite.testing.trees import as_tuple

CONFIRM_SHRINK = 37.0  # a failure is confirmed with a first step shorter by this factor
MIN_SEARCHED = 64  # wrong entries of a large argument to find before the search ends: the first ones may all be kinks


@dataclass(frozen=True)
class Settings:
    """The options of `gradcheck` that concern the numerical derivatives; its docstring explains them."""

    method: str
    directions: int
    elementwise: int
    rtol: float
    atol: float
    step: float
    order: int
    max_report: int

    def __post_init__(self) -> None:
        if self.method not in ("auto", "fd", "complex"):
            raise ValueError(f"method must be auto, fd or complex, not {self.method!r}")
        if self.directions < 1 or self.order < 2:
            raise ValueError(f"directions must be at least 1 and order at least 2, not {self.directions} and {self.order}")


@dataclass(frozen=True)
class Comparison:
    """A numerical derivative beside what backward says, along one direction."""

    status: str
    error_in_tolerances: float  # the disagreement in units of the tolerance
    numerical: Derivative
    analytical: float


@dataclass
class ArgumentCheck:
    """Compare backward with numerical derivatives for the argument `name`; all other inputs stay fixed.

    For phi(t) = sum(dy * forward(x + t u)) and a unit direction u, phi'(0) must equal the inner product of the gradient and u.
    """

    layer: Layer
    name: str
    dy: Any
    grad: Array  # what backward returned for dy
    settings: Settings
    random: np.random.Generator  # draws the directions

    def __post_init__(self) -> None:
        self.x = self.layer.inputs[self.name]
        self.xp = array_namespace(self.x)
        self.scale = math.sqrt(float((self.grad * self.grad).sum()) / max(1, self.grad.size))  # root mean square
        self.tolerance = self.settings.atol + self.settings.rtol * self.scale
        self.method_used = "complex" if self.settings.method == "complex" else "fd"

    def run(self) -> Argument:
        """Check every entry of a small argument, random directions of a large one; return the verdict."""
        n = self.x.size
        every_entry = n <= self.settings.elementwise
        result = Argument(
            name=self.name,
            shape=self.x.shape,
            method=self.method_used,
            checked="every entry" if every_entry else f"{self.settings.directions} directions",
            tolerance=self.tolerance,
        )
        if not bool(self.xp.isfinite(self.grad).all()):
            return replace(result, status=FAIL, worst=math.inf, note="backward returned nan or inf")
        if self.settings.method == "complex" and n and not self.complex_step_agrees():
            note = "the complex step disagrees with differences: is forward analytic code (no abs, conj, real)?"
            return replace(result, status=INCONCLUSIVE, worst=math.inf, note=note)

        probes = [np.array([i]) for i in range(n)] if every_entry else [np.arange(n)] * self.settings.directions
        comparisons = [self.compare(probe) for probe in probes]
        result.worst = max((c.error_in_tolerances for c in comparisons), default=0.0)
        statuses = {c.status for c in comparisons}
        if FAIL in statuses and every_entry:
            self.report_wrong(result, {i: c for i, c in enumerate(comparisons) if c.status == FAIL})
        elif FAIL in statuses:
            limit = max(self.settings.max_report, MIN_SEARCHED)
            wrong = self.locate(np.arange(n), limit)
            result.more = len(wrong) >= limit
            self.report_wrong(result, wrong)
        elif INCONCLUSIVE in statuses:
            result.status = INCONCLUSIVE
            result.note = "the numerical derivative is too poor to decide; try another step or method"
        result.method = self.method_used
        return result

    # ---- one comparison ----

    def compare(self, probe: np.ndarray) -> Comparison:
        """Compare along a random unit direction on the entries `probe` (+1 on a single entry).

        An error estimate is no bound: a kink inside the step can fool it. So a disagreement counts only when differences with a
        much shorter step confirm it.
        """
        direction = self.direction(probe)
        analytical = float((self.grad * direction).sum())
        first = self.judge(self.numerical(direction, self.settings.step), analytical)
        if first.status != FAIL or self.settings.method == "complex":
            return first
        second = self.judge(self.numerical(direction, self.settings.step / CONFIRM_SHRINK), analytical)
        if second.status != FAIL:
            return second
        apart = abs(first.numerical.value - second.numerical.value)
        confirmed = apart <= 0.1 * abs(second.numerical.value - analytical)
        return second if confirmed else replace(second, status=INCONCLUSIVE)

    def judge(self, numerical: Derivative, analytical: float) -> Comparison:
        """Return pass, fail or inconclusive, taking the error of this one estimate at its word."""
        difference = abs(numerical.value - analytical)
        if not math.isfinite(difference):
            return Comparison(INCONCLUSIVE, math.inf, numerical, analytical)
        if numerical.error <= self.tolerance:
            status = PASS if difference <= self.tolerance else FAIL
        else:  # an inaccurate estimate can still prove a failure: a disagreement beyond ten times its error
            status = FAIL if difference > 10 * numerical.error + self.tolerance else INCONCLUSIVE
        return Comparison(status, difference / self.tolerance, numerical, analytical)

    def direction(self, probe: np.ndarray) -> Array:
        """Return a random unit vector on the entries `probe`, shaped as x; +1 on a single entry."""
        weights = self.random.standard_normal(len(probe)) if len(probe) > 1 else np.ones(1)
        u = np.zeros(self.x.size)
        u[probe] = weights / np.linalg.norm(weights)
        return self.xp.asarray(u.reshape(self.x.shape))

    # ---- estimates of phi'(0) ----

    def phi(self, direction: Array) -> Callable[[complex], complex]:
        """Return the function t -> sum(dy * forward(x + t u)). Only its values, which are scalars, leave the device."""

        def phi(t: complex) -> complex:
            y, _ = self.layer.forward(**self.layer.inputs | {self.name: self.x + t * direction})
            outputs = zip(as_tuple(self.dy), as_tuple(y), strict=True)
            return complex(sum(complex(to_numpy((dy * yi).sum())) for dy, yi in outputs))

        return phi

    def numerical(self, direction: Array, step: float) -> Derivative:
        """Estimate phi'(0) by the method of the settings."""
        if self.settings.method == "complex":
            return complex_step(self.phi(direction))
        differences = self.differences(direction, step)
        if self.settings.method == "auto" and not differences.error <= self.tolerance:
            return self.complex_step_or(differences, direction)
        return differences

    def differences(self, direction: Array, step: float, side: int = 0) -> Derivative:
        """Estimate phi'(0) by finite differences; side: 0 for central, -1 for left, 1 for right."""
        phi = self.phi(direction)
        return finite_difference(lambda t: phi(t).real, step, self.settings.order, self.tolerance / 10, side)

    def complex_step_or(self, differences: Derivative, direction: Array) -> Derivative:
        """Return the complex step where it works and agrees with the inaccurate differences, otherwise the differences."""
        try:
            exact = complex_step(self.phi(direction))
        except Exception:  # code that does not take complex numbers may say so in any way
            return differences
        decisive = 100 * differences.error <= max(self.scale, abs(exact.value))  # would show a dropped imaginary part
        if not (decisive and abs(exact.value - differences.value) <= 10 * differences.error):
            return differences
        self.method_used = "fd, complex"
        return exact

    def complex_step_agrees(self) -> bool:
        """Whether the complex step agrees, loosely, with differences: it does not if code drops the imaginary part."""
        phi = self.phi(self.direction(np.arange(self.x.size)))
        exact = complex_step(phi).value
        rough = finite_difference(lambda t: phi(t).real, self.settings.step, self.settings.order, self.tolerance)
        return abs(exact - rough.value) <= 1e-4 * max(self.scale, abs(exact), abs(rough.value)) + 10 * rough.error

    # ---- the wrong entries ----

    def locate(self, probe: np.ndarray, limit: int) -> dict[int, Comparison]:
        """Find up to `limit` wrong entries by halving. A half is given up when two random combinations of its entries agree."""
        if len(probe) == 1:
            comparison = self.compare(probe)
            return {int(probe[0]): comparison} if comparison.status == FAIL else {}
        if not any(self.compare(probe).status == FAIL for _ in range(2)):
            return {}
        middle = len(probe) // 2
        wrong = self.locate(probe[:middle], limit)
        if len(wrong) < limit:
            wrong |= self.locate(probe[middle:], limit - len(wrong))
        return wrong

    def report_wrong(self, result: Argument, wrong: dict[int, Comparison]) -> None:
        """Write the wrong entries into the result: fail, or inconclusive where every one of them is a kink."""
        entries: list[Entry] = []
        for i in sorted(wrong, key=lambda i: -wrong[i].error_in_tolerances):
            entries.append(self.entry(i, wrong[i]))
            if sum(not e.is_kink for e in entries) == self.settings.max_report:  # enough mistakes; kinks do not count
                break
        entries.sort(key=lambda e: (e.is_kink, -abs(e.analytical - e.numerical)))  # mistakes before kinks
        all_kinks = bool(entries) and all(e.is_kink for e in entries)
        result.status = INCONCLUSIVE if all_kinks else FAIL
        result.bad = len(wrong)
        result.entries = entries[: self.settings.max_report]

    def entry(self, i: int, comparison: Comparison) -> Entry:
        """Describe one wrong entry. At a kink any slope between the left and the right derivative is excused."""
        position = np.array([i])
        left = self.differences(self.direction(position), self.settings.step, side=-1)
        right = self.differences(self.direction(position), self.settings.step, side=1)
        low, high = sorted((left.value, right.value))
        slack = 10 * max(left.error, right.error) + self.tolerance
        differ = high - low > max(slack, 1e-3 * max(abs(low), abs(high)))
        between = low - self.tolerance <= comparison.analytical <= high + self.tolerance
        is_kink = differ and between
        return Entry(
            index=tuple(int(k) for k in np.unravel_index(i, self.x.shape)),
            analytical=comparison.analytical,
            numerical=comparison.numerical.value,
            error=comparison.numerical.error,
            left=left.value if is_kink else None,
            right=right.value if is_kink else None,
        )
