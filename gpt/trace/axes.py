"""What each axis of each array counts: positions, tokens of the vocabulary, heads, or channels.

The letters of a formula say it, except where one op serves several: `linear` makes channels, but logits with the head's weight. So
a letter takes its meaning from the arrays that the formula reads, where they are known.
"""

from collections.abc import Iterator, Mapping

from gpt.trace import tape
from gpt.trace.formula import Tree
from gpt.trace.recorder import Trace

Axes = tuple[str, ...]  # of "position", "token", "head", "channel"

LETTERS = {"t": "position", "s": "position", "j": "position", "i": "position", "v": "token", "h": "head"}
PARAMETERS: dict[str, Axes] = {
    "wte": ("token", "channel"),
    "wpe": ("position", "channel"),
    "head_w": ("channel", "token"),
    "head_b": ("token",),
}


def axes_of(trace: Trace, parameters: Mapping[int, str]) -> dict[int, Axes]:
    """Return the axes of every array that a formula makes or reads, in the order in which a formula indexes it."""
    known = {array: PARAMETERS[name] for array, name in parameters.items() if name in PARAMETERS}
    if list(parameters.values()) == ["wte"]:  # the bigram's table has a logit per token
        known = dict.fromkeys(parameters, ("token", "token"))
    for call in trace.calls:
        arrays = dict(call.arguments)
        for made in call.made:
            found = tape.formula_of(call, made)
            if found:
                parsed = found[1]
                meaning = dict(LETTERS)
                for name, indices in elements(parsed.tree):
                    if arrays.get(name) in known:
                        meaning |= _taken_from(indices, known[arrays[name]])
                for name, indices in elements(parsed.tree):
                    if name in arrays:
                        known.setdefault(arrays[name], tuple(meaning.get(index, "channel") for index in indices))
                known.setdefault(made.array, tuple(meaning.get(index, "channel") for index in parsed.indices))
            arrays[made.target.name] = made.array
    return known


def _taken_from(indices: tuple[str, ...], axes: Axes) -> dict[str, str]:
    """Return what the letters count that index an axis of this array."""
    found = {}
    for index, axis in zip(indices, axes, strict=True):
        if index and axis != "channel":
            found[index] = axis
    return found


def elements(tree: Tree) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every element that an expression names, with its indices; "" stands for an index that is computed."""
    if tree[0] == "at":
        yield tree[1], tuple(index[1] if index[0] == "name" else "" for index in tree[2])
        parts = tree[2]
    else:
        parts = [part for part in tree[1:] if isinstance(part, list)]
    for part in parts:
        yield from elements(part)
