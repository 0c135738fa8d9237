"""Training and validation losses: without dropout or caches, over much text, on all workers."""

from types import ModuleType
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.training.data_parallel import Workers
from tensorlite.arrays import Array, array_namespace
from tensorlite.integers import ceil_div

EVAL_TOKENS = 1024  # at least this many per forward pass: small batches waste time


def rows_per_pass(workers: Workers, batch_size: int, config: ModelConfig) -> int:
    """Rows per forward pass: one shard's worth, which is known to fit in memory, but at least EVAL_TOKENS tokens."""
    return max(ceil_div(batch_size, workers.shards), EVAL_TOKENS // config.block_size)


def train_loss(
    workers: Workers, model: ModuleType, params: dict, data: Array, config: ModelConfig, batches: int, batch_size: int, seed: int
) -> float:
    """Mean loss over `batches` random batches of `batch_size` windows: the same ones at every call with the same seed."""
    total = batches * batch_size
    rows = rows_per_pass(workers, batch_size, config)

    def summed_loss(ops: Any, row0: int) -> float:
        n = min(rows, total - row0)
        key = ops.fold_in(ops.step_key(seed, 0, row0), 0, "evaluation")
        idx, targets = ops.get_batch(data, key, n, config.block_size)
        loss, _ = model.forward(ops, params, idx, targets, config, with_cache=False)
        return float(loss) * n

    return sum(workers.map_over_ranks(summed_loss, range(0, total, rows))) / total


def split_loss(
    workers: Workers, model: ModuleType, params: dict, data: Array, config: ModelConfig, batch_size: int, chars: int = 0
) -> float:
    """Mean loss over a text in windows of the context, each read on its own.

    chars: at most so many characters to predict, in windows spread evenly over the text, the same ones at every call. With 0, or
    where the text has no more, every character but the first counts once: consecutive windows, the last one shorter.
    """
    xp, T = array_namespace(data), config.block_size
    n = len(data) - 1  # characters to predict
    n_evaluated = evaluated_chars(len(data), T, chars)
    windows = n_evaluated // T
    starts = np.arange(windows) * T if n_evaluated == n else np.arange(windows) * n // windows
    rows = rows_per_pass(workers, batch_size, config)
    spans = [(starts[i : i + rows], T) for i in range(0, windows, rows)]
    if n_evaluated > windows * T:
        spans.append((np.array([windows * T]), n_evaluated - windows * T))

    def summed_loss(ops: Any, span: tuple[np.ndarray, int]) -> float:
        starts, window = span
        positions = xp.asarray(starts)[:, None] + xp.arange(window)
        loss, _ = model.forward(ops, params, data[positions], data[positions + 1], config, with_cache=False)
        return float(loss) * positions.size

    return sum(workers.map_over_ranks(summed_loss, spans)) / n_evaluated


def evaluated_chars(split: int, block_size: int, chars: int) -> int:
    """How many characters of a split of this length `split_loss` predicts: all but the first, or whole windows within `chars`."""
    return split - 1 if chars == 0 or split - 1 <= chars else max(1, chars // block_size) * block_size
