"""Mistakes people make in cross-entropy."""
# ruff: noqa: ARG001, an argument left unused can be the mistake

import math

import numpy as np

from tensorlite.arrays import Array
from tensorlite.reference.cross_entropy import cross_entropy_backward
from tensorlite.reference.softmax import softmax_backward, softmax_forward
from tensorlite.testing.bugs.bug import bug


@bug(
    "cross_entropy",
    "1/N missing",
    "dlogits",
    how_it_happens="Textbooks give the gradient of softmax cross-entropy as p - onehot.",
    explanation="That is the gradient of one row. The loss is the mean over N rows, so each counts 1/N. Adam hides the factor.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, targets, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    dz = np.exp(z - lse)
    dz[np.arange(len(z)), targets.reshape(-1)] -= 1.0
    return (dz * dloss).reshape(logits.shape)


@bug(
    "cross_entropy",
    "divided by N V",
    "dlogits",
    how_it_happens="The mean was taken over all elements, as in the backward of a squared error.",
    explanation="The loss is a mean over rows; the classes of a row enter one lse and are not averaged.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, targets, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    dz = np.exp(z - lse)
    dz[np.arange(len(z)), targets.reshape(-1)] -= 1.0
    return (dz * dloss / dz.size).reshape(logits.shape)


@bug(
    "cross_entropy",
    "divided by B only",
    "dlogits",
    how_it_happens="len(logits) was the number of rows until the time axis was added.",
    explanation="The mean is over all B T predictions, but len counts sequences, so gradients are T times too large.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, targets, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    dz = np.exp(z - lse)
    dz[np.arange(len(z)), targets.reshape(-1)] -= 1.0
    return (dz * dloss / len(logits)).reshape(logits.shape)


@bug(
    "cross_entropy",
    "onehot forgotten",
    "dlogits",
    how_it_happens="The derivative of the lse was worked out, and the picked logit in front of it forgotten.",
    explanation="loss = lse - logits_t: the second term gives the target a -1. Without it nothing pulls the right class up.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, _, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    dz = np.exp(z - lse)
    return (dz * dloss / len(z)).reshape(logits.shape)


@bug(
    "cross_entropy",
    "the sign",
    "dlogits",
    how_it_happens="onehot - p is the direction to move in, so it was returned as the gradient.",
    explanation="A gradient points uphill: p - onehot. The optimizer subtracts.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, targets, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    onehot = targets.reshape(-1, 1) == np.arange(V)
    dz = onehot - np.exp(z - lse)
    return (dz * dloss / len(z)).reshape(logits.shape)


@bug(
    "cross_entropy",
    "dloss ignored",
    "dlogits",
    how_it_happens="The loss is the end of the network, so its gradient is always 1.",
    explanation="It is not 1 when losses are weighted or a shard counts by its rows. A backward is linear in dloss.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, targets, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    dz = np.exp(z - lse)
    dz[np.arange(len(z)), targets.reshape(-1)] -= 1.0
    return (dz / len(z)).reshape(logits.shape)


@bug(
    "cross_entropy",
    "1 subtracted in whole columns",
    "dlogits",
    how_it_happens="A colon was written where the row indices belong.",
    explanation="dz[:, targets] takes the columns of all targets in every row; pairs of a row and its target are meant.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, targets, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    dz = np.exp(z - lse)
    dz[:, targets.reshape(-1)] -= 1.0
    return (dz * dloss / len(z)).reshape(logits.shape)


@bug(
    "cross_entropy",
    "softmax's backward applied again",
    "dlogits",
    how_it_happens="Softmax was computed in this layer, so its backward was called in it.",
    explanation="p - onehot is already the gradient with respect to the logits; the softmax is inside it.",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, targets, lse = cache
    V = logits.shape[-1]
    z = logits.reshape(-1, V)
    p = np.exp(z - lse)
    onehot = targets.reshape(-1, 1) == np.arange(V)
    return softmax_backward((p - onehot) * dloss / len(z), p).reshape(logits.shape)


def _cross_entropy_eps(logits: Array, targets: Array) -> tuple[Array, tuple]:
    p, _ = softmax_forward(logits.reshape(-1, logits.shape[-1]))
    picked = p[np.arange(len(p)), targets.reshape(-1)]
    return -np.log(picked + 1e-8).mean(), (p, targets, logits.shape)


@bug(
    "cross_entropy",
    "an eps inside the log",
    "y",
    how_it_happens="log(0) occurred once, and adding 1e-8 made it go away.",
    explanation="A hopeless target costs at most -ln(1e-8) = 18.4 and gets no gradient, just where the model is worst.",
    forward=_cross_entropy_eps,
    caught_by="test_cross_entropy_of_a_huge_gap_is_finite",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    p, targets, shape = cache
    onehot = targets.reshape(-1, 1) == np.arange(p.shape[-1])
    picked = p[onehot][:, None]
    return ((p - onehot) * picked / (picked + 1e-8) * dloss / len(p)).reshape(shape)


def _cross_entropy_summed(logits: Array, targets: Array) -> tuple[Array, tuple]:
    z = logits.reshape(-1, logits.shape[-1])
    top = z.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
    return (lse[:, 0] - z[np.arange(len(z)), targets.reshape(-1)]).sum(), (logits, targets, lse)


@bug(
    "cross_entropy",
    "the sum of the losses",
    "y",
    how_it_happens="The division by N was left to the code that prints the loss.",
    explanation="The loss and its gradient grow with the batch. Uniform logits must cost ln V, whatever N.",
    forward=_cross_entropy_summed,
    caught_by="test_cross_entropy_of_uniform_logits_is_log_v",
)
def _(dloss: Array | float, cache: tuple) -> Array:
    logits, _, _ = cache
    N = math.prod(logits.shape[:-1])
    return cross_entropy_backward(dloss * N, cache)
