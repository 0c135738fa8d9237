"""Packs random keys and dropout structs for a launch; a captured step's number is on the device.

This continues tensorlite/random.py. A launch's arguments are frozen when a step is captured. The step number must not be among
them, nor anything derived from it: what is frozen is the address of the step number.
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


@dataclass(frozen=True)
class DeviceStep:
    """A step number in device memory, plus a constant. `TrainState.step` is one while a step is captured."""

    array: Array  # int64, ()
    plus: int = 0

    def __add__(self, n: int) -> "DeviceStep":
        return DeviceStep(self.array, self.plus + n)


class DeviceKey(NamedTuple):
    """What a tensorlite.random.Key is derived from, when only the device knows the step."""

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
    """The struct that a kernel takes by value. address: gives the address of an array."""
    if isinstance(key, DeviceKey):
        if key.step.plus:
            raise ValueError("a key is of the step that the device is at, not of another")
        return np.array((address(key.step.array), key.seed & MASK32, key.seed >> 32 & MASK32, key.layer, key.site), KEY)
    return np.array((0, key.k0, key.k1, 0, 0), KEY)


def pack_dropout_params(shape: tuple[int, ...], p: float, key: Key | DeviceKey | None, address: Any) -> np.ndarray:
    """The struct of a dropout over an array of this shape, whose first axis is the batch. A threshold of 0: nothing is dropped."""
    threshold = drop_threshold(p)
    if key is None or threshold == 0:
        return np.zeros((), DROPOUT_PARAMS)
    offset, inv_keep = key.row0 * math.prod(shape[1:]), 65536 / (65536 - threshold)
    return np.array((pack_key(key, address), offset, threshold, inv_keep), DROPOUT_PARAMS)
