"""Stage 4, feedforward: as stage 3, with an MLP layer after attention, on each position alone.

Shapes: idx, targets (B, T); x, a, f (B, T, C); logits (B, T, V).
"""

from typing import Any

from gpt.config import ModelConfig
from gpt.params import Param


def init(config: ModelConfig) -> list[Param]:
    """The parameters and how they start."""
    C, V, T, std = config.n_embd, config.vocab_size, config.block_size, config.init_std
    return [
        Param("wte", (V, C), std),
        Param("wpe", (T, C), std),
        Param("qkv_w", (C, 3 * C), std),
        Param("fc_w", (C, C), std),
        Param("fc_b", (C,) if config.bias else None),
        Param("head_w", (C, V), std),
        Param("head_b", (V,) if config.bias else None),
    ]


def trunk_forward(ops: Any, params: dict, idx: Any, config: ModelConfig, key: Any, kv_cache: Any) -> tuple[Any, tuple]:
    """Everything below the head."""
    tok, emb_cache = ops.embedding_forward(idx, params["wte"])
    x, pos_cache = ops.position_embedding_forward(tok, params["wpe"], kv_cache.length if kv_cache else 0)
    qkv, qkv_cache = ops.linear_forward(x, params["qkv_w"])
    a, attn_cache = ops.attention_forward(
        qkv, config.n_head, config.dropout, ops.fold_in(key, 0, "attention"), kv_cache.layers[0] if kv_cache else None
    )
    h, fc_cache = ops.linear_forward(a, params["fc_w"], params["fc_b"])
    f, act_cache = ops.activation_forward(h, config.activation)
    return f, (emb_cache, pos_cache, qkv_cache, attn_cache, fc_cache, config.activation, act_cache)


def forward(
    ops: Any, params: dict, idx: Any, targets: Any, config: ModelConfig, key: Any = None, with_cache: bool = True
) -> tuple[Any, tuple]:
    """The loss of predicting targets from idx, in nats a token."""
    f, trunk_cache = trunk_forward(ops, params, idx, config, key, kv_cache=None)
    loss, head_cache = ops.linear_cross_entropy_forward(f, params["head_w"], params["head_b"], targets)
    return loss, (trunk_cache, head_cache) if with_cache else ()


def backward(ops: Any, dloss: Any, cache: tuple) -> dict:
    """The gradient of every parameter."""
    (emb_cache, pos_cache, qkv_cache, attn_cache, fc_cache, activation, act_cache), head_cache = cache
    grads: dict = {}
    df, grads["head_w"], grads["head_b"] = ops.linear_cross_entropy_backward(dloss, head_cache)
    dh = ops.activation_backward(df, activation, act_cache)
    da, grads["fc_w"], grads["fc_b"] = ops.linear_backward(dh, fc_cache)
    dqkv = ops.attention_backward(da, attn_cache)
    dx, grads["qkv_w"], _ = ops.linear_backward(dqkv, qkv_cache)
    dx, grads["wpe"] = ops.position_embedding_backward(dx, pos_cache)
    grads["wte"] = ops.embedding_backward(dx, emb_cache)
    return grads


def logits(ops: Any, params: dict, idx: Any, config: ModelConfig, kv_cache: Any = None) -> Any:
    """(B, T, V): scores of the next token."""
    f, _ = trunk_forward(ops, params, idx, config, None, kv_cache)
    y, _ = ops.linear_forward(f, params["head_w"], params["head_b"])
    return y
