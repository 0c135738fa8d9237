"""Stage 1, bigram: a table of V x V logits; the next character depends on this one alone.

Shapes: idx, targets (B, T); logits (B, T, V).
"""

from typing import Any

from gpt.config import ModelConfig
from gpt.params import Param


def init(config: ModelConfig) -> list[Param]:
    """The parameters and how they start."""
    V = config.vocab_size
    return [Param("wte", (V, V), config.init_std)]


def forward(
    ops: Any, params: dict, idx: Any, targets: Any, config: ModelConfig, key: Any = None, keep: bool = True
) -> tuple[Any, tuple]:
    """The loss of predicting targets from idx, in nats a token."""
    scores, emb = ops.embedding_forward(idx, params["wte"])
    loss, xent = ops.cross_entropy_forward(scores, targets)
    return loss, (emb, xent) if keep else ()


def backward(ops: Any, dloss: Any, cache: tuple) -> dict:
    """The gradient of every parameter."""
    emb, xent = cache
    dscores = ops.cross_entropy_backward(dloss, xent)
    return {"wte": ops.embedding_backward(dscores, emb)}


def logits(ops: Any, params: dict, idx: Any, config: ModelConfig, kv_cache: Any = None) -> Any:
    """(B, T, V): scores of the next token. past is not needed: the last character is all there is to know."""
    scores, _ = ops.embedding_forward(idx, params["wte"])
    return scores
