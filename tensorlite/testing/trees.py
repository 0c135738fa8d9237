"""Trees of arrays: dicts, lists, tuples and NamedTuples whose leaves are arrays or anything else.

A leaf is addressed by its path, written as Python writes it: the leaf `w` of `params = {"blocks": [{"w": w}]}` is
`params["blocks"][0]["w"]`.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# ---- leaves ----


def is_array(a: Any) -> bool:
    """Whether `a` is a NumPy or CuPy array of values, which can be copied and compared. A sparse matrix is none."""
    if not isinstance(a, np.ndarray | np.generic) and type(a).__module__.partition(".")[0] != "cupy":
        return False
    return hasattr(a, "dtype") and hasattr(a, "shape") and not a.dtype.hasobject


def is_float_array(a: Any) -> bool:
    """Whether `a` is an array of real or complex floats."""
    return is_array(a) and (a.dtype.kind in "fc" or a.dtype.name == "bfloat16")


def copy_leaf(a: Any) -> Any:
    """Return a copy of an array, in the same order in memory, and anything else itself."""
    return a.copy(order="K") if is_array(a) else a


# ---- containers ----


def children(tree: Any) -> dict[str, Any] | None:
    """Return the parts of a container by the text that addresses each, such as `["w"]`, `[0]` or `.field`; None for a leaf."""
    if isinstance(tree, Mapping):
        return {f'["{key}"]' if isinstance(key, str) else f"[{key!r}]": part for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {f".{field}": part for field, part in zip(tree._fields, tree, strict=True)}
    if isinstance(tree, tuple | list):
        return {f"[{i}]": part for i, part in enumerate(tree)}
    return None


def map_with_path(f: Callable[[str, Any], Any], tree: Any, path: str = "") -> Any:
    """Return the tree with each leaf replaced by f(path, leaf). `path` addresses the tree itself."""
    parts = children(tree)
    if parts is None:
        return f(path, tree)
    return _like(tree, [map_with_path(f, part, path + key) for key, part in parts.items()])


def map_arrays(f: Callable[[Any], Any], tree: Any) -> Any:
    """Return the tree with each leaf replaced by f(leaf)."""
    return map_with_path(lambda _, leaf: f(leaf), tree)


def map_pairs(f: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """Return the tree of f(x, y) for the leaves x of `a` and y of `b`, two trees of one structure."""
    others = flatten(b)
    return map_with_path(lambda path, leaf: f(leaf, others[path]), a)


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves by their paths, in order. `path` addresses the tree itself."""
    found: dict[str, Any] = {}
    map_with_path(found.__setitem__, tree, path)
    return found


def flatten_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of all inputs by their paths, which begin with the name of the input."""
    return {path: leaf for name, tree in inputs.items() for path, leaf in flatten(tree, name).items()}


def copy_tree(tree: Any) -> Any:
    """Return new containers with copies of the arrays. What is neither is the same object in both."""
    return map_arrays(copy_leaf, tree)


def as_tuple(value: Any) -> tuple:
    """Return one result, or several, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _like(tree: Any, parts: list) -> Any:
    """Return a container like `tree` that holds `parts`."""
    if isinstance(tree, dict):
        new = copy.copy(tree)  # keeps the class: an OrderedDict, a defaultdict
        new.update(zip(tree, parts, strict=True))
        return new
    if isinstance(tree, Mapping):
        return dict(zip(tree, parts, strict=True))
    if isinstance(tree, tuple):
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return parts


# ---- comparisons ----


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees agree in structure and, leaf by leaf, in dtype, shape and every bit: -0.0 is not 0.0.

    Floats and arrays are compared by their bits, integers and strings by value; other leaves must be one object.
    """
    parts, other_parts = children(a), children(b)
    if parts is not None and other_parts is not None:
        return list(parts) == list(other_parts) and all(map(same_bits, parts.values(), other_parts.values()))
    return parts is other_parts and _same_leaf(a, b)


def unchanged(before: Any, now: Any) -> bool:
    """Whether everything that was in the tree `before` is still in it, with the same bits. New entries do not count."""
    parts, parts_now = children(before), children(now)
    if parts is not None and parts_now is not None:
        return all(key in parts_now and unchanged(part, parts_now[key]) for key, part in parts.items())
    return parts is parts_now and _same_leaf(before, now)


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    if not (is_array(a) and is_array(b)):
        return a is b or (isinstance(a, int | str | bytes) and type(a) is type(b) and bool(a == b))
    if type(a).__module__ != type(b).__module__ or (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return bool((_bytes(a) == _bytes(b)).all())


def _bytes(a: Any) -> Any:
    """Return the bytes of an array, as an array on the same device."""
    return a.copy().reshape(-1).view(np.uint8)  # the copy is contiguous
