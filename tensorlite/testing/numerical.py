"""Numerical derivatives of a scalar function: finite differences and the complex step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

COMPLEX_STEP = 1e-30
SHORTER_STEPS = (1, 50, 2500)  # what the first step is divided by in each attempt
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
    (b) matters where phi is large and nearly constant: the differences then agree but carry no information.
    """
    try:
        from scipy.differentiate import derivative
    except ImportError as missing:
        raise ImportError('gradcheck needs SciPy 1.15 or later: pip install "scipy>=1.15"') from missing

    largest_phi = 0.0  # of all calls so far
    smallest_t = float("inf")  # the smallest |t| other than 0

    def phi_of_array(t: Any) -> Any:
        nonlocal largest_phi, smallest_t
        values = np.array([phi(float(ti)) for ti in np.ravel(t)]).reshape(np.shape(t))
        largest_phi = max(largest_phi, float(np.abs(values).max(initial=0.0)))
        smallest_t = min(smallest_t, float(np.abs(t[t != 0]).min(initial=np.inf)))
        return values

    best = Derivative(float("nan"), float("inf"))
    for divisor in SHORTER_STEPS:
        with np.errstate(all="ignore"):
            result = derivative(
                phi_of_array,
                0.0,
                initial_step=step / divisor,
                order=order,
                step_direction=side,
                tolerances={"atol": tolerance, "rtol": 0.0},
            )
        error = max(float(result.error), EPS * largest_phi / smallest_t)
        if np.isfinite(result.df) and error < best.error:
            best = Derivative(float(result.df), error)
        if best.error <= tolerance:
            break
    return best


def complex_step(phi: Callable[[complex], complex]) -> Derivative:
    """Return phi'(0) = Im phi(ih) / h for a tiny h, exact to rounding: nothing is subtracted, so nothing cancels.

    phi must be analytic code, without abs or var. Source: Squire and Trapp 1998, SIAM Review 40(1).
    """
    value = complex(phi(1j * COMPLEX_STEP)).imag / COMPLEX_STEP
    return Derivative(value, 1e-14 * abs(value))
