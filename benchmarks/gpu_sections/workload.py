"""The workload that is measured: the lecture's model at its full size, its backend, and random data."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import PRESETS
from tensorlite import DeviceError
from tensorlite.cuda import CUDAOps
from tensorlite.integers import ceil_div

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"  # which also is each section's and each implementation's program
CONFIG, TRAIN = PRESETS["shakespeare"].model, PRESETS["shakespeare"].train
TOKENS = TRAIN.batch_size * CONFIG.block_size  # per step
SEED = 1337


def card_precisions(architecture: int, name: str) -> tuple[str, ...]:
    """Return the precisions to measure on a card, the best first.

    architecture: the compute capability, 75 for 7.5.
    name: of the card, for the message.
    Raises DeviceError for a card below 7.5, whose tensor cores the kernels do not use.
    """
    if architecture >= 80:
        return "bf16", "tf32", "float32"
    if architecture >= 75:
        return "fp16", "float32"
    raise DeviceError(f"{name} has compute capability {architecture / 10}; this benchmark needs 7.5 or later")


def fast(precision: str, runtime: Any = None) -> CUDAOps:
    """The CUDA backend as train.py makes it."""
    return CUDAOps(precision, check=False, runtime=runtime)  # type: ignore[arg-type]


def text(xp: Any, characters: int = 1_000_000) -> Any:
    """Random tokens as the trainer holds them, for what only takes time."""
    return xp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, characters).astype(np.uint16))


def random_values(ops: Any, *shape: int, dtype: Any = None) -> Any:
    """Return values of N(0, 1), repeated where the array is large, by default in the dtype of the precision."""
    xp, size = ops.runtime.xp, math.prod(shape)
    some = np.random.default_rng(size % 97).standard_normal(min(size, 1 << 20), np.float32)
    whole = xp.tile(xp.asarray(some), ceil_div(size, some.size))[:size].reshape(shape)
    return ops.cast(xp.ascontiguousarray(whole), ops.dtype if dtype is None else dtype)
