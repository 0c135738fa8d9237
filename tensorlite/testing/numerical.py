"""Numerical derivatives of a scalar function: finite differences and the complex step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

COMPLEX_STEP = 1e-30


@dataclass(frozen=True)
class Derivative:
    """A derivative and how far it can be trusted, both in units of phi."""

    value: float
    error: float


def finite_difference(phi: Callable[[float], float], step: float, order: int, tolerance: float, side: int = 0) -> Derivative:
    """phi'(0) from differences of the given order, halving the step until two results agree to `tolerance`.

    side: 0 for central differences, -1 and 1 for the left and right derivative. The error is the last change between two step
    sizes, or what rounding of phi makes of it, whichever is larger: where phi is a large number that hardly changes, differences
    may agree and mean nothing. Where it stays above the tolerance, shorter first steps are tried and the best result returned.
    """
    try:
        from scipy.differentiate import derivative
    except ImportError as error:
        raise ImportError('gradcheck needs SciPy 1.15 or later: pip install "scipy>=1.15"') from error

    largest, nearest = 0.0, float("inf")  # of |phi|, and of |t|: rounding of the one over the other bounds what can be told

    def phi_of_each(t: Any) -> Any:
        nonlocal largest, nearest
        values = np.array([phi(float(ti)) for ti in np.ravel(t)]).reshape(np.shape(t))
        largest = max(largest, float(np.abs(values).max(initial=0.0)))
        nearest = min(nearest, float(np.abs(t[t != 0]).min(initial=np.inf)))
        return values

    best = Derivative(float("nan"), float("inf"))
    for initial in (step, step / 50, step / 2500):
        with np.errstate(all="ignore"):
            result = derivative(
                phi_of_each,
                0.0,
                initial_step=initial,
                order=order,
                step_direction=side,
                tolerances={"atol": tolerance, "rtol": 0.0},
            )
        doubt = max(float(result.error), float(np.finfo(np.float64).eps) * largest / nearest)
        if np.isfinite(result.df) and doubt < best.error:
            best = Derivative(float(result.df), doubt)
        if best.error <= tolerance:
            break
    return best


def complex_step(phi: Callable[[complex], complex]) -> Derivative:
    """phi'(0) = Im phi(ih) / h for a tiny h: no subtraction, so no cancellation. phi must be analytic code, with no abs or var.

    Source: Squire and Trapp 1998, SIAM Review 40(1).
    """
    value = complex(phi(1j * COMPLEX_STEP)).imag / COMPLEX_STEP
    return Derivative(value, 1e-14 * abs(value))
