"""Matrix products with something done to each number on its way out: by the library in one kernel, or in separate ones."""

from typing import Any

from tensorlite.arrays import Array
from tensorlite.cuda import elementwise
from tensorlite.cuda.reduce import sum_rows


def gemm(
    ops: Any,
    a: Array,
    b: Array,
    out: Array,
    *,
    bias: Array | None = None,
    gelu: Array | None = None,
    dgelu: Array | None = None,
    bias_grad: Array | None = None,
) -> None:
    """out = a b, for a: (M, K) and b: (K, N), each C-contiguous or the transpose of such an array, of one dtype; and on the way

    bias: (N,), added to each row, of out's dtype.
    gelu: (M, N), receives a b + bias, while out becomes gelu of it.
    dgelu: (M, N), the numbers that gelu was applied to: out = (a b) gelu'(dgelu).
    bias_grad: (N,) float32, receives the sum of b over its rows: the gradient of a bias beside dw = x^T dy.

    Which way is faster is the runtime's to find out: cuBLASLt's epilogues, or a plain product and `apart`.
    """
    if out.size == 0 or a.shape[1] == 0:
        for array in (out, bias_grad):
            if array is not None:
                array[...] = 0
        return
    extras = {"bias": bias, "gelu": gelu, "dgelu": dgelu, "bias_grad": bias_grad}
    plain = all(array is None for array in extras.values())
    ops.runtime.gemm(a, b, out, compute=ops.precision, **extras, apart=None if plain else lambda: apart(ops, a, b, out, **extras))


def apart(
    ops: Any,
    a: Array,
    b: Array,
    out: Array,
    bias: Array | None = None,
    gelu: Array | None = None,
    dgelu: Array | None = None,
    bias_grad: Array | None = None,
) -> None:
    """The same, op by op."""
    if gelu is not None:
        gemm(ops, a, b, gelu, bias=bias)
        elementwise.each(ops, "gelu_forward", gelu, out, over=out)
        return
    gemm(ops, a, b, out)
    if bias is not None:
        elementwise.each(ops, "add_bias", out, bias, bias.size, over=out)
    if dgelu is not None:
        elementwise.each(ops, "gelu_backward", out, dgelu, out, over=out)
    if bias_grad is not None:
        sum_rows(ops, b, bias_grad)
