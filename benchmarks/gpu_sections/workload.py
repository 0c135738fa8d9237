"""The workload that is measured: the lecture's model at its full size, the backend that trains it, and data to time it with."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import PRESETS
from tensorlite.cuda import CUDAOps
from tensorlite.integers import ceil_div

ROOT = Path(__file__).resolve().parents[2]
CONFIG, TRAIN = PRESETS["shakespeare"].model, PRESETS["shakespeare"].train
SEED = 1337


def fast(precision: str, runtime: Any = None) -> CUDAOps:
    """The CUDA backend as train.py makes it."""
    return CUDAOps(precision, check=False, runtime=runtime)  # type: ignore[arg-type]


def text(xp: Any, characters: int = 1_000_000) -> Any:
    """Random tokens as the trainer holds them, for what only takes time."""
    return xp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, characters).astype(np.uint16))


def numbers(ops: Any, *shape: int) -> Any:
    """An array of random numbers of N(0, 1), repeated where it is large."""
    xp, size = ops.runtime.xp, math.prod(shape)
    some = np.random.default_rng(size % 97).standard_normal(min(size, 1 << 20), np.float32)
    whole = xp.tile(xp.asarray(some), ceil_div(size, some.size))[:size].reshape(shape)
    return ops.cast(xp.ascontiguousarray(whole), ops.dtype)
