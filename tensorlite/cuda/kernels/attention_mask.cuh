// The dropout mask of attention, one bit per query and key. attention_forward draws it and stores it, and both backward kernels
// read it, because to draw it takes about as many instructions as the rest of a kernel.
//
// The mask of 64 queries and 64 keys is a tile of 128 words. Of each head, the tiles that the causal mask leaves visible are
// stored, row by row:
//
//   keys      0..63   64..127   128..191
//   queries   tile 0                          0 ..  63
//             tile 1  tile 2                 64 .. 127
//             tile 3  tile 4    tile 5      128 .. 191
//
// Which bit of a tile belongs to which query and key is up to each kernel file: attention.cu or attention_tiles.cuh.
#pragma once
#include "random.cuh"

constexpr int MASK_TILE = 64, MASK_WORDS = MASK_TILE * MASK_TILE / 32;

// Return where the tile with query t and key s begins in the mask of all heads, in words. s <= t < T.
__device__ inline long long mask_tile(long long head, int T, int t, int s) {
    int q_tiles = (T + MASK_TILE - 1) / MASK_TILE, q_tile = t / MASK_TILE;
    return (head * (q_tiles * (q_tiles + 1) / 2) + q_tile * (q_tile + 1) / 2 + s / MASK_TILE) * MASK_WORDS;
}
