"""Stage 1, bigram: a V x V table of logits. The next character depends on this one alone.

Shapes: idx, targets (B, T); logits (B, T, V).
"""

from gpt.config import ModelConfig
from gpt.params import Param, Params
from tensorlite import Array, Key, KVCache, Ops


def init(config: ModelConfig) -> list[Param]:
    """The parameters and how they start."""
    V = config.vocab_size
    return [Param("wte", (V, V), config.init_std)]


def forward(
    ops: Ops, params: Params, idx: Array, targets: Array, config: ModelConfig, key: Key | None = None, with_cache: bool = True
) -> tuple[Array, tuple]:
    """The loss of predicting targets from idx, in nats per token."""
    scores, emb_cache = ops.embedding_forward(idx, params["wte"])
    loss, xent_cache = ops.cross_entropy_forward(scores, targets)
    cache = (emb_cache, xent_cache)
    return loss, cache if with_cache else ()


def backward(ops: Ops, dloss: Array | float, cache: tuple) -> Params:
    """The gradient of every parameter."""
    emb_cache, xent_cache = cache
    dscores = ops.cross_entropy_backward(dloss, xent_cache)
    dwte = ops.embedding_backward(dscores, emb_cache)
    return {"wte": dwte}


def logits(ops: Ops, params: Params, idx: Array, config: ModelConfig, kv_cache: KVCache | None = None) -> Array:
    """(B, T, V): scores of the next token. kv_cache is not used: the model sees the last character alone."""
    scores, _ = ops.embedding_forward(idx, params["wte"])
    return scores
