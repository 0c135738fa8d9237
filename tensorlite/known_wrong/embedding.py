"""Mistakes people make in embedding and positions."""

import numpy as np

from tensorlite.known_wrong.mistake import mistake
from tensorlite.xp import Array


@mistake(
    "embedding",
    "a repeated token keeps its last row only",
    "dtable",
    story="dtable[ids] += dy reads like a scatter-add.",
    explanation="NumPy gathers dtable[ids], adds, and writes back: where an id repeats, the last write wins.",
)
def _(dy: Array, cache: tuple) -> Array:
    ids, table = cache
    dtable = np.zeros_like(table)
    dtable[ids] += dy
    return dtable


@mistake(
    "embedding",
    "repeats averaged",
    "dtable",
    story="Frequent tokens would get large gradients, which looked like something to normalise away.",
    explanation="Each use of a row adds its own gradient: dtable_v is the sum of dy over the places of token v, not their mean.",
)
def _(dy: Array, cache: tuple) -> Array:
    ids, table = cache
    V, C = table.shape
    onehot = (ids.reshape(-1, 1) == np.arange(V)).astype(dy.dtype)
    count = np.maximum(onehot.sum(axis=0), 1.0)
    return onehot.T @ dy.reshape(-1, C) / count[:, None]


@mistake(
    "embedding",
    "rows off by one",
    "dtable",
    story="An earlier tokenizer counted from 1, with 0 kept for padding.",
    explanation="Row v of the table is token v; here its gradient goes to row v - 1, and that of token 0 to nobody.",
)
def _(dy: Array, cache: tuple) -> Array:
    ids, table = cache
    V, C = table.shape
    onehot = (ids.reshape(-1, 1) == np.arange(1, V + 1)).astype(dy.dtype)
    return onehot.T @ dy.reshape(-1, C)


@mistake(
    "positions",
    "averaged over the batch",
    "dwpe",
    story="The position table is shared by the batch, and sharing was taken for averaging.",
    explanation="Row t is added to position t of every sequence, so its gradients add up: sum, not mean.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, start = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = dy.mean(axis=0)
    return dy, dwpe


@mistake(
    "positions",
    "the first sequence only",
    "dwpe",
    story="All sequences of the batch add the same rows, so one of them seemed enough.",
    explanation="They add the same rows but receive different gradients; dwpe is the sum over the batch.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, start = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = dy[0]
    return dy, dwpe


@mistake(
    "positions",
    "start ignored",
    "dwpe",
    story="In training start is always 0, so backward was written without it.",
    explanation="Position t of x met row start + t of the table; its gradient belongs there.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, _ = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[:T] = dy.sum(axis=0)
    return dy, dwpe


@mistake(
    "positions",
    "summed over time",
    "dwpe",
    story="The axes were counted from the wrong end, and B = T in the one test there was.",
    explanation="Positions must stay apart and sequences be summed; this sums the positions and keeps the sequences.",
)
def _(dy: Array, cache: tuple) -> tuple:
    wpe, start = cache
    T = dy.shape[-2]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = dy.sum(axis=-2)
    return dy, dwpe
