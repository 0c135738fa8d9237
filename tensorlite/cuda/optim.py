"""Gradients into the flat buffer, their norm, AdamW, by kernels/optim.cu. The kernel file says what differs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import BLOCK, blocks
from tensorlite.cuda.layout import contiguous
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.reference import optim

FILE = "optim.cu"
COPIES = 128  # of optim.cu: arrays per launch of pack_grads
COPY_TABLE = np.dtype([("from", "u8", COPIES), ("to", "u8", COPIES), ("size", "i8", COPIES)])  # optim.cu: Copies
ADAMW_PARAMS = np.dtype(
    [("step", "u8"), ("t", "i8"), ("lr", "f8"), ("min_lr", "f8"), ("warmup", "i8"), ("total", "i8")]
    + [(name, "f8") for name in ("beta1", "beta2", "eps", "weight_decay")]
)  # optim.cu: AdamWParams


class Schedule(NamedTuple):
    """The arguments of optim.cosine_lr, for the device to work out when the step is known to it alone."""

    step: DeviceStep
    lr: float
    min_lr: float
    warmup: int
    total: int


def cosine_lr(step: int | DeviceStep, lr: float, min_lr: float, warmup: int, total: int) -> Any:
    """As optim.cosine_lr; of a DeviceStep, a Schedule."""
    make = Schedule if isinstance(step, DeviceStep) else optim.cosine_lr
    return make(step, lr, min_lr, warmup, total)  # type: ignore[arg-type]


def pack_grads(ops: Any, leaves: Sequence[Array], slots: Sequence[Array], add: bool = False) -> None:
    """Copy (or, with add, sum) each gradient into its slot, up to 128 of them per launch."""
    ops.flat(*leaves, *slots)
    pairs = [(contiguous(ops, leaf), slot) for leaf, slot in zip(leaves, slots, strict=True)]
    for i in range(0, len(pairs), COPIES):
        part = pairs[i : i + COPIES]
        copies = np.zeros((), COPY_TABLE)
        for j, (leaf, slot) in enumerate(part):
            copies["from"][j], copies["to"][j], copies["size"][j] = ops.address(leaf), ops.address(slot), leaf.size
        grid = (blocks(max(leaf.size for leaf, _ in part), 16 * BLOCK), len(part))
        touched = [array for pair in part for array in pair]
        ops.launch(FILE, "pack_grads", grid, BLOCK, copies, add, touches=touched)


def global_norm(ops: Any, grads: Array) -> Array:
    """sqrt(sum of squares), a float32."""
    array_namespace(grads)
    ops.flat(grads)
    n = grads.size
    partial, norm = ops.float32(blocks(n)), ops.float32()
    ops.launch(FILE, "sum_squares", partial.size, BLOCK, grads, partial, n)
    ops.launch(FILE, "finish_norm", 1, BLOCK, partial, partial.size, norm)
    return norm


def clip_grad_norm_(ops: Any, grads: Array, max_norm: float) -> Array:
    """Scale the gradient, in place, to a norm of at most max_norm (0: any); return the norm before."""
    norm = global_norm(ops, grads)
    if max_norm > 0:
        ops.launch(FILE, "clip", blocks(grads.size), BLOCK, grads, norm, float(max_norm), grads.size, touches=(grads,))
    return norm


def adamw_(
    ops: Any,
    params: Array,
    grads: Array,
    m: Array,
    v: Array,
    t: Any,
    lr: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    n_decay: int | None = None,
) -> None:
    """One AdamW update, in place; the arguments are the reference's, or a DeviceStep and a Schedule."""
    array_namespace(params, grads, m, v)
    ops.flat(params, grads, m, v)
    n = params.size
    if isinstance(t, DeviceStep):
        _, peak, min_lr, warmup, total = lr  # a Schedule
        schedule = (ops.address(t.array), t.plus, peak, min_lr, warmup, total)
    else:
        schedule = (0, t, lr, 0.0, 0, 0)
    hyper = np.array((*schedule, beta1, beta2, eps, weight_decay), ADAMW_PARAMS)
    args = (params, grads, m, v, hyper, n if n_decay is None else n_decay, n)
    ops.launch(FILE, "adamw", blocks(n), BLOCK, *args, touches=(params, m, v))
