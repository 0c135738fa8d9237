"""Random bits as a pure function of (seed, step, site, index): no generator state anywhere.

The generator is Threefry-2x32 with 13 rounds, the smallest round count that passes BigCrush (Salmon, Moraes, Dror, Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011, table 2). It turns a 64-bit key and a 64-bit counter into 64 random bits
with adds, rotates and xors of 32-bit words, so NumPy, CuPy and a CUDA kernel are bitwise identical. The tests check it against the
authors' published vectors.

A dropout mask is therefore a fixed function of its key: finite differences see a smooth loss, and backward may regenerate the mask.
A resumed run equals a straight one, and a batch split over threads or machines draws the masks of the whole batch.
"""

import math
import zlib
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tensorlite.arrays import Array
from tensorlite.integers import ceil_div

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA  # the key schedule's constant
ROUNDS = 13
MASK32 = 0xFFFFFFFF  # the low 32 bits
LANES = 4  # 16-bit lanes in the 64 bits of one counter
SMALL_BATCH = 16  # up to this many rows, Python integers are faster than NumPy arrays
CHUNK = 1 << 14  # counters per pass on a CPU: the three working arrays (192 KiB) stay in the L2 cache


class Key(NamedTuple):
    """A 64-bit key as two words, and the global index of the first batch row of the caller."""

    k0: int
    k1: int
    row0: int = 0


MaybeKey = TypeVar("MaybeKey", Key, Key | None)  # None: no dropout


def threefry2x32(xp: Any, k0: int, k1: int, c0: Array, c1: Array, rounds: int = ROUNDS) -> tuple[Array, Array]:
    """Encrypt the counters (c0, c1), two uint32 arrays, under the key (k0, k1).

    rounds: 13 here; 20 for the published test vectors.
    Returns two uint32 arrays of random words.
    """
    schedule = (k0, k1, k0 ^ k1 ^ PARITY)
    x0 = c0 + xp.uint32(k0)
    x1 = c1 + xp.uint32(k1)
    tmp = xp.empty_like(x1)
    for i in range(rounds):
        rot = ROTATIONS[i % 8]
        x0 += x1
        xp.right_shift(x1, 32 - rot, out=tmp)  # x1 = rotate_left(x1, rot) ^ x0, in place: memory passes are the cost
        x1 <<= rot
        x1 |= tmp
        x1 ^= x0
        if i % 4 == 3:  # every four rounds the next two key words are injected
            j = i // 4 + 1
            x0 += xp.uint32(schedule[j % 3])
            x1 += xp.uint32((schedule[(j + 1) % 3] + j) & MASK32)
    return x0, x1


def step_key(seed: int, step: int, row0: int = 0) -> Key:
    """Return the key of one training step; `row0` is the global index of the caller's first batch row."""
    seed, step = int(seed), int(step)  # NumPy's integers would overflow
    return Key(*_mix(seed & MASK32, (seed >> 32) & MASK32, step & MASK32, (step >> 32) & MASK32), row0)


def fold_in(key: MaybeKey, layer: int, name: str) -> MaybeKey:
    """Return the key of one place in the network, so that no two dropouts share a mask; None stays None (no dropout)."""
    if key is None:
        return None
    return Key(*_mix(key.k0, key.k1, layer, zlib.crc32(name.encode())), key.row0)


def _mix(k0: int, k1: int, x0: int, x1: int) -> tuple[int, int]:
    """threefry2x32 of one counter on Python integers, which is faster than 65 calls of NumPy on single words."""
    schedule = (k0, k1, k0 ^ k1 ^ PARITY)
    x0, x1 = (x0 + k0) & MASK32, (x1 + k1) & MASK32
    for i in range(ROUNDS):
        rot = ROTATIONS[i % 8]
        x0 = (x0 + x1) & MASK32
        x1 = ((x1 << rot | x1 >> (32 - rot)) & MASK32) ^ x0
        if i % 4 == 3:
            j = i // 4 + 1
            x0 = (x0 + schedule[j % 3]) & MASK32
            x1 = (x1 + schedule[(j + 1) % 3] + j) & MASK32
    return x0, x1


def drop_threshold(p: float) -> int:
    """Return the 16-bit threshold below which a lane is dropped; the effective probability is threshold / 65536, always below 1.

    Raises ValueError unless p is in [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout probability must be in [0, 1), got {p}")
    return min(round(p * 65536), 65535)


def keep_mask(xp: Any, key: Key, shape: tuple[int, ...], p: float) -> Array:
    """Return the dropout mask of the given shape: bool, False with probability drop_threshold(p) / 65536.

    Element e of the whole batch takes the 16-bit lane e % 4 of counter e // 4. The `shape[0]` rows of the caller start at row
    key.row0 of the batch, so a shard gets exactly its rows of the full batch's mask.
    """
    rows, per_row = shape[0], math.prod(shape[1:])
    offset = key.row0 * per_row
    lanes = _lanes(xp, key, offset // LANES, ceil_div(offset + rows * per_row, LANES))
    mask = lanes[offset % LANES : offset % LANES + rows * per_row] >= xp.uint16(drop_threshold(p))
    return mask.reshape(shape)


def _lanes(xp: Any, key: Key, start: int, stop: int) -> Array:
    """Return the 16-bit lanes of the counters start..stop-1, in order."""
    words = xp.empty((stop - start, 2), np.dtype("<u4"))
    chunk = CHUNK if xp is np else len(words) or 1  # a GPU wants one large launch instead
    for i in range(0, len(words), chunk):
        part = words[i : i + chunk]
        counter = xp.arange(start + i, start + i + len(part))
        low = counter.astype(np.uint32)
        high = (counter >> 32).astype(np.uint32)
        part[:, 0], part[:, 1] = threefry2x32(xp, key.k0, key.k1, low, high)
    return words.view(np.dtype("<u2")).reshape(-1)


def random_uint64(xp: Any, key: Key, rows: int) -> Array:
    """Return one uint64 per global row row0..row0+rows-1, for batch offsets and sampled characters."""
    if xp is np and rows <= SMALL_BATCH:
        words = [_mix(key.k0, key.k1, row & MASK32, row >> 32) for row in range(key.row0, key.row0 + rows)]
        return np.array([x0 << 32 | x1 for x0, x1 in words], np.uint64)
    row = xp.arange(key.row0, key.row0 + rows)
    x0, x1 = threefry2x32(xp, key.k0, key.k1, row.astype(np.uint32), (row >> 32).astype(np.uint32))
    return (x0.astype(np.uint64) << 32) | x1.astype(np.uint64)
