"""The kernel files of the CUDA backend, on a CPU: every op against the reference in float64, in two orders of threads.

cuda_bounds.py derives how near is near enough, and whatever is computed must have the same bits in both orders: no number may
depend on which warp or block comes first. Mistakes planted in the kernels show that the checks see such things. NVRTC, where it is
installed, says that the same files compile for real GPUs and that nothing spills.
"""

import functools
import itertools
import re
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuda_bounds as bounds
from cases import CASES
from cuda_bounds import BF16, FLOAT32, REFERENCE, UNIT, F, close
from gpt.config import PRESETS, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import TrainState, train_step
from shim.host import ENTRY, KERNELS, HostRuntime, KernelError, require_compiler
from tensorlite import DeviceError, Key, KVCache, cuda
from tensorlite.cuda import cross_entropy, elementwise, layernorm, reduce
from tensorlite.cuda.attention import on_tensor_cores as on_cores
from tensorlite.cuda.runtime import device, nvrtc
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.cuda.runtime.dry_run import DryRunRuntime
from tensorlite.random import _lanes, fold_in, keep_mask, step_key

PRECISIONS = ("float32", "bf16")
KEY = Key(5, 6, 3)
EXACT = None  # in the place of a bound: the reference's very number
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


def as_arrays(value):
    """The arrays of nested tuples in a row, absent ones included."""
    return [a for part in value for a in as_arrays(part)] if isinstance(value, tuple) else [value]


def guarded(ops, a):
    """A copy of an array between guard zones: a write out of bounds is reported."""
    copy = ops.runtime.empty(a.shape, a.dtype)
    copy[...] = a
    return copy


def surrounded(a):
    """A copy of an array amid large numbers: a read out of bounds is felt. NaN would look like a guard zone where it is written."""
    if not isinstance(a, np.ndarray):
        return a
    room = np.full(a.nbytes + 1024, 0x7E, np.uint8)  # in float32 and bf16 8e37, as an id or an integer too large
    start = 256 + -room.ctypes.data % 256
    copy = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


class Both:
    """The backend on two machines, whose threads run in opposite orders."""

    def __init__(self, precision, edits=None, separate=False):
        require_compiler()
        orders = [HostRuntime(order, edits=edits, separate=separate) for order in ("forward", "reversed")]
        self.ops = [cuda.CUDAOps(precision, runtime=host) for host in orders]
        self.dtype = self.ops[0].dtype
        self.apart = UNIT[self.dtype] if separate else 0.0

    def run(self, function, *arrays):
        """function(ops, *arrays), as a flat list: the same bits on both, and the arrays as they were."""
        results = []
        for ops in self.ops:
            moved = [surrounded(a) for a in arrays]
            results.append(as_arrays(function(ops, *moved)))
            assert all(a is None or np.array_equal(as_bytes(a), as_bytes(b)) for a, b in zip(arrays, moved, strict=True))
        for a, b in zip(*results, strict=True):
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(as_bytes(a), as_bytes(b)), "the order of threads or blocks shows in the result"
        return results[0]

    def draw(self, random, *shape, size=1.0):
        """Normal numbers that the precision can hold."""
        return np.asarray(size * random.standard_normal(shape)).astype(self.dtype)


def as_bytes(a):
    return np.frombuffer(np.ascontiguousarray(a).tobytes(), np.uint8)


@functools.cache
def both(precision, separate=False):
    return Both(precision, separate=separate)


def in_float64(value):
    if type(value) is tuple:
        return tuple(map(in_float64, value))
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype in UNIT else value


def worst(both, found, expected, dtype, off):
    """The error in bounds of a result that is stored in the precision; of the others, within theirs, None.

    Sums in float32 of bf16 numbers are often exact, so that nothing says how tight their bound is; those of float32 numbers do.
    """
    ratio = close(found, expected, dtype, off)
    return ratio if dtype == both.dtype else None


def check(both, name, inputs, dy, inexact, dtypes, **options):
    """An op, its value and gradients: the worst errors in bounds, None for those that must be exact.

    inputs: arrays by name, or None. inexact: given the inputs and dy in float64, the bounds of value and gradients, or EXACT.
    dtypes: of value and gradients. Backward is called twice, as the contract allows, and must say the same.
    """
    arrays = {k: v for k, v in inputs.items() if v is not None}
    absent = {k: None for k in inputs if k not in arrays}
    forward, backward = (f"{name}_{way}" for way in ("forward", "backward"))
    given_dy = dy if isinstance(dy, tuple) else (dy,)

    def run(ops, *moved):
        d = moved[len(arrays) :] if isinstance(dy, tuple) else moved[len(arrays)]
        y, cache = getattr(ops, forward)(**dict(zip(arrays, moved[: len(arrays)], strict=True)), **absent, **options)
        grads, again = (getattr(ops, backward)(d, cache) for _ in range(2))
        for a, b in zip(as_arrays(grads), as_arrays(again), strict=True):
            assert a is b is None or np.array_equal(as_bytes(a), as_bytes(b))
        return y, grads

    found = both.run(run, *arrays.values(), *given_dy)
    inputs, dy = {k: in_float64(v) for k, v in inputs.items()}, in_float64(dy)
    y, cache = getattr(REFERENCE, forward)(**inputs, **options)
    expected = as_arrays((y, getattr(REFERENCE, backward)(dy, cache)))
    ratios = []
    for a, b, off, dtype in zip(found, expected, inexact(*inputs.values(), dy), dtypes, strict=True):
        assert (a is None) == (b is None)
        if b is None or off is EXACT:
            ratios.append(None)
            if b is not None:
                np.testing.assert_array_equal(a.astype(np.float64), b)
        else:
            ratios.append(worst(both, np.asarray(a), np.asarray(b), dtype, off))
    return ratios


# ---- a check for each op: shapes and a seed to numbers, to the worst errors in bounds ----


def generator(*numbers):
    return np.random.default_rng([int(n) for n in numbers])


def linear(both, rows=(7,), C=16, D=40, bias=True, seed=0):
    r = generator(*rows, C, D, seed)
    inputs = {"x": both.draw(r, *rows, C), "w": both.draw(r, C, D), "b": both.draw(r, D) if bias else None}
    dtypes = (both.dtype, both.dtype, FLOAT32, FLOAT32)
    return check(both, "linear", inputs, both.draw(r, *rows, D), lambda *a: bounds.linear(*a, both.apart), dtypes)


def embedding(both, rows=(3, 5), V=11, C=24, kind=np.int32, seed=0):
    r = generator(*rows, V, C, seed)
    inputs = {"ids": r.integers(0, V, rows).astype(kind), "table": both.draw(r, V, C)}
    return check(
        both, "embedding", inputs, both.draw(r, *rows, C), lambda *a: (EXACT, bounds.embedding(*a)[1]), (both.dtype, FLOAT32)
    )


def positions(both, rows=(3,), T=2, C=32, start=0, more=0, seed=0):
    r = generator(*rows, T, C, start, seed)
    inputs = {"x": both.draw(r, *rows, T, C), "wpe": both.draw(r, T + start + more, C)}

    def inexact(x, wpe, dy):
        y, _, dwpe = bounds.positions(x, wpe, start, dy)
        return y, EXACT, dwpe

    return check(both, "position_embedding", inputs, both.draw(r, *rows, T, C), inexact, (both.dtype, None, FLOAT32), start=start)


def spread_rows(both, r, rows, C):
    """Rows of means and spreads near 1, both of their own."""
    return (both.draw(r, rows, C).astype(np.float64) * r.uniform(0.5, 2, (rows, 1)) + r.standard_normal((rows, 1))).astype(
        both.dtype
    )


def layernorm_alone(both, rows=7, C=32, bias=True, eps=1e-5, seed=0):
    r = generator(rows, C, seed)
    inputs = {"x": spread_rows(both, r, rows, C), "w": both.draw(r, C), "b": both.draw(r, C) if bias else None}
    dtypes = (both.dtype, both.dtype, FLOAT32, FLOAT32)
    return check(both, "layernorm", inputs, both.draw(r, rows, C), lambda *a: bounds.layernorm(*a, eps), dtypes, eps=eps)


def prenorm_layernorm(both, rows=7, C=32, bias=True, seed=0):
    r = generator(rows, C, seed)
    inputs = {"x": spread_rows(both, r, rows, C), "w": both.draw(r, C), "b": both.draw(r, C) if bias else None}
    dy = both.draw(r, rows, C), both.draw(r, rows, C)
    dtypes = (None, both.dtype, both.dtype, FLOAT32, FLOAT32)
    return check(
        both, "prenorm_layernorm", inputs, dy, lambda x, w, b, d: (EXACT, *bounds.layernorm(x, w, b, d[1], skip=d[0])), dtypes
    )


def dropout_add_layernorm(both, rows=7, C=32, bias=True, p=0.0, key=KEY, seed=0):
    """s against the reference; all else against the layernorm of the s that was found, as s is rounded before it is normalised."""
    r = generator(rows, C, seed)
    x, y, w, b = spread_rows(both, r, rows, C), both.draw(r, rows, C), both.draw(r, C), both.draw(r, C) if bias else None
    ds, dh = both.draw(r, rows, C), both.draw(r, rows, C)

    def run(ops, x, y, w, b, ds, dh):
        out, cache = ops.dropout_add_layernorm_forward(x, y, w, b, p, key)
        return out, ops.dropout_add_layernorm_backward((ds, dh), cache)

    s, h, dx, dy, dw, db = both.run(run, x, y, w, b, ds, dh)
    x, y, w, b, ds, dh, found_s = map(in_float64, (x, y, w, b, ds, dh, s))
    expected_s, drop = REFERENCE.residual_forward(x, y, p, key)
    ratios = [worst(both, s, expected_s, both.dtype, bounds.residual(x, y, ds, p, key)[0])]
    (_, expected_h), cache = REFERENCE.prenorm_layernorm_forward(found_s, w, b)
    expected_dx, *weights = REFERENCE.prenorm_layernorm_backward((ds, dh), cache)
    off_h, off_dx, *off_weights = bounds.layernorm(found_s, w, b, dh, skip=ds)
    ratios += [worst(both, h, expected_h, both.dtype, off_h), worst(both, dx, expected_dx, both.dtype, off_dx)]
    expected_dy, off_dy = REFERENCE.residual_backward(expected_dx, drop)[1], REFERENCE.residual_backward(off_dx, drop)[1]
    ratios += [worst(both, dy, expected_dy, both.dtype, off_dy + 2 * F * np.abs(expected_dy))]
    for a, e, off in zip((dw, db), weights, off_weights, strict=True):
        assert (a is None) == (e is None)
        ratios += [None if e is None else worst(both, a, e, FLOAT32, off)]
    return ratios


def gelu(both, shape=(1021,), size=3.0, seed=0):
    r = generator(*shape, seed)
    return check(both, "gelu", {"x": both.draw(r, *shape, size=size)}, both.draw(r, *shape), bounds.gelu, (both.dtype, both.dtype))


def relu(both, shape=(1021,), seed=0):
    """Zeros included, whose slope is 0."""
    r = generator(*shape, seed)
    x = np.where(r.random(shape) < 0.2, 0, both.draw(r, *shape)).astype(both.dtype)
    return check(both, "relu", {"x": x}, both.draw(r, *shape), lambda *_: (EXACT, EXACT), (both.dtype, both.dtype))


def dropout(both, shape=(3, 341), p=0.3, key=KEY, seed=0):
    r = generator(*shape, seed)

    def inexact(x, dy):
        return (EXACT, EXACT) if key is None or p == 0 else bounds.dropout(x, dy, p, key)

    return check(both, "dropout", {"x": both.draw(r, *shape)}, both.draw(r, *shape), inexact, (both.dtype,) * 2, p=p, key=key)


def residual(both, shape=(3, 341), p=0.3, key=KEY, seed=0):
    r = generator(*shape, seed)

    def inexact(x, y, dout):
        out, _, dy = bounds.residual(x, y, dout, p, key)
        return out, EXACT, EXACT if key is None or p == 0 else dy

    inputs = {"x": both.draw(r, *shape), "y": both.draw(r, *shape)}
    return check(both, "residual", inputs, both.draw(r, *shape), inexact, (both.dtype,) * 3, p=p, key=key)


def on_tensor_cores(both, T, D, p):
    """As documented: bf16, a head size of 16, 32 .. 128, and with dropout a context of whole fours."""
    return both.dtype == BF16 and D % 16 == 0 and D <= 128 and not (p and T % 4)


def attention(both, B=2, T=65, H=2, D=16, p=0.0, key=KEY, size=1.0, seed=0):
    r = generator(B, T, H, D, seed)
    qkv, dy = both.draw(r, B, T, 3 * H * D), both.draw(r, B, T, H * D)
    qkv[..., : 2 * H * D] *= both.dtype.type(size)
    key = key if p else None

    def inexact(qkv, dy):
        return bounds.attention(qkv, H, dy, both.dtype, on_tensor_cores(both, T, D, p), p, key)

    return check(both, "attention", {"qkv": qkv}, dy, inexact, (both.dtype,) * 2, n_head=H, p=p, key=key)


def cross_entropy_alone(both, rows=(13,), V=65, dloss=0.7, size=2.0, seed=0):
    r = generator(*rows, V, seed)
    inputs = {"logits": both.draw(r, *rows, V, size=size), "targets": r.integers(0, V, rows)}
    return check(both, "cross_entropy", inputs, dloss, bounds.cross_entropy, (FLOAT32, both.dtype))


def mlp(both, rows=(7,), C=16, width=40, biases=True, seed=0):
    r = generator(*rows, C, width, seed)
    inputs = {"x": both.draw(r, *rows, C), "fc_w": both.draw(r, C, width, size=0.5)}
    inputs |= {"fc_b": both.draw(r, width) if biases else None, "proj_w": both.draw(r, width, C, size=0.5)}
    inputs |= {"proj_b": both.draw(r, C) if biases else None}
    dtypes = (both.dtype, both.dtype, *[FLOAT32] * 4)
    return check(both, "mlp", inputs, both.draw(r, *rows, C), lambda *a: bounds.mlp(*a, both.dtype, both.apart), dtypes)


def linear_cross_entropy(both, rows=(7,), C=16, V=65, bias=True, dloss=0.7, seed=0):
    r = generator(*rows, C, V, seed)
    inputs = {"x": both.draw(r, *rows, C), "w": both.draw(r, C, V, size=0.5), "b": both.draw(r, V) if bias else None}
    inputs |= {"targets": r.integers(0, V, rows)}
    dtypes = (FLOAT32, both.dtype, FLOAT32, FLOAT32)
    return check(both, "linear_cross_entropy", inputs, dloss, lambda *a: bounds.linear_cross_entropy(*a, both.dtype), dtypes)


def add(both, shape=(1021,), seed=0):
    r = generator(*shape, seed)
    a, b = both.draw(r, *shape), both.draw(r, *shape)
    (found,) = both.run(lambda ops, a, b: ops.add(a, b), a, b)
    expected = in_float64(a) + in_float64(b)
    return [worst(both, found, expected, both.dtype, 0.0)]


def shapes(names, *rows, seeds=1, **fixed):
    """One dict for each row and seed."""
    return [dict(zip(names.split(), row, strict=True)) | fixed | {"seed": seed} for row in rows for seed in range(seeds)]


# Sizes are few, as each C, D and K is a compilation, and odd: the last block, warp, tile and piece of four is never full.
ROWS = [(1, 32, True), (7, 32, True), (130, 32, False), (9, 33, True), (66, 33, False), (13, 384, True)]
FLATS = [((1,),), ((3,),), ((4,),), ((1021,),), ((2, 3, 1365),)]
DROPS = [
    (shape, p, key)
    for shape in ((1, 1), (3, 5, 33), (2, 4, 64), (5, 1365))
    for p, key in ((0.3, KEY), (0.9, Key(1, 2, 5)), (0.0, KEY), (0.5, None))
]
LONG = [(T, p, 2 if T < 63 else 1) for T in (1, 9, 63, 64, 65, 72, 130) for p in (0.0, 0.3)]
CHECKS = {
    "linear": (
        linear,
        shapes(
            "rows C D bias",
            *[((7,), 16, 40, True), ((3, 11), 40, 7, True), ((5,), 130, 65, True), ((64,), 384, 40, False), ((1,), 1, 1, True)],
            seeds=4,
        ),
    ),
    "embedding": (embedding, shapes("rows V C", ((3, 5), 11, 24), ((130,), 65, 7), ((1,), 1, 1), ((4, 33), 11, 300))),
    "position_embedding": (
        positions,
        shapes(
            "rows start more T C",
            *[((3,), 0, 0, 2, 32), ((130,), 0, 3, 2, 32), ((2, 3), 2, 0, 1, 33), ((1,), 1, 1, 1, 33), ((3,), 0, 0, 16, 256)],
            seeds=2,
        ),
    ),
    "layernorm": (layernorm_alone, shapes("rows C bias", *ROWS, seeds=3) + shapes("eps", (0.5,))),
    "prenorm_layernorm": (prenorm_layernorm, shapes("rows C bias", *ROWS, seeds=3)),
    "dropout_add_layernorm": (dropout_add_layernorm, shapes("rows C bias", *ROWS) + shapes("rows C bias", *ROWS, seeds=2, p=0.3)),
    "gelu": (gelu, shapes("shape", *FLATS, seeds=2) + shapes("size", (20.0,))),
    "relu": (relu, shapes("shape", *FLATS)),
    "dropout": (dropout, shapes("shape p key", *DROPS)),
    "residual": (residual, shapes("shape p key", *DROPS)),
    "attention 5": (attention, shapes("T p B", (1, 0.0, 2), (33, 0.3, 1), (65, 0.0, 1), (130, 0.3, 1), seeds=2, H=3, D=5)),
    "attention 16": (attention, shapes("T p B", *LONG, (72, 0.3, 2)) + shapes("T size", (65, 30.0))),
    "attention 64": (attention, shapes("T p B", (9, 0.3, 2), (65, 0.0, 1), (72, 0.3, 1), (130, 0.3, 1), D=64)),
    "attention 128": (attention, shapes("T p B", (1, 0.0, 2), (65, 0.0, 1), (72, 0.3, 1), H=1, D=128)),
    "cross_entropy": (
        cross_entropy_alone,
        shapes(
            "rows V size",
            *[(rows, V, size) for rows, V in (((1,), 7), ((13,), 65), ((3, 43), 7), ((600,), 33)) for size in (2.0, 1e3)],
            seeds=3,
        ),
    ),
    "mlp": (
        mlp,
        shapes("rows C width biases", ((7,), 16, 40, True), ((3, 11), 24, 96, False), ((64,), 8, 7, True), seeds=4),
    ),
    "linear_cross_entropy": (
        linear_cross_entropy,
        shapes("rows C V bias", ((7,), 16, 7, True), ((3, 11), 24, 65, True), ((130,), 8, 64, False), seeds=6),
    ),
    "add": (add, shapes("shape", *FLATS)),
}
UNFUSED = ("linear", "mlp", "linear_cross_entropy")  # those with a product that has an epilogue


def check_all(name, both):
    """All shapes of an op: the worst error in bounds of each result."""
    function, shapes = CHECKS[name]
    worst = []
    for shape in shapes:
        try:
            ratios = function(both, **shape)
        except (AssertionError, KernelError, TypeError) as error:
            error.add_note(f"in {shape}")
            raise
        worst = worst or [None] * len(ratios)
        worst = [b if a is None else a if b is None else max(a, b) for a, b in zip(worst, ratios, strict=True)]
    return worst


@every_precision
@pytest.mark.parametrize(("name", "separate"), [(name, False) for name in CHECKS] + [(name, True) for name in UNFUSED])
def test_an_op_and_its_gradients(name, separate, precision):
    """And no bound is loose: over these few draws some error of each result comes to a fifth of it; most come to 0.4 to 1.

    On any machine: the errors are of kernels and a shim whose every operation rounds in one way, on one order of terms.
    """
    loose = [ratio for ratio in check_all(name, both(precision, separate)) if ratio is not None and ratio < 1 / 5]
    assert not loose


# Shapes that need no compilation of their own are drawn: small, with axes of 1, ids of every width, odd keys. The letters say which
# results are stored in the precision, and which in float32.
DRAWN = {
    "linear": "pp44",
    "embedding": "p4",
    "gelu": "pp",
    "relu": "pp",
    "dropout": "pp",
    "residual": "ppp",
    "cross_entropy": "4p",
}


@every_precision
@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=25)
@given(data=st.data())
def test_drawn_inputs(name, precision, data):
    machine = both(precision)
    inputs = data.draw(CASES[name].inputs)
    inputs = {k: v.astype(machine.dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v for k, v in inputs.items()}
    options = {k: inputs.pop(k) for k in ("p", "key") if k in inputs}
    y, _ = CASES[name].on(REFERENCE)[0](**{k: in_float64(v) for k, v in inputs.items()}, **options)
    dy = machine.draw(generator(1), *y.shape) if y.shape else 0.7

    def inexact(*args):
        return (0.0, 0.0) if name == "relu" else getattr(bounds, name)(*args, **options)

    check(machine, name, inputs, dy, inexact, [machine.dtype if letter == "p" else FLOAT32 for letter in DRAWN[name]], **options)


# ---- what an op may be given ----


def arguments_of(name, machine):
    """The arrays of an op, as (inputs, dy), small."""
    r, H = generator(7), 2
    n = machine.draw
    targets = r.integers(0, 7, 6)
    return {
        "linear": ((n(r, 6, 16), n(r, 16, 7), n(r, 7)), n(r, 6, 7), {}),
        "embedding": ((r.integers(0, 11, 6), n(r, 11, 24)), n(r, 6, 24), {}),
        "position_embedding": ((n(r, 2, 32), n(r, 3, 32)), n(r, 2, 32), {}),
        "layernorm": ((n(r, 6, 32), n(r, 32), n(r, 32)), n(r, 6, 32), {}),
        "prenorm_layernorm": ((n(r, 6, 32), n(r, 32), n(r, 32)), (n(r, 6, 32), n(r, 6, 32)), {}),
        "dropout_add_layernorm": (
            (n(r, 6, 32), n(r, 6, 32), n(r, 32), n(r, 32)),
            (n(r, 6, 32), n(r, 6, 32)),
            {"p": 0.3, "key": KEY},
        ),
        "gelu": ((n(r, 6, 33),), n(r, 6, 33), {}),
        "relu": ((n(r, 6, 33),), n(r, 6, 33), {}),
        "dropout": ((n(r, 6, 33),), n(r, 6, 33), {"p": 0.3, "key": KEY}),
        "residual": ((n(r, 6, 33), n(r, 6, 33)), n(r, 6, 33), {"p": 0.3, "key": KEY}),
        "attention": ((n(r, 2, 9, 3 * H * 16),), n(r, 2, 9, H * 16), {"n_head": H}),
        "cross_entropy": ((n(r, 6, 7), targets), 0.7, {}),
        "mlp": ((n(r, 6, 16), n(r, 16, 40), n(r, 40), n(r, 40, 16), n(r, 16)), n(r, 6, 16), {}),
        "linear_cross_entropy": ((n(r, 6, 16), n(r, 16, 7), n(r, 7), targets), 0.7, {}),
    }[name]


OPS = [name for name in cuda.CUDAOps.op_table if name != "softmax"] + [
    "mlp",
    "linear_cross_entropy",
    "prenorm_layernorm",
    "dropout_add_layernorm",
]


def results(ops, name, inputs, dy, options):
    y, cache = getattr(ops, f"{name}_forward")(*inputs, **options)
    return as_arrays((y, getattr(ops, f"{name}_backward")(dy, cache)))


def changed(value, how):
    """Every array of floats, or of ids, in another form."""
    if isinstance(value, tuple):
        return tuple(changed(v, how) for v in value)
    return how(value) if isinstance(value, np.ndarray) else value


def every_second(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def transposed(a):
    return np.ascontiguousarray(a.T).T


def off_by_one(a):
    """Contiguous, and at an address that no vector load may have."""
    room = np.zeros(a.size + 17, a.dtype)
    start = next(i for i in range(1, 17) if (room.ctypes.data + i * a.itemsize) % 16)
    view = room[start : start + a.size].reshape(a.shape)
    view[...] = a
    return view


@every_precision
@pytest.mark.parametrize("how", [every_second, transposed, off_by_one])
@pytest.mark.parametrize("name", OPS)
def test_arrays_in_any_layout(name, how, precision):
    """The results are bitwise identical, those of a transposed matrix too: the shim's matmul has one order."""
    machine = both(precision)
    inputs, dy, options = arguments_of(name, machine)
    for ops in machine.ops:
        expected = results(ops, name, inputs, dy, options)
        for a, b in zip(expected, results(ops, name, changed(inputs, how), changed(dy, how), options), strict=True):
            np.testing.assert_array_equal(as_bytes(a), as_bytes(b))


@pytest.mark.parametrize("how", [every_second, transposed, off_by_one])
def test_sums_and_gathers_of_arrays_in_any_layout(how):
    machine, r = both("float32"), generator(3)
    a, b = machine.draw(r, 5, 9), machine.draw(r, 5, 9)
    for ops in machine.ops:
        np.testing.assert_array_equal(ops.add(how(a), how(b)), a + b)
        slot = guarded(ops, np.zeros_like(a))
        ops.pack_grads([how(a)], [slot])
        np.testing.assert_array_equal(slot, a)


@pytest.mark.parametrize("name", [name for name in OPS if name != "cross_entropy"])
def test_float32_arrays_are_rounded_to_the_precision(name):
    """Once, to bf16: then it is as if they had come so. (Logits are taken as they are, float32 out of a head.)"""
    machine = both("bf16")
    inputs, dy, options = arguments_of(name, machine)

    def widened(a):
        return a.astype(np.float32) if a.dtype == BF16 else a

    for ops in machine.ops:
        expected = results(ops, name, inputs, dy, options)
        for a, b in zip(expected, results(ops, name, changed(inputs, widened), changed(dy, widened), options), strict=True):
            assert a.dtype == b.dtype or b.dtype == np.float32  # dx that is dy itself
            np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32))


def test_float32_logits_stay_float32_in_bf16():
    machine, r = both("bf16"), generator(4)
    logits, targets = r.standard_normal((13, 65)).astype(np.float32), r.integers(0, 65, 13)
    check(machine, "cross_entropy", {"logits": logits, "targets": targets}, 0.7, bounds.cross_entropy, (FLOAT32, FLOAT32))


@every_precision
@pytest.mark.parametrize("name", [name for name in OPS if name not in ("cross_entropy", "linear_cross_entropy")])
def test_an_empty_batch(name, precision):
    """No rows out, and gradients of weights that are zero."""
    machine = both(precision)
    inputs, dy, options = arguments_of(name, machine)
    weights = {"linear": (1, 2), "embedding": (1,), "position_embedding": (1,), "layernorm": (1, 2), "prenorm_layernorm": (1, 2)}
    weights |= {"dropout_add_layernorm": (2, 3), "mlp": (1, 2, 3, 4)}
    inputs = tuple(a if i in weights.get(name, ()) else a[:0] for i, a in enumerate(inputs))
    if name == "position_embedding":
        inputs, dy = (np.zeros((0, 2, 32), machine.dtype), inputs[1]), np.zeros((0, 2, 32), machine.dtype)

    def rows(a):
        return a[:0]

    found = machine.run(lambda ops: tuple(results(ops, name, inputs, changed(dy, rows), options)))
    assert all(not a.any() for a in found)
    of_weights = [inputs[i].shape for i in weights.get(name, ())]
    assert [a.shape for a in found][len(found) - len(of_weights) :] == of_weights


FEW = (
    "linear",
    "embedding",
    "position_embedding",
    "layernorm",
    "dropout_add_layernorm",
    "gelu",
    "relu",
    "residual",
    "cross_entropy",
    "linear_cross_entropy",
)


@pytest.mark.parametrize("name", FEW)
def test_few_blocks_do_the_work_of_many(name, monkeypatch):
    """The grids are made for a GPU: small arrays never fill them, so no block would come to its second turn."""
    monkeypatch.setattr(elementwise, "GRID", 2)
    monkeypatch.setattr(layernorm, "ROW_BLOCKS", 2)
    monkeypatch.setattr(layernorm, "SHARE_BLOCKS", 2)
    monkeypatch.setattr(cross_entropy, "BLOCKS", 2)
    monkeypatch.setattr(reduce, "ROWS_EACH", 5)
    monkeypatch.setattr(reduce, "FILL", 7)
    for precision in PRECISIONS:
        check_all(name, both(precision, name == "linear"))


@every_precision
def test_cross_entropy_of_more_rows_than_a_grid_has_warps(precision):
    cross_entropy_alone(both(precision), rows=(16500,), V=7)


@every_precision
@pytest.mark.parametrize(("function", "options"), [(linear, {"D": 65}), (linear_cross_entropy, {"V": 65}), (embedding, {"C": 65})])
def test_products_of_an_odd_width_are_made_wider(function, options, precision, monkeypatch):
    """Every row that a product reads or writes is whole pieces of 16 bytes, as the fast ones ask."""
    widths, machine = [], both(precision)

    def spied(gemm):
        def spy(a, b, out, **options):
            widths.extend((x if x.flags.c_contiguous else x.T).shape[1] for x in (a, b, out))
            gemm(a, b, out, **options)

        return spy

    for ops in machine.ops:
        monkeypatch.setattr(ops.runtime, "gemm", spied(ops.runtime.gemm))
    function(machine, **options)
    assert widths
    assert all(width % 8 == 0 for width in widths)


@every_precision
def test_composites_without_kernels_of_their_own_are_their_ops_in_a_row(precision):
    machine, r = both(precision), generator(5)
    x, fc_w, fc_b, proj_w, proj_b = (machine.draw(r, *shape) for shape in ((2, 9, 32), (32, 96), (96,), (96, 32), (32,)))
    qkv_w, qkv_b, out_w, dy = (machine.draw(r, *shape) for shape in ((32, 96), (96,), (32, 32), (2, 9, 32)))
    for ops in machine.ops:
        found = results(ops, "mlp", (x, fc_w, fc_b, proj_w, proj_b, "relu"), dy, {})
        h, fc = ops.linear_forward(x, fc_w, fc_b)
        a, act = ops.relu_forward(h)
        y, proj = ops.linear_forward(a, proj_w, proj_b)
        da, *dproj = ops.linear_backward(dy, proj)
        expected = [y, *ops.linear_backward(ops.relu_backward(da, act), fc), *dproj]
        found += results(ops, "self_attention", (x, qkv_w, qkv_b, out_w, proj_b, 2, 0.3, KEY), dy, {})
        h, qkv = ops.linear_forward(x, qkv_w, qkv_b)
        a, att = ops.attention_forward(h, 2, 0.3, KEY)
        y, proj = ops.linear_forward(a, out_w, proj_b)
        da, *dproj = ops.linear_backward(dy, proj)
        expected += [y, *ops.linear_backward(ops.attention_backward(da, att), qkv), *dproj]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(as_bytes(a), as_bytes(b))
        s, drop = ops.residual_forward(x, dy, 0.3, KEY)  # what the fused kernel draws and sums is what the separate ones do
        h, norm = ops.layernorm_forward(s, proj_b, fc_b[:32])
        ds, dw, db = ops.prenorm_layernorm_backward((x, dy), norm)
        expected = [s, h, *ops.residual_backward(ds, drop), dw, db]
        found = results(ops, "dropout_add_layernorm", (x, dy, proj_b, fc_b[:32], 0.3, KEY), (x, dy), {})
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=2 * UNIT[machine.dtype], atol=2 * F)
        _, cache = ops.dropout_add_layernorm_forward(x, dy, proj_b, None)
        dx, branch, *_ = ops.dropout_add_layernorm_backward((x, dy), cache)
        assert branch is dx  # without dropout


def test_which_attention_is_on_tensor_cores():
    """And why not; attention_mma.cu is right for these alone."""
    float32, bf16 = both("float32").ops[0], both("bf16").ops[0]
    for D, T, dropout, kv_cache in ((16, 9, False, False), (64, 8, True, False), (128, 256, True, False), (112, 1, False, False)):
        assert on_cores(bf16, D, T, dropout, kv_cache) == (True, "tensor cores")
        assert on_cores(float32, D, T, dropout, kv_cache) == (False, "float32 arithmetic")
    for arguments, why in (
        ((8, 8, False, False), "head size 8 "),
        ((24, 8, False, False), "head size 24 "),
        ((144, 8, False, False), "head size 144 "),
        ((64, 6, True, False), "a context of 6 "),
        ((64, 8, False, True), "one position"),
    ):
        found, reason = on_cores(bf16, *arguments)
        assert not found
        assert why in reason


# ---- randomness: the reference's very bits ----

MASKED = [((3, 5, 33), 0), ((3, 5, 33), 7), ((2, 9, 32), 0), ((2, 9, 32), 5), ((7, 1), 1), ((1, 1030), 3)]


def mask_of(key, shape, p):
    return keep_mask(np, key, shape, p)


@every_precision
@pytest.mark.parametrize("p", [0.2, 0.9])
@pytest.mark.parametrize(("shape", "row0"), MASKED)
def test_masks_of_dropout_and_residual(shape, row0, p, precision):
    """Of ones: what is not 0 was kept. With rows before, and numbers of elements that begin within a counter."""
    machine, key = both(precision), Key(1, 2**31 + 7, row0)
    ones, zeros, expected = np.ones(shape, machine.dtype), np.zeros(shape, machine.dtype), mask_of(key, shape, p)

    def run(ops, ones, zeros):
        y, drop = ops.dropout_forward(ones, p, key)
        out, residual = ops.residual_forward(zeros, ones, p, key)
        return y, ops.dropout_backward(ones, drop), out, ops.residual_backward(ones, residual)[1]

    for found in machine.run(run, ones, zeros):
        np.testing.assert_array_equal(found != 0, expected)


@every_precision
@pytest.mark.parametrize("C", [32, 33])
@pytest.mark.parametrize("row0", [0, 5])
def test_masks_of_add_layernorm(C, row0, precision):
    machine, key, shape = both(precision), Key(3, 4, row0), (3, 3, C)
    ones, zeros, w = np.ones(shape, machine.dtype), np.zeros(shape, machine.dtype), np.ones(C, machine.dtype)
    expected = mask_of(key, shape, 0.3)

    def run(ops, ones, zeros, w):
        (s, _), cache = ops.dropout_add_layernorm_forward(zeros, ones, w, None, 0.3, key)
        return s, ops.dropout_add_layernorm_backward((ones, zeros), cache)[1]  # dh = 0: dx is ones

    for found in machine.run(run, ones, zeros, w):
        np.testing.assert_array_equal(found != 0, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("T", "D"), [(13, 16), (16, 16), (72, 128)])
@pytest.mark.parametrize("row0", [0, 3])
def test_masks_of_attention(precision, T, D, row0):
    """All scores are 0 and v is the identity, so y_ts is not 0 where probability (t, s) was kept; of dv with dy, the same."""
    B, H, p, key = 2, 2, 0.4, Key(11, 12, row0)
    machine = both(precision)
    expected = mask_of(key, (B, H, T, T), p) & np.tri(T, dtype=bool)
    identity = np.broadcast_to(np.eye(T, D)[:, None], (B, T, H, D))
    qkv = np.concatenate([np.zeros((B, T, 2 * H * D)), identity.reshape(B, T, -1)], axis=-1).astype(machine.dtype)
    dy = np.ascontiguousarray(identity).reshape(B, T, -1).astype(machine.dtype)

    def run(ops, qkv, dy):
        y, cache = ops.attention_forward(qkv, H, p, key)
        return y, ops.attention_backward(dy, cache)[..., 2 * H * D :]

    y, dv = (a.reshape(B, T, H, D).transpose(0, 2, 1, 3)[..., :T] for a in machine.run(run, qkv, dy))
    np.testing.assert_array_equal(y != 0, expected)
    np.testing.assert_array_equal(dv.swapaxes(-1, -2) != 0, expected)


def threshold(both, element=0):
    key = Key(1, 2)
    p = int(_lanes(np, key, 0, 8)[element]) / 65536
    for probability, kept in ((p, True), (p + 1 / 65536, False)):
        (found,) = both.run(lambda ops, x, p=probability: ops.dropout_forward(x, p, key)[0], np.ones((32,), np.float32))
        assert (found[element] != 0) == kept
        np.testing.assert_array_equal(found != 0, mask_of(key, (32,), probability))


@pytest.mark.parametrize("element", [0, 1, 2, 3, 17])
def test_a_lane_equal_to_the_threshold_is_kept(element):
    threshold(both("float32"), element)


def device_key(both, seed=7, step=3):
    """Its number in memory, the key mixed in the kernel: the same bits as with the key made on the host."""
    r, row0 = generator(6), 3
    x, y, w = both.draw(r, 2, 8, 32), both.draw(r, 2, 8, 32), both.draw(r, 32)
    small, wide = both.draw(r, 2, 8, 3 * 15), both.draw(r, 2, 8, 3 * 32)
    data = r.integers(0, 200, 1000).astype(np.uint8)

    def run(ops, key, x, y, w, small, wide, data):
        results = []
        for name, p, arrays in (("dropout", 0.3, (x,)), ("residual", 0.3, (x, y)), ("dropout_add_layernorm", 0.3, (x, y, w, None))):
            out, cache = getattr(ops, f"{name}_forward")(*arrays, p, ops.fold_in(key, 2, name))
            results += [out, getattr(ops, f"{name}_backward")((x, y) if name == "dropout_add_layernorm" else y, cache)]
        for qkv, H in ((small, 3), (wide, 2)):
            out, cache = ops.attention_forward(qkv, H, 0.3, ops.fold_in(key, 0, "attention"))
            results += [out, ops.attention_backward(out, cache)]
        return *results, ops.get_batch(data, ops.fold_in(key, 0, "batch"), 5, 9)

    def on_device(ops, *arrays):
        counter = DeviceStep(guarded(ops, np.array(step, np.int64)))
        return run(ops, ops.step_key(seed, counter, row0), *arrays)

    arrays = (x, y, w, small, wide, data)
    expected = both.run(lambda ops, *a: run(ops, step_key(seed, step, row0), *a), *arrays)
    for a, b in zip(both.run(on_device, *arrays), expected, strict=True):
        np.testing.assert_array_equal(as_bytes(a), as_bytes(b))
    assert len({as_bytes(a).tobytes() for a in expected[:4]}) == 4


@every_precision
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 3), (2**40 + 5, 2**33 + 1)])
def test_a_key_of_a_step_on_the_device_is_the_key_of_the_step(seed, step, precision):
    device_key(both(precision), seed, step)


def batch(both, dtype=np.uint8, rows=5, T=300, row0=3, counted=None):
    """counted: the number of a step, which is in the device's memory."""
    key = Key(4, 5, row0) if counted is None else fold_in(step_key(9, counted, row0), 2, "batch")
    data = generator(8).integers(0, 100, T + 1000).astype(dtype)

    def run(ops, data):
        counter = DeviceStep(guarded(ops, np.array(counted or 0, np.int64)))
        return ops.get_batch(data, key if counted is None else ops.fold_in(ops.step_key(9, counter, row0), 2, "batch"), rows, T)

    found = both.run(run, data)
    for a, b in zip(found, REFERENCE.get_batch(data, key, rows, T), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize(("rows", "T", "row0"), [(1, 1, 0), (5, 9, 0), (3, 300, 2**32 - 2), (4, 32, 8)])
def test_batches_are_the_references(dtype, rows, T, row0):
    batch(both("float32"), dtype, rows, T, row0)


def test_a_text_of_one_window_has_one_batch():
    data = np.arange(10, dtype=np.uint8)
    idx, targets = both("float32").run(lambda ops, data: ops.get_batch(data, KEY, 3, 9), data)
    np.testing.assert_array_equal(idx, [data[:9]] * 3)
    np.testing.assert_array_equal(targets, [data[1:]] * 3)


# ---- the optimizer's end of a step ----

UPDATE = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3}
SCHEDULE = {"lr": 0.02, "min_lr": 0.003, "warmup": 3, "total": 7}


def adamw(both, n=1003, n_decay=501, steps=9, counted=False):
    """Every step of a run, over warmup, cosine and what comes after, against one update of the reference from the same numbers.

    Returns the worst errors of params, m and v. Three numbers are rounded a few times each; the update itself, lr m / sqrt(v), is
    off by the roundings of its factors.
    """
    r, worst = generator(n, n_decay or 0), [0.0] * 3
    params, m, v = r.standard_normal(n).astype(np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)
    for step in range(steps):
        grads = (r.standard_normal(n) * 10.0 ** r.uniform(-4, 1, n)).astype(np.float32)

        def update(ops, params, grads, m, v, step=step):
            params, m, v = (guarded(ops, a) for a in (params, m, v))
            number = DeviceStep(guarded(ops, np.array(step, np.int64))) if counted else step
            lr = ops.cosine_lr(number, *SCHEDULE.values())
            ops.adamw_(params, grads, m, v, number + 1, lr, n_decay=n_decay, **UPDATE)
            return params, m, v

        expected = params_64, m_64, v_64 = [a.astype(np.float64) for a in (params, m, v)]
        decayed = np.abs(params_64) * (np.arange(n) < (n if n_decay is None else n_decay))
        before = params_64.copy()
        lr = REFERENCE.cosine_lr(step, *SCHEDULE.values())
        REFERENCE.adamw_(params_64, grads.astype(np.float64), m_64, v_64, step + 1, lr, n_decay=n_decay, **UPDATE)
        moved = np.abs(params_64 - before * np.where(decayed > 0, 1 - lr * UPDATE["weight_decay"], 1.0))
        terms = np.abs(0.8 * m) + np.abs(0.2 * grads)
        slope = np.abs(moved / np.maximum(np.abs(m_64), 1e-30))  # of params by m
        inexact = [2 * F * decayed + 5 * F * moved + 2 * F * slope * terms, 2 * F * terms, 3 * F * np.abs(v_64)]
        params, m, v = both.run(update, params, grads, m, v)
        ratios = [close(a, e, FLOAT32, off) for a, e, off in zip((params, m, v), expected, inexact, strict=True)]
        worst = [max(pair) for pair in zip(worst, ratios, strict=True)]
    return worst


@pytest.mark.parametrize("n_decay", [None, 0, 501, 1003])
@pytest.mark.parametrize("counted", [False, True])
def test_adamw(counted, n_decay):
    worst = adamw(both("float32"), n_decay=n_decay, counted=counted)
    assert min(worst) > 1 / 5


@pytest.mark.parametrize("n", [1, 4, 6, 9000])
def test_adamw_of_any_size(n):
    adamw(both("float32"), n=n, n_decay=n // 2, steps=2)


def test_adamw_by_the_devices_count_is_that_by_the_hosts():
    machine, r = both("float32"), generator(9)
    arrays = [r.standard_normal(101).astype(np.float32) for _ in range(4)]
    arrays[3] = np.abs(arrays[3])

    def update(ops, *arrays, step, counted):
        params, grads, m, v = (guarded(ops, a) for a in arrays)
        number = DeviceStep(guarded(ops, np.array(step, np.int64))) if counted else step
        ops.adamw_(params, grads, m, v, number + 1, ops.cosine_lr(number, *SCHEDULE.values()), n_decay=50, **UPDATE)
        return params, m, v

    for step in (*range(9), 10**6, 2**40):
        on_host, on_device = (machine.run(functools.partial(update, step=step, counted=c), *arrays) for c in (False, True))
        for a, b in zip(on_host, on_device, strict=True):
            np.testing.assert_array_equal(a, b)


def cosine_lr(both, *numbers):
    """Read off an update of the size of the rate: without memory and eps, m / sqrt(v) is the sign of the gradient."""
    for step in range(9):

        def update(ops, step=step):
            params, grads, m, v = (guarded(ops, np.full(5, x, np.float32)) for x in (0.0, 0.5, 0.0, 0.0))
            counter = DeviceStep(guarded(ops, np.array(step, np.int64)))
            ops.adamw_(params, grads, m, v, counter + 1, ops.cosine_lr(counter, *numbers), beta1=0.0, beta2=0.0, eps=0.0)
            return params

        (params,) = both.run(update)
        np.testing.assert_array_equal(params, np.full(5, -REFERENCE.cosine_lr(step, *numbers), np.float32))


@pytest.mark.parametrize("numbers", [(0.02, 0.003, 0, 5), (0.02, 0.003, 4, 4), (0.02, 0.003, 6, 2), (0.1, 0.1, 0, 100)])
def test_schedules_on_the_device(numbers):
    cosine_lr(both("float32"), *numbers)


def clipped(both, n=1003, max_norm=1.0):
    """A sum of squares in pieces is off by few roundings, and half as many in its root; clipping adds three."""
    grads = generator(n).standard_normal(n).astype(np.float32)

    def clip(ops, grads):
        mine = guarded(ops, grads)
        return ops.global_norm(mine), ops.clip_grad_norm_(mine, max_norm), mine

    expected = grads.astype(np.float64)
    norm = REFERENCE.clip_grad_norm_(expected, max_norm)
    found = both.run(clip, grads)
    assert found[0] == found[1]
    close(np.asarray(found[0]), norm, FLOAT32, 4 * F * norm)
    close(found[2], expected, FLOAT32, 7 * F * np.abs(expected) if 0 < max_norm < norm else 0.0)


@pytest.mark.parametrize("n", [1, 6, 1003, 300_000])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
def test_norm_and_clipping(n, max_norm):
    clipped(both("float32"), n, max_norm)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_no_number_shows(bad):
    """NaN leaves the others to be looked at, as the reference does; an infinite one makes zeros of them."""
    machine = both("float32")
    grads = np.array([1.0, 2.0, bad, 4.0, 5.0], np.float32)

    def clip(ops, grads):
        mine = guarded(ops, grads)
        return ops.clip_grad_norm_(mine, 1.0), mine

    expected = grads.copy()
    with np.errstate(invalid="ignore"):
        norm = REFERENCE.clip_grad_norm_(expected, 1.0)
    found = machine.run(clip, grads)
    np.testing.assert_array_equal(found[0], norm)
    np.testing.assert_array_equal(found[1], expected)


def pack_grads(both, add=True, count=301):
    """Arrays of one and of many blocks, transposed ones, odd addresses; more of them than a launch takes twice, or just so many."""
    r = generator(10)
    kinds = (1,), (3,), (4, 5), (17, 3), (1001,), (33,)
    shapes = [kinds[i % 6] for i in range(count - 1)] + [(70, 300)]
    leaves = [r.standard_normal(shape).astype(np.float32) for shape in shapes]
    before = [r.standard_normal(shape).astype(np.float32) for shape in shapes]

    def run(ops, *arrays):
        layout = (transposed, off_by_one, np.array)
        mine = [layout[i % 3](a) if a.ndim > 1 or i % 3 else a for i, a in enumerate(arrays[: len(leaves)])]
        slots = [guarded(ops, a) for a in arrays[len(leaves) :]]
        ops.pack_grads(mine, slots, add=add)
        return tuple(slots)

    for leaf, slot, found in zip(leaves, before, both.run(run, *leaves, *before), strict=True):
        np.testing.assert_array_equal(found, slot + leaf if add else leaf)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("count", [1, elementwise.COPIES, 301])
def test_gather(count, add):
    pack_grads(both("float32"), add, count)


@pytest.mark.parametrize("C", [32, 33])
def test_gradients_of_layernorm_can_be_gathered(C):
    """dw and db lie side by side in one array: for an odd C, db begins where no vector load may."""
    machine, r = both("float32"), generator(C)
    x, w, b, dy = machine.draw(r, 7, C), machine.draw(r, C), machine.draw(r, C), machine.draw(r, 7, C)

    def pack_grads(ops, x, w, b, dy):
        _, dw, db = ops.layernorm_backward(dy, ops.layernorm_forward(x, w, b)[1])
        slots = guarded(ops, np.zeros(C, np.float32)), guarded(ops, np.zeros(C, np.float32))
        ops.pack_grads([dw, db], slots)
        return dw, db, *slots

    dw, db, *slots = machine.run(pack_grads, x, w, b, dy)
    np.testing.assert_array_equal([dw, db], slots)


def test_shares_of_a_loss():
    def sum_up(ops, a, b):
        first = ops.accumulate_loss(None, a, 0.25)
        return first, ops.accumulate_loss(first, b, 0.5), ops.accumulate_loss(None, a, 1.0)

    found = both("float32").run(sum_up, np.asarray(np.float32(3.3)), np.asarray(np.float32(4.7)))
    three = np.float32(0.25) * np.float32(3.3)
    np.testing.assert_array_equal(found, [three, three + np.float32(0.5) * np.float32(4.7), np.float32(3.3)])


def end_of_step(both):
    """Its loss and norm into slot step % slots of the ring, and the count goes on."""

    def end(ops, ring, loss, norm):
        counter, ring = guarded(ops, np.array(2**33 + 5, np.int64)), guarded(ops, ring)
        for _ in range(2):
            ops.launch("optim.cu", "end_step", 1, 1, counter, loss, norm, ring, 7)
        return counter, ring

    counter, ring = both.run(end, np.zeros((7, 2), np.float32), np.float32(1.5)[None], np.float32(2.5)[None])
    assert counter == 2**33 + 7
    expected = np.zeros((7, 2))
    expected[[(2**33 + 5) % 7, (2**33 + 6) % 7]] = 1.5, 2.5
    np.testing.assert_array_equal(ring, expected)


def test_the_end_of_a_step():
    end_of_step(both("float32"))


# ---- planted mistakes ----

MMA, SCALAR, TILES = "attention_mma.cu", "attention.cu", "attention_tiles.cuh"
BARRIER = "__syncthreads();"
tiles = functools.partial(attention, B=1, T=76, H=1)  # two of the tensor cores' tiles, the second with 12 of 64 rows
masked = functools.partial(attention, B=1, T=76, p=0.3)  # and two heads, after three rows of a batch
rows = functools.partial(attention, B=1, T=40, H=1)  # two tiles of the scalar kernels, five blocks
masked_rows = functools.partial(attention, B=1, T=40, p=0.3)
# A file, what is in it once, what to put in its place, the precision, and the check that must notice.
PLANTED = [
    # a barrier less
    (MMA, "__syncthreads();\n        float p[8][4];\n", "float p[8][4];\n", "bf16", tiles),
    (MMA, "__syncthreads();  // before the next tile overwrites k and v", "", "bf16", tiles),
    (MMA, "__syncthreads();\n        float p[8][4], dp[8][4];\n", "float p[8][4], dp[8][4];\n", "bf16", tiles),
    (MMA, "add_held_times_rows(sum, p, k);  // 4. dq\n        __syncthreads();", "add_held_times_rows(sum, p, k);", "bf16", tiles),
    (MMA, "__syncthreads();\n        float p[P][4], dp[P][4];\n", "float p[P][4], dp[P][4];\n", "bf16", tiles),
    (MMA, "add_held_times_rows(dk, dp, q);  // 4. dk\n        __syncthreads();", "add_held_times_rows(dk, dp, q);", "bf16", tiles),
    (SCALAR, "__syncthreads();\n        load_tile(k_tile, k_head", "load_tile(k_tile, k_head", "float32", rows),
    (SCALAR, "v_head, ks.row, first, end);\n        __syncthreads();", "v_head, ks.row, first, end);", "float32", rows),
    (SCALAR, "__syncthreads();\n        load_tile(k_tile, head + C", "load_tile(k_tile, head + C", "float32", rows),
    (SCALAR, "3 * C, first, end);\n        __syncthreads();", "3 * C, first, end);", "float32", rows),
    (SCALAR, "__syncthreads();\n        load_tile(q_tile", "load_tile(q_tile", "float32", rows),
    (SCALAR, "C, first, T);\n        __syncthreads();", "C, first, T);", "float32", rows),
    ("layernorm.cu", BARRIER, "", "float32", layernorm_alone),
    ("reduce.cu", BARRIER, "", "float32", positions),
    ("common.cuh", BARRIER, "", "float32", clipped),
    ("random.cuh", BARRIER, "", "float32", dropout),
    ("embedding.cu", BARRIER, "", "float32", batch),
    ("optim.cu", BARRIER, "", "float32", adamw),
    # where a matrix's numbers are
    (TILES, "PITCH + d + lane / 16 * 8);\n#pragma", "PITCH + d + lane / 8 % 2 * 8);\n#pragma", "bf16", tiles),
    (TILES, "d + lane / 8 % 2 * 8", "d + lane / 16 * 8", "bf16", tiles),
    (TILES, "(8 * j + lane % 16)", "(8 * j + lane % 8)", "bf16", tiles),
    (TILES, "PITCH = D + 8", "PITCH = D + 4", "bf16", tiles),
    (TILES, "if (r + 8 < rows)", "if (r + 7 < rows)", "bf16", tiles),
    (TILES, "(r + 8) * row + 8 * j", "(r + 7) * row + 8 * j", "bf16", tiles),
    (SCALAR, "PITCH = D + 1", "PITCH = D + 2", "float32", rows),
    # which scores count, and what is done with them
    (MMA, "p[j][i] = column <= row", "p[j][i] = column < row", "bf16", tiles),
    (MMA, "float prob = column <= row + i / 2 * 8", "float prob = column <= row + 1 + i / 2 * 8", "bf16", tiles),
    (MMA, "<= t + query", "< t + query", "bf16", tiles),
    (MMA, "? p[j][i] * (scale * LOG2_E) : -INF", "? p[j][i] * LOG2_E : -INF", "bf16", tiles),
    (MMA, "out[j][2] *= shrink8", "out[j][2] *= shrink", "bf16", functools.partial(attention, B=1, T=128, H=1)),
    (MMA, "row_lse[8] = (top8", "row_lse[8] = (top", "bf16", tiles),
    (MMA, " - dy_y[query]);", ");", "bf16", tiles),
    (MMA, "int t = row + 8 * i;", "int t = row + 7 * i;", "bf16", tiles),
    (SCALAR, "sum = sum * shrink + warp_sum(p)", "sum = sum + warp_sum(p)", "float32", rows),
    (SCALAR, "ds = p * (dp - dy_y)", "ds = p * dp", "float32", rows),
    (SCALAR, "if (s <= t && t < T)", "if (s < t && t < T)", "float32", rows),
    # dropout
    (MMA, "keep / sum, keep / sum8", "1.0f / sum, 1.0f / sum8", "bf16", masked),
    (MMA, "dv, keep, keep);", "dv, 1.0f, 1.0f);", "bf16", masked),
    (MMA, "row) * T + other * TILE;\n            unsigned kept", "row) * T;\n            unsigned kept", "bf16", masked),
    (TILES, "lane - t + 2 * half + t / 2", "lane - t + 2 * half + t % 2", "bf16", masked),
    (TILES, "own + own / 2 * 8", "own + own % 2 * 8", "bf16", masked),
    (TILES, "(r - own + i) * 4 + t) >> own", "(r - own + i) * 4 + t) >> i", "bf16", masked),
    (SCALAR, "drop.first + row * T + s", "row * T + s", "float32", masked_rows),
    ("random.cuh", "17, 29, 16, 24}", "17, 29, 24, 16}", "float32", dropout),
    ("random.cuh", "(x.y & 0xffffu) >= thr", "(x.y & 0xffffu) > thr", "float32", functools.partial(threshold, element=2)),
    ("random.cuh", "counter, (unsigned)(counter >> 32)", "counter, 0u", "float32",
     functools.partial(dropout, shape=(1, 64), key=Key(1, 2, 2**29))),
    ("random.cuh", "element / 4) >> (element % 4)", "element / 4) >> (element % 2)", "float32", dropout),
    ("random.cuh", "(unsigned)*key.step, (unsigned)(*key.step >> 32)", "(unsigned)*key.step, 0u", "float32",
     functools.partial(batch, counted=2**33 + 1)),
    ("random.cuh", "key.layer, key.site)", "key.site, key.layer)", "float32", functools.partial(batch, counted=1)),
    ("elementwise.cu", "drop.first + slice.i", "slice.i", "float32", dropout),
    ("elementwise.cu", "x.at[j] * drop.scale", "x.at[j]", "float32", dropout),
    ("layernorm.cu", "key, drop.first + n * C);\n            for", "key, n * C);\n            for", "float32",
     functools.partial(dropout_add_layernorm, p=0.3)),
    ("layernorm.cu", "if (drop.threshold) drop_row(g, drop, key, drop.first + n * C);", "", "float32",
     functools.partial(dropout_add_layernorm, p=0.3)),
    # a few of all the rest
    ("layernorm.cu", "if (channel(i) < C) row", "row", "float32", layernorm_alone),
    ("layernorm.cu", "+ (warp ? share[1][c] : 0.0f)", "", "float32", layernorm_alone),
    ("layernorm.cu", "stored(s, row.at[i][j] + branch.at[i][j])", "row.at[i][j] + branch.at[i][j]", "bf16", dropout_add_layernorm),
    ("reduce.cu", "(blockIdx.y + 1) * rows_each", "(blockIdx.y + 2) * rows_each", "float32",
     functools.partial(positions, rows=(1100,))),
    ("common.cuh", "i = 16; i > 0; i /= 2) x +=", "i = 8; i > 0; i /= 2) x +=", "float32", clipped),
    ("common.cuh", "i + 4 <= n", "i + 3 <= n", "float32", functools.partial(gelu, shape=(1023,))),
    ("common.cuh", "n / 4 * 4 + thread < n", "n / 4 * 4 + thread <= n", "float32", gelu),
    ("elementwise.cu", "v.at[j] > 0.0f ? d.at[j]", "v.at[j] >= 0.0f ? d.at[j]", "float32", relu),
    ("elementwise.cu", "Four y = slice.load(to);", "Four y = slice.load(from);", "float32", pack_grads),
    ("cross_entropy.cu", ": 1.0f) / rows;", ": 1.0f);", "float32", cross_entropy_alone),
    ("cross_entropy.cu", "v < stride", "v < V", "float32", linear_cross_entropy),
    ("embedding.cu", "row0 + blockIdx.x", "blockIdx.x", "float32", batch),
    ("optim.cu", "slice.i + j < n_decay", "slice.i < n_decay", "float32", adamw),
    ("optim.cu", "(float)(u.eps * root_c2)", "(float)u.eps", "float32", adamw),
    ("optim.cu", "(*u.step + 1) / (u.warmup", "*u.step / (u.warmup", "float32", lambda both: cosine_lr(both, 0.02, 0.003, 4, 7)),
    ("optim.cu", "ring[2 * slot + 1]", "ring[2 * slot]", "float32", end_of_step),
]  # fmt: skip


def planted_name(planted):
    file, old, new = (re.sub(r"\s+", " ", text) for text in planted[:3])
    return f"{file}: {old[:50]} -> {new[:50] or 'nothing'}"


@pytest.mark.parametrize("planted", PLANTED, ids=planted_name)
def test_a_planted_mistake_is_noticed(planted):
    file, old, new, precision, function = planted
    source = (KERNELS / file).read_text()
    assert source.count(old) == 1, f"{file} has {old!r} {source.count(old)} times"
    edited = Both(precision, edits={file: [(old, new)]})
    with pytest.raises((AssertionError, KernelError)) as caught:
        function(edited)
    assert "does not compile" not in str(caught.value)
    unharmed(function, precision)


@functools.cache
def unharmed(function, precision):
    """As the kernels stand, the check passes."""
    function(both(precision))


# ---- the compiler of real GPUs, which needs none ----

ARCHITECTURES = (80, *(pytest.param(architecture, marks=pytest.mark.long) for architecture in (89, 90, 100)))


class Recorder(DryRunRuntime):
    """Notes the kernel files, and what is defined for each."""

    def __init__(self):
        super().__init__()
        self.files = {}

    def launch(self, file, name, grid, block, *args, shared=0, flops=0.0, touches=(), **defines):
        self.files[file, tuple(sorted(defines.items()))] = True

    def gemm(self, a, b, out, *, apart=None, **options):
        if apart:
            apart()


def files_of_a_run():
    """What the full Shakespeare model needs, in float32 and bf16, to train and to write; and attention of other head sizes."""
    preset, files = PRESETS["shakespeare"], {}
    table = ParamTable(MODELS["gpt"].init(preset.model))
    data = np.zeros(1000, np.uint16)
    for precision in PRECISIONS:
        ops = cuda.CUDAOps(precision, check=False, runtime=Recorder())
        state = TrainState(table, *(np.zeros(table.size, np.float32) for _ in range(4)))
        train_step(ops, MODELS["gpt"], state, data, preset.model, TrainConfig(batch_size=2, grad_clip=1.0), 0)
        kv_cache = KVCache(preset.model.n_layer, preset.model.block_size)
        MODELS["gpt"].logits(ops, table.tree(ops.compute_params(state.params)), data[None, :1], preset.model, kv_cache)
        files |= ops.runtime.files
    sums = sorted(file for file in files if file[0] == "reduce.cu")  # of many widths: two of them are enough
    files = {file: True for file in files if file not in sums[2:-2]}
    return sorted(files | {("attention_mma.cu", (("D", D),)): True for D in (16, 32, 64, 128)} | {("spin.cu", ()): True})


@pytest.fixture(scope="module")
def compiler():
    try:
        nvrtc.library()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("file", "defines"), files_of_a_run(), ids=lambda x: x if isinstance(x, str) else " ".join(f"{k}={v}" for k, v in x)
)
def test_a_file_compiles_for_a_gpu_and_nothing_spills(file, defines, architecture, compiler):
    if architecture not in nvrtc.architectures():
        pytest.skip(f"this NVRTC knows {nvrtc.architectures()}")
    code, log = nvrtc.compile_file(file, architecture, dict(defines))
    assert code[:4] == b"\x7fELF"
    assert "warning" not in log
    usage = nvrtc.usage(log)
    assert set(usage) == set(ENTRY.findall((KERNELS / file).read_text()))
    assert {name: (u.spilled, u.stack) for name, u in usage.items()} == dict.fromkeys(usage, (0, 0))


def test_every_file_is_compiled():
    assert {file for file, _ in files_of_a_run()} == {path.name for path in KERNELS.glob("*.cu")}


def test_a_file_that_does_not_compile_is_named(compiler, tmp_path):
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void k(float* x) { x[0] = y; }')
    with pytest.raises(nvrtc.CompileError, match=r"(?s)^broken\.cu does not compile for sm_80 with \{'D': 3\}:.*identifier \"y\""):
        nvrtc.compile_file("broken.cu", 80, {"D": 3}, tmp_path)


def test_what_spills_is_seen(compiler, tmp_path):
    (tmp_path / "spills.cu").write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 2) k(float* x, int n) {\n'
        "float a[64];\n#pragma unroll\nfor (int i = 0; i < 64; i++) a[i] = x[i * n];\n"
        "for (int j = 0; j < n; j++)\n#pragma unroll\nfor (int i = 0; i < 64; i++) a[i] = a[i] * a[(i + 7) % 64] + x[j];\n"
        "#pragma unroll\nfor (int i = 0; i < 64; i++) x[i * n] = a[i]; }\n"
        'extern "C" __global__ void indexed(float* x, int n) {\n'
        "float a[64]; for (int i = 0; i < n; i++) a[i % 64] = x[i]; for (int i = 0; i < n; i++) x[0] += a[7 * i % 64]; }"
    )
    usage = nvrtc.usage(nvrtc.compile_file("spills.cu", 80, {}, tmp_path)[1])
    assert usage["k"].spilled > 0
    assert usage["indexed"].stack >= 256


def test_compiled_code_is_kept(compiler, tmp_path, monkeypatch):
    """Under a name made of all that it depends on; where nothing can be written, it is compiled again."""
    calls, compile_file = [], nvrtc.compile_file
    monkeypatch.setattr(nvrtc, "compile_file", lambda *args: calls.append(args) or compile_file(*args))
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "cache"))
    first = nvrtc.cubin("reduce.cu", 80, {"REAL": "float", "K": 3})
    assert nvrtc.cubin("reduce.cu", 80, {"REAL": "float", "K": 3}) == first
    assert len(calls) == 1
    for architecture, k in ((89, 3), (80, 5)):
        nvrtc.cubin("reduce.cu", architecture, {"REAL": "float", "K": k})
    assert len(calls) == len(list((tmp_path / "cache" / "kernels").iterdir())) == 3
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "file"))
    assert nvrtc.cubin("reduce.cu", 80, {"REAL": "float", "K": 3}) == first


def test_a_missing_compiler_is_a_device_error(monkeypatch):
    def missing(_):
        raise RuntimeError("nowhere")

    for module in (None, types.SimpleNamespace(load_nvidia_dynamic_lib=missing)):
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", module)
        with pytest.raises(DeviceError, match=r"no CUDA: the run-time compiler libnvrtc cannot be loaded .*pip install"):
            nvrtc.library.__wrapped__()


def test_code_for_a_gpu_is_of_its_family(monkeypatch):
    """Of compute capability 8.x code for 8.0 to 8.x runs, and none of 9.0."""
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80, 86, 90, 100))
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 8))
    for architecture, target in ((80, 80), (86, 86), (87, 86), (89, 86), (90, 90), (100, 100), (103, 100)):
        assert device.target(architecture) == target
        device.check_device("a GPU", architecture)
    with pytest.raises(DeviceError, match=r"CUDA 12\.8 has no compiler for compute capability 12\.0; install CuPy"):
        device.check_device("a new GPU", 120)
    for old in (61, 75):
        with pytest.raises(
            DeviceError, match=rf"Tesla T4 has compute capability {old // 10}\.{old % 10}, .* needs 8\.0 .*--backend ref"
        ):
            device.check_device("Tesla T4", old)


# ---- what the files say ----

SOURCES = {path.name: path.read_text() for path in sorted(KERNELS.glob("*.cu*"))}


def test_assembly_is_in_one_file():
    assert [name for name, text in SOURCES.items() if re.search(r"\basm\b", text)] == ["ptx.cuh"]


@pytest.mark.parametrize("file", [name for name in SOURCES if name.endswith(".cu")])
def test_a_kernel_file_names_what_it_replaces(file):
    """In its first lines: the file of the reference, or the kernel file that names it. Sums and a wait replace nothing."""
    header = "".join(itertools.takewhile(lambda line: line.startswith("//"), SOURCES[file].splitlines(keepends=True)))
    named = re.findall(r"[\w/]+\.(?:py|cu)\b", header)
    root = KERNELS.parents[2]
    for name in named:
        assert any((folder / name).is_file() for folder in (root, root / "tensorlite" / "reference", KERNELS)), name
    assert named or file in ("reduce.cu", "spin.cu")
    assert all(name.endswith(".py") or name in SOURCES for name in named)
