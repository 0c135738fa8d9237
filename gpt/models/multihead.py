"""Stage 3, multihead: as stage 2 with n_head smaller heads side by side.

Shapes: idx, targets (B, T); x, a (B, T, C); logits (B, T, V).
"""

from gpt.config import ModelConfig
from gpt.params import Param, Params
from tensorlite import Array, Key, KVCache, Ops


def init(config: ModelConfig) -> list[Param]:
    """The parameters and how they start."""
    C, V, T, std = config.n_embd, config.vocab_size, config.block_size, config.init_std
    return [
        Param("wte", (V, C), std),
        Param("wpe", (T, C), std),
        Param("qkv_w", (C, 3 * C), std),
        Param("head_w", (C, V), std),
        Param("head_b", (V,) if config.bias else None),
    ]


def trunk_forward(
    ops: Ops, params: Params, idx: Array, config: ModelConfig, key: Key | None, kv_cache: KVCache | None
) -> tuple[Array, tuple]:
    """Everything below the head."""
    start = kv_cache.length if kv_cache else 0
    layer_cache = kv_cache.layers[0] if kv_cache else None
    attn_key = ops.fold_in(key, 0, "attention")
    x, emb_cache = ops.token_position_embedding_forward(idx, params["wte"], params["wpe"], start)
    qkv, qkv_cache = ops.linear_forward(x, params["qkv_w"])
    a, attn_cache = ops.attention_forward(qkv, n_head=config.n_head, p=config.dropout, key=attn_key, kv_cache=layer_cache)
    return a, (emb_cache, qkv_cache, attn_cache)


def forward(
    ops: Ops, params: Params, idx: Array, targets: Array, config: ModelConfig, key: Key | None = None, with_cache: bool = True
) -> tuple[Array, tuple]:
    """The loss of predicting targets from idx, in nats per token."""
    a, trunk_cache = trunk_forward(ops, params, idx, config, key, kv_cache=None)
    loss, head_cache = ops.linear_cross_entropy_forward(a, params["head_w"], params["head_b"], targets)
    cache = (trunk_cache, head_cache)
    return loss, cache if with_cache else ()


def backward(ops: Ops, dloss: Array | float, cache: tuple) -> Params:
    """The gradient of every parameter."""
    trunk_cache, head_cache = cache
    emb_cache, qkv_cache, attn_cache = trunk_cache
    da, dhead_w, dhead_b = ops.linear_cross_entropy_backward(dloss, head_cache)
    dqkv = ops.attention_backward(da, attn_cache)
    dx, dqkv_w, _ = ops.linear_backward(dqkv, qkv_cache)
    dwte, dwpe = ops.token_position_embedding_backward(dx, emb_cache)
    return {
        "wte": dwte,
        "wpe": dwpe,
        "qkv_w": dqkv_w,
        "head_w": dhead_w,
        "head_b": dhead_b,
    }


def logits(ops: Ops, params: Params, idx: Array, config: ModelConfig, kv_cache: KVCache | None = None) -> Array:
    """(B, T, V): scores of the next token."""
    a, _ = trunk_forward(ops, params, idx, config, key=None, kv_cache=kv_cache)
    y, _ = ops.linear_forward(a, params["head_w"], params["head_b"])
    return y
