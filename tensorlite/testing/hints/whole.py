"""One factor, mask or sign in the whole gradient."""

import numpy as np

from tensorlite.testing.hints.case import DECISIVE, FEW, Case
from tensorlite.testing.hints.factors import name_factor

SAME = 1e-6  # factors that differ by less, relative to the largest, are the same up to rounding


def zero_everywhere(case: Case) -> str:
    """No gradient at all."""
    return "" if case.wrong.any() else f"{case.label} is zero everywhere, the truth is not"


def wrong_sign(case: Case) -> str:
    """The direction to move in, or a difference the wrong way round."""
    return f"{case.label} equals minus the truth" if case.explained_by(-case.true) else ""


def a_factor(case: Case) -> str:
    """The same factor in every entry."""
    ratio = common_ratio(case.wrong, case.true)
    factor = factor_text(case, ratio, case.true)
    return f"{case.label} is {factor}" if factor and case.explained_by(ratio * case.true, scale=abs(ratio)) else ""


def an_array_as_factor(case: Case) -> str:
    """An input or y as a factor that is missing or one too many."""
    missing, extra = [], []
    for name, a in case.float_arrays().items():
        if not broadcasts_to(a, case.true) or int((case.true != 0).sum()) < FEW or np.ptp(a) == 0:
            continue
        size = float(abs(a).max())
        if case.explained_by(case.true * a, scale=size):
            extra.append(name)
        elif size > 0 and case.equal(case.wrong * a, case.true, scale=size) and case.wrong.any():
            missing.append(name)
    if extra:
        return f"{case.label} is the truth times {' or '.join(extra)}"
    return f"{case.label} lacks a factor: times {' or '.join(missing)} it is the truth" if missing else ""


def a_factor_where_it_is_wrong(case: Case) -> str:
    """The same factor in the wrong entries, while the others are right, as behind a branch."""
    off = abs(case.difference) > DECISIVE * case.slack
    if not FEW <= off.sum() < off.size:
        return ""
    ratio = common_ratio(case.wrong[off], case.true[off])
    repaired = np.where(off, ratio * case.true, case.true)
    factor = factor_text(case, ratio, case.true[off])
    if not factor or not case.explained_by(repaired, scale=abs(ratio)):
        return ""
    return f"Where {case.label} is wrong, in {off.sum()} of {off.size} entries, it is {factor}"


def a_factor_for_each_row(case: Case) -> str:
    """A factor that is constant along one axis and varies along the others, such as the rstd of each row."""
    for axis, n in enumerate(case.true.shape):
        # A short row that must sum to 0, and be orthogonal to something, has a single direction left.
        if n <= FEW or case.is_constant(case.true, axis):
            continue
        squares = (case.true**2).sum(axis=axis, keepdims=True)
        usable = squares > (10 * case.slack) ** 2 * n
        ratios = np.where(usable, (case.wrong * case.true).sum(axis=axis, keepdims=True) / np.where(usable, squares, 1.0), 0.0)
        size = float(abs(ratios).max(initial=0.0))
        telling = (abs(case.true) > case.slack).sum(axis=axis, keepdims=True) > FEW
        varies = telling.sum() > 1 and np.ptp(ratios[telling]) > SAME * size
        if varies and case.explained_by(ratios * case.true, scale=size):
            return f"{case.label} is the truth times a factor that is constant along axis {axis} and varies along the others"
    return ""


def a_mask(case: Case) -> str:
    """Zeros that the truth does not have, or values where it has zeros, and elsewhere the truth."""
    wrong_is_zero, true_is_zero = abs(case.wrong) <= case.slack, abs(case.true) <= case.slack
    both = ~wrong_is_zero & ~true_is_zero
    added, dropped = int((wrong_is_zero & ~true_is_zero).sum()), int((true_is_zero & ~wrong_is_zero).sum())
    if both.sum() < FEW or added + dropped < FEW:  # one zero is no mask
        return ""
    ratio = common_ratio(case.wrong[both], case.true[both])
    if not case.equal(case.wrong[both], ratio * case.true[both], scale=abs(ratio)):
        return ""
    is_true = case.equal(case.wrong[both], case.true[both])
    elsewhere = "the truth" if is_true else factor_text(case, ratio, case.true[both])
    if not elsewhere:
        return ""
    zeros = f"has its zeros in other places than the truth ({added} more, {dropped} not), as if by another mask"
    if not added and dropped == true_is_zero.sum():
        zeros = f"is not zero in {dropped} entries where the truth is, as if a mask were left out"
    elif not dropped:
        zeros = f"is zero in {added} entries where the truth is not, as if by a mask too many"
    return f"{case.label} {zeros}; elsewhere it is {elsewhere}"


def factor_text(case: Case, ratio: float, true: np.ndarray) -> str:
    """Return what a factor of these values could be; one without a name counts if more than a few different values have it."""
    size = float(np.sqrt((true**2).mean()))
    if not size > case.slack:
        return ""
    name = name_factor(ratio, max(1e-9, case.slack / size), case.inputs, case.y, case.dy)
    different_values = int((np.diff(np.sort(true, axis=None)) > case.slack).sum()) + 1
    return name or (f"{ratio:.7g} times the truth" if different_values > FEW else "")


def common_ratio(wrong: np.ndarray, true: np.ndarray) -> float:
    """Return the factor that fits best."""
    return float((wrong * true).sum() / (true * true).sum())


def broadcasts_to(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a * b has the shape of b."""
    try:
        return np.broadcast_shapes(a.shape, b.shape) == b.shape
    except ValueError:
        return False
