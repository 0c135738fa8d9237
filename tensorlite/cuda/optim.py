"""The flat gradient buffer, its norm, clipping and AdamW, by kernels/optim.cu.

The kernel file says what differs from tensorlite/reference/optim.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tensorlite import loss_scale
from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import BLOCK, LARGE_BLOCK, blocks
from tensorlite.cuda.layout import contiguous
from tensorlite.cuda.reduce import PackedSquares, finish_sums, known_squares
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.reference import optim

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "optim.cu"
COPIES = 128  # of optim.cu: the most arrays per launch of pack_grads
COPY_TABLE = np.dtype([("from", "u8", COPIES), ("to", "u8", COPIES), ("size", "i8", COPIES)])  # optim.cu: Copies
ADAMW_PARAMS = np.dtype(
    [("step", "u8"), ("t", "i8"), ("lr", "f8"), ("min_lr", "f8"), ("warmup", "i8"), ("total", "i8")]
    + [(name, "f8") for name in ("beta1", "beta2", "eps", "weight_decay")]
)  # optim.cu: AdamWParams


class Schedule(NamedTuple):
    """The arguments of cosine_lr. The device computes the rate from them when it alone knows the step."""

    step: DeviceStep
    lr: float
    min_lr: float
    warmup: int
    total: int


def cosine_lr(step: int | DeviceStep, lr: float, min_lr: float, warmup: int, total: int) -> Any:
    """As the reference's cosine_lr; for a DeviceStep, return a Schedule."""
    if isinstance(step, DeviceStep):
        return Schedule(step, lr, min_lr, warmup, total)
    return optim.cosine_lr(step, lr, min_lr, warmup, total)


def pack_grads(ops: "CUDAOps", leaves: Sequence[Array], slots: Sequence[Array], add: bool = False) -> None:
    """Finish the pending sums, then copy each gradient (or, with add, add it) into its slot, COPIES of them per launch.

    A backend with a loss scale divides the gradients by it. Within a step, the kernel also sums the squares of what it writes.
    """
    finish_sums(ops)
    ops.flat(*leaves, *slots)
    if len(leaves) != len(slots):
        raise ValueError(f"pack_grads: {len(leaves)} gradients for {len(slots)} slots")
    leaves = [contiguous(ops, leaf) for leaf in leaves]
    largest = max((leaf.size for leaf in leaves), default=0)
    partial = ops.float32(len(leaves), blocks(largest, 16 * BLOCK))
    for i in range(0, len(leaves), COPIES):
        part = slice(i, i + COPIES)
        _launch_copies(ops, leaves[part], slots[part], add, partial[part])
    if ops.step_sums is not None:
        ops.step_sums.squares = PackedSquares(slots, partial)


def _launch_copies(ops: "CUDAOps", leaves: Sequence[Array], slots: Sequence[Array], add: bool, partial: Array) -> None:
    """Launch pack_grads for at most COPIES arrays. partial: (arrays, blocks per array)."""
    copies = np.zeros((), COPY_TABLE)
    for j, (leaf, slot) in enumerate(zip(leaves, slots, strict=True)):
        copies["from"][j] = ops.address(leaf)
        copies["to"][j] = ops.address(slot)
        copies["size"][j] = leaf.size
    ops.launch(
        FILE,
        "pack_grads",
        partial.shape[::-1],
        BLOCK,
        copies=copies,
        loss_scale=_loss_scale(ops),
        add=add,
        partial=partial,
        touches=[*leaves, *slots],
    )


def _loss_scale(ops: "CUDAOps") -> Array | None:
    """Return the struct LossScale of a kernel, or None for a backend without one."""
    return None if ops.loss_scale is None else ops.loss_scale.array


def global_norm(ops: "CUDAOps", grads: Array) -> Array:
    """Return sqrt(sum of squares), a float32. Within a step, pack_grads has summed the squares of what it has written."""
    array_namespace(grads)
    ops.flat(grads)
    partial = known_squares(ops, grads)
    if partial is None:
        partial = ops.float32(blocks(grads.size))
        ops.launch(FILE, "sum_squares", partial.size, BLOCK, grads=grads, partial=partial, n=grads.size)
    norm = ops.float32()
    ops.launch(FILE, "finish_norm", 1, LARGE_BLOCK, partial=partial, count=partial.size, norm=norm)
    return norm


def clip_grad_norm_(ops: "CUDAOps", grads: Array, max_norm: float) -> Array:
    """Scale the gradient, in place, to a norm of at most max_norm (0: any norm). Return the norm before.

    A step does this once, after all its gradients are packed, so this is where the norm updates the loss scale.
    """
    norm = global_norm(ops, grads)
    if ops.loss_scale is not None:
        rule = {"growth_interval": loss_scale.GROWTH_INTERVAL, "max_scale": loss_scale.MAX_SCALE}
        ops.launch(FILE, "update_loss_scale", 1, 1, loss_scale=ops.loss_scale.array, norm=norm, **rule)
    if max_norm > 0:
        args = {"grads": grads, "norm": norm, "max_norm": float(max_norm), "n": grads.size}
        ops.launch(FILE, "clip", blocks(grads.size), BLOCK, **args, touches=(grads,))
    return norm


def adamw_(
    ops: "CUDAOps",
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
    """Make one AdamW update, in place. The arguments are the reference's, but t and lr may be a DeviceStep and a Schedule.

    After an overflow, which clip_grad_norm_ finds, a backend with a loss scale updates nothing.
    """
    array_namespace(params, grads, m, v)
    ops.flat(params, grads, m, v)
    n = params.size
    hyper = np.zeros((), ADAMW_PARAMS)
    if isinstance(t, DeviceStep):
        hyper["step"] = ops.address(t.array)
        hyper["t"] = t.plus
        for field in ("lr", "min_lr", "warmup", "total"):
            hyper[field] = getattr(lr, field)  # lr is a Schedule
    else:
        hyper["t"] = t
        hyper["lr"] = lr
    hyper["beta1"] = beta1
    hyper["beta2"] = beta2
    hyper["eps"] = eps
    hyper["weight_decay"] = weight_decay
    ops.launch(
        FILE,
        "adamw",
        blocks(n),
        BLOCK,
        params=params,
        grads=grads,
        m=m,
        v=v,
        hyper=hyper,
        loss_scale=_loss_scale(ops),
        n_decay=n if n_decay is None else n_decay,
        n=n,
        touches=(params, m, v),
    )
