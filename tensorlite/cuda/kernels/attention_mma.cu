// Causal attention on the tensor cores, bf16, head sizes that are multiples of 16. The same functions as attention.cu, which says
// what differs from tensorlite/reference/attention.py, for q, k and v packed in one array.
//
// A block has 64 queries (or keys) of one head and meets the keys (or queries) in tiles; each of its 4 warps has 16 rows.
// Exponentials are of base 2: scores are scaled by log2(e) as well. Backward is two kernels, one a block of queries and one a block
// of keys: each number has one owner, so there are no atomics; the price is that scores and dkept are made twice.
#include "attention_tiles.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr int P = 4, QUERIES = 8 * P;  // of a tile that a block of keys meets: half a tile, so that at head size 64 three blocks fit the registers

// 0 where a bit says so, else x times scale.
__device__ inline float kept_or_0(float x, unsigned kept, int bit, float scale) { return kept >> bit & 1 ? x * scale : 0.0f; }

// y = dropout(softmax(mask(q k^T scale))) v, and lse. qkv: (B, T, 3 H D). y: (B, T, H D). lse: (B, H, T).
// Grid: (B H, tiles of queries). Shared memory: 3 tiles.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_forward(const bf16* qkv, bf16* y, float* lse, long long H, int T, float scale, Drop drop) {
    DYNAMIC_SHARED(memory);
    bf16 *q = (bf16*)memory, *k = q + TILE_SIZE, *v = k + TILE_SIZE;
    uint2 key = block_key(drop);
    long long b = blockIdx.x / H, h = blockIdx.x % H, C = H * D;
    int tile = gridDim.y - 1 - blockIdx.y;  // those with the most keys first, so that the short ones fill the gaps at the end
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16, row = tile * TILE + first + lane / 4;  // this lane's: row, row + 8
    const bf16* head = qkv + b * T * 3 * C + h * D;
    load_tile(q, head + tile * TILE * 3 * C, 3 * C, T - tile * TILE);

    float out[D / 8][4] = {}, top = -INFINITE, top8 = -INFINITE, sum = 0.0f, sum8 = 0.0f;
    for (int other = 0; other <= tile; other++) {
        load_tile(k, head + other * TILE * 3 * C + C, 3 * C, T - other * TILE);
        load_tile(v, head + other * TILE * 3 * C + 2 * C, 3 * C, T - other * TILE);
        copy_async_wait();
        __syncthreads();
        float p[8][4];
        rows_times_rows(p, q + first * PITCH, k);  // scores, (16 x 64)
        float high = top, high8 = top8;
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < 4; i++) {
                int column = other * TILE + 8 * j + lane % 4 * 2 + i % 2;
                p[j][i] = column <= row + i / 2 * 8 ? p[j][i] * (scale * LOG2_E) : -INFINITE;
                (i < 2 ? high : high8) = fmaxf(i < 2 ? high : high8, p[j][i]);
            }
        for (int i = 1; i < 4; i *= 2) {  // the four lanes of a row
            high = fmaxf(high, __shfl_xor_sync(~0u, high, i));
            high8 = fmaxf(high8, __shfl_xor_sync(~0u, high8, i));
        }
        float shrink = fast_exp2(top - high), shrink8 = fast_exp2(top8 - high8);
        top = high, top8 = high8, sum *= shrink, sum8 *= shrink8;
        for (int j = 0; j < D / 8; j++) out[j][0] *= shrink, out[j][1] *= shrink, out[j][2] *= shrink8, out[j][3] *= shrink8;
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < 4; i++) {
                p[j][i] = fast_exp2(p[j][i] - (i < 2 ? top : top8));
                (i < 2 ? sum : sum8) += p[j][i];
            }
        if (drop.threshold) {
            unsigned long long element = drop.first + ((long long)blockIdx.x * T + row) * T + other * TILE;
            unsigned kept = keep_along_rows<8>(key, drop.threshold, element, element + 8LL * T);
            for (int j = 0; j < 8; j++)
                for (int i = 0; i < 4; i++) p[j][i] = kept_or_0(p[j][i], kept, 4 * j + i, 1.0f);
        }
        add_held_times_rows(out, p, v);
        __syncthreads();  // before the next tile overwrites k and v
    }
    for (int i = 1; i < 4; i *= 2) {
        sum += __shfl_xor_sync(~0u, sum, i);
        sum8 += __shfl_xor_sync(~0u, sum8, i);
    }
    float keep = drop.threshold ? drop.scale : 1.0f;
    int exist = T - tile * TILE - first;  // of this warp's 16 rows
    store_held(y + (b * T + tile * TILE + first) * C + h * D, C, exist, out, keep / sum, keep / sum8);
    float* row_lse = lse + (long long)blockIdx.x * T + row;
    if (lane % 4 == 0 && lane / 4 < exist) row_lse[0] = (top + log2f(sum)) / LOG2_E;
    if (lane % 4 == 0 && lane / 4 + 8 < exist) row_lse[8] = (top8 + log2f(sum8)) / LOG2_E;
}

// dq = sum over the keys of dscores k scale,  dscores = p (dropout_backward(dy v^T) - delta),  delta = dy . y, row by row.
// A block has 64 queries. dq: the first third of an array like qkv. delta: (B, H, T), for the other kernel.
// Grid: (B H, tiles). Shared memory: 4 tiles.
extern "C" __global__ void __launch_bounds__(THREADS, D > 64 ? 1 : 3)
attention_backward_query(const bf16* qkv, const bf16* y, const bf16* dy, const float* lse, float* delta, bf16* dq, long long H, int T,
                         float scale, Drop drop) {
    DYNAMIC_SHARED(memory);
    bf16 *q = (bf16*)memory, *dy_tile = q + TILE_SIZE, *k = dy_tile + TILE_SIZE, *v = k + TILE_SIZE;
    uint2 key = block_key(drop);
    long long b = blockIdx.x / H, h = blockIdx.x % H, C = H * D;
    int tile = gridDim.y - 1 - blockIdx.y;
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16, row = tile * TILE + first + lane / 4;
    const bf16* head = qkv + b * T * 3 * C + h * D;
    load_tile(q, head + tile * TILE * 3 * C, 3 * C, T - tile * TILE);
    load_tile(dy_tile, dy + (b * T + tile * TILE) * C + h * D, C, T - tile * TILE);
    float keep = drop.threshold ? drop.scale : 1.0f, l[2] = {}, dy_y[2] = {}, sum[D / 8][4] = {};
    for (int i = 0; i < 2; i++) {  // rows `row` and `row + 8`, each of four lanes
        int t = row + 8 * i;
        if (t < T) {
            long long at = (b * T + t) * C + h * D + lane % 4 * (D / 4);
            for (int d = 0; d < D / 4; d += 4) {
                Four a = load4(dy + at + d), b = load4(y + at + d);
                for (int j = 0; j < 4; j++) dy_y[i] += a.at[j] * b.at[j];
            }
            l[i] = lse[(long long)blockIdx.x * T + t] * LOG2_E;
        }
        dy_y[i] += __shfl_xor_sync(~0u, dy_y[i], 1);
        dy_y[i] += __shfl_xor_sync(~0u, dy_y[i], 2);
        if (t < T && lane % 4 == 0) delta[(long long)blockIdx.x * T + t] = dy_y[i];
    }

    for (int other = 0; other <= tile; other++) {
        load_tile(k, head + other * TILE * 3 * C + C, 3 * C, T - other * TILE);
        load_tile(v, head + other * TILE * 3 * C + 2 * C, 3 * C, T - other * TILE);
        copy_async_wait();
        __syncthreads();
        float p[8][4], dp[8][4];
        rows_times_rows(p, q + first * PITCH, k);
        rows_times_rows(dp, dy_tile + first * PITCH, v);  // 1. dkept, (16 x 64)
        unsigned kept = ~0u;
        if (drop.threshold) {
            unsigned long long element = drop.first + ((long long)blockIdx.x * T + row) * T + other * TILE;
            kept = keep_along_rows<8>(key, drop.threshold, element, element + 8LL * T);
        }
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < 4; i++) {
                int column = other * TILE + 8 * j + lane % 4 * 2 + i % 2;
                float prob = column <= row + i / 2 * 8 ? fast_exp2(p[j][i] * (scale * LOG2_E) - l[i / 2]) : 0.0f;
                p[j][i] = prob * (kept_or_0(dp[j][i], kept, 4 * j + i, keep) - dy_y[i / 2]);  // 2., 3. dscores
            }
        add_held_times_rows(sum, p, k);  // 4. dq
        __syncthreads();
    }
    store_held(dq + (b * T + tile * TILE + first) * 3 * C + h * D, 3 * C, T - tile * TILE - first, sum, scale, scale);
}

// dk = sum over the queries of dscores^T q scale,  dv = sum over the queries of kept^T dy. A block has 64 keys, and everything is
// transposed: a held tile's rows are keys, its columns queries. dkv: the other two thirds of dq's array.
// Shared memory: 2 tiles of keys and values, 2 half tiles of queries and dy, and lse and delta of these QUERIES.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_backward_key(const bf16* qkv, const bf16* dy, const float* lse, const float* delta, bf16* dkv, long long H, int T,
                       float scale, Drop drop) {
    DYNAMIC_SHARED(memory);
    bf16 *k = (bf16*)memory, *v = k + TILE_SIZE, *q = v + TILE_SIZE, *dy_tile = q + QUERIES * PITCH;
    float *l = (float*)(dy_tile + QUERIES * PITCH), *dy_y = l + QUERIES;
    uint2 key = block_key(drop);
    long long b = blockIdx.x / H, h = blockIdx.x % H, C = H * D;
    int tile = blockIdx.y, lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16, row = tile * TILE + first + lane / 4;
    const bf16* head = qkv + b * T * 3 * C + h * D;
    load_tile(k, head + tile * TILE * 3 * C + C, 3 * C, T - tile * TILE);
    load_tile(v, head + tile * TILE * 3 * C + 2 * C, 3 * C, T - tile * TILE);
    float keep = drop.threshold ? drop.scale : 1.0f;

    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    for (int t = tile * TILE; t < T; t += QUERIES) {
        load_tile<QUERIES>(q, head + t * 3 * C, 3 * C, T - t);
        load_tile<QUERIES>(dy_tile, dy + (b * T + t) * C + h * D, C, T - t);
        for (int i = threadIdx.x; i < QUERIES; i += THREADS) {
            long long at = (long long)blockIdx.x * T + t + i;
            l[i] = t + i < T ? lse[at] * LOG2_E : INFINITE;  // a query that does not exist has probability 0 everywhere
            dy_y[i] = t + i < T ? delta[at] : 0.0f;
        }
        copy_async_wait();
        __syncthreads();
        float p[P][4], dp[P][4];
        rows_times_rows(p, k + first * PITCH, q);
        for (int j = 0; j < P; j++)
            for (int i = 0; i < 4; i++) {
                int query = 8 * j + lane % 4 * 2 + i % 2;
                bool sees = row + i / 2 * 8 <= t + query;
                p[j][i] = sees ? fast_exp2(p[j][i] * (scale * LOG2_E) - l[query]) : 0.0f;
            }
        rows_times_rows(dp, v + first * PITCH, dy_tile);  // 1. dkept
        unsigned kept = ~0u;
        if (drop.threshold)
            kept = keep_along_columns<P>(key, drop.threshold,
                                         drop.first + ((long long)blockIdx.x * T + t) * T + tile * TILE + first, T);
        for (int j = 0; j < P; j++)
            for (int i = 0; i < 4; i++) {
                int query = 8 * j + lane % 4 * 2 + i % 2;
                dp[j][i] = p[j][i] * (kept_or_0(dp[j][i], kept, 4 * j + i, keep) - dy_y[query]);  // 2., 3. dscores
                p[j][i] = kept_or_0(p[j][i], kept, 4 * j + i, 1.0f);                              // kept, but for 1 / keep
            }
        add_held_times_rows(dv, p, dy_tile);  // 1. dv
        add_held_times_rows(dk, dp, q);  // 4. dk
        __syncthreads();
    }
    int exist = T - tile * TILE - first;
    bf16* to = dkv + (b * T + tile * TILE + first) * 3 * C + h * D;
    store_held(to, 3 * C, exist, dk, scale, scale);
    store_held(to + C, 3 * C, exist, dv, keep, keep);
}
