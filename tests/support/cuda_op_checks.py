"""A check of each op of the CUDA backend against the float64 reference, on a machine of cuda_machines.py.

A check takes shapes and a seed, and returns the worst errors in units of their bounds, which cuda_bounds.py derives.
"""

import numpy as np

import cuda_bounds as bounds
import cuda_machines as machines
from cuda_bounds import FLOAT32, REFERENCE, F
from cuda_machines import KEY, as_arrays, generator, in_float64
from shim.host import KernelError
from tensorlite import Key

EXACT = None  # in the place of a bound: the value must equal the reference's


def worst(both, found, expected, dtype, off):
    """Assert the bound. Return the error in units of it if the result is stored in the precision, else None.

    Float32 sums of 16-bit values are often exact and so do not show how tight their bound is; sums of float32 values do.
    """
    ratio = machines.close(found, expected, dtype, off)
    return ratio if dtype == both.dtype else None


def check(both, name, inputs, dy, inexact, dtypes, **options):
    """Check an op's value and gradients. Return the worst errors in units of their bounds, None for exact ones.

    inputs: arrays by name, or None.
    inexact: a function of the inputs and dy in float64, which returns the bounds of value and gradients, or EXACT.
    dtypes: the dtypes of value and gradients.

    Backward is called twice, as the contract allows, and must return the same.
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
            assert a is b is None or np.array_equal(machines.as_bytes(a), machines.as_bytes(b))
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


def results(ops, name, inputs, dy, options):
    y, cache = getattr(ops, f"{name}_forward")(*inputs, **options)
    return as_arrays((y, getattr(ops, f"{name}_backward")(dy, cache)))


def linear(both, rows=(7,), C=16, D=40, bias=True, seed=0):
    r = generator(*rows, C, D, seed)
    inputs = {"x": both.draw(r, *rows, C), "w": both.draw(r, C, D), "b": both.draw(r, D) if bias else None}
    dtypes = (both.dtype, both.dtype, FLOAT32, FLOAT32)
    return check(both, "linear", inputs, both.draw(r, *rows, D), lambda *a: bounds.linear(*a, both.unfused), dtypes)


def embedding(both, rows=(3, 5), V=11, C=24, kind=np.int32, seed=0):
    r = generator(*rows, V, C, seed)
    inputs = {"ids": r.integers(0, V, rows).astype(kind), "table": both.draw(r, V, C)}
    return check(
        both, "embedding", inputs, both.draw(r, *rows, C), lambda *a: (EXACT, bounds.embedding(*a)[1]), (both.dtype, FLOAT32)
    )


def position_embedding(both, rows=(3,), T=2, C=32, start=0, more=0, seed=0):
    r = generator(*rows, T, C, start, seed)
    inputs = {"x": both.draw(r, *rows, T, C), "wpe": both.draw(r, T + start + more, C)}

    def inexact(x, wpe, dy):
        y, _, dwpe = bounds.position_embedding(x, wpe, start, dy)
        return y, EXACT, dwpe

    return check(both, "position_embedding", inputs, both.draw(r, *rows, T, C), inexact, (both.dtype, None, FLOAT32), start=start)


def token_position_embedding(both, rows=(3,), V=11, T=2, C=32, start=0, more=0, seed=0):
    r = generator(*rows, V, T, C, start, seed)
    inputs = {"ids": r.integers(0, V, (*rows, T)), "wte": both.draw(r, V, C), "wpe": both.draw(r, T + start + more, C)}

    def inexact(ids, wte, wpe, dx):
        return 0.0, bounds.embedding(ids, wte, dx)[1], bounds.position_embedding(dx, wpe, start, dx)[2]

    dtypes = (both.dtype, FLOAT32, FLOAT32)
    return check(both, "token_position_embedding", inputs, both.draw(r, *rows, T, C), inexact, dtypes, start=start)


def spread_rows(both, r, rows, C):
    """Draw rows that have different means, and different spreads near 1."""
    return (both.draw(r, rows, C).astype(np.float64) * r.uniform(0.5, 2, (rows, 1)) + r.standard_normal((rows, 1))).astype(
        both.dtype
    )


def layernorm_alone(both, rows=7, C=32, bias=True, eps=1e-5, seed=0, bound=bounds.layernorm):
    r = generator(rows, C, seed)
    inputs = {"x": spread_rows(both, r, rows, C), "w": both.draw(r, C), "b": both.draw(r, C) if bias else None}
    dtypes = (both.dtype, both.dtype, FLOAT32, FLOAT32)
    return check(both, "layernorm", inputs, both.draw(r, rows, C), lambda *a: bound(*a, eps), dtypes, eps=eps)


def dropout_add_layernorm(both, rows=7, C=32, bias=True, p=0.0, key=KEY, ds=True, seed=0):
    """Compare s with the reference, and the rest with the layernorm of the s found, which is rounded before it is normalised.

    ds: whether s has another use than the layernorm.
    """
    r = generator(rows, C, seed)
    x, y, w, b = spread_rows(both, r, rows, C), both.draw(r, rows, C), both.draw(r, C), both.draw(r, C) if bias else None
    ds, dh = both.draw(r, rows, C) if ds else None, both.draw(r, rows, C)

    def run(ops, x, y, w, b, ds, dh):
        out, cache = ops.dropout_add_layernorm_forward(x, y, w, b, p, key)
        return out, ops.dropout_add_layernorm_backward((ds, dh), cache)

    s, h, dx, dy, dw, db = both.run(run, x, y, w, b, ds, dh)
    x, y, w, b, ds, dh, found_s = map(in_float64, (x, y, w, b, ds, dh, s))
    expected_s, residual_cache = REFERENCE.residual_forward(x, y, p, key)
    ratios = [worst(both, s, expected_s, both.dtype, bounds.residual(x, y, dh, p, key)[0])]
    expected_h, cache = REFERENCE.layernorm_forward(found_s, w, b)
    expected_dx, *weights = REFERENCE.layernorm_backward(dh, cache)
    expected_dx = expected_dx if ds is None else ds + expected_dx
    off_h, off_dx, *off_weights = bounds.layernorm(found_s, w, b, dh, skip=ds)
    ratios += [worst(both, h, expected_h, both.dtype, off_h), worst(both, dx, expected_dx, both.dtype, off_dx)]
    expected_dy, off_dy = (
        REFERENCE.residual_backward(expected_dx, residual_cache)[1],
        REFERENCE.residual_backward(off_dx, residual_cache)[1],
    )
    ratios += [worst(both, dy, expected_dy, both.dtype, off_dy + 2 * F * np.abs(expected_dy))]
    for a, e, off in zip((dw, db), weights, off_weights, strict=True):
        assert (a is None) == (e is None)
        ratios += [None if e is None else worst(both, a, e, FLOAT32, off)]
    return ratios


def no_branch(both, rows=7, C=32, bias=True, seed=0):
    """Check dropout_add_layernorm where no branch ends. Then s is x, and dy is None."""
    r = generator(rows, C, seed)
    inputs = {"x": spread_rows(both, r, rows, C), "y": None, "w": both.draw(r, C), "b": both.draw(r, C) if bias else None}

    def inexact(x, _, w, b, d):
        y, dx, *weights = bounds.layernorm(x, w, b, d[1], skip=d[0])
        return EXACT, y, dx, EXACT, *weights

    dy = both.draw(r, rows, C), both.draw(r, rows, C)
    return check(both, "dropout_add_layernorm", inputs, dy, inexact, (None, both.dtype, both.dtype, None, FLOAT32, FLOAT32))


def sums_of_a_step(both, rows=7, C=32, p=0.3, seed=0):
    """Check what pack_grads finishes: the sums of two layernorms, and the gradient of the bias of the branch before the second.

    The first ones equal those outside a step to the bit. The last one is the sum of dy, which the second layernorm has written.
    """
    r = generator(rows, C, seed)
    x, y, ds, dh = spread_rows(both, r, rows, C), *(both.draw(r, rows, C) for _ in range(3))
    w, b, a, proj_w = both.draw(r, C), both.draw(r, C), both.draw(r, rows, 8), both.draw(r, 8, C)

    def run(ops, x, y, ds, dh, w, b, a, proj_w):
        _, norm = ops.layernorm_forward(x, w, b)
        _, branch_norm = ops.dropout_add_layernorm_forward(x, y, w, b, p, KEY)
        _, proj = ops.linear_forward(a, proj_w, b)

        def backward():
            _, *grads = ops.layernorm_backward(dh, norm)
            _, dy, *branch_grads = ops.dropout_add_layernorm_backward((ds, dh), branch_norm)
            return dy, [*grads, *branch_grads, ops.linear_backward(dy, proj)[2]]

        _, alone = backward()
        with ops.step():
            dy, leaves = backward()
            slots = [machines.guarded(ops, leaf) for leaf in leaves]
            ops.pack_grads(leaves, slots)
        scale = 1.0 if ops.loss_scale is None else ops.loss_scale.value.scale  # which pack_grads has undone
        return dy, *alone[:4], *(slot * np.float32(scale) for slot in slots)

    dy, *found, db = both.run(run, x, y, ds, dh, w, b, a, proj_w)
    for alone, slot in zip(found[:4], found[4:], strict=True):
        np.testing.assert_array_equal(machines.as_bytes(alone), machines.as_bytes(slot))
    dy = in_float64(dy)
    return [worst(both, db, dy.sum(0), FLOAT32, bounds.summed(dy))]


def gelu(both, shape=(1021,), size=3.0, seed=0):
    r = generator(*shape, seed)
    return check(both, "gelu", {"x": both.draw(r, *shape, size=size)}, both.draw(r, *shape), bounds.gelu, (both.dtype, both.dtype))


def relu(both, shape=(1021,), seed=0):
    """The inputs include zeros, whose slope is 0."""
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
    """The documented condition: 16 bits, a head size of 16, 32 .. 128, and with dropout a context that is a multiple of 4."""
    return both.dtype != FLOAT32 and D % 16 == 0 and D <= 128 and not (p and T % 4)


def attention(both, B=2, T=65, H=2, D=16, p=0.0, key=KEY, size=1.0, seed=0):
    r = generator(B, T, H, D, seed)
    qkv, dy = both.draw(r, B, T, 3 * H * D), both.draw(r, B, T, H * D)
    qkv[..., : 2 * H * D] *= both.dtype.type(size)
    key = key if p else None

    def inexact(qkv, dy):
        return bounds.attention(qkv, H, dy, both.dtype, on_tensor_cores(both, T, D, p), p, key)

    return check(both, "attention", {"qkv": qkv}, dy, inexact, (both.dtype,) * 2, n_head=H, p=p, key=key)


def cross_entropy_alone(both, rows=(13,), V=65, dloss=0.7, size=2.0, seed=0, bound=bounds.cross_entropy):
    r = generator(*rows, V, seed)
    inputs = {"logits": both.draw(r, *rows, V, size=size), "targets": r.integers(0, V, rows)}
    return check(both, "cross_entropy", inputs, dloss, bound, (FLOAT32, both.dtype))


def mlp(both, rows=(7,), C=16, width=40, biases=True, seed=0):
    r = generator(*rows, C, width, seed)
    inputs = {"x": both.draw(r, *rows, C), "fc_w": both.draw(r, C, width, size=0.5)}
    inputs |= {"fc_b": both.draw(r, width) if biases else None, "proj_w": both.draw(r, width, C, size=0.5)}
    inputs |= {"proj_b": both.draw(r, C) if biases else None}
    dtypes = (both.dtype, both.dtype, *[FLOAT32] * 4)
    return check(both, "mlp", inputs, both.draw(r, *rows, C), lambda *a: bounds.mlp(*a, both.dtype, both.unfused), dtypes)


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


def convert(both, shape=(1021,), source=FLOAT32, seed=0):
    """Round values of another dtype to the precision. The largest values become infinite in fp16, as NumPy's do."""
    values = np.append(generator(*shape, seed).standard_normal(shape), [65519.0, 65520.0, -1e6, 1e-6])
    with np.errstate(over="ignore"):
        values = values.astype(source)
        expected = values.astype(both.dtype)
    (found,) = both.run(lambda ops, x: ops.cast(x, ops.dtype), values)
    np.testing.assert_array_equal(found, expected)


def shapes(names, *rows, seeds=1, **fixed):
    """Return one dict for each row and seed."""
    return [dict(zip(names.split(), row, strict=True)) | fixed | {"seed": seed} for row in rows for seed in range(seeds)]


# There are few sizes, because each C, D and K needs a compilation. They are odd, so that the last block, warp, tile or
# vector of four is not full.
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
        position_embedding,
        shapes(
            "rows start more T C",
            *[((3,), 0, 0, 2, 32), ((130,), 0, 3, 2, 32), ((2, 3), 2, 0, 1, 33), ((1,), 1, 1, 1, 33), ((3,), 0, 0, 16, 256)],
            seeds=2,
        ),
    ),
    "token_position_embedding": (
        token_position_embedding,
        shapes("rows start more T C", *[((3,), 0, 3, 17, 32), ((2, 3), 2, 0, 9, 33), ((), 1, 1, 1, 33), ((130,), 0, 0, 2, 256)]),
    ),
    "layernorm": (layernorm_alone, shapes("rows C bias", *ROWS, seeds=3) + shapes("eps", (0.5,))),
    "dropout_add_layernorm": (
        dropout_add_layernorm,
        shapes("rows C bias", *ROWS) + shapes("rows C bias", *ROWS, seeds=2, p=0.3) + shapes("C ds", (32, False), (33, False)),
    ),
    "no branch": (no_branch, shapes("rows C bias", *ROWS, seeds=3)),
    "sums of a step": (sums_of_a_step, shapes("rows C p", (7, 32, 0.3), (130, 32, 0.0), (66, 33, 0.3), seeds=4)),
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
UNFUSED = ("linear", "mlp", "linear_cross_entropy")  # the ops with a GEMM that has an epilogue


def check_all(name, both, checks=CHECKS):
    """Check all shapes of an op. Return the worst error of each result, in units of its bound."""
    function, shapes = checks[name]
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
