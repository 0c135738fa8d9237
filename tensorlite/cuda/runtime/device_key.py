"""Random keys and dropout structs as kernel arguments, for steps whose number only the device knows.

This continues tensorlite/random.py. Graph capture freezes the arguments of every launch. So a launch is given the address of the
step number in device memory, never the step number or a key derived from it, and the kernel derives the key on the device.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorlite import random
from tensorlite.arrays import Array
from tensorlite.random import MASK32, Key, drop_threshold

KEY = np.dtype([("step", "u8"), ("k0", "u4"), ("k1", "u4"), ("layer", "u4"), ("site", "u4")], align=True)  # random.cuh: Key
# random.cuh: DropoutParams
DROPOUT_PARAMS = np.dtype([("key", KEY), ("offset", "i8"), ("threshold", "u4"), ("inv_keep", "f4")], align=True)
NO_DROPOUT = np.zeros((), DROPOUT_PARAMS)  # a threshold of 0: nothing is dropped


@dataclass(frozen=True)
class DeviceStep:
    """A step number in device memory, plus a constant. While a step is captured, `TrainState.step` is one."""

    array: Array  # int64, ()
    plus: int = 0

    def __add__(self, n: int) -> "DeviceStep":
        return DeviceStep(self.array, self.plus + n)


class DeviceKey(NamedTuple):
    """The values from which a kernel derives a tensorlite.random.Key, when only the device knows the step."""

    step: DeviceStep
    seed: int
    row0: int
    layer: int = 0
    site: int = 0


def step_key(seed: int, step: int | DeviceStep, row0: int = 0) -> Key | DeviceKey:
    """As random.step_key; for a DeviceStep, a DeviceKey."""
    return DeviceKey(step, seed, row0) if isinstance(step, DeviceStep) else random.step_key(seed, step, row0)


def fold_in(key: Key | DeviceKey | None, layer: int, name: str) -> Key | DeviceKey | None:
    """As random.fold_in."""
    if isinstance(key, DeviceKey):
        return key._replace(layer=layer, site=zlib.crc32(name.encode()))
    return random.fold_in(key, layer, name)


def pack_key(key: Key | DeviceKey, address: Any) -> np.ndarray:
    """Return the struct Key of random.cuh, which a kernel takes by value. address: returns an array's address on the device."""
    if isinstance(key, DeviceKey):
        if key.step.plus:
            raise ValueError("a key is derived from the step that the device is at, not from a later one")
        return np.array((address(key.step.array), key.seed & MASK32, key.seed >> 32 & MASK32, key.layer, key.site), KEY)
    return np.array((0, key.k0, key.k1, 0, 0), KEY)


def pack_dropout_params(shape: tuple[int, ...], p: float, key: Key | DeviceKey | None, address: Any) -> np.ndarray:
    """Return the struct of a dropout over an array of this shape, whose first axis is the batch, or NO_DROPOUT.

    address: returns an array's address on the device.
    """
    threshold = drop_threshold(p)
    if key is None or threshold == 0:
        return NO_DROPOUT
    offset = key.row0 * math.prod(shape[1:])
    inv_keep = 65536 / (65536 - threshold)
    return np.array((pack_key(key, address), offset, threshold, inv_keep), DROPOUT_PARAMS)
