// Products of tiles on the tensor cores: what attention_mma.cu is made of.
//
// A tile is 64 rows of D bf16 numbers in shared memory, or 32. A warp makes 16 rows of a product, in pieces of 8 columns (P pieces: 8
// or 4, as many columns as the other tile has rows). It holds them as mma_16x8x16 leaves them (ptx.cuh): of piece j, lane 4r + t has
// acc[j][0 1] = row r, columns 8j + 2t, 8j + 2t + 1, and acc[j][2 3] = row r + 8, the same columns.
#pragma once
#include "random.cuh"

constexpr int TILE = 64, WARPS = 4, THREADS = 32 * WARPS;
constexpr int PITCH = D + 8;  // of a row, in elements: 16 bytes more, so that 8 rows of 16 bytes are in 32 different banks
constexpr int TILE_SIZE = TILE * PITCH;

// The rows of a head, `row` elements apart, into a tile of SIZE rows; `rows` are left, and those that do not exist become zeros.
// They are there after copy_async_wait.
template <int SIZE = TILE>
__device__ inline void load_tile(bf16* tile, const bf16* from, long long row, int rows) {
    constexpr unsigned CHUNKS = D / 8;  // of 16 bytes in a row
#pragma unroll
    for (unsigned i = threadIdx.x; i < SIZE * CHUNKS; i += THREADS) {
        unsigned r = i / CHUNKS, d = i % CHUNKS * 8;
        if ((int)r < rows)
            copy_async_16(tile + r * PITCH + d, from + r * (unsigned)row + d);
        else
            *(uint4*)(tile + r * PITCH + d) = make_uint4(0, 0, 0, 0);
    }
}

// acc (16 x 8 P) = a (16 x D) b^T: 16 rows of one tile against the rows of another, the sum over D.
template <int P>
__device__ inline void rows_times_rows(float (&acc)[P][4], const bf16* a, const bf16* b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < P; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        unsigned left[4], right[4];
        ldmatrix_x4(left, a + lane % 16 * PITCH + d + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < P; j += 2) {  // 16 rows of b: two pieces
            ldmatrix_x4(right, b + (8 * j + lane % 8 + lane / 16 * 8) * PITCH + d + lane / 8 % 2 * 8);
            mma_16x8x16(acc[j], left, right);
            mma_16x8x16(acc[j + 1], left, right + 2);
        }
    }
}

// acc (16 x D) += p (16 x 8 P) b: a product that a warp holds against the rows of a tile, the sum over these. p is rounded to bf16.
template <int P>
__device__ inline void add_held_times_rows(float (&acc)[D / 8][4], const float (&p)[P][4], const bf16* b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < P; j += 2) {
        unsigned left[4] = {pack_bf16(p[j][0], p[j][1]), pack_bf16(p[j][2], p[j][3]), pack_bf16(p[j + 1][0], p[j + 1][1]),
                            pack_bf16(p[j + 1][2], p[j + 1][3])};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            unsigned right[4];
            ldmatrix_x4_trans(right, b + (8 * j + lane % 16) * PITCH + d + lane / 16 * 8);
            mma_16x8x16(acc[d / 8], left, right);
            mma_16x8x16(acc[d / 8 + 1], left, right + 2);
        }
    }
}

// The rows a warp holds, times a number for row r and one for row r + 8, to memory; `rows` of the 16 exist.
__device__ inline void store_held(bf16* to, long long row, int rows, const float acc[D / 8][4], float scale, float scale8) {
    int r = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        if (r < rows) *(unsigned*)(to + r * row + 8 * j + 2 * t) = pack_bf16(acc[j][0] * scale, acc[j][1] * scale);
        if (r + 8 < rows) *(unsigned*)(to + (r + 8) * row + 8 * j + 2 * t) = pack_bf16(acc[j][2] * scale8, acc[j][3] * scale8);
    }
}

// Which of a held tile's 32 numbers a lane keeps: bit 4j + i for acc[j][i]. The rows are queries, the columns neighbouring keys.
// row, row8: the numbers, in the mask's stream, of column 0 of rows r and r + 8; multiples of 4. A counter makes 4 columns, of which
// a lane has 2, so each lane draws a fourth of 16 columns for its two rows, and four lanes exchange.
template <int P>
__device__ inline unsigned keep_along_rows(uint2 key, unsigned threshold, unsigned long long row, unsigned long long row8) {
    int lane = threadIdx.x % 32, t = lane % 4;
    unsigned kept = 0;
#pragma unroll
    for (int j = 0; j < P; j += 2) {
        unsigned drawn = keep4(key, threshold, row / 4 + 2 * j + t) | keep4(key, threshold, row8 / 4 + 2 * j + t) << 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {  // columns 2t, 2t + 1 of piece j + half are lanes 2 (t % 2) .. of its counter t / 2
            unsigned two = __shfl_sync(~0u, drawn, lane - t + 2 * half + t / 2) >> 2 * (t % 2);
            kept |= ((two & 3) | (two >> 4 & 3) << 2) << 4 * (j + half);
        }
    }
    return kept;
}

// The same for a tile whose rows are keys and whose columns are queries. first: the number of key 0 of this warp's rows and query 0
// of the columns, a multiple of 4; queries are T numbers apart. A counter makes 4 rows, of which four lanes have one each.
template <int P>
__device__ inline unsigned keep_along_columns(uint2 key, unsigned threshold, unsigned long long first, long long T) {
    int lane = threadIdx.x % 32, r = lane / 4, t = lane % 4, own = r % 4;
    unsigned kept = 0;
#pragma unroll
    for (int j = 0; j < P; j++) {
        // this lane's share: rows r - own .. + 3, or those 8 further down, of column 2t or 2t + 1
        unsigned long long query = 8 * j + 2 * t + own % 2;
        unsigned drawn = keep4(key, threshold, (first + query * T + r - own + own / 2 * 8) / 4);
#pragma unroll
        for (int i = 0; i < 4; i++) kept |= (__shfl_sync(~0u, drawn, (r - own + i) * 4 + t) >> own & 1) << (4 * j + i);
    }
    return kept;
}
