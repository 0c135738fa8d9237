"""Helpers for what a layer returns: one array, a tuple of several, or the arrays it saved."""

from collections.abc import Callable
from typing import Any

from tensorlite.arrays import Array


def as_tuple(value: Any) -> tuple:
    """One result or several, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def map_arrays(f: Callable, tree: Any) -> Any:
    """f of one result, or a tuple of f of each."""
    return tuple(f(a) for a in tree) if isinstance(tree, tuple | list) else f(tree)


def map_pairs(f: Callable, a: Any, b: Any) -> Any:
    """f(a, b) for two results, or a tuple of f of each pair."""
    return tuple(f(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple | list) else f(a, b)


def leaves(tree: Any) -> list[Array]:
    """The arrays of a cache, in whatever tuples, lists and dicts it holds them."""
    if hasattr(tree, "dtype") and hasattr(tree, "copy"):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else []
    return [a for item in items for a in leaves(item)]
