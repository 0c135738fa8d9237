// Kernels that use, correctly, every feature of CUDA that the shim imitates.
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

// Sum a row and its square, so that shared memory is used twice; then the same in another type.
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

extern "C" __global__ void mma_of_bf16(const unsigned* a, const unsigned* b, float* c) {
    mma_16x8x16_bf16(c + 4 * threadIdx.x, a + 4 * threadIdx.x, b + 2 * threadIdx.x);
}
extern "C" __global__ void mma_of_fp16(const unsigned* a, const unsigned* b, float* c) {
    mma_16x8x16_fp16(c + 4 * threadIdx.x, a + 4 * threadIdx.x, b + 2 * threadIdx.x);
}
extern "C" __global__ void half_an_mma(const unsigned* a, const unsigned* b, float* c) {
    mma_16x8x8_fp16(c + 4 * threadIdx.x, a + 2 * threadIdx.x, b[threadIdx.x]);
}
// c = a b, (16, 64) (64, 16), in bf16; b as it is or, with b_transposed, as (16, 64).
extern "C" __global__ void tile(const unsigned short* a, const unsigned short* b, float* c, bool b_transposed) {
    __shared__ __align__(16) unsigned short a_tile[16 * 72], b_tile[64 * 72];
    int t = threadIdx.x, b_rows = b_transposed ? 16 : 64, b_columns = b_transposed ? 64 : 16;
    for (int i = t; i < 16 * 8; i += 32) copy_async_16(a_tile + i / 8 * 72 + i % 8 * 8, a + 8 * i, true);
    for (int i = t; i < b_rows * b_columns / 8; i += 32) {
        int row = i / (b_columns / 8), column = i % (b_columns / 8) * 8;
        copy_async_16(b_tile + row * 72 + column, b + row * b_columns + column, true);
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
        mma_16x8x16_bf16(acc[0], at, bt);
        mma_16x8x16_bf16(acc[1], at, bt + 2);
    }
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 4; i++) c[(t / 4 + i / 2 * 8) * 16 + 8 * j + t % 4 * 2 + i % 2] = acc[j][i];
}

extern "C" __global__ void to_bf16(const float* x, unsigned* out, long long n) {
    long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < n) out[i] = pack_bf16(x[i], x[n - 1 - i]);
}
extern "C" __global__ void to_fp16(const float* x, unsigned* out, long long n) {
    long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < n) out[i] = pack_fp16(x[i], x[n - 1 - i]);
}
extern "C" __global__ void widen(const unsigned short* x, float* out, long long n) {
    long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < n) out[i] = widen_fp16(x[i]);
}
extern "C" __global__ void by_value(Pair pair, float f, bool b, double* out) { out[0] = (double)pair.n + pair.x + pair.m + f + b; }
extern "C" __global__ void scale(float* x, float by) { x[threadIdx.x] *= by; }
extern "C" __global__ void write_at(float* x, int at) { x[at] = 7.0f; }
extern "C" __global__ void sync(int* out) { *out = SIZE; } // a name of the C library, and a macro
