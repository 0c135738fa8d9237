"""GEMMs with an epilogue (bias, GELU, bias gradient), fused by cuBLASLt or run as separate kernels."""

from typing import TYPE_CHECKING

from tensorlite.arrays import Array
from tensorlite.cuda import activations, elementwise
from tensorlite.cuda.launch import launch_elementwise
from tensorlite.cuda.reduce import sum_rows

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps


def gemm(
    ops: "CUDAOps",
    a: Array,
    b: Array,
    out: Array,
    *,
    bias: Array | None = None,
    pre_gelu: Array | None = None,
    dgelu_input: Array | None = None,
    bias_grad: Array | None = None,
) -> None:
    """out = a b, with what the optional arrays ask for.

    a, b: (M, K) and (K, N), of one dtype, each C-contiguous or the transpose of a C-contiguous array.
    out: (M, N), C-contiguous.
    bias: (N,), of out's dtype: it is added to each row.
    pre_gelu: (M, N): it receives the pre-activation a b + bias, and out becomes gelu(a b + bias).
    dgelu_input: (M, N), the values to which forward applied gelu: out = (a b) gelu'(dgelu_input).
    bias_grad: (N,), float32: it receives the sum of b over its rows, the gradient of a bias beside dw = x^T dy.

    The runtime uses whichever is faster: an epilogue of cuBLASLt, or `unfused`, a plain GEMM followed by kernels of our own.
    """
    if out.size == 0 or a.shape[1] == 0:  # no terms to sum
        out[...] = 0
        if bias_grad is not None:
            bias_grad[...] = 0
        return
    extras = {"bias": bias, "pre_gelu": pre_gelu, "dgelu_input": dgelu_input, "bias_grad": bias_grad}
    plain = all(array is None for array in extras.values())
    fallback = None if plain else lambda: unfused(ops, a, b, out, **extras)
    ops.runtime.gemm(a, b, out, compute=ops.precision, **extras, unfused=fallback)


def unfused(
    ops: "CUDAOps",
    a: Array,
    b: Array,
    out: Array,
    bias: Array | None = None,
    pre_gelu: Array | None = None,
    dgelu_input: Array | None = None,
    bias_grad: Array | None = None,
) -> None:
    """Compute what `gemm` does, as a plain GEMM and one kernel per epilogue."""
    if pre_gelu is not None:
        gemm(ops, a, b, pre_gelu, bias=bias)
        launch_elementwise(ops, activations.FILE, "gelu_forward", out, x=pre_gelu, y=out)
        return
    gemm(ops, a, b, out)
    if bias is not None:
        launch_elementwise(ops, elementwise.FILE, "add_bias", out, y=out, b=bias, D=bias.size)
    if dgelu_input is not None:
        launch_elementwise(ops, activations.FILE, "gelu_backward", out, dy=out, x=dgelu_input, dx=out)
    if bias_grad is not None:
        sum_rows(ops, b, bias_grad)
