"""class CUDAOps: the ops of the CUDA backend, their precision, and the 16-bit copy of the parameters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from tensorlite.arrays import Array, to_numpy
from tensorlite.cuda import (
    activations,
    attention,
    composites,
    cross_entropy,
    dropout,
    elementwise,
    embedding,
    gemm,
    layernorm,
    layout,
    linear,
    optim,
    reduce,
)
from tensorlite.cuda.launch import BLOCK, blocks
from tensorlite.cuda.loss_scale import DeviceLossScale
from tensorlite.cuda.op_info import OP_INFO
from tensorlite.cuda.runtime import device_key
from tensorlite.cuda.runtime.graph import CapturedStep
from tensorlite.reference.ops import ReferenceOps

Precision = Literal["float32", "tf32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "fp16", "bf16")
SCALED = ("fp16",)  # precisions in which small gradients are zero unless the loss is scaled
MAX_IN_FLIGHT = 32  # how many steps may be running, or finished but unread


class CUDAOps(ReferenceOps):
    """The functions of `tensorlite.cuda`, on the arrays of a runtime, which on a GPU are CuPy's.

    precision: "float32"; "tf32", where GEMMs round their float32 operands to 11 significant bits; "fp16", where activations and
        operands have 11 significant bits and are at most 65504; or "bf16", where they have 8 bits and the range of float32. In all
        of them, sums are computed in float32, and parameters and their gradients are float32.
    check: as for ReferenceOps.
    runtime: the object that launches kernels; by default a `CudaRuntime` on the current device.
    loss_scale: the loss scale of a training step. By default fp16 has one of its own, and the other precisions have none.
    Raises DeviceError where there is no such device, or a library is missing.
    """

    name = "fast"
    op_table = OP_INFO
    max_in_flight = MAX_IN_FLIGHT
    warm_up = 2  # the first step compiles and autotunes, the second is captured

    def __init__(
        self, precision: Precision = "bf16", *, check: bool = True, runtime: Any = None, loss_scale: DeviceLossScale | None = None
    ) -> None:
        super().__init__(check=check)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if runtime is None:
            from tensorlite.cuda.runtime.device import CudaRuntime

            runtime = CudaRuntime(precision)
        self.precision, self.runtime = precision, runtime
        float32, float16 = np.dtype(np.float32), np.dtype(np.float16)
        self.dtype = {"fp16": float16, "bf16": runtime.bfloat16}.get(precision, float32)
        self._c_scalars = {float32: "float", float16: "fp16", runtime.bfloat16: "bf16"}
        self.launch, self.address = runtime.launch, runtime.address
        self.step_sums: reduce.StepSums | None = None  # None outside a step
        self.loss_scale = loss_scale
        if loss_scale is None and precision in SCALED:
            self.loss_scale = DeviceLossScale(runtime)

    linear_forward = linear.linear_forward
    linear_backward = linear.linear_backward
    embedding_forward = embedding.embedding_forward
    embedding_backward = embedding.embedding_backward
    position_embedding_forward = embedding.position_embedding_forward
    position_embedding_backward = embedding.position_embedding_backward
    layernorm_forward = layernorm.layernorm_forward
    layernorm_backward = layernorm.layernorm_backward
    gelu_forward = activations.gelu_forward
    gelu_backward = activations.gelu_backward
    relu_forward = activations.relu_forward
    relu_backward = activations.relu_backward
    attention_forward = attention.attention_forward
    attention_backward = attention.attention_backward
    dropout_forward = dropout.dropout_forward
    dropout_backward = dropout.dropout_backward
    residual_forward = dropout.residual_forward
    residual_backward = dropout.residual_backward
    cross_entropy_forward = cross_entropy.cross_entropy_forward
    cross_entropy_backward = cross_entropy.cross_entropy_backward
    token_position_embedding_forward = embedding.token_position_embedding_forward
    token_position_embedding_backward = ReferenceOps.token_position_embedding_backward  # of the same two caches
    mlp_forward = composites.mlp_forward
    mlp_backward = composites.mlp_backward
    dropout_add_layernorm_forward = layernorm.dropout_add_layernorm_forward
    dropout_add_layernorm_backward = layernorm.dropout_add_layernorm_backward
    linear_cross_entropy_forward = composites.linear_cross_entropy_forward
    linear_cross_entropy_backward = composites.linear_cross_entropy_backward
    add = elementwise.add
    accumulate_loss = elementwise.accumulate_loss
    get_batch = embedding.get_batch
    pack_grads = optim.pack_grads
    global_norm = optim.global_norm
    clip_grad_norm_ = optim.clip_grad_norm_
    adamw_ = optim.adamw_
    cosine_lr = staticmethod(optim.cosine_lr)
    step_key = staticmethod(device_key.step_key)  # type: ignore[assignment]  # also takes a DeviceStep
    fold_in = staticmethod(device_key.fold_in)  # type: ignore[assignment]

    # Shared by the functions above.

    gemm = gemm.gemm

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """Return an uninitialised array, by default of the precision's dtype."""
        return self.runtime.empty(shape, self.dtype if dtype is None else dtype)

    def float32(self, *shape: int) -> Array:
        """Return an uninitialised float32 array."""
        return self.runtime.empty(shape, np.dtype(np.float32))

    def operand(self, x: Array) -> Array:
        """Return x in the precision's dtype, C-contiguous and aligned: itself or a copy.

        Raises TypeError for a dtype that this backend does not compute in.
        """
        return self.cast(layout.contiguous(self, x), self.dtype)

    def gradient(self, dy: Array, shape: tuple[int, ...], what: str) -> Array:
        """Return dy as an operand. Raises ValueError unless it has the shape of y; otherwise a kernel would read out of bounds."""
        if dy.shape != shape:
            raise ValueError(f"{what}_backward: dy {dy.shape} does not fit y {shape}")
        return self.operand(dy)

    def matrix(self, w: Array) -> Array:
        """Return a weight as an operand. GEMMs take transposed weights, so the transpose of a C-contiguous array stays one."""
        if w.T.flags.c_contiguous and not w.flags.c_contiguous:
            return self.operand(w.T).T
        return self.operand(w)

    def cast(self, x: Array, dtype: Any) -> Array:
        """Return x, which is C-contiguous, as an array of a dtype: itself or a copy."""
        if x.dtype == dtype:
            return x
        y = self.runtime.empty(x.shape, dtype)
        defines = {"source_t": self.c_scalar(x), "scalar_t": self.c_scalar(y)}
        if x.size:
            self.launch("convert.cu", "convert", blocks(x.size), BLOCK, x=x, y=y, n=x.size, defines=defines)
        return y

    def vector(self, x: Array | None) -> Array | None:
        """Return a gain or bias as an operand; None stays None."""
        return None if x is None else self.operand(x)

    def c_scalar(self, x: Array | None = None) -> str:
        """Return the C++ name of the dtype of x, or of the precision. Raises TypeError where no kernel takes it."""
        dtype = self.dtype if x is None else x.dtype
        if dtype not in self._c_scalars:
            raise TypeError(
                f"the CUDA backend computes in float32, float16 and bfloat16, not {dtype}; use ReferenceOps for other dtypes"
            )
        return self._c_scalars[dtype]

    def flat(self, *buffers: Array) -> None:
        """Raise TypeError unless all buffers are float32, as parameters and their gradients are in every precision."""
        for buffer in buffers:
            if self.c_scalar(buffer) != "float":
                raise TypeError(f"the CUDA backend computes in float32 on parameters and their gradients, not in {buffer.dtype}")

    def compute_params(self, params: Array) -> Array:  # type: ignore[override]  # static in ReferenceOps: the same to a caller
        """Return the parameters that the model reads. In 16 bits, this is a copy of the whole flat buffer, made once per step."""
        return self.operand(params)

    def scale_loss(self, dloss: float) -> Array | float:
        """Return dloss times the loss scale: an array of shape (), because only the device knows the scale of a step."""
        return dloss if self.loss_scale is None else self.accumulate_loss(None, self.loss_scale.scale, dloss)

    def dropout_params(self, shape: tuple[int, ...], p: float, key: Any) -> np.ndarray:
        """Return the struct of a dropout, for a kernel."""
        return device_key.pack_dropout_params(shape, p, key, self.address)

    def to_floats(self, scalars: Sequence[Array | float]) -> list[float]:  # type: ignore[override]  # static in ReferenceOps
        """Return the values of some arrays of shape (), copied together, or of floats, which a step of several shards returns."""
        if all(isinstance(scalar, float) for scalar in scalars):
            return list(scalars)
        return [float(x) for x in to_numpy(self.runtime.xp.stack(list(scalars)))]

    @contextmanager
    def step(self) -> Iterator[None]:
        """The extent of one training step. Within it, some sums over rows wait for pack_grads, see `reduce.StepSums`."""
        self.step_sums = reduce.StepSums()
        try:
            yield
            reduce.finish_sums(self)  # of gradients that were not packed
        finally:
            self.step_sums = None

    def compile(self, function: Callable) -> Callable:
        """Return the same step as one graph of kernels, captured at its second call and replayed at every later one."""
        return CapturedStep(self, function)
