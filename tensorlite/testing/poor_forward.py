"""Verdicts that say nothing about backward, because forward is infinite or rounds to float32 inside."""

from collections.abc import Callable
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np

from tensorlite.arrays import array_namespace
from tensorlite.testing.layer import Layer
from tensorlite.testing.numerical import nan_if_undefined
from tensorlite.testing.report import INCONCLUSIVE, PASS, Argument

ORDER = 8  # of the differences: a smooth function leaves step^8 of itself, far below its rounding
LONG_STEP, SHORT_STEPS = 1e-3, (1e-5, 1e-6)
NOISE = (1e-11, 1e-5)  # relative; that of float64 is about 1e-16 and that of float32 1e-8
SCATTER = 30.0  # noise is of one size at all steps, up to this; that of a kink is 100 times larger at the long one
EXPLAINED = 3e5  # what noise can do to a derivative, in units of the noise: the shortest steps are about 1e-5


def blame_forward(arguments: list[Argument], layer: Layer, dy: Any, random: np.random.Generator) -> list[Argument]:
    """Return the verdicts, those that forward is to blame for with the reason in place of ratios without meaning."""
    phis = [_along_everything(layer, dy, random) for _ in range(3)]
    with np.errstate(all="ignore"):
        size = max(abs(phi(0.0)) for phi in phis)
        if not np.isfinite(size):
            return [_inconclusive(argument, "forward returns nan or inf at these inputs") for argument in arguments]
        noise = rounding_noise(phis)
    if not noise:
        return arguments
    note = f"y is rounded to about {noise:.0e} of its size, as by float32 inside forward: cast less, or check with twin="
    return [_inconclusive(a, note) if _explains(noise * size, a) else a for a in arguments]


def rounding_noise(phis: list[Callable[[float], float]]) -> float:
    """Return the relative noise of functions of one float, or 0 if it is no coarser than that of float64.

    phis: phi(t) along a few random directions. High differences of a smooth phi vanish, and those of noise do not.
    """
    long = max(_noise(phi, LONG_STEP) for phi in phis)
    short = max(_noise(phi, step) for phi in phis for step in SHORT_STEPS)
    is_noise = NOISE[0] < short < NOISE[1] and long < SCATTER * short
    return max(long, short) if is_noise else 0.0


def _noise(phi: Callable[[float], float], step: float) -> float:
    """Return the noise of one value of phi, from its difference of order 8, relative to the largest value."""
    signs = np.array([(-1) ** k * comb(ORDER, k) for k in range(ORDER + 1)], float)
    values = np.array([nan_if_undefined(phi, step * (k - ORDER / 2)) for k in range(ORDER + 1)])
    if not np.isfinite(values).all():
        return float("inf")
    return float(abs(signs @ values) / np.linalg.norm(signs) / max(abs(values).max(), 1e-300))


def _along_everything(layer: Layer, dy: Any, random: np.random.Generator) -> Callable[[float], float]:
    """Return phi(t) along one random direction of all arrays that are checked."""
    directions = {}
    for path in layer.checked:
        x = layer.leaves[path]
        directions[path] = array_namespace(x).asarray(random.standard_normal(x.shape))
    phi = layer.phi(dy, directions)
    return lambda t: phi(t).real


def _explains(noise: float, argument: Argument) -> bool:
    """Whether noise of this size in y explains why an argument did not pass: no disagreement is larger, and none is a kink."""
    if argument.status == PASS or any(entry.is_kink for entry in argument.entries):
        return False
    wrong = [abs(e.analytical - e.numerical) for e in argument.entries] or [argument.worst * argument.tolerance]
    return argument.status == INCONCLUSIVE or max(wrong) <= EXPLAINED * noise


def _inconclusive(argument: Argument, note: str) -> Argument:
    return replace(argument, status=INCONCLUSIVE, note=note, entries=[], bad=0, more=False)
