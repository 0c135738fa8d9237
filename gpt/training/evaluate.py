"""Losses to report: without dropout, without caches, over much more text than one batch, on all workers."""

from types import ModuleType
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.training.data_parallel import Workers
from tensorlite.arrays import Array, array_namespace

EVAL_TOKENS = 1024  # at least so many in one forward pass: small batches waste time


def rows_at_once(workers: Workers, rows: int, config: ModelConfig) -> int:
    """As many as a shard of a training batch has, so that memory is enough, or more if these are few."""
    return max(-(-rows // workers.shards), EVAL_TOKENS // config.block_size)


def train_loss(
    workers: Workers, model: ModuleType, params: dict, data: Array, config: ModelConfig, batches: int, rows: int, seed: int
) -> float:
    """Mean loss over `batches` random batches of `rows` windows: the same ones at every call with the same seed."""
    total = batches * rows
    rows = rows_at_once(workers, rows, config)

    def summed(ops: Any, row0: int) -> float:
        n = min(rows, total - row0)
        key = ops.fold_in(ops.step_key(seed, 0, row0), 0, "evaluation")
        idx, targets = ops.get_batch(data, key, n, config.block_size)
        loss, _ = model.forward(ops, params, idx, targets, config, keep=False)
        return float(loss) * n

    return sum(workers.map_over_ranks(summed, range(0, total, rows))) / total


def split_loss(
    workers: Workers, model: ModuleType, params: dict, data: Array, config: ModelConfig, rows: int, chars: int = 0
) -> float:
    """Mean loss over a text in windows of the context, each read on its own.

    chars: at most so many characters to predict, in windows spread evenly over the text, the same ones at every call. With 0, or
    where the text has no more, every character but the first counts once: consecutive windows, the last one shorter.
    """
    xp, T = array_namespace(data), config.block_size
    n = len(data) - 1  # characters to predict
    count = evaluated_chars(len(data), T, chars)
    windows = count // T
    starts = np.arange(windows) * T if count == n else np.arange(windows) * n // windows
    rows = rows_at_once(workers, rows, config)
    spans = [(starts[first : first + rows], T) for first in range(0, windows, rows)]
    if count > windows * T:
        spans.append((np.array([windows * T]), count - windows * T))

    def summed(ops: Any, span: tuple[np.ndarray, int]) -> float:
        starts, window = span
        at = xp.asarray(starts)[:, None] + xp.arange(window)
        loss, _ = model.forward(ops, params, data[at], data[at + 1], config, keep=False)
        return float(loss) * at.size

    return sum(workers.map_over_ranks(summed, spans)) / count


def evaluated_chars(split: int, block_size: int, chars: int) -> int:
    """How many characters of a split of this length `split_loss` predicts: all but the first, or whole windows within `chars`."""
    return split - 1 if chars == 0 or split - 1 <= chars else max(1, chars // block_size) * block_size
