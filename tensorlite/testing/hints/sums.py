"""A sum over other axes or terms than those of the truth."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from tensorlite.testing.hints.case import Case
from tensorlite.testing.hints.views import axes_text


def one_of_the_repeats(case: Case) -> str:
    """One occurrence of a repeated index, as dtable[ids] += dy gives."""
    rows = len(case.true) if case.true.ndim else 0
    for name, ids in case.index_arrays().items():
        ids = ids.reshape(-1)
        if not ids.size or ids.min() < 0 or ids.max() >= rows:
            continue
        counts = np.bincount(ids, minlength=rows)
        for source in case.sources().values():
            if source.shape == (*case.index_arrays()[name].shape, *case.true.shape[1:]):
                flat = source.reshape(len(ids), *case.true.shape[1:])
                for which, order in (("last", slice(None)), ("first", slice(None, None, -1))):
                    one = np.zeros_like(case.true)
                    one[ids[order]] = flat[order]
                    if case.explained_by(one):
                        return f"{case.label} counts only the {which} occurrence of a value that {name} repeats"
        right = np.array([case.equal(a, b) for a, b in zip(case.wrong, case.true, strict=True)])
        enough = (counts > 1).sum() > 1 and (counts == 1).sum() > 1  # a single wrong row could be any
        if enough and right[counts < 2].all() and not right[counts > 1].any():
            return f"{case.label} is right for values that occur once in {name} and wrong for those that it repeats"
    return ""


def a_mean_over_the_repeats(case: Case) -> str:
    """The sum over the occurrences of an index, divided by their number."""
    rows = len(case.true) if case.true.ndim else 0
    for name, ids in case.index_arrays().items():
        if ids.size and ids.min() >= 0 and ids.max() < rows:
            counts = np.maximum(np.bincount(ids.reshape(-1), minlength=rows), 1)
            if np.ptp(counts) and case.explained_by((case.true.T / counts).T):
                return f"{case.label} is the mean over the occurrences of a value in {name}, not their sum"
    return ""


def another_axis(case: Case) -> str:
    """A sum over other axes than those over which dy, or another gradient, adds up to the truth."""
    for name, source, axes, cut in sums(case):
        for other in combinations(range(source.ndim), len(axes)):
            for what, reduced in (("summed", source.sum(axis=other)), ("averaged", source.mean(axis=other))):
                if other != axes and case.explained_by(placed(case, cut, reduced)):
                    return f"{case.label} is {name} {what} over {axes_text(other)}, not summed over {axes_text(axes)}"
    return ""


def one_of_a_sum(case: Case) -> str:
    """The first or the last of the terms whose sum is the truth."""
    for name, source, axes, cut in sums(case):
        for taken in (subset for n in range(1, len(axes) + 1) for subset in combinations(axes, n)):
            for which, index in (("first", 0), ("last", -1)):
                picked = source[tuple(slice(index, index + 1 or None) if k in taken else slice(None) for k in range(source.ndim))]
                if case.explained_by(placed(case, cut, picked.sum(axis=axes))):
                    return f"{case.label} counts only the {which} along {axes_text(taken)} of {name}, not their sum"
    return ""


def sums(case: Case) -> Iterator[tuple[str, np.ndarray, tuple[int, ...], slice]]:
    """Yield each source that adds up to the truth: its name, its values, the axes, and the rows of the truth that are not 0."""
    if not case.true.ndim:
        return
    filled = np.flatnonzero((abs(case.true) > case.slack).reshape(len(case.true), -1).any(axis=1))
    cut = slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0)
    for name, source in case.sources().items():
        for axes in combinations(range(source.ndim), source.ndim - case.true.ndim) if source.ndim > case.true.ndim else ():
            if case.equal(source.sum(axis=axes), case.true[cut]):
                yield name, source, axes, cut


def placed(case: Case, cut: slice, block: np.ndarray) -> np.ndarray:
    """Return the block in these rows of a gradient of zeros; NaN where it does not fit."""
    whole = np.zeros_like(case.true)
    if block.shape != whole[cut].shape:
        return np.full_like(whole, np.nan)
    whole[cut] = block
    return whole
