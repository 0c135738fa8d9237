// Kernels that do what CUDA forbids, each in one way. test_shim.py knows some of these lines by number.
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
extern "C" __global__ void early_read(const float* source, float* out) {
    __shared__ float4 x[32];
    copy_async_16(x + threadIdx.x, source + 4 * threadIdx.x, threadIdx.x != 5);
    out[threadIdx.x] = x[threadIdx.x].w;
    copy_async_wait();
    out[threadIdx.x + 32] = x[threadIdx.x].w;
}
extern "C" __global__ void not_waited_for(const float* source) {
    __shared__ float4 x[32];
    copy_async_16(x + threadIdx.x, source, true);
}
extern "C" __global__ void copy_misaligned(const float* source) {
    __shared__ float4 x[32];
    copy_async_16(x, source + 1, true);
}
extern "C" __global__ void copy_to_global(float* x) { copy_async_16(x, x, true); }
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
