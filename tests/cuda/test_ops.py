"""The kernel files of the CUDA backend, on a CPU: every op against the reference in float64, in two orders of threads.

cuda_bounds.py derives how near is near enough, and whatever is computed must be bitwise identical in both orders: no value may
depend on which warp or block comes first. Mistakes planted in the kernels (test_planted.py) show that the checks see such things.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuda_bounds as bounds
from cases import CASES
from cuda_bounds import FLOAT32, REFERENCE, UNIT, F
from cuda_machines import KEY, PRECISIONS, SM75, as_bytes, both, every_precision, generator, in_float64
from cuda_op_checks import CHECKS, UNFUSED, check, check_all, cross_entropy_alone, embedding, linear, linear_cross_entropy, results
from tensorlite.cuda import attention, cross_entropy, launch, layernorm, reduce
from tensorlite.cuda.attention import on_tensor_cores
from tensorlite.cuda.op_info import OP_INFO
from tensorlite.kv_cache import LayerCache
from tensorlite.meta import MetaArray, MetaOps, cache_bytes


def cases_of_ops():
    """Return (op, separate, precision). By default, fp16 has one case, of the tensor cores."""
    cases = []
    for precision in PRECISIONS:
        for name, separate in [*((name, False) for name in CHECKS), *((name, True) for name in UNFUSED)]:
            quick = "fp16" not in precision or (name, precision) == ("attention 16", SM75)
            cases.append(pytest.param(name, separate, precision, marks=() if quick else pytest.mark.long))
    return cases


@pytest.mark.parametrize(("name", "separate", "precision"), cases_of_ops())
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


FEW = (
    "linear",
    "embedding",
    "position_embedding",
    "layernorm",
    "dropout_add_layernorm",
    "sums of a step",
    "gelu",
    "relu",
    "residual",
    "cross_entropy",
    "linear_cross_entropy",
)


@pytest.mark.parametrize("name", FEW)
def test_few_blocks_do_the_work_of_many(name, monkeypatch):
    """The grids suit a GPU. Small arrays never fill them, so no block would loop a second time."""
    monkeypatch.setattr(launch, "GRID", 2)
    monkeypatch.setattr(layernorm, "ROW_BLOCKS", 2)
    monkeypatch.setattr(layernorm, "PARTIAL_BLOCKS", 2)
    monkeypatch.setattr(cross_entropy, "BLOCKS", 2)
    monkeypatch.setattr(reduce, "ROWS_EACH", 5)
    monkeypatch.setattr(reduce, "FILL", 7)
    for precision in ("float32", "bf16"):
        check_all(name, both(precision, name == "linear"))


@every_precision
def test_cross_entropy_of_more_rows_than_a_grid_has_warps(precision):
    cross_entropy_alone(both(precision), rows=(16500,), V=7)


@every_precision
@pytest.mark.parametrize(("function", "options"), [(linear, {"D": 65}), (linear_cross_entropy, {"V": 65}), (embedding, {"C": 65})])
def test_gemms_of_an_odd_width_are_padded(function, options, precision, monkeypatch):
    """Every row that a GEMM reads or writes is a multiple of 16 bytes, as the fast GEMMs require."""
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
        s, residual_cache = ops.residual_forward(x, dy, 0.3, KEY)  # the fused kernel draws and sums as the separate ones do
        (_, h), norm = ops.dropout_add_layernorm_forward(s, None, proj_b, fc_b[:32])
        ds, _, dw, db = ops.dropout_add_layernorm_backward((x, dy), norm)
        expected = [s, h, *ops.residual_backward(ds, residual_cache), dw, db]
        found = results(ops, "dropout_add_layernorm", (x, dy, proj_b, fc_b[:32], 0.3, KEY), (x, dy), {})
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=2 * UNIT[machine.dtype], atol=2 * F)
        _, cache = ops.dropout_add_layernorm_forward(x, dy, proj_b, None)
        dx, branch, *_ = ops.dropout_add_layernorm_backward((x, dy), cache)
        assert branch is dx  # without dropout


def test_which_attention_is_on_tensor_cores():
    """Also test the reasons against; attention_mma.cu is correct for these sizes alone."""
    float32, bf16 = both("float32").ops[0], both("bf16").ops[0]
    for D, T, dropout, kv_cache in ((16, 9, False, False), (64, 8, True, False), (128, 256, True, False), (112, 1, False, False)):
        assert on_tensor_cores(bf16, D, T, dropout, kv_cache) == (True, "tensor cores")
        assert on_tensor_cores(float32, D, T, dropout, kv_cache) == (False, "float32 arithmetic")
    for arguments, why in (
        ((8, 8, False, False), "head size 8 "),
        ((24, 8, False, False), "head size 24 "),
        ((144, 8, False, False), "head size 144 "),
        ((64, 6, True, False), "a context of 6 "),
        ((64, 8, False, True), "one position"),
    ):
        found, reason = on_tensor_cores(bf16, *arguments)
        assert not found
        assert why in reason


@pytest.mark.long
@pytest.mark.parametrize("D", [16, 64])
def test_two_halves_of_an_mma_are_the_whole(D):
    """On the shim, whose sums have one order, the path of compute capability 7.5 is bitwise identical to that of 8.0."""
    found = []
    for precision in ("fp16", SM75):
        r, machine = generator(D), both(precision)
        qkv, dy = machine.draw(r, 2, 72, 3 * 2 * D), machine.draw(r, 2, 72, 2 * D)
        found.append(machine.run(lambda ops, qkv, dy: tuple(results(ops, "attention", (qkv, 2, 0.3, KEY), dy, {})), qkv, dy))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(as_bytes(a), as_bytes(b))


@every_precision
@pytest.mark.parametrize("T", [1, 64, 72, 132])
def test_attention_saves_a_mask_for_backward_alone(precision, T, monkeypatch):
    """Its bytes are those that the op table claims. There is none without dropout, and none in a call with a KV cache."""
    ops, B, H, D = both(precision).ops[0], 2, 2, 16
    qkv, masks, launch_kernel = ops.empty((B, T, 3 * H * D)), [], ops.launch
    qkv[...] = 0

    def spy(*args, **options):
        masks.append(options["mask"])
        launch_kernel(*args, **options)

    monkeypatch.setattr(ops, "launch", spy)
    _, cache = ops.attention_forward(qkv, H, 0.3, KEY)
    _, claimed = MetaOps(OP_INFO).attention_forward(MetaArray(qkv.shape, 4), H, 0.3, KEY)
    assert cache.mask.nbytes + cache.lse.nbytes == cache_bytes(claimed[2])
    assert cache.mask.size * 32 == B * H * 64**2 * {1: 1, 64: 1, 72: 3, 132: 6}[T]
    assert masks == [cache.mask]
    _, cache = ops.attention_forward(qkv, H, 0.3, None)
    assert cache.mask is None
    ops.attention_forward(qkv, H, 0.3, KEY, LayerCache(T))
    assert masks[1:] == [None, None]


@every_precision
def test_a_sequence_too_long_for_32_bits_is_refused(precision, monkeypatch):
    monkeypatch.setattr(attention, "MMA_MAX_SIZE", 4 * 48)
    ops = both(precision).ops[0]
    ops.attention_forward(np.zeros((2, 4, 48), ops.dtype), 1)
    with pytest.raises(ValueError, match="attention: a sequence of qkv has at most 192 elements, not 5 x 48"):
        ops.attention_forward(np.zeros((2, 5, 48), ops.dtype), 1)
