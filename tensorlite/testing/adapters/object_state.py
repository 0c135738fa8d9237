"""The float arrays in the attributes of an object, and copies of it with other arrays in their places."""

import copy
import types
from typing import Any

from tensorlite.testing.trees import children, is_array, is_float_array

OPAQUE = (types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, type, str, bytes, int, float, complex)


def float_arrays(root: Any) -> dict[str, Any]:
    """Return the float arrays that an object holds, by the text behind `layer.` that addresses each: `W`, `params["W"]`, `fc[0].b`.

    An array that can be reached in several ways is listed under each of them.
    """
    found: dict[str, Any] = {}
    _visit(root, "", set(), found)
    return {path.removeprefix("."): leaf for path, leaf in found.items() if is_float_array(leaf)}


def copy_with(root: Any, replaced: dict[str, Any]) -> Any:
    """Return a deep copy of an object in which the arrays at some paths are replaced, under all their names.

    What cannot be copied, such as an open file, is shared with the copy.
    """
    arrays = float_arrays(root)
    memo = {id(arrays[path]): value for path, value in replaced.items()}
    try:
        return copy.deepcopy(root, dict(memo))
    except TypeError:
        shared = _uncopyable(root)
    return copy.deepcopy(root, memo | {id(value): value for value in shared})


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the parts of a container or the attributes of an object; None for a leaf."""
    parts = children(value)
    if parts is not None:
        return parts
    if is_array(value) or isinstance(value, OPAQUE):
        return None
    slots = [_as_stored(name, kind) for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {f".{name}": part for name, part in attributes.items()} or None


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _as_stored(name: str, kind: type) -> str:
    """Return the name of an attribute of a class as Python stores it: `__W` of a class C is `_C__W`."""
    is_private = name.startswith("__") and not name.endswith("__")
    return f"_{kind.__name__.lstrip('_')}{name}" if is_private else name


def _visit(value: Any, path: str, above: set[int], found: dict[str, Any]) -> None:
    """Collect the leaves below `value`. A value that contains itself is not entered again."""
    parts = None if id(value) in above else _attributes(value)
    if parts is None:
        found[path] = value
        return
    for key, part in parts.items():
        _visit(part, path + key, above | {id(value)}, found)


def _uncopyable(value: Any) -> list[Any]:
    """Return the innermost parts of an object that `copy.deepcopy` refuses."""
    try:
        copy.deepcopy(value)
    except TypeError:
        parts = _attributes(value) or {}
        inside = [refused for part in parts.values() for refused in _uncopyable(part)]
        return inside or [value]
    return []
