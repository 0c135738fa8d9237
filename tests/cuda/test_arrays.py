"""The arrays that an op of the CUDA backend accepts: any layout, another precision, no rows."""

import numpy as np
import pytest

import cuda_bounds as bounds
from cuda_bounds import BF16, FLOAT32, FP16
from cuda_machines import KEY, SM75, as_bytes, both, every_precision, generator, guarded
from cuda_op_checks import check, convert, results
from cuda_step_checks import every_second, off_by_one, transposed
from tensorlite import cuda


def arguments_of(name, machine):
    """Return small arrays for an op, as (inputs, dy)."""
    r, H = generator(7), 2
    n = machine.draw
    targets = r.integers(0, 7, 6)
    return {
        "linear": ((n(r, 6, 16), n(r, 16, 7), n(r, 7)), n(r, 6, 7), {}),
        "embedding": ((r.integers(0, 11, 6), n(r, 11, 24)), n(r, 6, 24), {}),
        "position_embedding": ((n(r, 2, 32), n(r, 3, 32)), n(r, 2, 32), {}),
        "layernorm": ((n(r, 6, 32), n(r, 32), n(r, 32)), n(r, 6, 32), {}),
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
        "token_position_embedding": ((r.integers(0, 11, (2, 3)), n(r, 11, 32), n(r, 4, 32)), n(r, 2, 3, 32), {"start": 1}),
        "mlp": ((n(r, 6, 16), n(r, 16, 40), n(r, 40), n(r, 40, 16), n(r, 16)), n(r, 6, 16), {}),
        "linear_cross_entropy": ((n(r, 6, 16), n(r, 16, 7), n(r, 7), targets), 0.7, {}),
    }[name]


COMPOSITES = ["token_position_embedding", "mlp", "linear_cross_entropy", "dropout_add_layernorm"]
OPS = [name for name in cuda.CUDAOps.op_table if name != "softmax"] + COMPOSITES


def changed(value, how):
    """Change the form of every array of floats, or of ids."""
    if isinstance(value, tuple):
        return tuple(changed(v, how) for v in value)
    return how(value) if isinstance(value, np.ndarray) else value


@every_precision
@pytest.mark.parametrize("how", [every_second, transposed, off_by_one])
@pytest.mark.parametrize("name", OPS)
def test_arrays_in_any_layout(name, how, precision):
    """The results are bitwise identical, also for a transposed matrix, because the shim's matmul has one order."""
    machine = both(precision)
    inputs, dy, options = arguments_of(name, machine)
    for ops in machine.ops:
        expected = results(ops, name, inputs, dy, options)
        for a, b in zip(expected, results(ops, name, changed(inputs, how), changed(dy, how), options), strict=True):
            np.testing.assert_array_equal(as_bytes(a), as_bytes(b))


@pytest.mark.parametrize("how", [every_second, transposed, off_by_one])
def test_add_and_pack_grads_of_arrays_in_any_layout(how):
    machine, r = both("float32"), generator(3)
    a, b = machine.draw(r, 5, 9), machine.draw(r, 5, 9)
    for ops in machine.ops:
        np.testing.assert_array_equal(ops.add(how(a), how(b)), a + b)
        slot = guarded(ops, np.zeros_like(a))
        ops.pack_grads([how(a)], [slot])
        np.testing.assert_array_equal(slot, a)


@pytest.mark.parametrize("precision", ["bf16", pytest.param(SM75, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", [name for name in OPS if name != "cross_entropy"])
def test_float32_arrays_are_rounded_to_the_precision(name, precision):
    """They are rounded once, to 16 bits, as if the caller had done it. Logits stay as they are, float32 from a head."""
    machine = both(precision)
    inputs, dy, options = arguments_of(name, machine)

    def widened(a):
        return a.astype(np.float32) if a.dtype == machine.dtype else a

    for ops in machine.ops:
        expected = results(ops, name, inputs, dy, options)
        for a, b in zip(expected, results(ops, name, changed(inputs, widened), changed(dy, widened), options), strict=True):
            assert a.dtype == b.dtype or b.dtype == np.float32  # where dx is dy itself
            np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32))


@pytest.mark.long
@every_precision
@pytest.mark.parametrize("source", [FLOAT32, FP16, BF16])
def test_arrays_of_other_precisions_are_converted(source, precision):
    convert(both(precision), source=source)


def test_float32_logits_stay_float32_in_bf16():
    machine, r = both("bf16"), generator(4)
    logits, targets = r.standard_normal((13, 65)).astype(np.float32), r.integers(0, 65, 13)
    check(machine, "cross_entropy", {"logits": logits, "targets": targets}, 0.7, bounds.cross_entropy, (FLOAT32, FLOAT32))


@every_precision
@pytest.mark.parametrize("name", [name for name in OPS if name not in ("cross_entropy", "linear_cross_entropy")])
def test_an_empty_batch(name, precision):
    """The result has no rows, and the gradients of weights are zero."""
    machine = both(precision)
    inputs, dy, options = arguments_of(name, machine)
    weights = {"linear": (1, 2), "embedding": (1,), "position_embedding": (1,), "layernorm": (1, 2)}
    weights |= {"token_position_embedding": (1, 2), "dropout_add_layernorm": (2, 3), "mlp": (1, 2, 3, 4)}
    inputs = tuple(a if i in weights.get(name, ()) else a[:0] for i, a in enumerate(inputs))
    if name == "position_embedding":
        inputs, dy = (np.zeros((0, 2, 32), machine.dtype), inputs[1]), np.zeros((0, 2, 32), machine.dtype)

    def rows(a):
        return a[:0]

    found = machine.run(lambda ops: tuple(results(ops, name, inputs, changed(dy, rows), options)))
    assert all(not a.any() for a in found)
    of_weights = [inputs[i].shape for i in weights.get(name, ())]
    assert [a.shape for a in found][len(found) - len(of_weights) :] == of_weights
