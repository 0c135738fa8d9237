"""Derivatives of a scalar function of one real number, by means that know nothing of the backward pass under test."""

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
    sizes; where even the best step leaves it above the tolerance, shorter first steps are tried and the best result returned.
    """
    try:
        from scipy.differentiate import derivative
    except ImportError as error:
        raise ImportError('gradcheck needs SciPy 1.15 or later: pip install "scipy>=1.15"') from error

    def phi_of_each(t: Any) -> Any:
        return np.array([phi(float(ti)) for ti in np.ravel(t)]).reshape(np.shape(t))

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
        if np.isfinite(result.df) and result.error < best.error:
            best = Derivative(float(result.df), float(result.error))
        if best.error <= tolerance:
            break
    return best


def complex_step(phi: Callable[[complex], complex]) -> Derivative:
    """phi'(0) = Im phi(ih) / h for a tiny h: no subtraction, so no cancellation. phi must be analytic code, with no abs or var.

    Source: Squire and Trapp 1998, SIAM Review 40(1).
    """
    value = complex(phi(1j * COMPLEX_STEP)).imag / COMPLEX_STEP
    return Derivative(value, 1e-14 * abs(value))
