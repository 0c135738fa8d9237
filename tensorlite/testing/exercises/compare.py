"""The gradients of an op by name, and where they differ from the true ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.op_info import OP_INFO

RTOL, ATOL = 1e-7, 1e-9  # further apart than this, two gradients differ
N_SHOWN = 3  # entries per gradient
PACKED = {"attention": ("dq", "dk", "dv")}  # ops whose one gradient is packed of several along the last axis


def gradient_names(op: str) -> tuple[str, ...]:
    """Return the names of the gradients: dx, dw, db; for attention dq, dk, dv."""
    if op in PACKED:
        return PACKED[op]
    return tuple(f"d{name}" for name in OP_INFO[op].inputs)


def random_dy(y: Array) -> Array:
    """Return a normal dy of y's shape, the same at every call."""
    return np.random.default_rng(0).standard_normal(np.shape(y))


def named_gradients(op: str, returned: Any) -> dict[str, Any]:
    """Return what a backward returned by the names of the gradients. One that is missing is None."""
    names = gradient_names(op)
    if op in PACKED and not isinstance(returned, tuple | list):
        can_split = isinstance(returned, np.ndarray) and returned.ndim and returned.shape[-1] % len(names) == 0
        parts = np.split(returned, len(names), axis=-1) if can_split else []
    elif isinstance(returned, Mapping):
        parts = [returned.get(name, returned.get(name[1:])) for name in names]
    else:
        parts = list(returned) if isinstance(returned, tuple | list) else [returned]
    return {name: parts[i] if i < len(parts) else None for i, name in enumerate(names)}


def agree(found: Any, true: Array) -> bool:
    """Return whether two arrays have the same shape and, up to rounding, the same values."""
    if not isinstance(found, np.ndarray | np.number | float) or np.shape(found) != np.shape(true):
        return False
    return np.allclose(found, true, RTOL, ATOL)


def largest_differences(name: str, found: Array, true: Array) -> list[str]:
    """Return a line for each of the entries that differ most, or one on the shapes; none where the two agree."""
    if np.shape(found) != np.shape(true):
        return [f"{name} has the shape {np.shape(found)}, the truth has {np.shape(true)}"]
    if agree(found, true):
        return []
    size = abs(np.asarray(found) - true)
    largest = np.argsort(-size, axis=None)[:N_SHOWN]
    indices = [np.unravel_index(i, size.shape) for i in largest]
    return [entry_line(name, index, found[index], true[index]) for index in indices if size[index] > ATOL]


def entry_line(name: str, index: tuple, found: float, true: float) -> str:
    """Return one entry beside the true one, with their ratio."""
    place = f"[{', '.join(map(str, index))}]" if index else ""
    ratio = f"ratio {found / true:.7g}" if true else "no ratio"
    return f"{name}{place} is {found:.9g}, the truth is {true:.9g}: {ratio}"
