"""Mistakes people make in embedding and positions."""

import numpy as np

from tensorlite.arrays import Array
from tensorlite.testing.bugs.bug import bug


@bug(
    "embedding",
    "a repeated token keeps its last row only",
    "dtable",
    how_it_happens="dtable[ids] += dy reads like a scatter-add.",
    explanation="NumPy gathers dtable[ids], adds, and writes back: where an id repeats, the last write wins.",
)
def _(dy: Array, cache: tuple) -> Array:
    ids, table = cache
    dtable = np.zeros_like(table)
    dtable[ids] += dy
    return dtable


@bug(
    "embedding",
    "repeats averaged",
    "dtable",
    how_it_happens="Frequent tokens would get large gradients, which looked like something to normalise away.",
    explanation="Each use of a row adds its own gradient: dtable_v is the sum of dy over the places of token v, not their mean.",
)
def _(dy: Array, cache: tuple) -> Array:
    ids, table = cache
    V, C = table.shape
    onehot = (ids.reshape(-1, 1) == np.arange(V)).astype(dy.dtype)
    count = np.maximum(onehot.sum(axis=0), 1.0)
    return onehot.T @ dy.reshape(-1, C) / count[:, None]


@bug(
    "embedding",
    "rows off by one",
    "dtable",
    how_it_happens="An earlier tokenizer counted from 1, with 0 reserved for padding.",
    explanation="Row v of the table is token v; here its gradient goes to row v - 1, and that of token 0 is lost.",
)
def _(dy: Array, cache: tuple) -> Array:
    ids, table = cache
    V, C = table.shape
    onehot = (ids.reshape(-1, 1) == np.arange(1, V + 1)).astype(dy.dtype)
    return onehot.T @ dy.reshape(-1, C)


@bug(
    "position_embedding",
    "averaged over the batch",
    "dwpe",
    how_it_happens="The position table is shared by the batch, and sharing was taken for averaging.",
    explanation="Row t is added to position t of every sequence, so its gradients add up: sum, not mean.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, start = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = dy.mean(axis=0)
    return dy, dwpe


@bug(
    "position_embedding",
    "the first sequence only",
    "dwpe",
    how_it_happens="All sequences of the batch add the same rows, so one of them seemed enough.",
    explanation="They add the same rows but receive different gradients; dwpe is the sum over the batch.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, start = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = dy[0]
    return dy, dwpe


@bug(
    "position_embedding",
    "start ignored",
    "dwpe",
    how_it_happens="In training start is always 0, so backward was written without it.",
    explanation="Row start + t of the table was added to position t of x, so it gets the gradient of position t.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, _ = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[:T] = dy.sum(axis=0)
    return dy, dwpe


@bug(
    "position_embedding",
    "summed over time",
    "dwpe",
    how_it_happens="The axes were counted from the wrong end, and the only test had B = T.",
    explanation="Positions must stay apart and sequences be summed; this sums the positions and keeps the sequences.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, start = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = dy.sum(axis=-2)
    return dy, dwpe
