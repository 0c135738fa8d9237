"""The shim itself: what runs the CUDA kernels on the CPU computes what a GPU would, and reports what a GPU would not."""

import shutil

import ml_dtypes
import numpy as np
import pytest

from shim.host import GUARD, KERNELS, HostRuntime, KernelError, require_compiler
from tensorlite.reference.activations import gelu_backward, gelu_forward

BF16 = np.dtype(ml_dtypes.bfloat16)

RIGHT = r"""
#include "ptx.cuh"

struct Pair { int n; float x; long long m; };

template <class T> __device__ inline T block_sum(T x) {
    __shared__ T of_warp[32];
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads(); // written
    x = 0;
    for (int w = 0; w < blockDim.x / 32; w++) x += of_warp[w];
    __syncthreads(); // read
    return x;
}

// A row and its square, so that the shared numbers are used twice; then the same in another type.
extern "C" __global__ void __launch_bounds__(256) row_sums(const float* x, float* y, double* z) {
    float mine = x[blockIdx.x * blockDim.x + threadIdx.x];
    y[blockIdx.x * blockDim.x + threadIdx.x] = block_sum(mine) + block_sum(mine * mine);
    z[blockIdx.x * blockDim.x + threadIdx.x] = block_sum((double)mine);
}

extern "C" __global__ void where(int* out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

template <class T> __device__ void shuffle_as(T* out, T x) {
    out[threadIdx.x] = __shfl_sync(~0u, x, 3);
    out[threadIdx.x + 32] = __shfl_xor_sync(~0u, x, 5);
    out[threadIdx.x + 64] = __shfl_down_sync(~0u, x, 7);
    out[threadIdx.x + 96] = __shfl_up_sync(~0u, x, 9);
}
extern "C" __global__ void shuffles(int* a, float* b, long long* c, double* d, unsigned* votes) {
    int t = threadIdx.x;
    shuffle_as(a, t), shuffle_as(b, (float)t), shuffle_as(c, (long long)t << 40), shuffle_as(d, (double)t);
    unsigned odd = __ballot_sync(~0u, t % 2);
    votes[t] = odd + (__any_sync(~0u, t == 31) << 1) + __all_sync(~0u, t < 32) - __all_sync(~0u, t < 31);
}
// The halves of a warp by themselves.
extern "C" __global__ void halves(int* out) {
    int t = threadIdx.x;
    out[t] = t < 16 ? __shfl_xor_sync(0xFFFFu, t, 1) : __shfl_xor_sync(0xFFFF0000u, 100 * t, 2);
}
extern "C" __global__ void partial_warp(float* out) {
    __syncthreads();
    if (threadIdx.x == 2) return; // lanes that have returned do not count
    out[threadIdx.x] = __shfl_xor_sync(~0u, (float)threadIdx.x, 1);
}

extern "C" __global__ void unwritten(float* out) {
    __shared__ float x[32];
    DYNAMIC_SHARED(y);
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
    out[64 * blockIdx.x + threadIdx.x + 32] = ((float*)y)[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = ((float*)y)[threadIdx.x] = 1.0f;
}
extern "C" __global__ void in_block_order(int* out) { // wrong: blocks have no order
    if (threadIdx.x == 0) out[blockIdx.x] = blockIdx.x == 0 ? 0 : out[blockIdx.x - 1] + 1;
}

extern "C" __global__ void one_mma(const unsigned* a, const unsigned* b, float* c) {
    mma_16x8x16(c + 4 * threadIdx.x, a + 4 * threadIdx.x, b + 2 * threadIdx.x);
}
// c = a b, (16, 64) (64, 16); b as it is or, with b_transposed, as (16, 64).
extern "C" __global__ void tile(const unsigned short* a, const unsigned short* b, float* c, bool b_transposed) {
    __shared__ __align__(16) unsigned short a_tile[16 * 72], b_tile[64 * 72];
    int t = threadIdx.x, b_rows = b_transposed ? 16 : 64, b_columns = b_transposed ? 64 : 16;
    for (int i = t; i < 16 * 8; i += 32) copy_async_16(a_tile + i / 8 * 72 + i % 8 * 8, a + 8 * i);
    for (int i = t; i < b_rows * b_columns / 8; i += 32) {
        int row = i / (b_columns / 8), column = i % (b_columns / 8) * 8;
        copy_async_16(b_tile + row * 72 + column, b + row * b_columns + column);
    }
    copy_async_wait();
    __syncthreads();
    float acc[2][4] = {};
    for (int k = 0; k < 64; k += 16) {
        unsigned at[4], bt[4];
        ldmatrix_x4(at, a_tile + t % 16 * 72 + k + t / 16 * 8);
        int n = t / 16 * 8, deep = k + t / 8 % 2 * 8;
        if (b_transposed) ldmatrix_x4(bt, b_tile + (n + t % 8) * 72 + deep);
        else ldmatrix_x4_trans(bt, b_tile + (deep + t % 8) * 72 + n);
        mma_16x8x16(acc[0], at, bt);
        mma_16x8x16(acc[1], at, bt + 2);
    }
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 4; i++) c[(t / 4 + i / 2 * 8) * 16 + 8 * j + t % 4 * 2 + i % 2] = acc[j][i];
}

extern "C" __global__ void pack(const float* x, unsigned* out, long long n) {
    long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < n) out[i] = pack_bf16(x[i], x[n - 1 - i]);
}
extern "C" __global__ void by_value(Pair pair, float f, bool b, double* out) { out[0] = (double)pair.n + pair.x + pair.m + f + b; }
extern "C" __global__ void scale(float* x, float by) { x[threadIdx.x] *= by; }
extern "C" __global__ void write_at(float* x, int at) { x[at] = 7.0f; }
extern "C" __global__ void sync(int* out) { *out = SIZE; } // a name of the C library, and a macro
"""

WRONG = r"""
#include "ptx.cuh"

extern "C" __global__ void missed_barrier(float* x) { if (threadIdx.x < 40) __syncthreads(); }
extern "C" __global__ void two_barriers(float* x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
extern "C" __global__ void half_a_shuffle(float* x) {
    if (threadIdx.x % 32 < 8) x[0] = __shfl_sync(~0u, x[0], 0);
    __syncthreads();
}
extern "C" __global__ void two_shuffles(float* x) {
    if (threadIdx.x < 8) x[0] = __shfl_sync(~0u, x[0], 0);
    else x[0] = __shfl_xor_sync(~0u, x[0], 1);
}
extern "C" __global__ void not_in_mask(float* x) { x[0] = __shfl_sync(0xFFu, x[0], 0); }
extern "C" __global__ void early_read(const float* from, float* out) {
    __shared__ float4 x[32];
    copy_async_16(x + threadIdx.x, from + 4 * threadIdx.x);
    out[threadIdx.x] = x[threadIdx.x].w;
    copy_async_wait();
    out[threadIdx.x + 32] = x[threadIdx.x].w;
}
extern "C" __global__ void not_waited_for(const float* from) {
    __shared__ float4 x[32];
    copy_async_16(x + threadIdx.x, from);
}
extern "C" __global__ void copy_misaligned(const float* from) {
    __shared__ float4 x[32];
    copy_async_16(x, from + 1);
}
extern "C" __global__ void copy_to_global(float* x) { copy_async_16(x, x); }
extern "C" __global__ void overrun(int n) {
    DYNAMIC_SHARED(bytes);
    for (int i = 0; i < n; i++) bytes[i] = 0;
}
extern "C" __global__ void misaligned(float* x) { *(float4*)(x + 1) = make_float4(0, 0, 0, 0); }
extern "C" __global__ void out_of_bounds(float* x, int i) {
    __shared__ float y[32];
    x[0] = y[i];
}
extern "C" __global__ void shift(unsigned* x, int by) { x[0] <<= by; }
extern "C" __global__ void divide(int* x, int by) { x[0] /= by; }
extern "C" __global__ void deep(int* x, int n) {
    volatile float y[60000];
    for (int i = 0; i < 60000; i++) y[i] = i;
    x[0] = y[n];
}
extern "C" __global__ void null(float* x) { x[threadIdx.x] = 1; }
extern "C" __global__ void fine(float* x) { __syncthreads(); x[threadIdx.x] = 1; }
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    require_compiler()
    folder = tmp_path_factory.mktemp("kernels")
    shutil.copy(KERNELS / "ptx.cuh", folder)
    (folder / "right.cu").write_text(RIGHT)
    (folder / "wrong.cu").write_text(WRONG)
    return folder


@pytest.fixture(params=["forward", "reversed"])
def host(request, kernels):
    return HostRuntime(request.param, kernels=kernels)


def launch(host, name, grid, block, *args, **options):
    host.launch("right.cu", name, grid, block, *args, SIZE=5, **options)


def filled(host, values, dtype=np.float32):
    values = np.asarray(values)
    array = host.empty(values.shape, dtype)
    array[...] = values
    return array


def numbers(*shape, seed=0):
    """Small whole numbers, which bf16 and every order of summation get exactly."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def row_sums(host, threads=256):
    x = numbers(3, threads)
    y, z = host.empty(x.shape, np.float32), host.empty(x.shape, np.float64)
    launch(host, "row_sums", 3, threads, filled(host, x), y, z)
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
    launch(host, "where", (2, 3, 4), (5, 3, 2), out)
    np.testing.assert_array_equal(out, 1000 * np.arange(24)[:, None] + np.arange(30))


def test_shuffles_and_votes(host):
    arrays = [host.empty((4, 32), dtype) for dtype in (np.int32, np.float32, np.int64, np.float64)]
    votes = host.empty(32, np.uint32)
    launch(host, "shuffles", 1, 32, *arrays, votes)
    t = np.arange(32)
    expected = np.array([np.full(32, 3), t ^ 5, np.where(t + 7 < 32, t + 7, t), np.where(t >= 9, t - 9, t)])
    for array, factor in zip(arrays, [1, 1, 1 << 40, 1], strict=True):
        np.testing.assert_array_equal(array, expected * factor)
    np.testing.assert_array_equal(votes, 0xAAAAAAAA + 2 + 1)


def test_parts_of_a_warp(host):
    out = host.empty(32, np.int32)
    launch(host, "halves", 1, 32, out)
    t = np.arange(32)
    np.testing.assert_array_equal(out, np.where(t < 16, t ^ 1, 100 * (t ^ 2)))
    out = filled(host, np.zeros(37))
    launch(host, "partial_warp", 1, 37, out)
    expected = np.arange(37) ^ 1
    np.testing.assert_array_equal(out[[0, 1, 4, 35]], expected[[0, 1, 4, 35]])
    assert out[2] == 0
    assert np.isnan(out[[3, 36]]).all()  # lane 2 has returned, lane 37 never was


def test_shared_memory_starts_as_nan_in_each_block(host):
    out = host.empty((3, 64), np.float32)
    out[...] = 0
    launch(host, "unwritten", 3, 32, out, shared=128)
    assert np.isnan(out).all()


def test_blocks_in_both_orders(kernels):
    results = []
    for order in "forward", "reversed":
        host = HostRuntime(order, kernels=kernels)
        out = host.empty(4, np.int32)
        launch(host, "in_block_order", 4, 32, out)
        results.append(list(out))
    assert results == [[0, 1, 2, 3], [0, 0, 0, 0]]  # reversed: -1, the poison, + 1


def fragments(x, rows, columns):
    """The pairs of bf16 that the lanes hold, as uint32: element [lane, i] from x[rows, columns], x[rows, columns + 1]."""
    bits = x.astype(BF16).view(np.uint16).astype(np.uint32)
    return bits[rows, columns] | bits[rows, columns + 1] << 16


def test_mma_by_the_documented_layout(host):
    a, b, c = numbers(16, 16), numbers(16, 8, seed=1), numbers(16, 8, seed=2)
    r, t, i = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4, np.arange(4)
    a_lanes = fragments(a, r + 8 * (i % 2), 2 * t + 8 * (i // 2))
    b_lanes = fragments(b.T.copy(), r + 0 * i[:2], 2 * t + 8 * i[:2])
    at = r + 8 * (i // 2), 2 * t + i % 2
    c_lanes = filled(host, c[at])
    launch(host, "one_mma", 1, 32, filled(host, a_lanes, np.uint32), filled(host, b_lanes, np.uint32), c_lanes)
    np.testing.assert_array_equal(c_lanes, (c + a @ b)[at])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tile_through_ldmatrix(host, transposed):
    a, b = numbers(16, 64), numbers(64, 16, seed=1)
    out = host.empty((16, 16), np.float32)
    launch(host, "tile", 1, 32, filled(host, a, BF16), filled(host, b.T if transposed else b, BF16), out, transposed)
    np.testing.assert_array_equal(out, a @ b)


def test_pack_bf16_rounds_as_ml_dtypes(host):
    """Every upper half, and the lower halves that matter: exact, just above, around the tie, just below."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | low).ravel().view(np.float32)
    out = host.empty(x.shape, np.uint32)
    launch(host, "pack", -(-x.size // 256), 256, filled(host, x), out, x.size)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(BF16).view(np.uint16)
    got = out.astype(np.uint16)
    np.testing.assert_array_equal(out >> 16, got[::-1])
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got[number], expected[number])
    assert np.isnan(got[~number].view(BF16).astype(np.float32)).all()


PAIR = np.dtype([("n", np.int32), ("x", np.float32), ("m", np.int64)])


def test_arguments_by_value(host):
    out = host.empty(1, np.float64)
    launch(host, "by_value", 1, 1, np.array((1, 0.5, 1 << 40), PAIR), 0.25, True, out)
    assert out[0] == (1 << 40) + 2.75


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((None, 1), r"argument 1 has 8 bytes \(i\), its parameter 4 \(i\)"),
        ((None, np.float32(1)), r"argument 1 has 4 bytes \(f\), its parameter 4 \(i\)"),
        ((5, np.int32(1)), r"argument 0 has 8 bytes \(i\), its parameter 8 \(F\)"),
        ((np.zeros(3), np.int32(1)), "argument 0 is a pointer to float64, its parameter to float"),
        ((None,), "1 arguments for 2 parameters"),
    ],
)
def test_wrong_arguments(host, args, message):
    with pytest.raises(TypeError, match=f"right.cu: write_at: {message}"):
        launch(host, "write_at", 1, 1, *args)


@pytest.mark.parametrize(("at", "where"), [(12, "behind"), (12 + GUARD // 4 - 1, "behind"), (-1, "before")])
def test_guard_zones(host, at, where):
    x = host.empty((3, 4), np.float32)
    assert np.isnan(x).all()
    assert x.ctypes.data % 256 == 0
    for argument in x, x[1:]:
        offset = (argument.ctypes.data - x.ctypes.data) // 4
        with pytest.raises(KernelError, match=f"wrote {where} the array of argument 0, float32"):
            launch(host, "write_at", 1, 1, argument, np.int32(at - offset))
    launch(host, "write_at", 1, 1, x[1:], np.int32(-1))
    assert x[0, 3] == 7


def test_a_kernel_may_be_named_as_a_function_of_c(host):
    out = host.empty((), np.int32)
    launch(host, "sync", 1, 1, out)
    assert out == 5
    host.launch("right.cu", "sync", 1, 1, out, SIZE=6)
    assert out == 6


def test_what_does_not_compile_or_exist(host):
    with pytest.raises(KernelError, match=r"(?s)right\.cu does not compile.*SIZE"):
        host.launch("right.cu", "sync", 1, 1, None)
    with pytest.raises(AssertionError, match="not 'absent'"):
        launch(host, "absent", 1, 1)


@pytest.mark.parametrize(
    ("name", "threads", "args", "options", "message"),
    [
        ("missed_barrier", 64, "x", {}, r"40 threads wait at __syncthreads \(wrong.cu:4\) that 24 others never reach \[block \(0"),
        ("two_barriers", 64, "x", {}, r"waits at __syncthreads of wrong.cu:\d, others at that of wrong.cu:\d"),
        ("half_a_shuffle", 64, "x", {}, r"lanes 0-7 wait in __shfl_sync \(wrong.cu:\d+\), lanes 8-31 wait in __syncthreads"),
        ("half_a_shuffle", 4, "x", {}, None),
        ("two_shuffles", 32, "x", {}, "lanes 0-7 wait in __shfl_sync .* lanes 8-31 wait in __shfl_xor_sync"),
        ("not_in_mask", 32, "x", {}, "the mask 000000ff lacks the lane itself"),
        ("not_waited_for", 32, "x", {}, "has not waited for its asynchronous copies"),
        ("copy_misaligned", 32, "x", {}, "copy_async_16 .* is no multiple of 16"),
        ("copy_to_global", 32, "x", {}, "copy_async_16 .* is not shared memory"),
        ("overrun", 1, (np.int32(100),), {"shared": 100}, None),
        ("overrun", 1, (np.int32(101),), {"shared": 100}, "a write outside the 100 bytes of dynamic shared memory"),
        ("overrun", 1, (np.int32(1),), {}, "a write outside the 0 bytes of dynamic shared memory"),
        ("overrun", 1, (np.int32(1),), {"shared": 1 << 20}, "more shared memory than a block can have"),
        ("misaligned", 1, "x", {}, r"wrong.cu:\d+: 0x\w+ is misaligned for .*float4"),
        ("out_of_bounds", 1, ("x", np.int32(31)), {}, None),
        ("out_of_bounds", 1, ("x", np.int32(32)), {}, r"wrong.cu:\d+: index 32 out of bounds of 'float \[32\]'"),
        ("shift", 1, ("x", np.int32(31)), {}, None),
        ("shift", 1, ("x", np.int32(32)), {}, r"wrong.cu:\d+: a shift by 32"),
        ("divide", 1, ("i", np.int32(0)), {}, "an integer divided by zero"),
        ("deep", 1, ("i", np.int32(3)), {}, "an access to 0x"),  # more than the stack of a thread
        ("null", 32, (None,), {}, r"an access to (\(nil\)|0x\w+), which is no memory of this process \[block \(0, 0, 0\), thread"),
        ("fine", 1025, "x", {}, "a block that CUDA refuses"),
    ],
)
def test_what_cuda_forbids_is_reported(host, name, threads, args, options, message):
    x = filled(host, np.zeros(1024))
    args = [
        {"x": x.view(np.uint32) if name == "shift" else x, "i": x.view(np.int32)}.get(a, a) if isinstance(a, str) else a
        for a in args
    ]
    if message is None:
        host.launch("wrong.cu", name, 1, threads, *args, **options)
    else:
        with pytest.raises(KernelError, match=f"wrong.cu: {name}: .*{message}"):
            host.launch("wrong.cu", name, 1, threads, *args, **options)
    host.launch("wrong.cu", "fine", 1, 1024, x)  # the threads that stopped halfway are in nobody's way
    np.testing.assert_array_equal(x, 1)


def test_an_asynchronous_copy_arrives_at_the_wait(host):
    x = numbers(32, 4)
    out = host.empty((2, 32), np.float32)
    out[...] = 0
    host.launch("wrong.cu", "early_read", 1, 32, filled(host, x), out)
    assert np.isnan(out[0]).all()
    np.testing.assert_array_equal(out[1], x[:, 3])


def test_capture_and_replay(host):
    x, a, out = filled(host, np.ones(8)), filled(host, numbers(2, 3)), host.empty((2, 2), np.float32)
    by = np.array(2, np.float32)

    def work():
        launch(host, "scale", 1, 8, x, by[()])
        host.gemm(a, a.T, out)

    graph = host.capture(work)
    np.testing.assert_array_equal(x, 1)  # nothing has run
    assert np.isnan(out).all()
    by[...] = 100  # too late
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
    check(gelu_forward(x @ y + bias.astype(np.float64))[0], bias=bias, gelu=aux)
    np.testing.assert_allclose(aux.astype(np.float64), x @ y + bias.astype(np.float64), rtol=2**-8, atol=1e-6)
    u = before.astype(np.float64)
    check(gelu_backward(x @ y, gelu_forward(u)[1]), dgelu=before)
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
        host.gemm(x, x, out, bias=x[0], dgelu=x)
