"""The usual mistakes of a gradient, in the order in which they are tried.

Each function of the tables takes a Case and returns a sentence if this is the mistake, or else an empty string. What a sentence
says is true of the two arrays; what led to it is the reader's guess.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np

from tensorlite.testing.hints import misshapen, rearranged, sums, terms, whole
from tensorlite.testing.hints.case import Case, Hint
from tensorlite.testing.hints.views import divisions, slice_text

Kinds = Sequence[tuple[str, Callable[[Case], str]]]

KINDS: Kinds = (  # the simpler statement before the more general one
    ("zero", whole.zero_everywhere),
    ("sign", whole.wrong_sign),
    ("factor", whole.a_factor),
    ("swapped", rearranged.swapped),
    ("transpose", rearranged.transposed),
    ("transpose", rearranged.transposed_input),
    ("shift", rearranged.shifted),
    ("mean", sums.a_mean_over_the_repeats),
    ("one of several", sums.one_of_the_repeats),
    ("one of several", sums.one_of_a_sum),
    ("axis", sums.another_axis),
    ("factor", whole.an_array_as_factor),
    ("mask", whole.a_mask),
    ("swapped", rearranged.that_of_another_input),
    ("factor", whole.a_factor_for_each_row),
    ("term", terms.a_term_constant_along_an_axis),
    ("term", terms.a_term_along_an_array),
    ("term", terms.a_term_at_the_indices),
)
LAST_KINDS: Kinds = (("factor", whole.a_factor_where_it_is_wrong),)
SHAPE_KINDS: Kinds = (
    ("shape", misshapen.another_shape),
    ("broadcast", misshapen.not_summed),
    ("transpose", misshapen.transposed_shape),
    ("swapped", misshapen.swapped_shape),
    ("shape", misshapen.summed_too_far),
)


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


def parts_in_another_order(case: Case) -> Hint | None:
    """Return the hint for gradients that are packed along one axis, such as [q k v], in another order."""
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
