// Sums of two arrays, of an array and a bias, and of losses, which the backend needs between the ops.
// add and accumulate_loss replace those of tensorlite/reference/ops.py. A thread of add processes four neighbouring elements at
// a time.
#include "common.cuh"

// out = a + b. Where a value is used twice, its two gradients are added; those of weights are float32 in any precision.
extern "C" __global__ void add(const scalar_t* a, const scalar_t* b, scalar_t* out, long long n) {
    grid_stride_vec4(n, [&](Chunk chunk) {
        Vec4 x = chunk.load(a), y = chunk.load(b);
        for (int j = 0; j < 4; j++) x[j] += y[j];
        chunk.store_to(out, x);
    });
}

// y_nd += b_d, after a GEMM that does not add the bias itself. y: (n / D, D).
extern "C" __global__ void add_bias(scalar_t* y, const scalar_t* b, long long D, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        store(y + i, to_float(y[i]) + to_float(b[i % D]));
}

// out = total + weight loss, or weight loss where total is null. It accumulates the loss of several micro-batches.
extern "C" __global__ void accumulate_loss(const float* total, const float* loss, float weight, float* out) {
    *out = (total ? *total : 0.0f) + weight * *loss;
}
