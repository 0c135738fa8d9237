"""Keys of a captured step: its number is in device memory, so the key is mixed there. It goes on from tensorlite/random.py.

A launch's arguments are frozen when a step is captured. The step number must not be among them, nor anything made of it: what is
frozen is the address where the number is.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorlite.random import WORD, Key, drop_threshold, make_key, site_key
from tensorlite.xp import Array

KEY = np.dtype([("step", "u8"), ("k0", "u4"), ("k1", "u4"), ("layer", "u4"), ("site", "u4")], align=True)  # random.cuh: Key
DROP = np.dtype([("key", KEY), ("first", "i8"), ("threshold", "u4"), ("scale", "f4")], align=True)  # random.cuh: Drop


@dataclass(frozen=True)
class Counter:
    """A step number in device memory, plus a constant. `TrainState.step` is one while a step is captured."""

    array: Array  # int64, ()
    plus: int = 0

    def __add__(self, n: int) -> "Counter":
        return Counter(self.array, self.plus + n)


class StepKey(NamedTuple):
    """What tensorlite.random.Key is made of, when the step is known to the device alone."""

    counter: Counter
    seed: int
    row0: int
    layer: int = 0
    site: int = 0


def key(seed: int, step: int | Counter, row0: int = 0) -> Key | StepKey:
    """As make_key; of a Counter, a StepKey."""
    return StepKey(step, seed, row0) if isinstance(step, Counter) else make_key(seed, step, row0)


def site(key: Key | StepKey | None, layer: int, name: str) -> Key | StepKey | None:
    """As site_key."""
    if isinstance(key, StepKey):
        return key._replace(layer=layer, site=zlib.crc32(name.encode()))
    return site_key(key, layer, name)


def pack_key(key: Key | StepKey, address: Any) -> np.ndarray:
    """The struct that a kernel takes by value. address: gives the place of an array in memory."""
    if isinstance(key, StepKey):
        if key.counter.plus:
            raise ValueError("a key is of the step that the counter says, not of another")
        return np.array((address(key.counter.array), key.seed & WORD, key.seed >> 32 & WORD, key.layer, key.site), KEY)
    return np.array((0, key.k0, key.k1, 0, 0), KEY)


def pack_drop(shape: tuple[int, ...], p: float, key: Key | StepKey | None, address: Any) -> np.ndarray:
    """The struct of a dropout over an array of this shape, whose first axis is the batch. A threshold of 0: nothing is dropped."""
    dropped = drop_threshold(p)
    if key is None or dropped == 0:
        return np.zeros((), DROP)
    return np.array((pack_key(key, address), key.row0 * math.prod(shape[1:]), dropped, 65536 / (65536 - dropped)), DROP)
