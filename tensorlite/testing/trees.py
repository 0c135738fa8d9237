"""Helpers for what a layer returns: one array, a tuple of several, or the arrays it saved."""

from collections.abc import Callable
from typing import Any

from tensorlite.arrays import Array


def as_tuple(value: Any) -> tuple:
    """Return one result, or several, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def map_arrays(f: Callable, tree: Any) -> Any:
    """Return f(a) for one result, or the tuple of f(a) for several."""
    return tuple(f(a) for a in tree) if isinstance(tree, tuple | list) else f(tree)


def map_pairs(f: Callable, a: Any, b: Any) -> Any:
    """Return f(a, b) for two results, or the tuple of f(x, y) for two tuples of results."""
    return tuple(f(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple | list) else f(a, b)


def leaves(tree: Any) -> list[Array]:
    """Return the arrays of a cache, which may nest tuples, lists and dicts."""
    if hasattr(tree, "dtype") and hasattr(tree, "copy"):
        return [tree]
    if isinstance(tree, dict):
        return leaves(list(tree.values()))
    if isinstance(tree, tuple | list):
        return [a for item in tree for a in leaves(item)]
    return []


def same_values(a: Any, b: Any) -> bool:
    """Whether two results have equal values. -0.0 equals 0.0, any NaN equals any NaN, and None equals only None."""
    return all(_equal(x, y) for x, y in zip(as_tuple(a), as_tuple(b), strict=False))


def _equal(x: Any, y: Any) -> bool:
    if x is None or y is None:
        return x is y
    both_nan = (x != x) & (y != y)
    return bool(((x == y) | both_nan).all())
