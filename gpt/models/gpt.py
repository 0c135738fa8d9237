"""The full model: a pre-norm decoder-only Transformer (presets layernorm, laptop, shakespeare).

Forward directly above backward, op calls alone: no arithmetic and no allocation happens here, a test makes sure. Read a forward
line by line downwards and its backward upwards; `diff gpt/models/residual.py gpt/models/gpt.py` is what layernorm adds.
Shapes: idx, targets (B, T); x, h, a, m (B, T, C); logits (B, T, V).
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
            Param(f"blocks.{i}.ln1_w", (C,), fill=1.0),
            Param(f"blocks.{i}.ln1_b", bias(C)),
            Param(f"blocks.{i}.qkv_w", (C, 3 * C), std),
            Param(f"blocks.{i}.attn_proj_w", (C, C), std),
            Param(f"blocks.{i}.attn_proj_b", bias(C)),
            Param(f"blocks.{i}.ln2_w", (C,), fill=1.0),
            Param(f"blocks.{i}.ln2_b", bias(C)),
            Param(f"blocks.{i}.fc_w", (C, 4 * C), std),
            Param(f"blocks.{i}.fc_b", bias(4 * C)),
            Param(f"blocks.{i}.mlp_proj_w", (4 * C, C), std),
            Param(f"blocks.{i}.mlp_proj_b", bias(C)),
        ]
    params += [Param("lnf_w", (C,), fill=1.0), Param("lnf_b", bias(C))]
    params += [Param("head_w", None if config.tied else (C, V), std), Param("head_b", bias(V))]
    return params


def block_forward(ops: Any, x: Any, p: dict, config: ModelConfig, layer: int, key: Any, kv_cache: Any) -> tuple[Any, tuple]:
    """x = x + attention(layernorm(x));  x = x + mlp(layernorm(x))"""
    H, dropout = config.n_head, config.dropout
    (x, h), ln1_cache = ops.prenorm_layernorm_forward(x, p["ln1_w"], p["ln1_b"])
    a, attn_cache = ops.self_attention_forward(
        h, p["qkv_w"], None, p["attn_proj_w"], p["attn_proj_b"], H, dropout, ops.fold_in(key, layer, "attention"), kv_cache
    )
    (x, h), ln2_cache = ops.dropout_add_layernorm_forward(
        x, a, p["ln2_w"], p["ln2_b"], dropout, ops.fold_in(key, layer, "attention_residual")
    )
    m, mlp_cache = ops.mlp_forward(h, p["fc_w"], p["fc_b"], p["mlp_proj_w"], p["mlp_proj_b"], config.activation)
    x, residual_cache = ops.residual_forward(x, m, dropout, ops.fold_in(key, layer, "mlp_residual"))
    return x, (ln1_cache, attn_cache, ln2_cache, mlp_cache, residual_cache)


def block_backward(ops: Any, dx: Any, cache: tuple) -> tuple[Any, dict]:
    """The same lines upwards. x was used twice by each half, so its gradients add, inside the two layernorm composites."""
    ln1_cache, attn_cache, ln2_cache, mlp_cache, residual_cache = cache
    grads: dict = {}
    dx, dm = ops.residual_backward(dx, residual_cache)
    dh, grads["fc_w"], grads["fc_b"], grads["mlp_proj_w"], grads["mlp_proj_b"] = ops.mlp_backward(dm, mlp_cache)
    dx, da, grads["ln2_w"], grads["ln2_b"] = ops.dropout_add_layernorm_backward((dx, dh), ln2_cache)
    dh, grads["qkv_w"], _, grads["attn_proj_w"], grads["attn_proj_b"] = ops.self_attention_backward(da, attn_cache)
    dx, grads["ln1_w"], grads["ln1_b"] = ops.prenorm_layernorm_backward((dx, dh), ln1_cache)
    return dx, grads


def trunk_forward(
    ops: Any, params: dict, idx: Any, config: ModelConfig, key: Any, with_cache: bool, kv_cache: Any
) -> tuple[Any, tuple]:
    """Everything below the head: embeddings, blocks, the final layernorm. with_cache=False drops each block's cache at once."""
    tok, emb_cache = ops.embedding_forward(idx, params["wte"])
    x, pos_cache = ops.position_embedding_forward(tok, params["wpe"], kv_cache.length if kv_cache else 0)
    block_caches = []
    for i, p in enumerate(params["blocks"]):
        x, block_cache = block_forward(ops, x, p, config, i, key, kv_cache.layers[i] if kv_cache else None)
        block_caches.append(block_cache if with_cache else None)
        del block_cache
    x, lnf_cache = ops.layernorm_forward(x, params["lnf_w"], params["lnf_b"])
    return x, (emb_cache, pos_cache, block_caches, lnf_cache)


def head_weight(params: dict) -> Any:
    """(C, V): a matrix of its own, or the token embedding transposed."""
    return params["wte"].T if params["head_w"] is None else params["head_w"]


def forward(
    ops: Any, params: dict, idx: Any, targets: Any, config: ModelConfig, key: Any = None, with_cache: bool = True
) -> tuple[Any, tuple]:
    """The loss of predicting targets: (B, T) from idx: (B, T), in nats per token.

    key: None for no dropout. with_cache: False where no backward follows.
    """
    x, trunk_cache = trunk_forward(ops, params, idx, config, key, with_cache, kv_cache=None)
    loss, head_cache = ops.linear_cross_entropy_forward(x, head_weight(params), params["head_b"], targets)
    return loss, (trunk_cache, head_cache, params["head_w"] is None) if with_cache else ()


def backward(ops: Any, dloss: Any, cache: tuple) -> dict:
    """The gradient of every parameter, as a tree of the same names; dloss scales all of them."""
    (emb_cache, pos_cache, block_caches, lnf_cache), head_cache, tied = cache
    grads: dict = {"blocks": [None] * len(block_caches)}
    dx, grads["head_w"], grads["head_b"] = ops.linear_cross_entropy_backward(dloss, head_cache)
    dx, grads["lnf_w"], grads["lnf_b"] = ops.layernorm_backward(dx, lnf_cache)
    for i in reversed(range(len(block_caches))):
        dx, grads["blocks"][i] = block_backward(ops, dx, block_caches[i])
    dx, grads["wpe"] = ops.position_embedding_backward(dx, pos_cache)
    grads["wte"] = ops.embedding_backward(dx, emb_cache)
    if tied:  # the table was used twice: to look tokens up, and transposed to score them
        grads["wte"] = ops.add(grads["wte"], grads["head_w"].T)
        grads["head_w"] = None
    return grads


def logits(ops: Any, params: dict, idx: Any, config: ModelConfig, kv_cache: Any = None) -> Any:
    """(B, T, V): scores of the next token after each position. kv_cache: a KVCache of the text before idx, extended by it."""
    x, _ = trunk_forward(ops, params, idx, config, None, False, kv_cache)
    y, _ = ops.linear_forward(x, head_weight(params), params["head_b"])
    return y
