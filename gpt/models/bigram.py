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
    ops: Any, params: dict, idx: Any, targets: Any, config: ModelConfig, key: Any = None, with_cache: bool = True
) -> tuple[Any, tuple]:
    """The loss of predicting targets from idx, in nats a token."""
    scores, emb_cache = ops.embedding_forward(idx, params["wte"])
    loss, xent_cache = ops.cross_entropy_forward(scores, targets)
    return loss, (emb_cache, xent_cache) if with_cache else ()


def backward(ops: Any, dloss: Any, cache: tuple) -> dict:
    """The gradient of every parameter."""
    emb_cache, xent_cache = cache
    dscores = ops.cross_entropy_backward(dloss, xent_cache)
    return {"wte": ops.embedding_backward(dscores, emb_cache)}


def logits(ops: Any, params: dict, idx: Any, config: ModelConfig, kv_cache: Any = None) -> Any:
    """(B, T, V): scores of the next token. kv_cache is not needed: the last character is all there is to know."""
    scores, _ = ops.embedding_forward(idx, params["wte"])
    return scores
