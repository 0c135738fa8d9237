"""Ways to look at a gradient: its last axis as several axes, its parts, its axes to sum over."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np


class View:
    """A shape to look at an array in, perhaps with the axis of heads before that of positions."""

    def __init__(self, shape: tuple[int, ...], split: tuple[int, ...], heads_first: bool = False) -> None:
        self.shape = shape
        self.split = split
        self.heads_first = heads_first
        self.text = "" if split == shape else f", where its last axis consists of {split[len(shape) - 1 :]}"
        if heads_first:
            self.text = f", for each of {split[-2]} heads of {split[-1]}"

    def of(self, a: np.ndarray) -> np.ndarray:
        """Return the array in this view."""
        a = a.reshape(self.split)
        return np.moveaxis(a, -2, -3) if self.heads_first else a

    def undo(self, a: np.ndarray) -> np.ndarray:
        """Return an array of this view in its own shape."""
        return (np.moveaxis(a, -3, -2) if self.heads_first else a).reshape(self.shape)


def views(shape: tuple[int, ...]) -> Iterator[View]:
    """Yield the shape itself, and those in which the last axis consists of two or three."""
    yield View(shape, shape)
    n = shape[-1] if shape else 1
    divisors = [d for d in range(2, n) if n % d == 0]
    for d in divisors:
        yield View(shape, (*shape[:-1], d, n // d))
        if len(shape) > 1:
            yield View(shape, (*shape[:-1], d, n // d), heads_first=True)
    for d in divisors:
        for e in divisors:
            if n % (d * e) == 0 and d * e < n:
                yield View(shape, (*shape[:-1], d, e, n // (d * e)))


def divisions(shape: tuple[int, ...]) -> Iterator[tuple[int, list[tuple]]]:
    """Yield the ways to cut the last or the first axis into 2, 3 or 4 equal parts: the axis, and an index for each part."""
    for axis in dict.fromkeys((len(shape) - 1, 0)) if shape else ():
        for n in (3, 2, 4):
            if shape[axis] and shape[axis] % n == 0:
                size = shape[axis] // n
                yield axis, [(*[slice(None)] * axis, slice(i * size, (i + 1) * size)) for i in range(n)]


def slice_text(cut: tuple) -> str:
    """Return an index as it is written in Python."""
    return ", ".join(":" if s == slice(None) else f"{s.start}:{s.stop}" for s in cut)


def subsets(n: int) -> Iterator[tuple[int, ...]]:
    """Yield the axes to sum over, at least one of n."""
    for k in range(1, n + 1):
        yield from combinations(range(n), k)


def axes_text(axes: tuple[int, ...]) -> str:
    """Return "axis 0" or "axes 0 and 1"."""
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {' and '.join(map(str, axes))}"
