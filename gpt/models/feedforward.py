"""Stage 4, feedforward: as stage 3, with an MLP layer after attention, on each position alone.

Shapes: idx, targets (B, T); x, a, f (B, T, C); logits (B, T, V).
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
        Param("fc_w", (C, C), std),
        Param("fc_b", (C,) if config.bias else None),
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
    h, fc_cache = ops.linear_forward(a, params["fc_w"], params["fc_b"])
    f, act_cache = ops.activation_forward(h, config.activation)
    return f, (emb_cache, qkv_cache, attn_cache, fc_cache, config.activation, act_cache)


def forward(
    ops: Ops, params: Params, idx: Array, targets: Array, config: ModelConfig, key: Key | None = None, with_cache: bool = True
) -> tuple[Array, tuple]:
    """The loss of predicting targets from idx, in nats per token."""
    f, trunk_cache = trunk_forward(ops, params, idx, config, key, kv_cache=None)
    loss, head_cache = ops.linear_cross_entropy_forward(f, params["head_w"], params["head_b"], targets)
    cache = (trunk_cache, head_cache)
    return loss, cache if with_cache else ()


def backward(ops: Ops, dloss: Array | float, cache: tuple) -> Params:
    """The gradient of every parameter."""
    trunk_cache, head_cache = cache
    emb_cache, qkv_cache, attn_cache, fc_cache, activation, act_cache = trunk_cache
    df, dhead_w, dhead_b = ops.linear_cross_entropy_backward(dloss, head_cache)
    dh = ops.activation_backward(df, activation, act_cache)
    da, dfc_w, dfc_b = ops.linear_backward(dh, fc_cache)
    dqkv = ops.attention_backward(da, attn_cache)
    dx, dqkv_w, _ = ops.linear_backward(dqkv, qkv_cache)
    dwte, dwpe = ops.token_position_embedding_backward(dx, emb_cache)
    return {
        "wte": dwte,
        "wpe": dwpe,
        "qkv_w": dqkv_w,
        "fc_w": dfc_w,
        "fc_b": dfc_b,
        "head_w": dhead_w,
        "head_b": dhead_b,
    }


def logits(ops: Ops, params: Params, idx: Array, config: ModelConfig, kv_cache: KVCache | None = None) -> Array:
    """(B, T, V): scores of the next token."""
    f, _ = trunk_forward(ops, params, idx, config, key=None, kv_cache=kv_cache)
    y, _ = ops.linear_forward(f, params["head_w"], params["head_b"])
    return y
