"""Stage 5, residual: blocks of attention and MLP around a residual stream; no layernorm yet.

`diff gpt/models/residual.py gpt/models/gpt.py` is what layernorm adds.
Shapes: idx, targets (B, T); x, a, m (B, T, C); logits (B, T, V).
"""

from typing import Any

from gpt.config import ModelConfig
from gpt.params import Param


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


def block_forward(ops: Any, x: Any, p: dict, config: ModelConfig, layer: int, key: Any, kv_cache: Any) -> tuple[Any, tuple]:
    """x = x + attention(x);  x = x + mlp(x)"""
    H, drop = config.n_head, config.dropout
    a, attn = ops.self_attention_forward(
        x, p["qkv_w"], None, p["attn_proj_w"], p["attn_proj_b"], H, drop, ops.fold_in(key, layer, "attention"), kv_cache
    )
    x, residual1 = ops.residual_forward(x, a, drop, ops.fold_in(key, layer, "attention_residual"))
    m, mlp = ops.mlp_forward(x, p["fc_w"], p["fc_b"], p["mlp_proj_w"], p["mlp_proj_b"], config.activation)
    x, residual2 = ops.residual_forward(x, m, drop, ops.fold_in(key, layer, "mlp_residual"))
    return x, (attn, residual1, mlp, residual2)


def block_backward(ops: Any, dx: Any, cache: tuple) -> tuple[Any, dict]:
    """The same lines upwards. x was used twice by each half, so its gradients add."""
    attn, residual1, mlp, residual2 = cache
    d: dict = {}
    dx, dm = ops.residual_backward(dx, residual2)
    dx_mlp, d["fc_w"], d["fc_b"], d["mlp_proj_w"], d["mlp_proj_b"] = ops.mlp_backward(dm, mlp)
    dx, da = ops.residual_backward(ops.add(dx, dx_mlp), residual1)
    dx_attn, d["qkv_w"], _, d["attn_proj_w"], d["attn_proj_b"] = ops.self_attention_backward(da, attn)
    return ops.add(dx, dx_attn), d


def trunk_forward(ops: Any, params: dict, idx: Any, config: ModelConfig, key: Any, keep: bool, kv_cache: Any) -> tuple[Any, tuple]:
    """Everything below the head: embeddings and blocks. keep=False forgets each block's cache at once."""
    tok, emb = ops.embedding_forward(idx, params["wte"])
    x, pos = ops.position_embedding_forward(tok, params["wpe"], kv_cache.length if kv_cache else 0)
    blocks = []
    for i, p in enumerate(params["blocks"]):
        x, block = block_forward(ops, x, p, config, i, key, kv_cache.layers[i] if kv_cache else None)
        blocks.append(block if keep else None)
        del block
    return x, (emb, pos, blocks)


def head_weight(params: dict) -> Any:
    """(C, V): a matrix of its own, or the token embedding transposed."""
    return params["wte"].T if params["head_w"] is None else params["head_w"]


def forward(
    ops: Any, params: dict, idx: Any, targets: Any, config: ModelConfig, key: Any = None, keep: bool = True
) -> tuple[Any, tuple]:
    """The loss of predicting targets: (B, T) from idx: (B, T), in nats a token. key None: no dropout. keep False: no cache."""
    x, trunk = trunk_forward(ops, params, idx, config, key, keep, kv_cache=None)
    loss, head = ops.linear_cross_entropy_forward(x, head_weight(params), params["head_b"], targets)
    return loss, (trunk, head, params["head_w"] is None) if keep else ()


def backward(ops: Any, dloss: Any, cache: tuple) -> dict:
    """The gradient of every parameter, as a tree of the same names; dloss scales all of them."""
    (emb, pos, blocks), head, tied = cache
    d: dict = {"blocks": [None] * len(blocks)}
    dx, d["head_w"], d["head_b"] = ops.linear_cross_entropy_backward(dloss, head)
    for i in reversed(range(len(blocks))):
        dx, d["blocks"][i] = block_backward(ops, dx, blocks[i])
    dx, d["wpe"] = ops.position_embedding_backward(dx, pos)
    d["wte"] = ops.embedding_backward(dx, emb)
    if tied:  # the table was used twice: to look tokens up, and transposed to score them
        d["wte"] = ops.add(d["wte"], d["head_w"].T)
        d["head_w"] = None
    return d


def logits(ops: Any, params: dict, idx: Any, config: ModelConfig, kv_cache: Any = None) -> Any:
    """(B, T, V): scores of the next token after each position. kv_cache: a KVCache of the text before idx, extended by it."""
    x, _ = trunk_forward(ops, params, idx, config, None, False, kv_cache)
    y, _ = ops.linear_forward(x, head_weight(params), params["head_b"])
    return y
