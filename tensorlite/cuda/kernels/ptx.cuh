// Instructions that CUDA C++ lacks: 16-bit floats, tensor cores, asynchronous copies (cp.async).
//
// This file has all inline assembly of the library. In the tests, where g++ compiles the kernels for the CPU,
// tests/support/shim/cuda_on_cpu.h defines the functions that are between #ifdef __CUDACC__ and its #endif.
//
// Some instructions need compute capability 8.0. For 7.5, the end of this file builds the same functions from older ones; float32
// kernels use neither. -DSM75_PATH=1 takes the path of 7.5 on any card.
#pragma once

#ifndef SM75_PATH
#define SM75_PATH (__CUDA_ARCH__ < 800)
#endif

#ifdef __CUDACC__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// Return 2^x with a relative error of 2e-7; results below 1e-38 become 0. The special function unit does this in one instruction.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Return x rotated left by n bits, 0 < n < 32: both halves of the 64-bit product x 2^n. The multiplier is idle where a kernel draws
// a dropout mask. A shift would compete with Threefry's other instructions for the ALU.
__device__ inline unsigned rotate_left(unsigned x, int n) {
    unsigned long long wide;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(wide) : "r"(x), "r"(1u << n));
    return (unsigned)wide | (unsigned)(wide >> 32);
}

// Round a float to fp16, to nearest with ties to even. What rounds to more than 65504 becomes infinite.
__device__ inline unsigned short round_fp16(float x) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}

// Return an fp16 as a float, which is exact.
__device__ inline float widen_fp16(unsigned short half) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
}

// Load four 8 x 8 matrices of 16-bit elements from shared memory. Lane 8i + r passes the address of row r (16 bytes) of matrix i.
// Afterwards, m[i] of lane 4r + c holds the elements 2c and 2c + 1 of row r of matrix i.
__device__ inline void ldmatrix_x4(unsigned m[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

// Load the same matrices, each of them transposed.
__device__ inline void ldmatrix_x4_trans(unsigned m[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

// c += a b on a tensor core, for one warp: a (16 x 8) and b (8 x 8) in fp16, c (16 x 8) in float32. Lane 4r + t owns
//   a[0] row r, columns 2t 2t+1;  a[1] row r+8, the same
//   b rows 2t 2t+1 of column r
//   c[0] c[1] row r, columns 2t 2t+1;  c[2] c[3] row r+8, the same
__device__ inline void mma_16x8x8_fp16(float c[4], const unsigned a[2], unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}

// ---- instructions of compute capability 8.0 ----

// Round two floats to bf16, to nearest with ties to even; `low` goes to the low half.
__device__ inline unsigned pack_bf16(float low, float high) {
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// c += a b as above: a (16 x 16) and b (16 x 8) in bf16. Lane 4r + t owns
//   a[0] row r, columns 2t 2t+1;  a[1] row r+8, the same;  a[2] and a[3] the same rows, columns 2t+8 2t+9
//   b[0] rows 2t 2t+1 of column r;  b[1] rows 2t+8 2t+9 of column r
//   c[0] c[1] row r, columns 2t 2t+1;  c[2] c[3] row r+8, the same
__device__ inline void mma_16x8x16_bf16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#if !SM75_PATH
// Round two floats to fp16; `low` goes to the low half.
__device__ inline unsigned pack_fp16(float low, float high) {
    unsigned packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// As mma_16x8x16_bf16, with a and b in fp16.
__device__ inline void mma_16x8x16_fp16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Start an asynchronous copy of 16 bytes from global to shared memory, or of zeros where `exists` is false; then nothing is read.
// Both addresses are multiples of 16.
__device__ inline void copy_async_16(void* to_shared, const void* from_global, bool exists) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to_shared);
    int bytes = exists ? 16 : 0;  // of global memory; the rest of the 16 is zero
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from_global), "r"(bytes) : "memory");
}

// Wait until the copies of this thread have arrived. Other threads see them after the next __syncthreads.
__device__ inline void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif
#endif

// ---- the same functions on compute capability 7.5 ----

#if SM75_PATH
__device__ inline unsigned pack_fp16(float low, float high) { return round_fp16(low) | (unsigned)round_fp16(high) << 16; }

// The first 8 columns of a and rows of b, and then the other 8.
__device__ inline void mma_16x8x16_fp16(float c[4], const unsigned a[4], const unsigned b[2]) {
    mma_16x8x8_fp16(c, a, b[0]);
    mma_16x8x8_fp16(c, a + 2, b[1]);
}

// A copy through a register, which has arrived when the thread goes on.
__device__ inline void copy_async_16(void* to_shared, const void* from_global, bool exists) {
    *(uint4*)to_shared = exists ? *(const uint4*)from_global : make_uint4(0, 0, 0, 0);
}
__device__ inline void copy_async_wait() {}
#endif
