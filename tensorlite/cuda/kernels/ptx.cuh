// Instructions that CUDA C++ lacks: bf16 rounding, tensor cores, asynchronous copies (cp.async).
//
// This file has all inline assembly of the library. It needs compute capability 8.0. In the tests, where g++ compiles the
// kernels for the CPU, tests/support/shim/cuda_on_cpu.h defines the same functions.
#pragma once

#ifdef __CUDACC__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// Round two floats to bf16, to nearest with ties to even; `low` goes to the low half.
__device__ inline unsigned pack_bf16(float low, float high) {
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// Return 2^x with a relative error of 2e-7; results below 1e-38 become 0. The special function unit does this in one instruction.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Load four 8 x 8 matrices of bf16 from shared memory. Lane 8i + r passes the address of row r (16 bytes) of matrix i.
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

// c += a b on a tensor core, for one warp: a (16 x 16) and b (16 x 8) in bf16, c (16 x 8) in float32. Lane 4r + t owns
//   a[0] row r, columns 2t 2t+1;  a[1] row r+8, the same;  a[2] and a[3] the same rows, columns 2t+8 2t+9
//   b[0] rows 2t 2t+1 of column r;  b[1] rows 2t+8 2t+9 of column r
//   c[0] c[1] row r, columns 2t 2t+1;  c[2] c[3] row r+8, the same
__device__ inline void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Start an asynchronous copy of 16 bytes from global to shared memory. Both addresses are multiples of 16.
__device__ inline void copy_async_16(void* to_shared, const void* from_global) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to_shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from_global) : "memory");
}

// Wait until the copies of this thread have arrived. Other threads see them after the next __syncthreads.
__device__ inline void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif
