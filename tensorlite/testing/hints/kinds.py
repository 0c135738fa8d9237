"""The usual mistakes of a gradient: one small function per kind says whether this is it.

Each takes a Case and returns the sentence, or an empty string. What a sentence says is true of the two arrays; what led to it is
the reader's guess.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations

import numpy as np

from tensorlite.testing.hints.case import DECISIVE, Case, Hint
from tensorlite.testing.hints.factors import name_factor
from tensorlite.testing.hints.views import axes_text, divisions, slice_text, subsets, views

Kinds = Sequence[tuple[str, Callable[[Case], str]]]

FEW = 3  # fewer values than this obey a rule by accident
MOST_CONDITION = 1e4  # a worse conditioned matrix is not inverted


def find_hint(case: Case) -> Hint | None:
    """Return the first kind of mistake that explains the wrong gradient."""
    if not case.is_decidable:
        return None
    if case.wrong.shape != case.true.shape:
        return first_of(SHAPE_KINDS, case)
    if case.equal(case.wrong, case.true):
        return None
    return first_of(KINDS, case) or parts_in_another_order(case) or of_the_parts(case) or first_of(LAST_KINDS, case)


def first_of(kinds: Kinds, case: Case) -> Hint | None:
    """Return what the first of these functions with something to say says."""
    for kind, function in kinds:
        text = function(case)
        if text:
            return Hint(kind, text)
    return None


# ---- the whole gradient ----


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
        if n <= FEW or is_constant(case, case.true, axis):
            continue
        squares = (case.true**2).sum(axis=axis, keepdims=True)
        usable = squares > (10 * case.slack) ** 2 * n
        ratios = np.where(usable, (case.wrong * case.true).sum(axis=axis, keepdims=True) / np.where(usable, squares, 1.0), 0.0)
        size = float(abs(ratios).max(initial=0.0))
        telling = (abs(case.true) > case.slack).sum(axis=axis, keepdims=True) > FEW
        varies = telling.sum() > 1 and np.ptp(ratios[telling]) > 0
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


# ---- the truth rearranged ----


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


def parts_in_another_order(case: Case) -> Hint | None:
    """The gradients of what is packed along one axis, such as [q k v], in another order."""
    for axis, parts in divisions(case.true.shape):
        true = [case.true[cut] for cut in parts]
        for order in permutations(range(len(parts))):
            if case.explained_by(np.concatenate([true[i] for i in order], axis=axis)):
                swapped = [f"[{slice_text(cut)}]" for i, cut in enumerate(parts) if order[i] != i]
                text = f"{case.label} has parts of axis {axis} in each other's place"
                return Hint("swapped", f"{text}: {', '.join(swapped)}")
    return None


def of_the_parts(case: Case) -> Hint | None:
    """Return the hint for the wrong ones among parts that are packed along one axis, if each has one of the same kind."""
    for _, parts in divisions(case.true.shape):
        cases = [case.part(f"{case.label}[{slice_text(cut)}]", cut) for cut in parts]
        wrong = [c for c in cases if not c.equal(c.wrong, c.true)]
        hints = [first_of(KINDS, c) if c.is_decidable else None for c in wrong]
        found = [hint for hint in hints if hint is not None]
        if len(found) < len(wrong) or len({hint.kind for hint in found}) > 1:
            continue
        said = {hint.text.removeprefix(c.label): hint for c, hint in zip(wrong, found, strict=True)}
        if len(said) == 1:  # the same of all of them
            text = f"{' and '.join(c.label for c in wrong)}: each{next(iter(said))}" if len(wrong) > 1 else found[0].text
            return Hint(found[0].kind, text)
        return Hint(found[0].kind, "; ".join(hint.text for hint in found))
    return None


# ---- sums ----


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


# ---- one term of the gradient ----


def a_term_constant_along_an_axis(case: Case) -> str:
    """A term is missing, or has a wrong factor, that is one value for each row, such as a mean."""
    for axis, n in enumerate(case.true.shape):
        if n < FEW or is_constant(case, case.true, axis):
            continue
        if is_constant(case, case.difference, axis) and not case.equal(case.wrong, case.true):
            return f"{case.label} minus the truth is constant along axis {axis}: is a term missing there, such as a mean?"
    return ""


def a_term_along_an_array(case: Case) -> str:
    """A term is missing, or has a wrong factor, that is in each row a multiple of an input, the centered input, or y."""
    for name, a in case.float_arrays().items():
        for axis, n in enumerate(case.true.shape):
            if a.shape != case.true.shape or n < FEW:
                continue
            for text, b in ((name, a), (f"{name} minus its mean", a - a.mean(axis=axis, keepdims=True))):
                term_explains = case.explained_by(case.true + along(case.difference, b, axis))
                if term_explains and not case.equal(case.true, along(case.true, b, axis)):
                    term = f"along axis {axis} a multiple of {text}"
                    return f"{case.label} minus the truth is {term}: is that term missing, or its factor wrong?"
    return ""


def a_term_at_the_indices(case: Case) -> str:
    """A term is missing, or has a wrong factor, that has one entry for each index, such as a onehot."""
    for name, ids in case.index_arrays().items():
        if not ids.size or ids.shape != case.true.shape[:-1] or ids.min() < 0 or ids.max() >= case.true.shape[-1]:
            continue
        picked = ids[..., None] == np.arange(case.true.shape[-1])
        off = abs(case.difference) > case.slack
        if case.true.shape[-1] > 1 and ids.size >= FEW and (off == picked).all():
            return f"{case.label} is wrong only in the entries that {name} picks: is a term missing there, such as a onehot?"
    return ""


# ---- a shape that does not fit ----


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


# ---- what they share ----


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


def shift(a: np.ndarray, by: int, axis: int) -> np.ndarray:
    """Return the array shifted along an axis, with zeros moving in."""
    shifted = np.roll(a, by, axis=axis)
    np.moveaxis(shifted, axis, 0)[slice(by, None) if by < 0 else slice(0, by)] = 0.0
    return shifted


def is_constant(case: Case, a: np.ndarray, axis: int) -> bool:
    """Whether the array has one value along the axis."""
    return case.equal(a, np.broadcast_to(a.mean(axis=axis, keepdims=True), a.shape))


def along(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Return the multiples of the rows of b that come closest to the rows of a."""
    squares = (b * b).sum(axis=axis, keepdims=True)
    return (a * b).sum(axis=axis, keepdims=True) / np.where(squares > 0, squares, 1.0) * b


def same_values(case: Case) -> bool:
    """Whether the wrong gradient has the values of the truth in any order."""
    return case.equal(np.sort(case.wrong, axis=None), np.sort(case.true, axis=None))


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


KINDS: Kinds = (  # the simpler statement before the more general one
    ("zero", zero_everywhere),
    ("sign", wrong_sign),
    ("factor", a_factor),
    ("swapped", swapped),
    ("transpose", transposed),
    ("transpose", transposed_input),
    ("shift", shifted),
    ("mean", a_mean_over_the_repeats),
    ("one of several", one_of_the_repeats),
    ("one of several", one_of_a_sum),
    ("axis", another_axis),
    ("factor", an_array_as_factor),
    ("mask", a_mask),
    ("swapped", that_of_another_input),
    ("factor", a_factor_for_each_row),
    ("term", a_term_constant_along_an_axis),
    ("term", a_term_along_an_array),
    ("term", a_term_at_the_indices),
)
LAST_KINDS: Kinds = (("factor", a_factor_where_it_is_wrong),)
SHAPE_KINDS: Kinds = (
    ("shape", another_shape),
    ("broadcast", not_summed),
    ("transpose", transposed_shape),
    ("swapped", swapped_shape),
    ("shape", summed_too_far),
)
