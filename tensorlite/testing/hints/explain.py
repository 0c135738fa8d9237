"""What a wrong gradient looks like beside the true one: "dk equals the transpose of the truth".

A hint compares two arrays, so it does not matter how the true gradient was found. Where it is numerical, its estimated error says
how close is equal. A hint needs every entry of the truth; `hint_from_entries` makes do with a few.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensorlite.testing.hints.case import Case, Hint, slack
from tensorlite.testing.hints.factors import name_factor
from tensorlite.testing.hints.kinds import find_hint
from tensorlite.testing.hints.views import axes_text, subsets
from tensorlite.testing.report import Entry

__all__ = ["Hint", "explain", "hint_from_entries"]

FEWEST_ENTRIES = 3  # with a common ratio


def explain(
    name: str,
    wrong: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    errors: Mapping[str, float] | None = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    y: Sequence[np.ndarray] = (),
    dy: Sequence[np.ndarray] = (),
) -> Hint | None:
    """Return how the wrong gradient of the input `name` relates to the true one, or None.

    wrong: the gradients that backward returned, by name of the input. Their shapes may be wrong, too.
    true: the true gradients by name, of all inputs whose every entry is known.
    errors: the largest estimated error among the entries of a true gradient, by name.
    inputs: what forward got, by name: arrays, integers such as ids, and options. They give names to factors.
    y: the outputs of forward.
    dy: the gradients of the outputs that the gradients belong to.

    A gradient that agrees with the truth has no hint, and neither has a truth that hardly exceeds its error.
    """
    if name not in wrong or not np.isfinite(wrong[name]).all():
        return None
    if name not in true:
        x = (inputs or {}).get(name)
        return None if x is None else from_shapes(f"d{name}", wrong[name].shape, np.shape(x))
    if not np.isfinite(true[name]).all():
        return None
    with np.errstate(all="ignore"):  # values whose squares overflow have no hint
        case = Case(
            label=f"d{name}",
            wrong=np.asarray(wrong[name]),
            true=np.asarray(true[name]),
            slack=slack(true[name], (errors or {}).get(name, 0.0)),
            inputs=inputs or {},
            y=y,
            dy=dy,
            other_wrong={f"d{other}": g for other, g in wrong.items() if other != name},
            other_true={f"d{other}": g for other, g in true.items() if other != name},
        )
        return find_hint(case)


def from_shapes(label: str, wrong: tuple[int, ...], true: tuple[int, ...]) -> Hint | None:
    """Return which sum would make the shape fit, if there is a single one: the truth is not at hand."""
    fitting = [axes for axes in subsets(len(wrong)) if tuple(n for k, n in enumerate(wrong) if k not in axes) == true]
    if true and len(fitting) == 1:
        return Hint("broadcast", f"Summed over {axes_text(fitting[0])}, {label} would have the right shape")
    return None


def hint_from_entries(
    name: str,
    entries: Sequence[Entry],
    *,
    inputs: Mapping[str, Any] | None = None,
    y: Sequence[np.ndarray] = (),
    dy: Sequence[np.ndarray] = (),
) -> str:
    """Return what the ratio says that the wrong entries of a large argument have in common, or an empty string."""
    known = [e for e in entries if not e.is_kink and abs(e.numerical) > 1e3 * e.error]
    if len(known) < FEWEST_ENTRIES:
        return ""
    ratio = known[0].ratio
    precision = max(1e-7, *(20 * e.error / abs(e.numerical) for e in known))
    if any(abs(e.ratio - ratio) > precision * abs(ratio) for e in known):
        return ""
    where = f"in the {len(known)} entries shown, d{name} is"
    if abs(ratio) <= precision:
        return f"{where} zero"
    if abs(ratio + 1) <= precision:
        return f"{where} minus the truth"
    factor = name_factor(ratio, precision, inputs or {}, y, dy)
    return f"{where} {factor or f'{ratio:.6g} times the truth'}"
