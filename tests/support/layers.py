"""Layers as people write them, each with a mistake planted in its backward, and the ops of the library as layers.

Every layer has a shape specification, so that inputs can be drawn for it (tensorlite/testing/shapes.py).
"""

# ruff: noqa: N805 (the functions of a class below take no self)

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tensorlite import Key, ReferenceOps


@dataclass(frozen=True)
class Example:
    """A right layer and, for those of this file, a wrong backward."""

    name: str
    specification: str
    forward: Callable
    backward: Callable
    wrong: Callable | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of check_layer


LAYERS: list[Example] = []


def layer(specification: str, **options: Any) -> Callable:
    """Add a class with forward, backward and wrong, which are plain functions, to LAYERS."""

    def add(cls: type) -> type:
        LAYERS.append(Example(cls.__name__, specification, cls.forward, cls.backward, cls.wrong, options))
        return cls

    return add


def sigmoid(x):
    return 0.5 * (np.tanh(0.5 * x) + 1)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rows(a):
    """The leading axes as one."""
    return a.reshape(a.size // max(1, a.shape[-1]), a.shape[-1])


@layer("x: B ... C, w: C gain")
class RMSNorm:
    def forward(x, w):
        r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
        return x * r * w, (x, w, r)

    def backward(dy, cache):
        x, w, r = cache
        g = dy * w
        return r * (g - x * r * r * (g * x).mean(axis=-1, keepdims=True)), rows(dy * x * r).sum(axis=0)

    def wrong(dy, cache):  # the path through r is lost
        x, w, r = cache
        return r * dy * w, rows(dy * x * r).sum(axis=0)


@layer("x: B T H 2*D")
class RoPE:
    def turned(x, sign):
        _, T, _, D = x.shape
        angle = np.arange(T)[:, None, None] / 100.0 ** (np.arange(D // 2) / D)
        cos, sin = np.cos(angle).astype(x.dtype), sign * np.sin(angle).astype(x.dtype)
        a, b = x[..., : D // 2], x[..., D // 2 :]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def forward(x):
        return RoPE.turned(x, 1), None

    def backward(dy, cache):
        return RoPE.turned(dy, -1)

    def wrong(dy, cache):  # turned in the direction of forward
        return RoPE.turned(dy, 1)


@layer("x: B ... C, gate: C D, up: C D, down: D C")
class SwiGLU:
    def forward(x, gate, up, down):
        g, u = x @ gate, x @ up
        h = g * sigmoid(g) * u
        return h @ down, (x, gate, up, down, g, u, h)

    def backward(dy, cache, slope=lambda g, s: s * (1 + g * (1 - s))):
        x, gate, up, down, g, u, h = cache
        s = sigmoid(g)
        dh = dy @ down.T
        du, dg = dh * g * s, dh * u * slope(g, s)
        return (
            dg @ gate.T + du @ up.T,
            rows(x).T @ rows(dg),
            rows(x).T @ rows(du),
            rows(h).T @ rows(dy),
        )

    def wrong(dy, cache):  # the slope of a sigmoid in the place of that of a SiLU
        return SwiGLU.backward(dy, cache, slope=lambda g, s: s * (1 - s))


@layer("q: B T K*G D, k: B T K D, v: B T K D")
class GQA:
    def forward(q, k, v):
        (B, T, H, D), K = q.shape, k.shape[2]
        q5 = q.reshape(B, T, K, H // K, D)
        scores = np.einsum("btkgd,bskd->bkgts", q5, k) / D**0.5
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        p = softmax(scores)
        return np.einsum("bkgts,bskd->btkgd", p, v).reshape(q.shape), (q5, k, v, p)

    def backward(dy, cache, heads=lambda a: a):
        q5, k, v, p = cache
        scale = q5.shape[-1] ** -0.5
        dy = dy.reshape(q5.shape)
        dv = np.einsum("bkgts,btkgd->bskd", p, dy)
        dp = np.einsum("btkgd,bskd->bkgts", dy, v)
        ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * scale
        dq = np.einsum("bkgts,bskd->btkgd", ds, k)
        dk = np.einsum("bkgts,btkgd->bskd", heads(ds), q5)
        B, T, K, G, D = dq.shape
        return dq.reshape(B, T, K * G, D), dk, dv

    def wrong(dy, cache):  # of the heads that share a key, only the first counts
        return GQA.backward(dy, cache, heads=lambda ds: ds * (np.arange(ds.shape[2]) == 0)[:, None, None])


@layer("x: B C, h: B H, c: B H, wx: C 4*H, wh: H 4*H, b: 4*H")
class LSTMCell:
    def forward(x, h, c, wx, wh, b):
        i, f, o, g = np.split(x @ wx + h @ wh + b, 4, axis=-1)
        i, f, o, g = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
        c_new = f * c + i * g
        return (o * np.tanh(c_new), c_new), (x, h, c, wx, wh, i, f, o, g, c_new)

    def backward(dy, cache, through_h=1):
        dh, dc = dy
        x, h, c, wx, wh, i, f, o, g, c_new = cache
        t = np.tanh(c_new)
        dc = dc + through_h * dh * o * (1 - t * t)
        dz = [dc * g * i * (1 - i), dc * c * f * (1 - f), dh * t * o * (1 - o), dc * i * (1 - g * g)]
        dz = np.concatenate(dz, axis=-1)
        return dz @ wx.T, dz @ wh.T, dc * f, x.T @ dz, h.T @ dz, dz.sum(axis=0)

    def wrong(dy, cache):  # the cell is taken for an output alone
        return LSTMCell.backward(dy, cache, through_h=0)


@layer("x: B C, w: C gain, b: C", skip=("rows", "empty_batch"))
class BatchNorm:
    def forward(x, w, b):
        r = 1 / np.sqrt(x.var(axis=0) + 1e-5)
        n = (x - x.mean(axis=0)) * r
        return n * w + b, (n, w, r)

    def backward(dy, cache):
        n, w, r = cache
        g = dy * w
        return r * (g - g.mean(axis=0) - n * (g * n).mean(axis=0)), (dy * n).sum(axis=0), dy.sum(axis=0)

    def wrong(dy, cache):  # the path through the mean is lost
        n, w, r = cache
        g = dy * w
        return r * (g - n * (g * n).mean(axis=0)), (dy * n).sum(axis=0), dy.sum(axis=0)


@layer("x: B T+K C, w: K C D, b: D?")
class Conv1d:
    def forward(x, w, b):
        T = x.shape[1] - len(w) + 1
        y = sum(x[:, k : k + T] @ w[k] for k in range(len(w)))
        return y if b is None else y + b, (x, w, b)

    def backward(dy, cache, order=1):
        x, w, b = cache
        dx, dw, T = np.zeros_like(x), np.zeros_like(w), dy.shape[1]
        for k in range(len(w)):
            dx[:, k : k + T] += dy @ w[::order][k].T
            dw[k] = np.einsum("btc,btd->cd", x[:, k : k + T], dy)
        return dx, dw, None if b is None else dy.sum(axis=(0, 1))

    def wrong(dy, cache):  # the kernel is flipped once too often
        return Conv1d.backward(dy, cache, order=-1)


@layer("x: B C, gate: C E, experts: E C D")
class TopOneGate:
    def forward(x, gate, experts):
        p = softmax(x @ gate)
        top, each = p.argmax(axis=-1), np.arange(len(x))
        h = np.einsum("bc,bcd->bd", x, experts[top])
        return p[each, top][:, None] * h, (x, gate, experts, p, top, h)

    def backward(dy, cache, minus=1):
        x, gate, experts, p, top, h = cache
        chosen = np.eye(p.shape[-1], dtype=x.dtype)[top]
        p_top = (p * chosen).sum(axis=-1, keepdims=True)
        dz = (dy * h).sum(axis=-1, keepdims=True) * p_top * (chosen - minus * p)
        dh = dy * p_top
        dx = dz @ gate.T + np.einsum("bd,bcd->bc", dh, experts[top])
        return dx, x.T @ dz, np.einsum("be,bc,bd->ecd", chosen, x, dh)

    def wrong(dy, cache):  # the denominator of the softmax is taken for a constant
        return TopOneGate.backward(dy, cache, minus=0)


@layer("x: B ... V")
class LogSoftmax:
    def forward(x):
        y = x - x.max(axis=-1, keepdims=True)
        y = y - np.log(np.exp(y).sum(axis=-1, keepdims=True))
        return y, y

    def backward(dy, y):
        return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)

    def wrong(dy, y):  # the backward of a softmax
        return np.exp(y) * (dy - (dy * np.exp(y)).sum(axis=-1, keepdims=True))


@layer("ids: B T int<V, use: B T bool, table: V C")
class EmbeddingBag:
    def forward(ids, use, table):
        return (table[ids] * use[..., None]).sum(axis=1), (ids, use, table)

    def backward(dy, cache):
        ids, use, table = cache
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids, dy[:, None] * use[..., None])
        return dtable

    def wrong(dy, cache):  # of an id that occurs twice, one gradient is lost
        ids, use, table = cache
        dtable = np.zeros_like(table)
        dtable[ids] += dy[:, None] * use[..., None]
        return dtable


@layer("x: B ... C, v: C D, g: D gain")
class WeightNorm:
    def forward(x, v, g):
        norm = np.sqrt((v * v).sum(axis=0))
        return x @ (v / norm * g), (x, v, g, norm)

    def backward(dy, cache, along=1):
        x, v, g, norm = cache
        u = v / norm
        dw = rows(x).T @ rows(dy)
        dg = (dw * u).sum(axis=0)
        return dy @ (u * g).T, g / norm * (dw - along * u * dg), dg

    def wrong(dy, cache):  # the norm is taken for a constant
        return WeightNorm.backward(dy, cache, along=0)


@layer("prediction: B T, target: B T", mean=True)
class Huber:
    def forward(prediction, target):
        e = prediction - target
        a = np.abs(e)
        return np.where(a < 1, 0.5 * e * e, a - 0.5).mean(), e

    def backward(dy, e):
        d = dy * np.clip(e, -1, 1) / e.size
        return d, -d

    def wrong(dy, e):  # a mean over rows alone
        d = dy * np.clip(e, -1, 1) / len(e)
        return d, -d


@layer("x: T B C, a: C 0.5..0.9")  # time comes first
class LeakySum:
    def forward(x, a):
        y, previous = np.empty_like(x), np.zeros_like(x[0])
        for t in range(len(x)):
            y[t] = previous = a * previous + x[t]
        return y, (y, a)

    def backward(dy, cache):
        y, a = cache
        g, following = np.empty_like(dy), np.zeros_like(dy[0])
        for t in reversed(range(len(dy))):
            g[t] = following = dy[t] + a * following
        return g, (g[1:] * y[:-1]).sum(axis=(0, 1))

    def wrong(dy, cache):  # a is multiplied with the sum that it already is in
        y, _ = cache
        g, _ = LeakySum.backward(dy, cache)
        return g, (g * y).sum(axis=(0, 1))


@layer("x: B 2*T C")
class MaxPool:
    def forward(x):
        pairs = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2])
        return pairs.max(axis=2), pairs

    def backward(dy, pairs):
        chosen = pairs.argmax(axis=2)[:, :, None] == np.arange(2)[:, None]
        return (dy[:, :, None] * chosen).reshape(len(dy), 2 * pairs.shape[1], dy.shape[-1])

    def wrong(dy, pairs):  # the halves of the axis in the place of neighbours
        chosen = pairs.argmax(axis=2)[:, :, None] == np.arange(2)[:, None]
        return (dy[:, :, None] * chosen).swapaxes(1, 2).reshape(len(dy), 2 * pairs.shape[1], dy.shape[-1])


@layer("x: B T G*C, w: G*C gain, groups: =G")
class GroupNorm:
    def forward(x, w, groups):
        B, T, C = x.shape
        g = x.transpose(0, 2, 1).reshape(B, groups, C // groups * T)
        r = 1 / np.sqrt(g.var(axis=-1, keepdims=True) + 1e-3)
        n = ((g - g.mean(axis=-1, keepdims=True)) * r).reshape(B, C, T).transpose(0, 2, 1)
        return n * w, (n, w, r)

    def backward(dy, cache):
        n, w, r = cache
        (B, T, C), groups = n.shape, r.shape[1]
        grouped = partial(np.reshape, shape=(B, groups, C // groups * T))
        g, m = grouped((dy * w).transpose(0, 2, 1)), grouped(n.transpose(0, 2, 1))
        dx = r * (g - g.mean(axis=-1, keepdims=True) - m * (g * m).mean(axis=-1, keepdims=True))
        return dx.reshape(B, C, T).transpose(0, 2, 1), (dy * n).sum(axis=(0, 1))

    def wrong(dy, cache):  # the means are taken over each channel alone
        n, w, r = cache
        g = dy * w
        r = np.repeat(r, n.shape[2] // r.shape[1], axis=1).transpose(0, 2, 1)
        dx = r * (g - g.mean(axis=1, keepdims=True) - n * (g * n).mean(axis=1, keepdims=True))
        return dx, (dy * n).sum(axis=(0, 1))


@layer("a: B ... C, b: B ... C")
class CosineSimilarity:
    def forward(a, b):
        m, n = np.sqrt((a * a).sum(axis=-1, keepdims=True)), np.sqrt((b * b).sum(axis=-1, keepdims=True))
        u, v = a / m, b / n
        return (u * v).sum(axis=-1), (u, v, m, n)

    def backward(dy, cache):
        u, v, m, n = cache
        c = (u * v).sum(axis=-1, keepdims=True)
        return dy[..., None] * (v - c * u) / m, dy[..., None] * (u - c * v) / n

    def wrong(dy, cache):  # the norms are exchanged
        da, db = CosineSimilarity.backward(dy, cache)
        _, _, m, n = cache
        return da * m / n, db * n / m


@layer("logits: B, targets: B bool", mean=True)
class BinaryCrossEntropy:
    def forward(logits, targets):
        return (np.logaddexp(0, logits) - logits * targets).mean(), (logits, targets)

    def backward(dy, cache):
        logits, targets = cache
        return dy * (sigmoid(logits) - targets) / logits.dtype.type(len(logits))

    def wrong(dy, cache):  # a sum in the place of a mean
        logits, targets = cache
        return dy * (sigmoid(logits) - targets)


@layer("x: B ... C, w: C D, a: C R, b: R D, scale: ")
class LoRA:
    def forward(x, w, a, b, scale):
        h = x @ a
        return x @ w + scale * (h @ b), (x, w, a, b, scale, h)

    def backward(dy, cache):
        x, w, a, b, scale, h = cache
        dh = scale * (dy @ b.T)
        db = scale * (rows(h).T @ rows(dy))
        return dy @ w.T + dh @ a.T, rows(x).T @ rows(dy), rows(x).T @ rows(dh), db, (dy * (h @ b)).sum()

    def wrong(dy, cache):  # scale is forgotten on the way to a
        dx, dw, da, db, dscale = LoRA.backward(dy, cache)
        scale = cache[4]
        return dx, dw, da / scale, db, dscale


@layer("x: T B C, w: C H, u: H H")  # time comes first
class TanhRNN:
    def forward(x, w, u):
        h = np.zeros((len(x) + 1, x.shape[1], w.shape[1]), x.dtype)
        for t in range(len(x)):
            h[t + 1] = np.tanh(x[t] @ w + h[t] @ u)
        return h[1:], (x, w, u, h)

    def backward(dy, cache):
        x, w, u, h = cache
        dx, dw, du, following = np.empty_like(x), np.zeros_like(w), np.zeros_like(u), np.zeros_like(h[0])
        for t in reversed(range(len(x))):
            dz = (dy[t] + following) * (1 - h[t + 1] ** 2)
            dx[t] = dz @ w.T
            dw += x[t].T @ dz
            du += h[t].T @ dz
            following = dz @ u.T
        return dx, dw, du

    def wrong(dy, cache):  # u is not transposed
        x, w, u, h = cache
        return TanhRNN.backward(dy, (x, w, u.T.copy(), h))


# ---- the ops of the library ----


def op(name: str, specification: str, options: dict[str, Any] | None = None, **bound: Any) -> Example:
    """An op of ReferenceOps with some of its arguments bound."""
    ops = ReferenceOps()
    forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    return Example(name, specification, partial(forward, **bound) if bound else forward, backward, options=options or {})


KEY = Key(3, 4, 5)
RANDOM = {"skip": ("rows", "leading")}  # a mask is drawn for all rows together

OPS = (
    op("linear", "x: B ... C, w: C D, b: D?"),
    op("embedding", "ids: B ... int<V, table: V C"),
    op("position_embedding", "x: B ... T C, wpe: T+S+1 C, start: =S"),
    op("layernorm", "x: B ... C, w: C gain, b: C?"),
    op("gelu", "x: B ... C"),
    op("relu", "x: B ... C"),
    op("softmax", "x: B ... C"),
    op("attention", "qkv: B T 3*H*D, n_head: =H"),
    op("attention", "qkv: B T 3*H*D, n_head: =H", RANDOM, p=0.3, key=KEY),
    op("dropout", "x: B ... C", RANDOM, p=0.4, key=KEY),
    op("residual", "x: B ... C, y: B ... C", RANDOM, p=0.2, key=KEY),
    op("cross_entropy", "logits: B ... V, targets: B ... int<V", {"mean": True}),
    op("token_position_embedding", "ids: B ... T int<V, wte: V C, wpe: T+S+1 C, start: =S"),
    op("mlp", "x: B ... C, fc_w: C F, fc_b: F?, proj_w: F C, proj_b: C?"),
    op("self_attention", "x: B T H*D, qkv_w: H*D 3*H*D, qkv_b: 3*H*D?, proj_w: H*D H*D, proj_b: H*D?, n_head: =H"),
    op("dropout_add_layernorm", "x: B ... C, y: B ... C?, w: C gain, b: C?"),
    op("linear_cross_entropy", "x: B ... C, w: C V, b: V?, targets: B ... int<V", {"mean": True}),
)
