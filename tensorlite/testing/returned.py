"""Which of the gradients that backward returned belongs to which input.

People return gradients as a tuple in the order of the inputs, as a dict by their names, as a tree like that of the parameters, or
one flat tuple for all leaves; and they leave out, or return None for, inputs that have no gradient. All these readings are tried,
and the one that fits best counts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorlite.arrays import array_namespace
from tensorlite.testing.layer import Layer, describe
from tensorlite.testing.trees import children, flatten, is_float_array

WAY_OUT = "If an input takes part without a gradient, such as a target or a mask, name all the others in wrt=[...]"


class Absent(str):
    """What an adapter returns in the place of a gradient that it did not find: the reason."""

    __slots__ = ()


@dataclass(frozen=True)
class Gradients:
    """The gradients of the checked inputs that can be compared, by path, and what is wrong with the others."""

    by_path: dict[str, Any]
    misfits: list[str]  # one sentence each
    readable: bool = True  # whether the gradients could be told apart at all
    misshapen: dict[str, Any] = field(default_factory=dict)  # gradients whose shape does not fit, by path
    of_python_floats: list[str] = field(default_factory=list)  # paths of Python floats for which there is a gradient


def read_gradients(returned: Any, layer: Layer) -> Gradients:
    """Return the gradients of the inputs that are checked, by the reading that leaves the fewest misfits."""
    if returned is None and layer.checked:
        return Gradients({}, ["backward returned None. Is its return statement missing?"], readable=False)
    found = [_judge(reading, layer) for reading in _readings(returned, layer)]
    if found:
        return min(found, key=lambda gradients: len(gradients.misfits))
    names = _names_of_checked(layer)
    count = len(returned) if children(returned) is not None else 1
    inputs = f"the input {names}" if len(names) == 1 else f"the {len(names)} inputs {names}"
    text = f"backward returns {count} gradient{'' if count == 1 else 's'} for {inputs}: {describe(returned)}. "
    text += f"Return one per input, in this order or as a dict by their names. {WAY_OUT}"
    return Gradients({}, [text], readable=False)


# ---- the readings ----


def _readings(returned: Any, layer: Layer) -> Iterator[dict[str, Any]]:
    """Yield every reading: gradients by the path of an input or of a part of it."""
    checked = _names_of_checked(layer)
    if isinstance(returned, Mapping):
        by_name = {_input_name(key, layer.inputs): g for key, g in returned.items()}
        if any(key in layer.inputs for key in by_name):
            yield by_name
        yield from _dicts_opened(by_name, layer.inputs)
        for name in checked:
            if isinstance(layer.inputs[name], Mapping):
                yield {name: returned}
        return
    sequence = returned if isinstance(returned, tuple | list) else (returned,)
    for names in _orders(layer, checked):
        surplus = sequence[len(names) :]
        if len(sequence) >= len(names) and all(g is None for g in surplus):
            yield dict(zip(names, sequence, strict=False))
    if len(checked) == 1 and children(layer.inputs[checked[0]]) is not None:
        yield {checked[0]: returned}
    is_nested = any(children(g) is not None for g in sequence)
    has_trees = any(children(tree) is not None for tree in layer.inputs.values())
    if any(isinstance(g, Mapping) for g in sequence) or (is_nested and not has_trees):  # names count for more than an order
        return
    flat = list(flatten(sequence).values())
    for paths in (layer.checked, [path for path, leaf in layer.leaves.items() if is_float_array(leaf)]):
        if len(flat) == len(paths):
            yield dict(zip(paths, flat, strict=True))


def _orders(layer: Layer, checked: list[str]) -> list[list[str]]:
    """Return the lists of names that a tuple of gradients may be in the order of."""
    with_floats = [name for name, tree in layer.inputs.items() if any(map(is_float_array, flatten(tree).values()))]
    with_absent = [name for name, tree in layer.inputs.items() if tree is None or name in with_floats]
    return [with_absent, with_floats, checked, list(layer.inputs)]


def _dicts_opened(by_name: Mapping[Any, Any], inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the reading of a flat dict in which the entries of inputs that are dicts stand beside the other inputs."""
    opened = dict(by_name)
    for name, tree in inputs.items():
        if isinstance(tree, Mapping) and name not in by_name and any(key in opened for key in tree):
            opened[name] = {key: opened.pop(key) for key in tree if key in opened}
    if opened != by_name and all(key in inputs for key in opened):
        yield opened


def _input_name(key: Any, inputs: Mapping[str, Any]) -> Any:
    """Return the input that a key such as "w", "dw", "grad_w" or "w_grad" means, or the key."""
    if isinstance(key, str) and key not in inputs:
        for name in (key.removeprefix("d"), key.removeprefix("d_"), key.removeprefix("grad_"), key.removesuffix("_grad")):
            if name in inputs:
                return name
    return key


def _names_of_checked(layer: Layer) -> list[str]:
    """Return the names of the inputs that are checked, or of which a part is."""
    checked = set(layer.checked)
    return [name for name, tree in layer.inputs.items() if not checked.isdisjoint(flatten(tree, name))]


# ---- do the gradients of one reading fit? ----


def _judge(reading: Mapping[str, Any], layer: Layer) -> Gradients:
    """Sort the gradients of a reading into those that fit their inputs and those that do not."""
    checked = set(layer.checked)
    by_path: dict[str, Any] = {}
    misfits: list[str] = []
    misshapen: dict[str, Any] = {}
    of_python_floats: list[str] = []
    missing = 0

    def compare(path: str, x: Any, g: Any) -> None:
        nonlocal missing
        if path in reading:  # of a part of an input
            g = reading[path]
        parts = children(x)
        if parts is None:
            if x is None and g is not None and layer.wrt is None:
                misfits.append(f"d{path} is an array for an input that is None")
            if isinstance(x, float) and path not in checked and g is not None and layer.wrt is None:
                of_python_floats.append(path)
            misfit = _misfit(path, x, g) if path in checked else None
            if misfit:
                misfits.append(misfit)
                if is_float_array(g) and g.shape != x.shape:
                    misshapen[path] = g
                missing += g is None or isinstance(g, Absent)
            elif path in checked:
                by_path[path] = g
            return
        g_parts = {} if g is None else children(g)
        if g_parts is not None and g is not None and not isinstance(x, Mapping):  # a tuple, a list and a NamedTuple are alike
            g_parts = dict(zip(parts, g_parts.values(), strict=False)) if len(parts) == len(g_parts) else None
        below = checked.intersection(flatten(x, path))
        if g_parts is None or not g_parts.keys() <= parts.keys():
            if below:
                misfits.append(f"d{path} is {describe(g)}, {path} is {describe(x)}")
            return
        for key, part in parts.items():
            compare(path + key, part, g_parts.get(key))

    for name, tree in layer.inputs.items():
        compare(name, tree, reading.get(name))
    if missing:
        misfits[-1] = f"{misfits[-1]}. {WAY_OUT}"
    known = {*layer.inputs, *layer.leaves}
    misfits += [f"backward returns a gradient for {key!r}, which is no input" for key in reading if key not in known]
    return Gradients(by_path, misfits, misshapen=misshapen, of_python_floats=of_python_floats)


def _misfit(path: str, x: Any, g: Any) -> str | None:
    """Say in what the gradient g of the array x does not fit it; None if it does."""
    if g is None:
        return f"d{path} is None or missing for an input that is an array"
    if isinstance(g, Absent):
        return f"d{path} was not found: {g}"
    if not is_float_array(g):
        return f"backward returns {describe(g)} where d{path}, a float array or None belongs"
    if array_namespace(g) is not array_namespace(x):
        return f"d{path} is a {array_namespace(g).__name__} array, {path} a {array_namespace(x).__name__} array"
    if (g.shape, g.dtype) != (x.shape, x.dtype):
        return f"d{path} is {g.shape} {g.dtype}, {path} is {x.shape} {x.dtype}"
    return None
