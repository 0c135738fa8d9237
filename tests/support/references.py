"""The value of every op computed in another way: by loops over scalars, or by another library.

Slow, obvious, sharing no code with tensorlite.
"""

import math

import numpy as np
from scipy import special


def linear(x, w, b=None):
    y = np.zeros((*x.shape[:-1], w.shape[1]), x.dtype)
    for n in np.ndindex(*x.shape[:-1]):
        for d in range(w.shape[1]):
            y[n][d] = math.fsum(x[n][c] * w[c, d] for c in range(w.shape[0])) + (0.0 if b is None else b[d])
    return y


def embedding(ids, table):
    y = np.zeros((*ids.shape, table.shape[1]))
    for n in np.ndindex(*ids.shape):
        for c in range(table.shape[1]):
            y[n][c] = table[ids[n], c]
    return y


def position_embedding(x, wpe, start=0):
    y = x.copy()
    for n in np.ndindex(*x.shape):
        y[n] += wpe[start + n[-2], n[-1]]
    return y


def layernorm(x, w, b=None, eps=1e-5):
    y = np.zeros_like(x)
    for n in np.ndindex(*x.shape[:-1]):
        mean = math.fsum(x[n]) / len(w)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in x[n]) / len(w) + eps)
        for c in range(len(w)):
            y[n][c] = (x[n][c] - mean) / std * w[c] + (0.0 if b is None else b[c])
    return y


def gelu(x):
    def one(v):
        return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    return np.vectorize(one, otypes=[float])(x)


def relu(x):
    return np.vectorize(lambda v: v if v > 0 else 0.0, otypes=[float])(x)


def softmax(x):
    return special.softmax(x, axis=-1)


def attention(qkv, n_head, p=0.0, key=None, kv_cache=None):
    assert kv_cache is None
    B, T, C3 = qkv.shape
    C, D = C3 // 3, C3 // 3 // n_head
    y = np.zeros((B, T, C))
    mask = np.ones((B, n_head, T, T)) if key is None else dropout(np.ones((B, n_head, T, T)), p, key)
    for b, h, t in np.ndindex(B, n_head, T):
        q = qkv[b, t, h * D : (h + 1) * D]
        scores = [math.fsum(q[d] * qkv[b, s, C + h * D + d] for d in range(D)) / math.sqrt(D) for s in range(t + 1)]
        probs = special.softmax(scores)
        for d in range(D):
            y[b, t, h * D + d] = math.fsum(probs[s] * mask[b, h, t, s] * qkv[b, s, 2 * C + h * D + d] for s in range(t + 1))
    return y


def threefry(k0, k1, c0, c1, rounds=13):
    """Threefry-2x32 on Python integers, straight from the paper."""
    word = 2**32
    ks = [k0, k1, k0 ^ k1 ^ 0x1BD11BDA]
    x0, x1 = (c0 + k0) % word, (c1 + k1) % word
    for r in range(rounds):
        rot = [13, 15, 26, 6, 17, 29, 16, 24][r % 8]
        x0 = (x0 + x1) % word
        x1 = ((x1 << rot | x1 >> (32 - rot)) % word) ^ x0
        if (r + 1) % 4 == 0:
            j = (r + 1) // 4
            x0 = (x0 + ks[j % 3]) % word
            x1 = (x1 + ks[(j + 1) % 3] + j) % word
    return x0, x1


def dropout(x, p=0.0, key=None):
    if key is None or round(p * 65536) == 0:
        return x
    threshold = round(p * 65536)
    y = np.zeros(x.size)
    per_row = x.size // len(x) if len(x) else 0
    for i, v in enumerate(x.reshape(-1)):
        e = key.row0 * per_row + i
        word = threefry(key.k0, key.k1, (e // 4) % 2**32, (e // 4) >> 32)[(e % 4) // 2]
        lane = (word >> (16 * (e % 2))) % 65536
        y[i] = v / (1 - threshold / 65536) if lane >= threshold else 0.0
    return y.reshape(x.shape)


def residual(x, y, p=0.0, key=None):
    return x + dropout(y, p, key)


def cross_entropy(logits, targets):
    rows = logits.reshape(-1, logits.shape[-1])
    return math.fsum(special.logsumexp(z) - z[t] for z, t in zip(rows, targets.reshape(-1), strict=True)) / len(rows)
