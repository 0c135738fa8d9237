// GEMMs of tiles on the tensor cores, from which attention_mma.cu is built.
//
// A tile is 64 or 32 rows of D bf16 or fp16 elements in shared memory. A warp computes 16 rows of a matmul in registers, as an
// accumulator fragment of N8 pieces of 8 columns each; N8 is 8 or 4, as the other tile has 64 or 32 rows. The lanes own the
// fragment in the layout of mma_16x8x16 (ptx.cuh). Of piece j, lane 4r + t owns
//   acc[j][0], acc[j][1]   row r,     columns 8j + 2t, 8j + 2t + 1
//   acc[j][2], acc[j][3]   row r + 8, the same columns
// So a lane owns parts of two rows. The four lanes 4r .. 4r + 3, which share these rows, are a quad.
#pragma once
#include "attention_mask.cuh"

constexpr int TILE = 64, WARPS = 4, THREADS = 32 * WARPS;
constexpr int PITCH = D + 8;  // elements from one row to the next; with 16 more bytes, 16 bytes of 8 rows are in 32 banks
constexpr int TILE_SIZE = TILE * PITCH;

// Start to copy rows of a head, row_stride elements apart, into a tile of ROWS rows. The first valid_rows rows exist; the others
// become zeros. The copy has arrived after copy_async_wait.
template <int ROWS = TILE>
__device__ inline void load_tile(scalar_t* tile, const scalar_t* from, int row_stride, int valid_rows) {
    constexpr unsigned CHUNKS = D / 8;  // of 16 bytes in a row
#pragma unroll
    for (unsigned i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        unsigned r = i / CHUNKS, d = i % CHUNKS * 8;
        if ((int)r < valid_rows)
            copy_async_16(tile + r * PITCH + d, from + r * row_stride + d);
        else
            *(uint4*)(tile + r * PITCH + d) = make_uint4(0, 0, 0, 0);
    }
}

// acc (16 x 8 N8) = a (16 x D) b^T, for 16 rows a of one tile and all rows b of another.
template <int N8>
__device__ inline void gemm_nt(float (&acc)[N8][4], const scalar_t* a, const scalar_t* b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < N8; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        unsigned left[4], right[4];
        ldmatrix_x4(left, a + lane % 16 * PITCH + d + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < N8; j += 2) {  // 16 rows of b: two pieces
            ldmatrix_x4(right, b + (8 * j + lane % 8 + lane / 16 * 8) * PITCH + d + lane / 8 % 2 * 8);
            scalar_t::mma_16x8x16(acc[j], left, right);
            scalar_t::mma_16x8x16(acc[j + 1], left, right + 2);
        }
    }
}

// acc (16 x D) += p (16 x 8 N8) b, for a fragment p in registers, which is rounded to scalar_t, and a tile b in shared memory.
template <int N8>
__device__ inline void gemm_rs(float (&acc)[D / 8][4], const float (&p)[N8][4], const scalar_t* b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < N8; j += 2) {
        unsigned left[4] = {scalar_t::pack(p[j][0], p[j][1]), scalar_t::pack(p[j][2], p[j][3]),
                            scalar_t::pack(p[j + 1][0], p[j + 1][1]), scalar_t::pack(p[j + 1][2], p[j + 1][3])};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            unsigned right[4];
            ldmatrix_x4_trans(right, b + (8 * j + lane % 16) * PITCH + d + lane / 16 * 8);
            scalar_t::mma_16x8x16(acc[d / 8], left, right);
            scalar_t::mma_16x8x16(acc[d / 8 + 1], left, right + 2);
        }
    }
}

// Return the largest value, or the sum, over the four lanes of a quad. All four receive it.
__device__ inline float quad_max(float x) {
    for (int i = 1; i < 4; i *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

__device__ inline float quad_sum(float x) {
    for (int i = 1; i < 4; i *= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

// Store a fragment (16 x D), times scale0 in row r and scale1 in row r + 8. The first valid_rows of the 16 rows exist.
__device__ inline void store_fragment(scalar_t* to, long long row_stride, int valid_rows, const float (&acc)[D / 8][4],
                                      float scale0, float scale1) {
    int r = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        if (r < valid_rows)
            *(unsigned*)(to + r * row_stride + 8 * j + 2 * t) = scalar_t::pack(acc[j][0] * scale0, acc[j][1] * scale0);
        if (r + 8 < valid_rows)
            *(unsigned*)(to + (r + 8) * row_stride + 8 * j + 2 * t) = scalar_t::pack(acc[j][2] * scale1, acc[j][3] * scale1);
    }
}

// Draw the dropout mask of a fragment (16 x 64), whose rows are queries and whose columns are keys. Bit 4j + i is 1 if acc[j][i] is
// kept. offset: the position, in the mask's stream, of column 0 of row r; it is a multiple of 4. Queries are T positions apart.
//
// One Threefry counter yields 4 neighbouring columns of a row, but a lane owns only 2 of them. So for every two pieces, which
// are 16 columns, each lane t of a quad draws one counter for row r and one for row r + 8. Then the quad exchanges the bits by
// shuffle. For one row:
//
//   columns of piece      j: 0 1 2 3 4 5 6 7   j + 1: 0 1 2 3 4 5 6 7
//   drawn by lane t =        0 0 0 0 1 1 1 1          2 2 2 2 3 3 3 3     its counter: offset / 4 + 2j + t
//   as its bit               0 1 2 3 0 1 2 3          0 1 2 3 0 1 2 3     (row r + 8: bits 4 .. 7)
//   owned by lane t =        0 0 1 1 2 2 3 3          0 0 1 1 2 2 3 3
//
// So lane t reads the draw of lane t / 2 for piece j, and that of lane 2 + t / 2 for piece j + 1. From each draw it takes the
// bits 2 (t % 2) and 2 (t % 2) + 1.
__device__ inline unsigned draw_mask(uint2 key, unsigned threshold, unsigned long long offset, long long T) {
    int lane = threadIdx.x % 32, t = lane % 4;
    unsigned long long offset8 = offset + 8 * T;  // of row r + 8
    unsigned mask_bits = 0;
#pragma unroll
    for (int j = 0; j < TILE / 8; j += 2) {
        unsigned drawn = mask4(key, threshold, offset / 4 + 2 * j + t) | mask4(key, threshold, offset8 / 4 + 2 * j + t) << 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned two = __shfl_sync(~0u, drawn, lane - t + 2 * half + t / 2) >> 2 * (t % 2);
            mask_bits |= ((two & 3) | (two >> 4 & 3) << 2) << 4 * (j + half);
        }
    }
    return mask_bits;
}

// The mask is stored as it is drawn: word 32 w + lane of a tile holds the bits of that lane of warp w. A kernel whose fragments are
// those of attention_forward reads its own word. This function is for transposed fragments, whose rows are 16 keys of a tile and
// whose columns are 8 N8 of its queries. words: the words of the warp that drew the first of these queries.
//
// Lane 4r + t owns, of piece j, the keys r and r + 8 (i / 2 = 0 and 1) and the queries 8j + 2t and 8j + 2t + 1 (i % 2 = 0 and 1).
// When they were drawn, a query was a row and a key a column:
//   query 8j + 2t + i % 2    row 2t + i % 2, or that plus 8 if j is odd, of warp j / 2      lane 4 (2t + i % 2) + ...
//   key 16 w + r             column r of piece 2w, or of piece 2w + 1 if i / 2 = 1          ... + r / 2
//   their bit                4 piece + 2 (j % 2) + r % 2 of the lane's word
// So a lane needs two words for every two pieces, and takes the bits 0, 2, 4 and 6 of each, after a shift by 8 w + r % 2.
// Returns acc[j][i]'s bit as bit `transposed_bit(j, i)`.
template <int N8>
__device__ inline unsigned load_mask_transposed(const unsigned* words) {
    int lane = threadIdx.x % 32, w = threadIdx.x / 32, r = lane / 4, t = lane % 4;
    unsigned mask_bits = 0;
#pragma unroll
    for (int j = 0; j < N8; j += 2)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned word = words[j / 2 * 32 + 4 * (2 * t + i) + r / 2];
            mask_bits |= (word >> (8 * w + r % 2) & 0x55) << (4 * j + i);
        }
    return mask_bits;
}

__device__ inline int transposed_bit(int j, int i) { return j / 2 * 8 + i / 2 * 4 + j % 2 * 2 + i % 2; }
