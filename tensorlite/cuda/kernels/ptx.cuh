// Instructions that C++ has no word for: bf16 rounding, tensor cores, asynchronous copies (cp.async).
//
// Every line of inline assembly of this library is here. In the tests, where g++ compiles the kernels for the CPU, the same
// functions are those of tests/support/shim/cuda_on_cpu.h. All need compute capability 8.0.
#pragma once

#ifdef __CUDACC__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// Two floats rounded to bf16, to the nearest and ties to even: `low` in the low half.
__device__ inline unsigned pack_bf16(float low, float high) {
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// 2^x to 2 parts in 10^7, results below 10^-38 as 0: what the special function unit does in one instruction.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Four 8 x 8 matrices of bf16 out of shared memory. Lane 8i + r gives the address of row r (16 bytes) of matrix i; afterwards lane
// 4r + c holds in m[i] the elements 2c and 2c + 1 of row r of matrix i.
__device__ inline void ldmatrix_x4(unsigned m[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

// The same, with each 8 x 8 matrix transposed on the way.
__device__ inline void ldmatrix_x4_trans(unsigned m[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(address) : "memory");
}

// c += a b on a tensor core, for one warp: a (16 x 16) and b (16 x 8) in bf16, c (16 x 8) in float32. Lane 4r + t holds
//   a[0] row r, columns 2t 2t+1;  a[1] row r+8, the same;  a[2] and a[3] the same rows, columns 2t+8 2t+9
//   b[0] rows 2t 2t+1 of column r;  b[1] rows 2t+8 2t+9 of column r
//   c[0] c[1] row r, columns 2t 2t+1;  c[2] c[3] row r+8, the same
__device__ inline void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copy 16 bytes from global to shared memory asynchronously; both addresses are multiples of 16.
__device__ inline void copy_async_16(void* to_shared, const void* from_global) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to_shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from_global) : "memory");
}

// Wait until this thread's copies have arrived. Other threads see them after the next __syncthreads.
__device__ inline void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif
