"""Random inputs of each op for the exercises in writing.

The axes of an argument have different lengths, so that a wrong transpose shows.
`write.py` copies the source of these functions, and `judge.py` calls them.
"""

import numpy as np

from tensorlite.random import Key


def linear(random: np.random.Generator) -> dict:
    """Return x: (B, T, C), w: (C, D) and b: (D,)."""
    x = random.standard_normal((2, 3, 4))
    w = random.standard_normal((4, 5))
    b = random.standard_normal(5)
    return {"x": x, "w": w, "b": b}


def embedding(random: np.random.Generator) -> dict:
    """Return ids: (B, T), some of which repeat, and table: (V, C)."""
    ids = random.integers(0, 5, (2, 6))
    table = random.standard_normal((5, 4))
    return {"ids": ids, "table": table}


def position_embedding(random: np.random.Generator) -> dict:
    """Return x: (B, T, C), wpe: (block_size, C) and the position of the first row of x."""
    x = random.standard_normal((2, 3, 4))
    wpe = random.standard_normal((5, 4))
    return {"x": x, "wpe": wpe, "start": 1}


def softmax(random: np.random.Generator) -> dict:
    """Return x: (B, T, K)."""
    x = random.standard_normal((2, 3, 4))
    return {"x": x}


def cross_entropy(random: np.random.Generator) -> dict:
    """Return logits: (B, T, V) and targets: (B, T)."""
    logits = random.standard_normal((2, 3, 5))
    targets = random.integers(0, 5, (2, 3))
    return {"logits": logits, "targets": targets}


def layernorm(random: np.random.Generator) -> dict:
    """Return x: (B, T, C), w: (C,) and b: (C,)."""
    x = random.standard_normal((2, 3, 4))
    w = random.standard_normal(4)
    b = random.standard_normal(4)
    return {"x": x, "w": w, "b": b}


def dropout(random: np.random.Generator) -> dict:
    """Return x: (B, T, C), the probability of dropping, and the key that the mask is drawn from."""
    x = random.standard_normal((2, 3, 4))
    return {"x": x, "p": 0.25, "key": Key(1, 2)}


def residual(random: np.random.Generator) -> dict:
    """Return x and y: (B, T, C), the probability of dropping, and the key that the mask is drawn from."""
    x = random.standard_normal((2, 3, 4))
    y = random.standard_normal((2, 3, 4))
    return {"x": x, "y": y, "p": 0.25, "key": Key(1, 2)}


def gelu(random: np.random.Generator) -> dict:
    """Return x: (B, T, C)."""
    x = random.standard_normal((2, 3, 4))
    return {"x": x}


def relu(random: np.random.Generator) -> dict:
    """Return x: (B, T, C)."""
    x = random.standard_normal((2, 3, 4))
    return {"x": x}


def attention(random: np.random.Generator) -> dict:
    """Return qkv: (B, T, 3 H D), the number of heads H, and dropout on the probabilities."""
    qkv = random.standard_normal((2, 3, 3 * 2 * 5))
    return {"qkv": qkv, "n_head": 2, "p": 0.25, "key": Key(1, 2)}
