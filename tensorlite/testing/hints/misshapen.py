"""A gradient whose shape does not fit its input."""

import math
from itertools import permutations

from tensorlite.testing.hints.case import Case
from tensorlite.testing.hints.views import axes_text, subsets


def not_summed(case: Case) -> str:
    """A sum over a broadcast axis forgotten."""
    for axes in subsets(case.wrong.ndim):
        kept = case.wrong.sum(axis=axes, keepdims=True)
        for summed in (kept, kept.squeeze(axes)):
            if case.equal(summed, case.true, scale=math.prod(case.wrong.shape[k] for k in axes)):
                return f"Summed over {axes_text(axes)}, {case.label} equals the truth"
    return ""


def summed_too_far(case: Case) -> str:
    """A sum over an axis that the input has."""
    for axes in subsets(case.true.ndim):
        kept = case.true.sum(axis=axes, keepdims=True)
        for summed in (kept, kept.squeeze(axes)):
            if case.equal(case.wrong, summed, scale=case.true.size):
                return f"{case.label} is the truth summed over {axes_text(axes)}, which belongs to it"
    return ""


def transposed_shape(case: Case) -> str:
    """The right values with the axes in another order."""
    for order in permutations(range(case.true.ndim)):
        if case.equal(case.wrong, case.true.transpose(order)):
            how = (
                "equals the transpose of the truth"
                if case.true.ndim == 2
                else f"equals the truth with its axes in the order {order}"
            )
            return f"{case.label} {how}"
    return ""


def another_shape(case: Case) -> str:
    """The right values in the right order, in another shape."""
    if case.wrong.size == case.true.size and case.equal(case.wrong.reshape(-1), case.true.reshape(-1)):
        return f"{case.label} has the values of the truth in the shape {case.wrong.shape} instead of {case.true.shape}"
    return ""


def swapped_shape(case: Case) -> str:
    """The true gradient of another input, which has another shape."""
    for other, true in case.other_true.items():
        if case.equal(case.wrong, true):
            return f"{case.label} equals the true value of {other}: are the two swapped?"
    return ""
