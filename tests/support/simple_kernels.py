"""The kernels of kernels/simple as the ops of a backend, so that the checks of the fused kernels run on them too."""

import functools
import math

import numpy as np

import cuda_bounds
import simple_bounds
from cuda_machines import Both, in_float64, surrounded
from cuda_op_checks import attention, cross_entropy_alone, layernorm_alone, shapes
from tensorlite.integers import ceil_div
from tensorlite.reference.attention import merge_heads, split_heads

THREADS = 32  # per block


class SimpleOps:
    """Three ops, forward and backward, whose kernels are launched on a runtime. Their arrays are contiguous and float32."""

    def __init__(self, runtime):
        self.runtime = runtime

    def launch(self, file, kernel, threads, **args):
        self.runtime.launch(f"simple/{file}.cu", kernel, ceil_div(threads, THREADS), THREADS, **args)

    def empty(self, *shape):
        return self.runtime.empty(shape, np.float32)

    def layernorm_forward(self, x, w, b, eps=1e-5):
        rows, C = x.shape
        y = self.empty(rows, C)
        mean = self.empty(rows)
        rstd = self.empty(rows)
        self.launch("layernorm", "layernorm_forward", rows, x=x, w=w, b=b, eps=eps, y=y, mean=mean, rstd=rstd, rows=rows, C=C)
        return y, (x, w, mean, rstd)

    def layernorm_backward(self, dy, cache):
        x, w, mean, rstd = cache
        rows, C = x.shape
        args = {"dy": dy, "x": x, "mean": mean, "rstd": rstd, "rows": rows, "C": C}
        dx = self.empty(rows, C)
        dw = self.empty(C)
        db = self.empty(C)
        self.launch("layernorm", "layernorm_backward_row", rows, w=w, dx=dx, **args)
        self.launch("layernorm", "layernorm_backward_channel", C, dw=dw, db=db, **args)
        return dx, dw, db

    def cross_entropy_forward(self, logits, targets):
        V = logits.shape[-1]
        rows = targets.size
        lse = self.empty(rows)
        losses = self.empty(rows)
        loss = self.empty()
        args = {"logits": logits, "targets": targets, "lse": lse, "rows": rows, "V": V}
        self.launch("cross_entropy", "cross_entropy_forward", rows, losses=losses, **args)
        self.launch("cross_entropy", "mean_loss", 1, losses=losses, loss=loss, rows=rows)
        return loss, (logits, targets, lse)

    def cross_entropy_backward(self, dloss, cache):
        logits, targets, lse = cache
        V = logits.shape[-1]
        rows = targets.size
        args = {"logits": logits, "targets": targets, "lse": lse, "rows": rows, "V": V}
        dlogits = self.empty(*logits.shape)
        self.launch("cross_entropy", "cross_entropy_backward", rows, dloss=dloss, dlogits=dlogits, **args)
        return dlogits

    def attention_forward(self, qkv, n_head, p=0.0, key=None):
        assert p == 0.0, "the simple kernels have no dropout"
        q, k, v = map(self.contiguous, split_heads(qkv, n_head))
        y = self.empty(*q.shape)
        lse = self.empty(*q.shape[:3])
        self.launch_attention("attention_forward", q, k, v, y=y, lse=lse)
        return merge_heads(y), (q, k, v, y, lse)

    def attention_backward(self, dy, cache):
        q, k, v, y, lse = cache
        B, H, T, D = q.shape
        dq, dk, dv = (self.empty(*q.shape) for _ in range(3))
        dy = self.contiguous(dy.reshape(B, T, H, D).transpose(0, 2, 1, 3))
        self.launch_attention("attention_backward", q, k, v, y=y, lse=lse, dy=dy, dq=dq, dk=dk, dv=dv)
        dqkv = self.runtime.xp.stack([dq, dk, dv])
        return dqkv.transpose(1, 3, 0, 2, 4).reshape(B, T, 3 * H * D)

    def launch_attention(self, kernel, q, k, v, **args):
        B, H, T, D = q.shape
        rows = B * H * T
        self.launch("attention", kernel, rows, q=q, k=k, v=v, scale=1.0 / math.sqrt(D), rows=rows, T=T, D=D, **args)

    def contiguous(self, a):
        """Copy an array, so that its rows lie one after the other. Around the copy are large values, as around the inputs."""
        return surrounded(self.runtime.xp.ascontiguousarray(a))


class Simple(Both):
    """The simple kernels on two machines whose threads run in opposite orders."""

    def __init__(self, edits=None):
        super().__init__("float32", edits=edits)
        self.ops = [SimpleOps(ops.runtime) for ops in self.ops]


class Oracle:
    """The simple kernels in the place of the float64 reference: its ops take and return float64."""

    def __init__(self, ops):
        self.ops = ops

    def __getattr__(self, name):
        op = getattr(self.ops, name)

        def converted(*args, **options):
            return in_float64(op(*map(in_float32, args), **{key: in_float32(value) for key, value in options.items()}))

        return converted


def in_float32(value):
    if type(value) is tuple:
        return tuple(map(in_float32, value))
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


# ---- the checks, and their shapes: C and D are those for which test_ops.py compiles the fused kernels ----

ROWS = {
    "layernorm": shapes("rows C", (1, 32), (7, 33), (130, 32), (13, 384), seeds=8) + shapes("eps", (0.5,)),
    "cross_entropy": [
        *shapes("rows V", ((1,), 7), ((13,), 65), ((3, 43), 33), seeds=10),
        *shapes("rows V", ((1,), 7), ((13,), 65), ((3, 43), 33), seeds=10, size=1e4),  # gaps between logits of 1e4
    ],
    "attention": shapes("B T H D", (2, 1, 2, 16), (1, 33, 3, 5), (1, 40, 2, 16), seeds=4) + shapes("size", (30.0,), B=1, T=40),
}


def checks(layernorm_bound, cross_entropy_bound):
    """Return for each op its check and the arguments of its calls, as CHECKS of cuda_op_checks.py has them."""
    functions = {
        "layernorm": functools.partial(layernorm_alone, bound=layernorm_bound),
        "cross_entropy": functools.partial(cross_entropy_alone, bound=cross_entropy_bound),
        "attention": attention,
    }
    return {name: (function, ROWS[name]) for name, function in functions.items()}


def sum_of_bounds(name):
    """Return the function that bounds the difference of a fused and a simple kernel: it adds the errors of both."""

    def bound(*args):
        fused = getattr(cuda_bounds, name)(*args)
        simple = getattr(simple_bounds, name)(*args)
        return [a + b for a, b in zip(fused, simple, strict=True)]

    return bound


AGAINST_REFERENCE = checks(simple_bounds.layernorm, simple_bounds.cross_entropy)
AGAINST_FUSED = checks(sum_of_bounds("layernorm"), sum_of_bounds("cross_entropy"))
