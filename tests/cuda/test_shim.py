"""The shim computes what a GPU would compute, and reports what breaks CUDA's rules.

right.cu and wrong.cu are the kernels for this.
"""

import shutil

import ml_dtypes
import numpy as np
import pytest

from shim.host import GUARD, KERNELS, SHIM, HostRuntime, KernelError, require_compiler
from tensorlite.integers import ceil_div
from tensorlite.reference.activations import gelu_backward, gelu_forward

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    require_compiler()
    folder = tmp_path_factory.mktemp("kernels")
    for file in (KERNELS / "ptx.cuh", SHIM.with_name("right.cu"), SHIM.with_name("wrong.cu")):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(params=["forward", "reversed"])
def host(request, kernels):
    return HostRuntime(request.param, kernels=kernels)


@pytest.fixture(params=["8.0", "7.5"])
def either_path(request, kernels):
    """Return a machine on the path of that compute capability."""
    return HostRuntime(kernels=kernels, sm75=request.param == "7.5")


def launch(host, kernel, grid, block, **args):
    host.launch("right.cu", kernel, grid, block, defines={"SIZE": 5}, **args)


def filled(host, values, dtype=np.float32):
    values = np.asarray(values)
    array = host.empty(values.shape, dtype)
    array[...] = values
    return array


def numbers(*shape, seed=0):
    """Return small integers, which bf16 holds, and every order of summation adds, exactly."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def row_sums(host, threads=256):
    x = numbers(3, threads)
    y, z = host.empty(x.shape, np.float32), host.empty(x.shape, np.float64)
    launch(host, "row_sums", 3, threads, x=filled(host, x), y=y, z=z)
    return np.array_equal(y, np.broadcast_to((x + x**2).sum(1, keepdims=True), x.shape)) and np.array_equal(
        z, np.broadcast_to(x.sum(1, keepdims=True), x.shape)
    )


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_block_reduction(host, threads):
    assert row_sums(host, threads)


@pytest.mark.parametrize("which", ["written", "read"])
def test_a_missing_barrier_is_wrong_in_one_order(kernels, which):
    edits = {"right.cu": [(f"__syncthreads(); // {which}", "")]}
    assert not all(row_sums(HostRuntime(order, edits, kernels)) for order in ("forward", "reversed"))


def test_edits_must_occur(kernels):
    with pytest.raises(AssertionError, match=r"right\.cu has no"):
        HostRuntime(edits={"right.cu": [("not there", "")]}, kernels=kernels)


def test_three_dimensions(host):
    out = host.empty((24, 30), np.int32)
    launch(host, "where", (2, 3, 4), (5, 3, 2), out=out)
    np.testing.assert_array_equal(out, 1000 * np.arange(24)[:, None] + np.arange(30))


def test_shuffles_and_votes(host):
    arrays = [host.empty((4, 32), dtype) for dtype in (np.int32, np.float32, np.int64, np.float64)]
    votes = host.empty(32, np.uint32)
    launch(host, "shuffles", 1, 32, **dict(zip("abcd", arrays, strict=True)), votes=votes)
    t = np.arange(32)
    expected = np.array([np.full(32, 3), t ^ 5, np.where(t + 7 < 32, t + 7, t), np.where(t >= 9, t - 9, t)])
    for array, factor in zip(arrays, [1, 1, 1 << 40, 1], strict=True):
        np.testing.assert_array_equal(array, expected * factor)
    np.testing.assert_array_equal(votes, 0xAAAAAAAA + 2 + 1)


def test_parts_of_a_warp(host):
    out = host.empty(32, np.int32)
    launch(host, "halves", 1, 32, out=out)
    t = np.arange(32)
    np.testing.assert_array_equal(out, np.where(t < 16, t ^ 1, 100 * (t ^ 2)))
    out = filled(host, np.zeros(37))
    launch(host, "partial_warp", 1, 37, out=out)
    expected = np.arange(37) ^ 1
    np.testing.assert_array_equal(out[[0, 1, 4, 35]], expected[[0, 1, 4, 35]])
    assert out[2] == 0
    assert np.isnan(out[[3, 36]]).all()  # lane 2 has returned, and there is no lane 37


def test_shared_memory_starts_as_nan_in_each_block(host):
    out = host.empty((3, 64), np.float32)
    out[...] = 0
    launch(host, "unwritten", 3, 32, out=out, shared=128)
    assert np.isnan(out).all()


def test_blocks_in_both_orders(kernels):
    results = []
    for order in "forward", "reversed":
        host = HostRuntime(order, kernels=kernels)
        out = host.empty(4, np.int32)
        launch(host, "in_block_order", 4, 32, out=out)
        results.append(list(out))
    assert results == [[0, 1, 2, 3], [0, 0, 0, 0]]  # reversed: -1, the poison, + 1


def fragments(x, dtype, rows, columns):
    """Return the pairs of 16 bits that the lanes own, as uint32. Element [lane, i] is x[rows, columns] and x[rows, columns + 1]."""
    bits = x.astype(dtype).view(np.uint16).astype(np.uint32)
    return bits[rows, columns] | bits[rows, columns + 1] << 16


@pytest.mark.parametrize(
    ("kernel", "dtype", "K"), [("mma_of_bf16", BF16, 16), ("mma_of_fp16", np.float16, 16), ("half_an_mma", np.float16, 8)]
)
def test_mma_by_the_documented_layout(kernel, dtype, K, either_path):
    host, a, b, c = either_path, numbers(16, K), numbers(K, 8, seed=1), numbers(16, 8, seed=2)
    r, t, i = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4, np.arange(4)
    a_lanes = fragments(a, dtype, r + 8 * (i[: K // 4] % 2), 2 * t + 8 * (i[: K // 4] // 2))
    b_lanes = fragments(b.T.copy(), dtype, r + 0 * i[: K // 8], 2 * t + 8 * i[: K // 8])
    at = r + 8 * (i // 2), 2 * t + i % 2
    c_lanes = filled(host, c[at])
    launch(host, kernel, 1, 32, a=filled(host, a_lanes, np.uint32), b=filled(host, b_lanes, np.uint32), c=c_lanes)
    np.testing.assert_array_equal(c_lanes, (c + a @ b)[at])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tile_through_ldmatrix(host, transposed):
    a, b = numbers(16, 64), numbers(64, 16, seed=1)
    out = host.empty((16, 16), np.float32)
    a_, b_ = filled(host, a, BF16), filled(host, b.T if transposed else b, BF16)
    launch(host, "tile", 1, 32, a=a_, b=b_, c=out, b_transposed=transposed)
    np.testing.assert_array_equal(out, a @ b)


def test_pack_bf16_rounds_as_ml_dtypes(host):
    """Test every upper half with the lower halves that matter: exact, just above, around the tie, just below."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | low).ravel().view(np.float32)
    out = host.empty(x.shape, np.uint32)
    launch(host, "to_bf16", ceil_div(x.size, 256), 256, x=filled(host, x), out=out, n=x.size)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(BF16).view(np.uint16)
    got = out.astype(np.uint16)
    np.testing.assert_array_equal(out >> 16, got[::-1])
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got[number], expected[number])
    assert np.isnan(got[~number].view(BF16).astype(np.float32)).all()


def test_fp16_rounds_as_numpy(either_path):
    """Test every fp16 and the float32 next to it, every tie and its neighbours, and what is beyond 65504. Widening is exact."""
    host = either_path
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    wide = host.empty(halves.shape, np.float32)
    launch(host, "widen", 256, 256, x=filled(host, halves.view(np.uint16), np.uint16), out=wide, n=halves.size)
    np.testing.assert_array_equal(wide, halves.astype(np.float32))
    finite = np.sort(wide[np.isfinite(wide)])
    ties = np.concatenate([(finite[1:] + finite[:-1]) / 2, np.float32([65520, -65520, 1e-9, -1e-9, 1e30, np.inf, -np.inf])])
    x = np.concatenate([wide] + [np.nextafter(y, np.float32(to)) for y in (finite, ties) for to in (-np.inf, np.inf)] + [ties])
    out = host.empty(x.shape, np.uint32)
    launch(host, "to_fp16", ceil_div(x.size, 256), 256, x=filled(host, x), out=out, n=x.size)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    got = out.astype(np.uint16).view(np.float16)
    np.testing.assert_array_equal(out >> 16, got.view(np.uint16)[::-1])
    np.testing.assert_array_equal(got, expected)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(expected[number]))


PAIR = np.dtype([("n", np.int32), ("x", np.float32), ("m", np.int64)])
SHORT_PAIR = np.dtype([("n", np.int32), ("x", np.float32)])


def test_arguments_by_value(host):
    out = host.empty(1, np.float64)
    launch(host, "by_value", 1, 1, pair=np.array((1, 0.5, 1 << 40), PAIR), f=0.25, b=True, out=out)
    assert out[0] == (1 << 40) + 2.75


@pytest.mark.parametrize(
    ("kernel", "args", "message"),
    [
        ("write_at", {"x": np.zeros(3), "at": 1}, "argument x is a pointer to float64, its parameter to float"),
        ("by_value", {"pair": np.zeros((), SHORT_PAIR)}, r"argument pair has 8 bytes \(s\), its parameter 16 \(s\)"),
    ],
)
def test_wrong_arguments(host, kernel, args, message):
    """What the compiled parameters say, beyond their names and types in the source, which test_signature.py is about."""
    args = {"f": 0.25, "b": True, "out": host.empty(1, np.float64)} | args if kernel == "by_value" else args
    with pytest.raises(TypeError, match=f"right.cu: {kernel}: {message}"):
        launch(host, kernel, 1, 1, **args)


@pytest.mark.parametrize(("at", "where"), [(12, "behind"), (12 + GUARD // 4 - 1, "behind"), (-1, "before")])
def test_guard_zones(host, at, where):
    x = host.empty((3, 4), np.float32)
    assert np.isnan(x).all()
    assert x.ctypes.data % 256 == 0
    for argument in x, x[1:]:
        offset = (argument.ctypes.data - x.ctypes.data) // 4
        with pytest.raises(KernelError, match=f"wrote {where} the array x, float32"):
            launch(host, "write_at", 1, 1, x=argument, at=at - offset)
    launch(host, "write_at", 1, 1, x=x[1:], at=-1)
    assert x[0, 3] == 7


def test_a_kernel_may_be_named_as_a_function_of_c(host):
    out = host.empty((), np.int32)
    launch(host, "sync", 1, 1, out=out)
    assert out == 5
    host.launch("right.cu", "sync", 1, 1, out=out, defines={"SIZE": 6})
    assert out == 6


def test_what_does_not_compile_or_exist(host):
    with pytest.raises(KernelError, match=r"(?s)right\.cu does not compile.*SIZE"):
        host.launch("right.cu", "sync", 1, 1, out=None)
    with pytest.raises(AssertionError, match="not 'absent'"):
        launch(host, "absent", 1, 1)


X = {"x": "float32"}


@pytest.mark.parametrize(
    ("name", "threads", "args", "message"),
    [
        (
            "missed_barrier",
            64,
            X,
            r"40 threads wait at __syncthreads \(wrong.cu:4\) that 24 others never reach \[block \(0",
        ),
        ("two_barriers", 64, X, r"waits at __syncthreads of wrong.cu:\d, others at that of wrong.cu:\d"),
        (
            "half_a_shuffle",
            64,
            X,
            r"lanes 0-7 wait in __shfl_sync \(wrong.cu:\d+\), lanes 8-31 wait in __syncthreads",
        ),
        ("half_a_shuffle", 4, X, None),
        ("two_shuffles", 32, X, "lanes 0-7 wait in __shfl_sync .* lanes 8-31 wait in __shfl_xor_sync"),
        ("not_in_mask", 32, X, "the mask 000000ff lacks the lane itself"),
        ("not_waited_for", 32, {"source": "float32"}, "has not waited for its asynchronous copies"),
        ("copy_misaligned", 32, {"source": "float32"}, "copy_async_16 .* is no multiple of 16"),
        ("copy_to_global", 32, X, "copy_async_16 .* is not shared memory"),
        ("overrun", 1, {"n": 100, "shared": 100}, None),
        ("overrun", 1, {"n": 101, "shared": 100}, "a write outside the 100 bytes of dynamic shared memory"),
        ("overrun", 1, {"n": 1}, "a write outside the 0 bytes of dynamic shared memory"),
        ("overrun", 1, {"n": 1, "shared": 1 << 20}, "more shared memory than a block can have"),
        ("misaligned", 1, X, r"wrong.cu:\d+: 0x\w+ is misaligned for .*float4"),
        ("out_of_bounds", 1, {"x": "float32", "i": 31}, None),
        ("out_of_bounds", 1, {"x": "float32", "i": 32}, r"wrong.cu:\d+: index 32 out of bounds of 'float \[32\]'"),
        ("shift", 1, {"x": "uint32", "by": 31}, None),
        ("shift", 1, {"x": "uint32", "by": 32}, r"wrong.cu:\d+: a shift by 32"),
        ("divide", 1, {"x": "int32", "by": 0}, "an integer divided by zero"),
        ("deep", 1, {"x": "int32", "n": 3}, "an access to 0x"),  # more than the stack of a thread
        ("null", 32, {"x": None}, r"an access to (\(nil\)|0x\w+), which is no memory of this process \[block \(0, 0, 0\), thread"),
        ("fine", 1025, X, "a block that CUDA refuses"),
    ],
)
def test_what_cuda_forbids_is_reported(host, name, threads, args, message):
    x = filled(host, np.zeros(1024))
    pointers = {"float32": x, "uint32": x.view(np.uint32), "int32": x.view(np.int32)}
    args = {parameter: pointers.get(value, value) for parameter, value in args.items()}
    if message is None:
        host.launch("wrong.cu", name, 1, threads, **args)
    else:
        with pytest.raises(KernelError, match=f"wrong.cu: {name}: .*{message}"):
            host.launch("wrong.cu", name, 1, threads, **args)
    host.launch("wrong.cu", "fine", 1, 1024, x=x)  # the stopped threads do not disturb a later launch
    np.testing.assert_array_equal(x, 1)


def test_an_asynchronous_copy_arrives_at_the_wait(host):
    x = numbers(32, 4)
    out = host.empty((2, 32), np.float32)
    out[...] = 0
    host.launch("wrong.cu", "early_read", 1, 32, source=filled(host, x), out=out)
    assert np.isnan(out[0]).all()
    x[5] = 0  # which the kernel says does not exist
    np.testing.assert_array_equal(out[1], x[:, 3])


def test_capture_and_replay(host):
    x, a, out = filled(host, np.ones(8)), filled(host, numbers(2, 3)), host.empty((2, 2), np.float32)
    by = np.array(2, np.float32)

    def work():
        launch(host, "scale", 1, 8, x=x, by=by[()])
        host.gemm(a, a.T, out)

    graph = host.capture(work)
    np.testing.assert_array_equal(x, 1)  # the capture runs no kernel
    assert np.isnan(out).all()
    by[...] = 100  # the capture has copied the value
    graph.launch()
    np.testing.assert_array_equal(host.read(x), 2)
    x[...] = 5  # memory is read at the launch
    a *= 2
    graph.launch()
    np.testing.assert_array_equal(x, 10)
    np.testing.assert_array_equal(out, a @ a.T)
    with pytest.raises(AssertionError, match="captures"):
        host.capture(host.synchronize)
    host.synchronize()


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("out_dtype", [np.float32, BF16])
def test_gemm(kernels, dtype, out_dtype):
    if out_dtype != np.float32 and dtype == np.float32:
        pytest.skip("cuBLASLt has no bf16 out of float32")
    host = HostRuntime(kernels=kernels)
    rng = np.random.default_rng(0)
    a, b = (filled(host, rng.standard_normal(shape), dtype) for shape in [(5, 7), (7, 3)])
    x, y = a.astype(np.float64), b.astype(np.float64)
    bias, before = filled(host, rng.standard_normal(3), dtype), filled(host, rng.standard_normal((5, 3)), dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if out_dtype == np.float32 else {"rtol": 2**-8, "atol": 1e-6}

    def check(expected, *operands, **options):
        out = host.empty((5, 3), out_dtype)
        host.gemm(*operands or (a, b), out, **options)
        np.testing.assert_allclose(out.astype(np.float64), expected, **tolerance)

    check(x @ y)
    check(x @ y, np.ascontiguousarray(a.T).T, np.ascontiguousarray(b.T).T)
    check(x @ y + bias.astype(np.float64), bias=bias)
    aux = host.empty((5, 3), dtype)
    check(gelu_forward(x @ y + bias.astype(np.float64))[0], bias=bias, pre_gelu=aux)
    np.testing.assert_allclose(aux.astype(np.float64), x @ y + bias.astype(np.float64), rtol=2**-8, atol=1e-6)
    u = before.astype(np.float64)
    check(gelu_backward(x @ y, gelu_forward(u)[1]), dgelu_input=before)
    bias_grad = host.empty(3, np.float32)
    check(x @ y, bias_grad=bias_grad)
    np.testing.assert_allclose(bias_grad, y.sum(0), rtol=1e-5, atol=1e-6)


def test_gemm_refuses_what_cublaslt_does(kernels):
    host = HostRuntime(kernels=kernels)
    x, out = np.ones((4, 4), np.float32), np.empty((4, 4), np.float32)
    for a, b, c, message in [
        (x[:, :2], x[:2], out, "operands"),
        (x, x.astype(BF16), out, "operands"),
        (x, x, out.T[:, :2], "output"),
        (x, x, out.astype(BF16), "output"),
        (x, x[:3], out, "shapes"),
        (x, x, x, "in the place"),
    ]:
        with pytest.raises(AssertionError, match=f"refuses: .*{message}"):
            host.gemm(a, b, c)
    with pytest.raises(AssertionError, match="refuses: epilogues"):
        host.gemm(x, x, out, bias=x[0], dgelu_input=x)
