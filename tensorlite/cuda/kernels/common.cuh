// Types, vector loads and stores, and sums over a warp or block, which every kernel file includes. It needs no CUDA header, so
// the run-time compiler alone can build it.
//
// scalar_t is the type in which activations are stored: float, bf16 or fp16. A file is compiled once per type, such as with
// -Dscalar_t=bf16. All arithmetic is in float32. An absent array is a null pointer.
#pragma once
#include "ptx.cuh"

#define INFINITE __uint_as_float(0x7f800000u)

// The 16-bit types. Two neighbouring elements are loaded, stored and multiplied as a pair, in the halves of an unsigned.
struct bf16 {
    unsigned short bits;  // the upper half of a float32

    static __device__ float low(unsigned pair) { return __uint_as_float(pair << 16); }
    static __device__ float high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
    static __device__ unsigned pack(float low, float high) { return pack_bf16(low, high); }
    static __device__ void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) { mma_16x8x16_bf16(c, a, b); }
};

struct fp16 {
    unsigned short bits;  // IEEE 754's binary16: 11 significant bits, from 2^-14 to 65504, and multiples of 2^-24 below

    static __device__ float low(unsigned pair) { return widen_fp16((unsigned short)pair); }
    static __device__ float high(unsigned pair) { return widen_fp16((unsigned short)(pair >> 16)); }
    static __device__ unsigned pack(float low, float high) { return pack_fp16(low, high); }
    static __device__ void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) { mma_16x8x16_fp16(c, a, b); }
};

__device__ inline float to_float(float x) { return x; }
template <class Half>
__device__ inline float to_float(Half x) { return Half::low(x.bits); }

__device__ inline void store(float* p, float x) { *p = x; }
template <class Half>
__device__ inline void store(Half* p, float x) { p->bits = (unsigned short)Half::pack(x, 0.0f); }

// Return x as it reads after a store through a pointer of this type.
__device__ inline float round_to_storage(const float*, float x) { return x; }
template <class Half>
__device__ inline float round_to_storage(const Half*, float x) { return Half::low(Half::pack(x, 0.0f)); }

// Four neighbouring elements, loaded or stored at once. The address is a multiple of their size, 16 bytes of float or 8 of a
// 16-bit type.
struct Vec4 {
    float elements[4];

    __device__ float& operator[](int i) { return elements[i]; }
    __device__ const float& operator[](int i) const { return elements[i]; }
};

__device__ inline Vec4 load4(const float* p) {
    float4 x = *(const float4*)p;
    return {x.x, x.y, x.z, x.w};
}

template <class Half>
__device__ inline Vec4 load4(const Half* p) {
    uint2 x = *(const uint2*)p;
    return {Half::low(x.x), Half::high(x.x), Half::low(x.y), Half::high(x.y)};
}

__device__ inline void store4(float* p, Vec4 x) { *(float4*)p = make_float4(x[0], x[1], x[2], x[3]); }
template <class Half>
__device__ inline void store4(Half* p, Vec4 x) { *(uint2*)p = make_uint2(Half::pack(x[0], x[1]), Half::pack(x[2], x[3])); }

// Return the sum, or the largest value, over the 32 lanes of a warp. All lanes receive it.
__device__ inline float warp_sum(float x) {
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

// Return the sum over a block, whose number of threads is a multiple of 32, at most 1024. Thread 0 receives it.
__device__ inline float block_sum(float x) {
    __shared__ float warp_sums[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
    __syncthreads();
    return threadIdx.x < 32 ? warp_sum(threadIdx.x < blockDim.x / 32 ? warp_sums[threadIdx.x] : 0.0f) : 0.0f;
}

// The elements i .. i + count - 1, which a thread of an elementwise kernel processes at a time. count is 4, or 1 for the last
// few.
struct Chunk {
    long long i;
    int count;

    template <class T>
    __device__ Vec4 load(const T* p) const {
        return count == 4 ? load4(p + i) : Vec4{to_float(p[i])};
    }
    template <class T>
    __device__ void store_to(T* p, Vec4 x) const {
        if (count == 4)
            store4(p + i, x);
        else
            store(p + i, x[0]);
    }
};

// Grid-stride loop: call body(chunk) for all n elements, spread over the threads of the grid.
template <class Body>
__device__ inline void grid_stride_vec4(long long n, Body body) {
    long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x, threads = gridDim.x * (long long)blockDim.x;
    for (long long i = 4 * thread; i + 4 <= n; i += 4 * threads) body(Chunk{i, 4});
    if (n / 4 * 4 + thread < n) body(Chunk{n / 4 * 4 + thread, 1});
}

// Return the sum of partial sums in a kernel of one block. Thread 0 receives it.
__device__ inline float sum_partial(const float* partial, long long count) {
    float sum = 0.0f;
    grid_stride_vec4(count, [&](Chunk chunk) {
        Vec4 x = chunk.load(partial);
        for (int j = 0; j < 4; j++) sum += x[j];
    });
    return block_sum(sum);
}
