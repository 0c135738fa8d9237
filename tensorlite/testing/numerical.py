"""Numerical derivatives of a scalar function: finite differences and the complex step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

COMPLEX_STEP = 1e-30
NOT_ROUND = 1.0317  # times the step: a forward that rounds to a decimal grid looks smooth along steps that are round numbers
SHORTER_STEPS = (1, 50, 2500, 125_000, 6_250_000)  # what the first step is divided by in each attempt
LAST_STEP = 2500  # the later ones are tried only where phi is infinite or NaN within a longer step, as log is close to 0
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Derivative:
    """An estimated derivative and an estimate of its error."""

    value: float
    error: float


def finite_difference(phi: Callable[[float], float], step: float, order: int, tolerance: float, side: int = 0) -> Derivative:
    """Estimate phi'(0) by differences of the given order, halving the step until two results agree to `tolerance`.

    phi: a function of one float.
    step: the first step size. If the error stays above the tolerance, shorter first steps are tried and the best result counts.
    side: 0 for central differences, -1 for the left derivative, 1 for the right one.

    The error is the larger of (a) the change between the last two step sizes and (b) the rounding error eps max |phi| / min |t|.
    (b) matters where phi is large and nearly constant: the differences then agree but carry no information. Each attempt has its
    own error, so that a value that is infinite within a long step does not spoil a shorter one.
    """
    try:
        from scipy.differentiate import derivative
    except ImportError as missing:
        raise ImportError('gradcheck needs SciPy 1.15 or later: pip install "scipy>=1.15"') from missing

    best = Derivative(float("nan"), float("inf"))
    for divisor in SHORTER_STEPS:
        probed = _Probed(phi)
        with np.errstate(all="ignore"):
            result = derivative(
                probed,
                0.0,
                initial_step=NOT_ROUND * step / divisor,
                order=order,
                step_direction=side,
                tolerances={"atol": tolerance, "rtol": 0.0},
            )
        error = max(float(result.error), probed.rounding_error())
        if np.isfinite(result.df) and error < best.error:
            best = Derivative(float(result.df), error)
        if best.error <= tolerance or (divisor == LAST_STEP and probed.all_finite):
            break
    return best


class _Probed:
    """phi for arrays of steps t, which remembers what it has met."""

    def __init__(self, phi: Callable[[float], float]) -> None:
        self.phi = phi
        self.all_finite = True
        self.largest_phi = 0.0
        self.smallest_t = float("inf")  # the smallest |t| other than 0

    def __call__(self, t: Any) -> Any:
        values = np.array([nan_if_undefined(self.phi, float(ti)) for ti in np.ravel(t)]).reshape(np.shape(t))
        self.all_finite = self.all_finite and bool(np.isfinite(values).all())
        self.largest_phi = max(self.largest_phi, float(np.abs(values).max(initial=0.0)))
        self.smallest_t = min(self.smallest_t, float(np.abs(t[t != 0]).min(initial=np.inf)))
        return values

    def rounding_error(self) -> float:
        """Return the error that rounding phi causes in a difference."""
        return EPS * self.largest_phi / self.smallest_t


def nan_if_undefined(phi: Callable[[float], float], t: float) -> float:
    """Return phi(t), or NaN where it raises an error such as those of `math.log(0.0)` and `math.exp(1e3)`."""
    try:
        return phi(t)
    except (ArithmeticError, ValueError):
        return float("nan")


def complex_step(phi: Callable[[complex], complex]) -> Derivative:
    """Return phi'(0) = Im phi(ih) / h for a tiny h, exact to rounding: nothing is subtracted, so nothing cancels.

    phi must be analytic code, without abs or var. Source: Squire and Trapp 1998, SIAM Review 40(1).
    """
    with np.errstate(all="ignore"):
        value = complex(phi(1j * COMPLEX_STEP)).imag / COMPLEX_STEP
    return Derivative(value, 1e-14 * abs(value))
