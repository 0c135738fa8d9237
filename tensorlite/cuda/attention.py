"""Causal attention, by kernels/attention_mma.cu on tensor cores or by kernels/attention.cu. Both files say what differs."""

import math
from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.integers import ceil_div
from tensorlite.kv_cache import LayerCache
from tensorlite.random import Key
from tensorlite.reference.attention import split_heads

STRIDES = np.dtype([("batch", "i8"), ("head", "i8"), ("row", "i8")])  # attention.cu: Strides
WARPS, TILE = 8, 32  # of attention.cu
MMA_TILE, MMA_QUERIES, MMA_THREADS = 64, 32, 128  # of attention_tiles.cuh and attention_mma.cu
MMA_MAX_D = 128  # the largest head size whose accumulators fit in registers


def on_tensor_cores(ops: Any, D: int, T: int, dropout: bool, kv_cache: bool = False) -> tuple[bool, str]:
    """Which of the two files serves, and why."""
    if ops.c_scalar() == "float":
        return False, "float32 arithmetic"
    if D % 16 or D > MMA_MAX_D:
        return False, f"head size {D} is no multiple of 16 up to {MMA_MAX_D}"
    if kv_cache:
        return False, "one position at a time"
    if dropout and T % 4:
        return False, f"dropout draws four neighbours at once, and a context of {T} is no multiple of 4"
    return True, "tensor cores"


def attention_forward(
    ops: Any, qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None, kv_cache: LayerCache | None = None
) -> tuple[Array, tuple | None]:
    """y = dropout(softmax(mask(q k^T / sqrt(D)))) v. The cache refers to qkv and y, and holds lse: (B, H, T) float32."""
    array_namespace(qkv)
    B, T, C3 = qkv.shape
    qkv = ops.operand(qkv)
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D) views
    if kv_cache is not None:
        k, v = kv_cache.extend(k, v)  # (B, H, S, D)
    D, S = q.shape[-1], k.shape[2]
    y, lse = ops.empty((B, T, C3 // 3)), None if kv_cache is not None else ops.float32(B, n_head, T)
    dropout = ops.dropout_params((B, n_head, T, S), p, key)
    if y.size:
        scale, flops = 1.0 / math.sqrt(D), 2 * 2 * B * n_head * D * _visible_scores(T, S)
        if on_tensor_cores(ops, D, T, bool(dropout["threshold"]), kv_cache is not None)[0]:
            packed = (qkv, y, lse, n_head, np.int32(T), scale, dropout)
            _launch_mma(ops, "attention_forward", B * n_head, T, D, 3 * MMA_TILE, *packed, flops=flops)
        else:
            args = (q, _strides(q), k, v, _strides(k), y, lse, n_head, np.int32(T), np.int32(S), scale, dropout)
            _launch(ops, "attention_forward", B * n_head, T, D, 1, *args, flops=flops)
    return y, (qkv, n_head, y, lse, dropout) if kv_cache is None else None


def attention_backward(ops: Any, dy: Array, cache: tuple) -> Array:
    """dq, dk and dv, packed as qkv is. The probabilities are recomputed from lse."""
    qkv, n_head, y, lse, dropout = cache
    array_namespace(dy, qkv)
    dy = ops.gradient(dy, y.shape, "attention")
    B, T, C = y.shape
    D, scale = C // n_head, 1.0 / math.sqrt(C // n_head)
    dqkv, delta = ops.empty(qkv.shape), ops.float32(B, n_head, T)
    if not dqkv.size:
        return dqkv
    by_query = (qkv, y, dy, lse, delta, dqkv[:, :, :C], n_head, np.int32(T), scale, dropout)
    by_key = (qkv, dy, lse, delta, dqkv[:, :, C:], n_head, np.int32(T), scale, dropout)
    gemm_flops = 2 * B * n_head * D * _visible_scores(T, T)  # of one GEMM over the visible scores
    if on_tensor_cores(ops, D, T, bool(dropout["threshold"]))[0]:
        _launch_mma(ops, "attention_backward_query", B * n_head, T, D, 4 * MMA_TILE, *by_query, flops=3 * gemm_flops)
        _launch_mma(ops, "attention_backward_key", B * n_head, T, D, 2 * MMA_TILE + 2 * MMA_QUERIES, *by_key, flops=4 * gemm_flops)
    else:
        _launch(ops, "attention_backward_query", B * n_head, T, D, 2, *by_query, flops=3 * gemm_flops)
        _launch(ops, "attention_backward_key", B * n_head, T, D, 2, *by_key, flops=4 * gemm_flops)
    return dqkv


def _launch(ops: Any, kernel: str, heads: int, T: int, D: int, rows: int, *args: Any, flops: float) -> None:
    """A kernel of attention.cu; a warp keeps so many rows in shared memory."""
    shared = 4 * (2 * TILE * (D + 1) + rows * WARPS * D)
    grid = heads, ceil_div(T, WARPS)
    ops.launch("attention.cu", kernel, grid, 32 * WARPS, *args, shared=shared, flops=flops, scalar_t=ops.c_scalar(), D=D)


def _launch_mma(ops: Any, kernel: str, heads: int, T: int, D: int, rows: int, *args: Any, flops: float) -> None:
    """A kernel of attention_mma.cu, with so many rows in shared memory; backward by keys has lse and delta of its queries too."""
    shared = rows * (D + 8) * 2 + (2 * MMA_QUERIES * 4 if kernel == "attention_backward_key" else 0)
    ops.launch("attention_mma.cu", kernel, (heads, ceil_div(T, MMA_TILE)), MMA_THREADS, *args, shared=shared, flops=flops, D=D)


def _strides(x: Array) -> np.ndarray:
    """Where the rows of x: (B, H, T, D) are, in elements. D is the innermost axis in memory."""
    return np.array(tuple(stride // x.itemsize for stride in x.strides[:3]), STRIDES)


def _visible_scores(T: int, S: int) -> float:
    """How many of the (T, S) scores the mask leaves."""
    return T * (S - T) + T * (T + 1) / 2
