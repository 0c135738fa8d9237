// GEMMs of tiles on the tensor cores, from which attention_mma.cu is built.
//
// A tile is 64 or 32 rows of D bf16 or fp16 elements in shared memory. A warp computes 16 rows of a matmul in registers, as an
// accumulator fragment of N8 pieces of 8 columns each, one column per row of the other tile that it multiplies. The lanes own the
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
    constexpr int CHUNKS = D / 8;                // of 16 bytes in a row
    constexpr int ROWS_EACH = THREADS / CHUNKS;  // rows that the block copies at a time
    int row = threadIdx.x / CHUNKS, d = threadIdx.x % CHUNKS * 8;
#pragma unroll
    for (int first = 0; first < ROWS; first += ROWS_EACH) {
        int r = first + row;
        if ((THREADS % CHUNKS == 0 || row < ROWS_EACH) && (ROWS % ROWS_EACH == 0 || r < ROWS))  // true at D = 64
            copy_async_16(tile + r * PITCH + d, from + (r * row_stride + d), r < valid_rows);
    }
}

// The order in which the rows of a tile become the columns of a fragment: as they are, or so that a lane owns the four keys whose
// dropout bits one Threefry counter draws. Then lane 4r + t owns the keys 4t .. 4t + 3 of every 16, two of them in each of two
// pieces. The first two are in the even piece for t = 0 and 1 and in the odd one for t = 2 and 3, because then the 8 rows that
// ldmatrix reads for a piece are in different banks.
enum Order { AS_THEY_ARE, FOUR_PER_LANE };

// Return the row, of 16, that is column c of two pieces.
template <Order ORDER>
__device__ inline int tile_row(int c) {
    int t = c % 8 / 2, piece = c / 8;
    return ORDER == FOUR_PER_LANE ? 4 * t + 2 * (piece ^ t / 2) + c % 2 : c;
}

// Return the key, of a tile, of this lane's acc[j][i] in a fragment whose columns are keys, FOUR_PER_LANE.
__device__ inline int fragment_key(int j, int i) {
    return j / 2 * 16 + tile_row<FOUR_PER_LANE>(j % 2 * 8 + threadIdx.x % 4 * 2 + i % 2);
}

// 16 rows of a tile, as the left operand of gemm_nt.
struct Rows {
    unsigned left[D / 16][4];
};

__device__ inline Rows load_rows(const scalar_t* a) {
    Rows rows;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int d = 0; d < D; d += 16) ldmatrix_x4(rows.left[d / 16], a + lane % 16 * PITCH + d + lane / 16 * 8);
    return rows;
}

// acc (16 x 8 N8) = a (16 x D) b^T, for 16 rows a of one tile and all rows b of another.
template <Order ORDER, int N8>
__device__ inline void gemm_nt(float (&acc)[N8][4], const Rows& a, const scalar_t* b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < N8; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        unsigned right[4];
#pragma unroll
        for (int j = 0; j < N8; j += 2) {  // 16 rows of b: two pieces
            ldmatrix_x4(right, b + (8 * j + tile_row<ORDER>(lane % 8 + lane / 16 * 8)) * PITCH + d + lane / 8 % 2 * 8);
            scalar_t::mma_16x8x16(acc[j], a.left[d / 16], right);
            scalar_t::mma_16x8x16(acc[j + 1], a.left[d / 16], right + 2);
        }
    }
}

// acc (16 x D) += p (16 x 8 N8) b, for a fragment p in registers, which is rounded to scalar_t, and a tile b in shared memory, whose
// rows have the order of p's columns.
template <Order ORDER, int N8>
__device__ inline void gemm_rs(float (&acc)[D / 8][4], const float (&p)[N8][4], const scalar_t* b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < N8; j += 2) {
        unsigned left[4] = {scalar_t::pack(p[j][0], p[j][1]), scalar_t::pack(p[j][2], p[j][3]),
                            scalar_t::pack(p[j + 1][0], p[j + 1][1]), scalar_t::pack(p[j + 1][2], p[j + 1][3])};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            unsigned right[4];
            ldmatrix_x4_trans(right, b + (8 * j + tile_row<ORDER>(lane % 16)) * PITCH + d + lane / 16 * 8);
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

// Draw the dropout mask of a fragment (16 x 64), whose rows are queries and whose columns are keys, FOUR_PER_LANE. offset: the
// position, in the mask's stream, of the first key of row r; it is a multiple of 4. Queries are T positions apart. Only the first
// `columns` columns are drawn.
//
// Of every 16 keys, a lane draws one counter for row r and one for row r + 8. Bit 8 g + 4 half + k is 1 if key 16 g + 4 t + k of
// row r + 8 half is kept.
__device__ inline unsigned draw_mask(uint2 key, unsigned threshold, unsigned long long offset, long long T, int columns) {
    unsigned mask_bits = 0;
#pragma unroll
    for (int g = 0; g < TILE / 16; g++) {
        if (16 * g >= columns) break;
        unsigned long long counter = offset / 4 + 4 * g + threadIdx.x % 4;
        mask_bits |= (mask4(key, threshold, counter) | mask4(key, threshold, counter + 2 * T) << 4) << 8 * g;
    }
    return mask_bits;
}

// Return drawn bits in the order of the fragment: acc[j][i]'s is bit fragment_bit(j, i). Half of the lanes own the first two of
// their four keys in the odd piece.
__device__ inline unsigned in_fragment_order(unsigned mask_bits) {
    return threadIdx.x % 4 < 2 ? mask_bits : (mask_bits & 0x33333333) << 2 | (mask_bits >> 2 & 0x33333333);
}

__device__ inline int fragment_bit(int j, int i) { return j / 2 * 8 + i / 2 * 4 + j % 2 * 2 + i % 2; }

// Word 32 w + lane of a stored mask tile holds the bits that this lane of warp w drew. This function reads the bits of a transposed
// fragment, whose rows are 16 keys and whose columns are 8 N8 queries, AS_THEY_ARE. words: those of the warp that drew the first of
// these queries. Bit 4j + i of the result is acc[j][i]'s.
//
// Lane 4r + t owns, of piece j, the keys r and r + 8 (i / 2 = 0 and 1) and the queries 8j + 2t and 8j + 2t + 1 (i % 2 = 0 and 1).
// Warp j / 2 drew these queries as its rows 2t + i % 2, or that plus 8 if j is odd. Its lane 4 (2t + i % 2) + key / 4 drew the bit,
// as bit 8 w + 4 (j % 2) + key % 4, where w is the warp of this lane.
template <int N8>
__device__ inline unsigned load_mask_transposed(const unsigned* words) {
    int lane = threadIdx.x % 32, w = threadIdx.x / 32, r = lane / 4, t = lane % 4;
    unsigned mask_bits = 0;
#pragma unroll
    for (int j = 0; j < N8; j += 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned word = words[j / 2 * 32 + 4 * (2 * t + i % 2) + (r + i / 2 * 8) / 4];
            mask_bits |= (word >> (8 * w + r % 4) & 0x11) << (4 * j + i);
        }
    return mask_bits;
}
