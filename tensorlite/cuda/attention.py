"""Causal attention, by kernels/attention_mma.cu on tensor cores or by kernels/attention.cu.

Both kernel files say what differs; the derivation is in tensorlite/reference/attention.py.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.integers import ceil_div
from tensorlite.kv_cache import LayerCache
from tensorlite.random import Key
from tensorlite.reference.attention import split_heads

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

STRIDES = np.dtype([("batch", "i8"), ("head", "i8"), ("row", "i8")])  # attention.cu: Strides
WARPS, TILE = 8, 32  # of attention.cu
MMA_TILE, MMA_HALF, MMA_THREADS = 64, 32, 128  # of attention_tiles.cuh and attention_mma.cu
MASK_TILE = 64  # of attention_mask.cuh
MMA_MAX_D = 128  # the largest head size whose accumulators fit in registers
MMA_MAX_SIZE = 2**31 - 1  # elements of one sequence of qkv, in which the kernels of attention_mma.cu count with 32 bits


class AttentionCache(NamedTuple):
    """What backward reads of forward."""

    qkv: Array
    n_head: int
    y: Array
    lse: Array  # (B, H, T), float32: the log of each row's softmax denominator
    mask: Array | None  # the bits of the dropout mask, see mask_shape
    inv_keep: float  # 1 / the probability of keeping an element


def on_tensor_cores(ops: "CUDAOps", D: int, T: int, dropout: bool, kv_cache: bool = False) -> tuple[bool, str]:
    """Whether attention_mma.cu computes this attention (otherwise attention.cu does), and the reason."""
    if ops.c_scalar() == "float":
        return False, "float32 arithmetic"
    if D % 16 or D > MMA_MAX_D:
        return False, f"head size {D} is no multiple of 16 up to {MMA_MAX_D}"
    if kv_cache:
        return False, "one position at a time"
    if dropout and T % 4:
        return False, f"dropout draws four neighbours at once, and a context of {T} is no multiple of 4"
    return True, "tensor cores"


def mask_shape(B: int, n_head: int, T: int) -> tuple[int, int, int, int]:
    """Return the shape of a dropout mask in 32-bit words, in tiles of 64 queries and 64 keys: kernels/attention_mask.cuh."""
    tiles = ceil_div(T, MASK_TILE)
    return B, n_head, tiles * (tiles + 1) // 2, MASK_TILE * MASK_TILE // 32


def attention_forward(
    ops: "CUDAOps", qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None, kv_cache: LayerCache | None = None
) -> tuple[Array, AttentionCache | None]:
    """y = dropout(softmax(mask(q k^T / sqrt(D)))) v. The cache refers to qkv and y, and holds lse and the mask's bits."""
    array_namespace(qkv)
    B, T, C3 = qkv.shape
    qkv = ops.operand(qkv)
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D) views
    if kv_cache is not None:
        k, v = kv_cache.extend(k, v)  # (B, H, S, D)
    D = q.shape[-1]
    S = k.shape[2]
    if T * C3 > MMA_MAX_SIZE:
        raise ValueError(f"attention: a sequence of qkv has at most {MMA_MAX_SIZE} elements, not {T} x {C3}")
    y = ops.empty((B, T, C3 // 3))
    lse = ops.float32(B, n_head, T) if kv_cache is None else None
    dropout = ops.dropout_params((B, n_head, T, S), p, key)
    drops = bool(dropout["threshold"])
    mask = ops.empty(mask_shape(B, n_head, T), np.dtype(np.uint32)) if drops and kv_cache is None else None
    if y.size:
        size = (B * n_head, T, D)
        args = {"y": y, "lse": lse, "mask": mask, "H": n_head, "dropout": dropout}
        args["flops"] = 2 * _gemm_flops(B * n_head, T, S, D)
        if on_tensor_cores(ops, D, T, drops, kv_cache is not None)[0]:
            _launch_mma(ops, "attention_forward", *size, tile_rows=3 * MMA_TILE, qkv=qkv, **args)
        else:
            args |= {"q": q, "q_strides": _strides(q), "k": k, "v": v, "kv_strides": _strides(k), "S": S}
            _launch_scalar(ops, "attention_forward", *size, rows_per_warp=1, **args)
    if kv_cache is not None:  # generation has no backward
        return y, None
    return y, AttentionCache(qkv, n_head, y, lse, mask, float(dropout["inv_keep"]) if drops else 1.0)


def attention_backward(ops: "CUDAOps", dy: Array, cache: tuple) -> Array:
    """dq, dk and dv, packed as qkv is. The probabilities are recomputed from lse."""
    qkv, n_head, y, lse, mask, inv_keep = cache
    array_namespace(dy, qkv)
    dy = ops.gradient(dy, y.shape, "attention")
    B, T, C = y.shape
    D = C // n_head
    dqkv = ops.empty(qkv.shape)
    delta = ops.float32(B, n_head, T)
    if not dqkv.size:
        return dqkv
    size = (B * n_head, T, D)
    gemm_flops = _gemm_flops(B * n_head, T, T, D)
    args = {"qkv": qkv, "dy": dy, "lse": lse, "delta": delta, "mask": mask, "inv_keep": inv_keep, "H": n_head}
    by_query = args | {"y": y, "dq": dqkv[:, :, :C], "flops": 3 * gemm_flops}
    by_key = args | {"dkv": dqkv[:, :, C:], "flops": 4 * gemm_flops}
    if on_tensor_cores(ops, D, T, mask is not None)[0]:
        rows = 2 * MMA_TILE + 2 * MMA_HALF
        key_floats = 2 * MMA_HALF  # lse and delta of its queries
        _launch_mma(ops, "attention_backward_query", *size, tile_rows=rows, **by_query)
        _launch_mma(ops, "attention_backward_key", *size, tile_rows=rows, more_floats=key_floats, **by_key)
    else:
        _launch_scalar(ops, "attention_backward_query", *size, rows_per_warp=2, **by_query)
        _launch_scalar(ops, "attention_backward_key", *size, rows_per_warp=2, **by_key)
    return dqkv


def _launch_scalar(ops: "CUDAOps", kernel: str, heads: int, T: int, D: int, *, rows_per_warp: int, **args: Any) -> None:
    """Launch a kernel of attention.cu. rows_per_warp: how many rows of its own a warp has in shared memory, besides two tiles."""
    ops.launch(
        "attention.cu",
        kernel,
        (heads, ceil_div(T, WARPS)),
        32 * WARPS,
        T=T,
        scale=1.0 / math.sqrt(D),
        shared=4 * (2 * TILE * (D + 1) + rows_per_warp * WARPS * D),
        defines={"scalar_t": ops.c_scalar(), "D": D},
        **args,
    )


def _launch_mma(
    ops: "CUDAOps", kernel: str, heads: int, T: int, D: int, *, tile_rows: int, more_floats: int = 0, **args: Any
) -> None:
    """Launch a kernel of attention_mma.cu. tile_rows: how many rows of tiles are in shared memory, besides more_floats floats."""
    ops.launch(
        "attention_mma.cu",
        kernel,
        (heads, ceil_div(T, MMA_TILE)),
        MMA_THREADS,
        T=T,
        scale=1.0 / math.sqrt(D),
        shared=2 * tile_rows * (D + 8) + 4 * more_floats,  # the pitch of a row is D + 8 elements of 2 bytes
        defines={"scalar_t": ops.c_scalar(), "D": D},
        **args,
    )


def _strides(x: Array) -> np.ndarray:
    """Return where the rows of x: (B, H, T, D) are, in elements. D is the innermost axis in memory."""
    batch, head, row, _ = (stride // x.itemsize for stride in x.strides)
    return np.array((batch, head, row), STRIDES)


def _gemm_flops(heads: int, T: int, S: int, D: int) -> float:
    """Floating-point operations of one GEMM over the (T, S) scores that the mask leaves visible."""
    visible = T * (S - T) + T * (T + 1) / 2
    return 2 * heads * D * visible
