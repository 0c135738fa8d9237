"""Stage 5, residual: blocks of attention and MLP around a residual stream, without layernorm.

`diff gpt/models/residual.py gpt/models/gpt.py` is what layernorm changes, with the sums that move into its op.
Shapes: idx, targets (B, T); x, a, m (B, T, C); logits (B, T, V).
"""

from gpt.config import ModelConfig
from gpt.params import Param, Params
from tensorlite import Array, Key, KVCache, Ops
from tensorlite.kv_cache import LayerCache


def init(config: ModelConfig) -> list[Param]:
    """The parameters and how they start."""
    C, V, T, std = config.n_embd, config.vocab_size, config.block_size, config.init_std

    def bias(*shape: int) -> tuple[int, ...] | None:
        return shape if config.bias else None

    params = [Param("wte", (V, C), std), Param("wpe", (T, C), std)]
    for i in range(config.n_layer):
        params += [
            Param(f"blocks.{i}.qkv_w", (C, 3 * C), std),
            Param(f"blocks.{i}.attn_proj_w", (C, C), std),
            Param(f"blocks.{i}.attn_proj_b", bias(C)),
            Param(f"blocks.{i}.fc_w", (C, 4 * C), std),
            Param(f"blocks.{i}.fc_b", bias(4 * C)),
            Param(f"blocks.{i}.mlp_proj_w", (4 * C, C), std),
            Param(f"blocks.{i}.mlp_proj_b", bias(C)),
        ]
    params += [Param("head_w", None if config.tied else (C, V), std), Param("head_b", bias(V))]
    return params


def block_forward(
    ops: Ops, x: Array, p: Params, config: ModelConfig, layer: int, key: Key | None, kv_cache: LayerCache | None
) -> tuple[Array, tuple]:
    """x = x + attention(x);  x = x + mlp(x)"""
    a, attn_cache = ops.self_attention_forward(
        x,
        qkv_w=p["qkv_w"],
        qkv_b=None,
        proj_w=p["attn_proj_w"],
        proj_b=p["attn_proj_b"],
        n_head=config.n_head,
        p=config.dropout,
        key=ops.fold_in(key, layer, "attention"),
        kv_cache=kv_cache,
    )
    x, attn_residual_cache = ops.residual_forward(x, a, p=config.dropout, key=ops.fold_in(key, layer, "attention_residual"))
    m, mlp_cache = ops.mlp_forward(x, p["fc_w"], p["fc_b"], p["mlp_proj_w"], p["mlp_proj_b"], activation=config.activation)
    x, mlp_residual_cache = ops.residual_forward(x, m, p=config.dropout, key=ops.fold_in(key, layer, "mlp_residual"))
    return x, (attn_cache, attn_residual_cache, mlp_cache, mlp_residual_cache)


def block_backward(ops: Ops, dx: Array, cache: tuple) -> tuple[Array, Params]:
    """The same lines, last to first. x was used twice by each half, so its gradients add."""
    attn_cache, attn_residual_cache, mlp_cache, mlp_residual_cache = cache
    dx, dm = ops.residual_backward(dx, mlp_residual_cache)
    dx_mlp, dfc_w, dfc_b, dmlp_proj_w, dmlp_proj_b = ops.mlp_backward(dm, mlp_cache)
    dx = ops.add(dx, dx_mlp)
    dx, da = ops.residual_backward(dx, attn_residual_cache)
    dx_attn, dqkv_w, _, dattn_proj_w, dattn_proj_b = ops.self_attention_backward(da, attn_cache)
    dx = ops.add(dx, dx_attn)
    return dx, {
        "qkv_w": dqkv_w,
        "attn_proj_w": dattn_proj_w,
        "attn_proj_b": dattn_proj_b,
        "fc_w": dfc_w,
        "fc_b": dfc_b,
        "mlp_proj_w": dmlp_proj_w,
        "mlp_proj_b": dmlp_proj_b,
    }


def trunk_forward(
    ops: Ops, params: Params, idx: Array, config: ModelConfig, key: Key | None, with_cache: bool, kv_cache: KVCache | None
) -> tuple[Array, tuple]:
    """Everything below the head: embeddings and blocks. with_cache=False drops each block's cache at once."""
    start = kv_cache.length if kv_cache else 0
    x, emb_cache = ops.token_position_embedding_forward(idx, params["wte"], params["wpe"], start)
    block_caches = []
    for i, p in enumerate(params["blocks"]):
        layer_cache = kv_cache.layers[i] if kv_cache else None
        x, block_cache = block_forward(ops, x, p, config, i, key, layer_cache)
        if with_cache:
            block_caches.append(block_cache)
        del block_cache
    return x, (emb_cache, block_caches)


def head_weight(params: Params) -> Array:
    """(C, V): a matrix of its own, or the token embedding transposed."""
    if params["head_w"] is None:
        return params["wte"].T
    return params["head_w"]


def forward(
    ops: Ops, params: Params, idx: Array, targets: Array, config: ModelConfig, key: Key | None = None, with_cache: bool = True
) -> tuple[Array, tuple]:
    """The loss of predicting targets: (B, T) from idx: (B, T), in nats per token.

    key: None for no dropout.
    with_cache: False where no backward follows.
    """
    x, trunk_cache = trunk_forward(ops, params, idx, config, key, with_cache, kv_cache=None)
    loss, head_cache = ops.linear_cross_entropy_forward(x, head_weight(params), params["head_b"], targets)
    cache = (trunk_cache, head_cache, params["head_w"] is None)
    return loss, cache if with_cache else ()


def backward(ops: Ops, dloss: Array | float, cache: tuple) -> Params:
    """The gradient of every parameter, as a tree of the same names. dloss scales all of them."""
    trunk_cache, head_cache, tied = cache
    emb_cache, block_caches = trunk_cache
    dx, dhead_w, dhead_b = ops.linear_cross_entropy_backward(dloss, head_cache)
    dblocks: list[Params] = []
    for block_cache in reversed(block_caches):
        dx, dblock = block_backward(ops, dx, block_cache)
        dblocks.insert(0, dblock)
    dwte, dwpe = ops.token_position_embedding_backward(dx, emb_cache)
    if tied:  # the table was used twice: to look tokens up, and transposed to score them
        dwte = ops.add(dwte, dhead_w.T)
        dhead_w = None
    return {
        "wte": dwte,
        "wpe": dwpe,
        "blocks": dblocks,
        "head_w": dhead_w,
        "head_b": dhead_b,
    }


def logits(ops: Ops, params: Params, idx: Array, config: ModelConfig, kv_cache: KVCache | None = None) -> Array:
    """(B, T, V): scores of the next token after each position. kv_cache: a KVCache of the text before idx, extended by it."""
    x, _ = trunk_forward(ops, params, idx, config, key=None, with_cache=False, kv_cache=kv_cache)
    y, _ = ops.linear_forward(x, head_weight(params), params["head_b"])
    return y
