"""Losses to report: without dropout, without caches, over much more text than one batch, on all workers."""

from types import ModuleType
from typing import Any

from gpt.config import ModelConfig
from gpt.parallel import Workers
from tensorlite.xp import Array

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
        key = ops.site(ops.key(seed, 0, row0), 0, "evaluation")
        idx, targets = ops.sample_batch(data, key, n, config.block_size)
        loss, _ = model.forward(ops, params, idx, targets, config, keep=False)
        return float(loss) * n

    return sum(workers.spread(summed, range(0, total, rows))) / total


def split_loss(workers: Workers, model: ModuleType, params: dict, data: Array, config: ModelConfig, rows: int) -> float:
    """Mean loss over a whole text in consecutive windows, the last one shorter: every character but the first counts once."""
    T = config.block_size
    n = len(data) - 1  # characters to predict
    windows = n // T
    rows = rows_at_once(workers, rows, config)
    spans = [(first * T, min(first + rows, windows) * T, T) for first in range(0, windows, rows)]  # begin, end, window
    if n > windows * T:
        spans.append((windows * T, n, n - windows * T))

    def summed(ops: Any, span: tuple[int, int, int]) -> float:
        begin, end, window = span
        idx, targets = data[begin:end].reshape(-1, window), data[begin + 1 : end + 1].reshape(-1, window)
        loss, _ = model.forward(ops, params, idx, targets, config, keep=False)
        return float(loss) * (end - begin)

    return sum(workers.spread(summed, spans)) / n
