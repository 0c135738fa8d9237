// Kernels for the tests of the model of a step (gpt/analysis/step_model.py), whose work is known.
#include "random.cuh"

// A warp stores ceil((n - thread) / threads) times, thread by thread of the grid.
extern "C" __global__ void fill(float* y, long long n) {
    long long threads = gridDim.x * (long long)blockDim.x;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += threads) y[i] = 1.0f;
}

// One store per n / d, and another one per row where x is given; the loops are not unrolled.
extern "C" __global__ void divide(const float* x, float* y, long long n, long long d, int rows) {
#pragma unroll 1
    for (long long i = 0; i < n / d; i++) y[i * 32 + threadIdx.x] = 2.0f;
    if (x) {
#pragma unroll 1
        for (int r = 0; r < rows; r++) y[r * 32 + threadIdx.x] = x[r] / y[r];
    }
}

// A loop that ends where memory says so.
extern "C" __global__ void search(const int* x, int* y) {
    int i = 0;
#pragma unroll 1
    while (x[i] > 0) i++;
    *y = i;
}

#if __CUDA_ARCH__ >= 800
// As attention does: each step multiplies on the tensor cores and draws the masks of four counters.
extern "C" __global__ void masked(const unsigned* x, unsigned* y, int steps, unsigned k0, unsigned k1) {
    float c[4] = {};
    unsigned a[4] = {x[0], x[1], x[2], x[3]}, b[2] = {x[4], x[5]}, kept = 0;
#pragma unroll 1
    for (int i = 0; i < steps; i++) {
        for (int j = 0; j < 4; j++) kept ^= mask4(make_uint2(k0, k1), 13107, 128 * i + 4 * threadIdx.x + j);
        scalar_t::mma_16x8x16(c, a, b);
    }
    y[threadIdx.x] = kept + __float_as_uint(c[0] + c[1] + c[2] + c[3]);
}
#endif
