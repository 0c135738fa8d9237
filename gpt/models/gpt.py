"""The full model: a pre-norm decoder-only Transformer (presets layernorm, laptop, shakespeare).

Forward stands directly above backward. Both are op calls alone: no arithmetic and no allocation happens here, and a test makes
sure. A backward undoes the lines of its forward, from the last to the first. `diff gpt/models/residual.py gpt/models/gpt.py` is
what layernorm changes, with the sums that move into its op. Shapes: idx, targets (B, T); x, h, a, m (B, T, C); logits (B, T, V).
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


def block_forward(
    ops: Ops, x: Array, m: Array | None, p: Params, config: ModelConfig, layer: int, key: Key | None, kv_cache: LayerCache | None
) -> tuple[Array, Array, tuple]:
    """x = x + m;  a = attention(layernorm(x));  x = x + a;  m = mlp(layernorm(x))

    One op computes a sum and its layernorm, so a block leaves its last sum to what comes next. It begins with the m of the block
    before, None in the first block, and returns x and its own m.
    """
    mlp_key = ops.fold_in(key, layer - 1, "mlp_residual")
    (x, h), ln1_cache = ops.dropout_add_layernorm_forward(x, m, p["ln1_w"], p["ln1_b"], p=config.dropout, key=mlp_key)
    a, attn_cache = ops.self_attention_forward(
        h,
        qkv_w=p["qkv_w"],
        qkv_b=None,
        proj_w=p["attn_proj_w"],
        proj_b=p["attn_proj_b"],
        n_head=config.n_head,
        p=config.dropout,
        key=ops.fold_in(key, layer, "attention"),
        kv_cache=kv_cache,
    )
    attn_key = ops.fold_in(key, layer, "attention_residual")
    (x, h), ln2_cache = ops.dropout_add_layernorm_forward(x, a, p["ln2_w"], p["ln2_b"], p=config.dropout, key=attn_key)
    m, mlp_cache = ops.mlp_forward(h, p["fc_w"], p["fc_b"], p["mlp_proj_w"], p["mlp_proj_b"], activation=config.activation)
    return x, m, (ln1_cache, attn_cache, ln2_cache, mlp_cache)


def block_backward(ops: Ops, dx: Array, dm: Array, cache: tuple) -> tuple[Array, Array | None, Params]:
    """The same lines, last to first. x was used twice by each half, so its gradients add, inside the two layernorm composites."""
    ln1_cache, attn_cache, ln2_cache, mlp_cache = cache
    dh, dfc_w, dfc_b, dmlp_proj_w, dmlp_proj_b = ops.mlp_backward(dm, mlp_cache)
    dx, da, dln2_w, dln2_b = ops.dropout_add_layernorm_backward((dx, dh), ln2_cache)
    dh, dqkv_w, _, dattn_proj_w, dattn_proj_b = ops.self_attention_backward(da, attn_cache)
    dx, dm, dln1_w, dln1_b = ops.dropout_add_layernorm_backward((dx, dh), ln1_cache)
    dblock = {
        "ln1_w": dln1_w,
        "ln1_b": dln1_b,
        "qkv_w": dqkv_w,
        "attn_proj_w": dattn_proj_w,
        "attn_proj_b": dattn_proj_b,
        "ln2_w": dln2_w,
        "ln2_b": dln2_b,
        "fc_w": dfc_w,
        "fc_b": dfc_b,
        "mlp_proj_w": dmlp_proj_w,
        "mlp_proj_b": dmlp_proj_b,
    }
    return dx, dm, dblock


def trunk_forward(
    ops: Ops, params: Params, idx: Array, config: ModelConfig, key: Key | None, with_cache: bool, kv_cache: KVCache | None
) -> tuple[Array, tuple]:
    """Everything below the head: embeddings, blocks, the final layernorm. with_cache=False drops each block's cache at once."""
    start = kv_cache.length if kv_cache else 0
    x, emb_cache = ops.token_position_embedding_forward(idx, params["wte"], params["wpe"], start)
    m = None  # no block is before the first
    block_caches = []
    for i, p in enumerate(params["blocks"]):
        layer_cache = kv_cache.layers[i] if kv_cache else None
        x, m, block_cache = block_forward(ops, x, m, p, config, i, key, layer_cache)
        if with_cache:
            block_caches.append(block_cache)
        del block_cache
    mlp_key = ops.fold_in(key, config.n_layer - 1, "mlp_residual")
    (_, h), lnf_cache = ops.dropout_add_layernorm_forward(x, m, params["lnf_w"], params["lnf_b"], p=config.dropout, key=mlp_key)
    return h, (emb_cache, block_caches, lnf_cache)


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
    h, trunk_cache = trunk_forward(ops, params, idx, config, key, with_cache, kv_cache=None)
    loss, head_cache = ops.linear_cross_entropy_forward(h, head_weight(params), params["head_b"], targets)
    cache = (trunk_cache, head_cache, params["head_w"] is None)
    return loss, cache if with_cache else ()


def backward(ops: Ops, dloss: Array | float, cache: tuple) -> Params:
    """The gradient of every parameter, as a tree of the same names. dloss scales all of them."""
    trunk_cache, head_cache, tied = cache
    emb_cache, block_caches, lnf_cache = trunk_cache
    dh, dhead_w, dhead_b = ops.linear_cross_entropy_backward(dloss, head_cache)
    dx, dm, dlnf_w, dlnf_b = ops.dropout_add_layernorm_backward((None, dh), lnf_cache)  # nothing else reads the last x
    dblocks: list[Params] = []
    for block_cache in reversed(block_caches):
        dx, dm, dblock = block_backward(ops, dx, dm, block_cache)
        dblocks.insert(0, dblock)
    dwte, dwpe = ops.token_position_embedding_backward(dx, emb_cache)
    if tied:  # the table was used twice: to look tokens up, and transposed to score them
        dwte = ops.add(dwte, dhead_w.T)
        dhead_w = None
    return {
        "wte": dwte,
        "wpe": dwpe,
        "blocks": dblocks,
        "lnf_w": dlnf_w,
        "lnf_b": dlnf_b,
        "head_w": dhead_w,
        "head_b": dhead_b,
    }


def logits(ops: Ops, params: Params, idx: Array, config: ModelConfig, kv_cache: KVCache | None = None) -> Array:
    """(B, T, V): scores of the next token after each position. kv_cache: a KVCache of the text before idx, extended by it."""
    h, _ = trunk_forward(ops, params, idx, config, key=None, with_cache=False, kv_cache=kv_cache)
    y, _ = ops.linear_forward(h, head_weight(params), params["head_b"])
    return y
