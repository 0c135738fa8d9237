"""Training and validation losses: no dropout, no caches, over much text, on all workers."""

import numpy as np

from gpt.config import ModelConfig
from gpt.training.data_parallel import Workers
from gpt.training.step import Task
from tensorlite import Array, Ops
from tensorlite.arrays import array_namespace
from tensorlite.integers import ceil_div

EVAL_TOKENS = 1024  # at least this many per forward pass, because small batches waste time


def rows_per_pass(workers: Workers, batch_size: int, config: ModelConfig) -> int:
    """Rows per forward pass: one shard's worth, which is known to fit in memory, but at least EVAL_TOKENS tokens."""
    return max(ceil_div(batch_size, workers.shards), EVAL_TOKENS // config.block_size)


def train_loss(workers: Workers, task: Task, params: dict) -> float:
    """Return the mean loss over eval_batches random batches of the training text: the same batches at every call.

    params: the parameters as the model reads them.
    """
    block_size = task.config.block_size
    total = task.train.eval_batches * task.train.batch_size
    rows = rows_per_pass(workers, task.train.batch_size, task.config)

    def summed_loss(ops: Ops, row0: int) -> float:
        n = min(rows, total - row0)
        key = ops.fold_in(ops.step_key(task.seed, 0, row0), 0, "evaluation")
        idx, targets = ops.get_batch(task.data, key, n, block_size)
        loss, _ = task.model.forward(ops, params, idx, targets, task.config, with_cache=False)
        return float(loss) * n

    return sum(workers.map_over_ranks(summed_loss, range(0, total, rows))) / total


def split_loss(workers: Workers, task: Task, params: dict, data: Array) -> float:
    """Return the mean loss over a text in windows of block_size characters, each of which is read on its own.

    At most val_chars characters are predicted, in windows spread evenly over the text: the same windows at every call. If val_chars
    is 0, or the text has no more characters, then every character but the first is predicted once: the windows are consecutive,
    and the last one is shorter.

    params: the parameters as the model reads them.
    data: (n,) integers, a text of at least two characters.
    """
    xp = array_namespace(data)
    T = task.config.block_size
    n = len(data) - 1  # characters to predict
    n_evaluated = evaluated_chars(len(data), T, task.train.val_chars)
    n_windows = n_evaluated // T
    starts = np.arange(n_windows) * T if n_evaluated == n else np.arange(n_windows) * n // n_windows
    rows = rows_per_pass(workers, task.train.batch_size, task.config)
    batches = [(starts[i : i + rows], T) for i in range(0, n_windows, rows)]
    rest = n_evaluated - n_windows * T
    if rest > 0:
        batches.append((np.array([n_windows * T]), rest))

    def summed_loss(ops: Ops, batch: tuple[np.ndarray, int]) -> float:
        starts, length = batch
        positions = xp.asarray(starts)[:, None] + xp.arange(length)  # (rows, length)
        loss, _ = task.model.forward(ops, params, data[positions], data[positions + 1], task.config, with_cache=False)
        return float(loss) * positions.size

    return sum(workers.map_over_ranks(summed_loss, batches)) / n_evaluated


def evaluated_chars(split: int, block_size: int, chars: int) -> int:
    """Return how many characters `split_loss` predicts in a text of `split` characters.

    These are all but the first, or else as many whole windows as fit in `chars`, but at least one if the text is as long.
    """
    if chars == 0 or split - 1 <= chars:
        return split - 1
    return min(split - 1, max(1, chars // block_size) * block_size)
