"""The truth in another place: another input's gradient, or axes or rows exchanged."""

from itertools import combinations

import numpy as np

from tensorlite.testing.hints.case import FEW, Case
from tensorlite.testing.hints.views import views

MOST_CONDITION = 1e4  # a worse conditioned matrix is not inverted


def swapped(case: Case) -> str:
    """The true gradient of another input, and that one has this one's."""
    for other, true in case.other_true.items():
        theirs = case.other_wrong.get(other)
        if case.explained_by(true) and theirs is not None and case.equal(theirs, case.true):
            return f"{case.label} and {other} are swapped: each equals the true value of the other"
    return ""


def that_of_another_input(case: Case) -> str:
    """The true gradient of another input, returned for both."""
    for other, true in case.other_true.items():
        if case.explained_by(true):
            return f"{case.label} equals the true value of {other}"
    return ""


def transposed(case: Case) -> str:
    """Two axes swapped, and perhaps reshaped to the old shape; the last axis may consist of several, such as heads."""
    if not same_values(case):
        return ""
    for view in views(case.true.shape):
        true = view.of(case.true)
        for i, j in combinations(range(true.ndim), 2):
            turned = true.swapaxes(i, j)
            if not case.explained_by(view.undo(turned.reshape(true.shape))):
                continue
            if true.ndim == 2 and turned.shape == true.shape:
                return f"{case.label} equals the transpose of the truth"
            reshaped = "" if turned.shape == true.shape else ", and then reshaped"
            return f"{case.label} equals the truth with axes {i} and {j} swapped{reshaped}{view.text}"
    return ""


def transposed_input(case: Case) -> str:
    """The truth is A w^T, and the gradient A w, for a square input w."""
    for name, w in case.float_arrays().items():
        n = len(w) if w.ndim else 0
        if w.shape != (n, n) or n < 2 or n not in case.true.shape[-2:] or not np.isfinite(w).all():
            continue
        condition = float(np.linalg.cond(w))
        if condition > MOST_CONDITION:
            continue
        for one, other in ((w, w.T), (w.T, w)):
            candidates = []
            if case.true.shape[-1] == n:
                candidates.append(case.true @ np.linalg.inv(one) @ other)
            if case.true.ndim > 1 and case.true.shape[-2] == n:
                candidates.append(other @ np.linalg.inv(one) @ case.true)
            if any(case.explained_by(candidate, scale=condition) for candidate in candidates):
                return f"{case.label} is what it should be if {name} were transposed"
    return ""


def shifted(case: Case) -> str:
    """Rows in the place of their neighbours; those that leave at one end come back at the other, or are lost."""
    for axis, n in enumerate(case.true.shape):
        for by in (s for k in range(1, n) for s in (-k, k) if 2 * k != n):  # two halves are parts in another order
            rolled = np.roll(case.true, by, axis=axis)
            lost = shift(case.true, by, axis)
            kept = int((lost != 0).sum())
            forgotten = case.equal(shift(case.wrong, -by, axis), case.true)  # forward has lost what backward brings back
            if kept >= FEW and (case.explained_by(rolled) or case.explained_by(lost) or forgotten):
                return f"{case.label} equals the truth shifted by {by} along axis {axis}"
    return ""


def shift(a: np.ndarray, by: int, axis: int) -> np.ndarray:
    """Return the array shifted along an axis, with zeros moving in."""
    shifted = np.roll(a, by, axis=axis)
    np.moveaxis(shifted, axis, 0)[slice(by, None) if by < 0 else slice(0, by)] = 0.0
    return shifted


def same_values(case: Case) -> bool:
    """Whether the wrong gradient has the values of the truth in any order."""
    return case.equal(np.sort(case.wrong, axis=None), np.sort(case.true, axis=None))
