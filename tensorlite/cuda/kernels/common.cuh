// What every kernel file begins with. It needs no header of CUDA's, so that the run-time compiler is enough to build it.
//
// The word REAL is the type in which activations are stored, float or bf16: a file is compiled once for each, with -DREAL=float or
// -DREAL=bf16. All arithmetic is in float32. A Python int arrives as long long, a Python float as float, an absent array as null.
#pragma once
#include "ptx.cuh"

#define INFINITE __uint_as_float(0x7f800000u)

struct bf16 {
    unsigned short bits;  // the upper half of a float32
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(bf16* p, float x) { p->bits = (unsigned short)pack_bf16(x, 0.0f); }

// x as it will be read back after a store.
__device__ inline float stored(const float*, float x) { return x; }
__device__ inline float stored(const bf16*, float x) { return __uint_as_float(pack_bf16(x, 0.0f) << 16); }

// Four neighbours at once, the address a multiple of their size: 16 bytes of float, 8 of bf16.
struct Four {
    float at[4];
};

__device__ inline Four load4(const float* p) {
    float4 x = *(const float4*)p;
    return {x.x, x.y, x.z, x.w};
}

__device__ inline Four load4(const bf16* p) {
    uint2 x = *(const uint2*)p;
    return {__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u), __uint_as_float(x.y << 16),
            __uint_as_float(x.y & 0xffff0000u)};
}

__device__ inline void store4(float* p, Four x) { *(float4*)p = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]); }
__device__ inline void store4(bf16* p, Four x) {
    *(uint2*)p = make_uint2(pack_bf16(x.at[0], x.at[1]), pack_bf16(x.at[2], x.at[3]));
}

// The sum, and the largest, of all 32 lanes, in each of them.
__device__ inline float warp_sum(float x) {
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

// The sum over a block of at most 1024 threads, a multiple of 32; in thread 0.
__device__ inline float block_sum(float x) {
    __shared__ float of_warp[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    return threadIdx.x < 32 ? warp_sum(threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0.0f) : 0.0f;
}

// A thread of an elementwise kernel takes four neighbours at a time, and of the last few elements one: i .. i + count - 1, count 4 or 1.
struct Slice {
    long long i;
    int count;

    template <class T>
    __device__ Four load(const T* p) const {
        return count == 4 ? load4(p + i) : Four{to_float(p[i])};
    }
    template <class T>
    __device__ void store_to(T* p, Four x) const {
        if (count == 4)
            store4(p + i, x);
        else
            store(p + i, x.at[0]);
    }
};

// Calls body(slice) for all n elements, spread over the threads of the grid.
template <class Body>
__device__ inline void for_slices(long long n, Body body) {
    long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x, threads = gridDim.x * (long long)blockDim.x;
    for (long long i = 4 * thread; i + 4 <= n; i += 4 * threads) body(Slice{i, 4});
    if (n / 4 * 4 + thread < n) body(Slice{n / 4 * 4 + thread, 1});
}
