"""Losses to report: without dropout, without caches, over much more text than one batch."""

from types import ModuleType
from typing import Any

from gpt.config import ModelConfig
from tensorlite.xp import Array

EVAL_TOKENS = 1024  # at least so many in one forward pass: small batches waste time


def train_loss(
    ops: Any, model: ModuleType, params: dict, data: Array, config: ModelConfig, batches: int, rows: int, seed: int
) -> float:
    """Mean loss over `batches` random batches of `rows` windows: the same ones at every call with the same seed."""
    rows_at_once = max(rows, EVAL_TOKENS // config.block_size)
    total = batches * rows
    summed = 0.0
    for row0 in range(0, total, rows_at_once):
        n = min(rows_at_once, total - row0)
        key = ops.site(ops.key(seed, 0, row0), 0, "evaluation")
        idx, targets = ops.sample_batch(data, key, n, config.block_size)
        loss, _ = model.forward(ops, params, idx, targets, config, keep=False)
        summed += float(loss) * n
    return summed / total


def split_loss(ops: Any, model: ModuleType, params: dict, data: Array, config: ModelConfig, rows: int) -> float:
    """Mean loss over a whole text in consecutive windows, the last one shorter: every character but the first counts once."""
    T = config.block_size
    rows = max(rows, EVAL_TOKENS // T)
    n = len(data) - 1  # characters to predict
    windows = n // T
    summed = 0.0
    for first in range(0, windows, rows):
        last = min(first + rows, windows)
        idx = data[first * T : last * T].reshape(-1, T)
        targets = data[first * T + 1 : last * T + 1].reshape(-1, T)
        loss, _ = model.forward(ops, params, idx, targets, config, keep=False)
        summed += float(loss) * (last - first) * T
    if n > windows * T:
        idx, targets = data[None, windows * T : n], data[None, windows * T + 1 :]
        loss, _ = model.forward(ops, params, idx, targets, config, keep=False)
        summed += float(loss) * (n - windows * T)
    return summed / n
