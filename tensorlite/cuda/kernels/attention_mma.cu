// Causal attention, forward and backward, in bf16 or fp16 on the tensor cores, for head sizes of 16 k.
// It computes what attention.cu computes, with q, k and v packed in one array. That file says what differs from
// tensorlite/reference/attention.py, and what the names mean.
//
// A block owns 64 queries of one head and loops over tiles of 64 keys. In backward it loops over half tiles of 32 keys, or it owns
// 64 keys and loops over half tiles of 32 queries. Each of the 4 warps owns 16 of the 64 rows, and a lane owns parts of two of
// these, `row` and `row + 8`; they are r = 0 and r = 1 where an array has an index [r].
//
// What differs from attention.cu: exponentials have base 2, so scale, m and lse_t are multiplied by log2(e). Probabilities and ds
// are rounded to scalar_t as operands of the second GEMM. Backward is two kernels, one over blocks of queries and one over blocks
// of keys. So each result has one owner and no kernel uses atomics; the price is that scores and dp_dropped are computed twice.
#include "attention_tiles.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
// The keys or queries that a block of backward loads at a time, and those of them that a warp multiplies at a time. Where the
// causal mask hides all of a step, the warp skips it.
constexpr int HALF = TILE / 2, STEP = D <= 64 ? 16 : HALF;
// Whether the registers of backward hold the warp's own rows, two sets of them, from step to step.
constexpr bool HOLD_ROWS = D <= 64;
// The blocks of each kernel that an SM shall hold at a time, which limits the registers of a thread.
// On 7.5, the shared memory holds at most two at head size 64, and the registers of more would spill.
constexpr int FORWARD_BLOCKS = D > 64 ? 1 : SM75_PATH ? 2 : 4;
constexpr int BACKWARD_BLOCKS = D > 64 ? 1 : SM75_PATH ? 2 : 3;

// Return x times scale, or 0 where the bit of the mask is 0.
__device__ inline float apply_mask(float x, unsigned mask_bits, int bit, float scale) {
    return mask_bits >> bit & 1 ? x * scale : 0.0f;
}

// y = dropout(softmax(mask(q k^T scale))) v, and lse. qkv: (B, T, 3 H D). y: (B, T, H D). lse: (B, H, T).
// mask: receives the bits of the dropout mask, see attention_mask.cuh; null without dropout.
// Grid: (B H, tiles of queries). Shared memory: 3 tiles.
extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS)
attention_forward(const scalar_t* qkv, scalar_t* y, float* lse, unsigned* mask, int H, int T, float scale,
                  DropoutParams dropout) {
    DYNAMIC_SHARED(memory);
    scalar_t *q = (scalar_t*)memory, *k = q + TILE_SIZE, *v = k + TILE_SIZE;
    uint2 key = block_key(dropout);
    long long b = blockIdx.x / H;
    int h = blockIdx.x % H, C = H * D;
    int q_tile = gridDim.y - 1 - blockIdx.y;  // the longest tiles start first, so that short ones fill the gaps at the end
    int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, row = q_tile * TILE + warp_row + lane / 4;
    const scalar_t* q_base = qkv + b * T * 3 * C + h * D;  // q of position 0; k follows C elements later, v 2 C
    float scale_log2 = scale * LOG2_E;
    load_tile(q, q_base + q_tile * TILE * 3 * C, 3 * C, T - q_tile * TILE);

    float acc[D / 8][4] = {}, l[2] = {}, m[2] = {-INFINITE, -INFINITE};
    for (int kv_tile = 0; kv_tile <= q_tile; kv_tile++) {
        load_tile(k, q_base + kv_tile * TILE * 3 * C + C, 3 * C, T - kv_tile * TILE);
        load_tile(v, q_base + kv_tile * TILE * 3 * C + 2 * C, 3 * C, T - kv_tile * TILE);
        copy_async_wait();
        __syncthreads();
        float p[TILE / 8][4];
        gemm_nt<FOUR_PER_LANE>(p, load_rows(q + warp_row * PITCH), k);  // scores, (16 x 64)
        if (kv_tile == q_tile)  // in the tiles before it, all keys are visible
            for (int j = 0; j < TILE / 8; j++)
                for (int i = 0; i < 4; i++)
                    if (fragment_key(j, i) > warp_row + lane / 4 + i / 2 * 8) p[j][i] = -INFINITE;
        float row_max[2] = {-INFINITE, -INFINITE}, alpha[2];
        for (int j = 0; j < TILE / 8; j++)
            for (int i = 0; i < 4; i++) row_max[i / 2] = fmaxf(row_max[i / 2], p[j][i]);
        for (int r = 0; r < 2; r++) {
            float m_new = fmaxf(m[r], quad_max(row_max[r]) * scale_log2);
            alpha[r] = fast_exp2(m[r] - m_new);
            m[r] = m_new;
            l[r] *= alpha[r];
        }
        for (int j = 0; j < D / 8; j++)
            for (int i = 0; i < 4; i++) acc[j][i] *= alpha[i / 2];
        for (int j = 0; j < TILE / 8; j++)
            for (int i = 0; i < 4; i++) {
                p[j][i] = fast_exp2(p[j][i] * scale_log2 - m[i / 2]);
                l[i / 2] += p[j][i];
            }
        if (dropout.threshold) {
            unsigned long long offset = dropout.offset + ((long long)blockIdx.x * T + row) * T + kv_tile * TILE;
            int columns = kv_tile < q_tile ? TILE : warp_row + 16;  // that some row of this warp sees
            unsigned drawn = draw_mask(key, dropout.threshold, offset, T, columns);
            mask[mask_tile(blockIdx.x, T, q_tile * TILE, kv_tile * TILE) + threadIdx.x] = drawn;
            unsigned mask_bits = in_fragment_order(drawn);
            for (int j = 0; j < TILE / 8; j++)  // p becomes p_dropped, without inv_keep
                for (int i = 0; i < 4; i++) p[j][i] = apply_mask(p[j][i], mask_bits, fragment_bit(j, i), 1.0f);
        }
        gemm_rs<FOUR_PER_LANE>(acc, p, v);
        __syncthreads();  // before the next tile overwrites k and v
    }
    float inv_keep = dropout.threshold ? dropout.inv_keep : 1.0f;
    int valid_rows = T - q_tile * TILE - warp_row;  // of this warp's 16 rows
    for (int r = 0; r < 2; r++) l[r] = quad_sum(l[r]);
    store_fragment(y + (b * T + q_tile * TILE + warp_row) * C + h * D, C, valid_rows, acc, inv_keep / l[0], inv_keep / l[1]);
    for (int r = 0; r < 2; r++)
        if (lane % 4 == 0 && lane / 4 + 8 * r < valid_rows)
            lse[(long long)blockIdx.x * T + row + 8 * r] = (m[r] + log2f(l[r])) / LOG2_E;
}

// dq = sum over the keys of ds k scale,  ds = p (dropout_backward(dy v^T) - delta),  delta = dy . y, row by row.
// A block owns 64 queries. dq: the first third of the last axis of an array of qkv's shape. delta: (B, H, T), which
// attention_backward_key reads. mask: that of forward, or null; inv_keep is 1 without dropout. Grid: (B H, tiles). Shared memory:
// 2 tiles of queries and dy, 2 half tiles of keys and values.
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
attention_backward_query(const scalar_t* qkv, const scalar_t* y, const scalar_t* dy, const float* lse, float* delta, scalar_t* dq,
                         const unsigned* mask, int H, int T, float scale, float inv_keep) {
    DYNAMIC_SHARED(memory);
    scalar_t *q = (scalar_t*)memory, *dy_shared = q + TILE_SIZE, *k = dy_shared + TILE_SIZE, *v = k + HALF * PITCH;
    long long b = blockIdx.x / H;
    int h = blockIdx.x % H, C = H * D;
    int q_tile = gridDim.y - 1 - blockIdx.y;
    int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, row = q_tile * TILE + warp_row + lane / 4;
    const scalar_t* q_base = qkv + b * T * 3 * C + h * D;
    load_tile(q, q_base + q_tile * TILE * 3 * C, 3 * C, T - q_tile * TILE);
    load_tile(dy_shared, dy + (b * T + q_tile * TILE) * C + h * D, C, T - q_tile * TILE);
    float scale_log2 = scale * LOG2_E;
    float lse_t[2] = {}, delta_t[2] = {}, acc[D / 8][4] = {};
    for (int r = 0; r < 2; r++) {  // the four lanes of a quad sum their row together
        int t = row + 8 * r;
        if (t < T) {
            long long at = (b * T + t) * C + h * D + lane % 4 * (D / 4);
            for (int d = 0; d < D / 4; d += 4) {
                Vec4 dy4 = load4(dy + at + d), y4 = load4(y + at + d);
                for (int j = 0; j < 4; j++) delta_t[r] += dy4[j] * y4[j];
            }
            lse_t[r] = lse[(long long)blockIdx.x * T + t] * LOG2_E;
        }
        delta_t[r] = quad_sum(delta_t[r]);
        if (t < T && lane % 4 == 0) delta[(long long)blockIdx.x * T + t] = delta_t[r];
    }
    copy_async_wait();
    __syncthreads();
    Rows q_rows, dy_rows;
    auto read_rows = [&] {
        q_rows = load_rows(q + warp_row * PITCH);
        dy_rows = load_rows(dy_shared + warp_row * PITCH);
    };
    if (HOLD_ROWS) read_rows();

    for (int k0 = 0; k0 < min(T, (q_tile + 1) * TILE); k0 += HALF) {
        load_tile<HALF>(k, q_base + k0 * 3 * C + C, 3 * C, T - k0);
        load_tile<HALF>(v, q_base + k0 * 3 * C + 2 * C, 3 * C, T - k0);
        unsigned drawn = mask ? mask[mask_tile(blockIdx.x, T, q_tile * TILE, k0) + threadIdx.x] : ~0u;
        unsigned mask_bits = in_fragment_order(drawn) >> k0 % TILE / 2;
        copy_async_wait();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < HALF; step += STEP) {
            if (k0 + step >= q_tile * TILE + warp_row + 16) break;  // all keys are after the warp's last query
            if (!HOLD_ROWS) read_rows();
            float ds[STEP / 8][4], dp[STEP / 8][4];
            gemm_nt<FOUR_PER_LANE>(ds, q_rows, k + step * PITCH);   // scores, (16 x STEP), which become ds in place
            gemm_nt<FOUR_PER_LANE>(dp, dy_rows, v + step * PITCH);  // 1. dp_dropped, (16 x STEP)
            for (int j = 0; j < STEP / 8; j++)
                for (int i = 0; i < 4; i++) {
                    int r = i / 2, column = k0 + step + fragment_key(j, i), bit = step / 2 + fragment_bit(j, i);
                    float p = column <= row + 8 * r ? fast_exp2(ds[j][i] * scale_log2 - lse_t[r]) : 0.0f;
                    ds[j][i] = p * (apply_mask(dp[j][i], mask_bits, bit, inv_keep) - delta_t[r]);  // 2., 3. ds
                }
            gemm_rs<FOUR_PER_LANE>(acc, ds, k + step * PITCH);  // 4. dq
        }
        __syncthreads();
    }
    store_fragment(dq + (b * T + q_tile * TILE + warp_row) * 3 * C + h * D, 3 * C, T - q_tile * TILE - warp_row, acc, scale, scale);
}

// dk = sum over the queries of ds^T q scale,  dv = sum over the queries of p_dropped^T dy. A block owns 64 keys. Fragments are
// transposed: their rows are keys and their columns are queries. dkv: the other two thirds of the array that dq is part of.
// Shared memory: 2 tiles of keys and values, 2 half tiles of queries and dy, and lse and delta of these queries.
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
attention_backward_key(const scalar_t* qkv, const scalar_t* dy, const float* lse, const float* delta, scalar_t* dkv,
                       const unsigned* mask, int H, int T, float scale, float inv_keep) {
    DYNAMIC_SHARED(memory);
    scalar_t *k = (scalar_t*)memory, *v = k + TILE_SIZE, *q = v + TILE_SIZE, *dy_shared = q + HALF * PITCH;
    float *lse_shared = (float*)(dy_shared + HALF * PITCH), *delta_shared = lse_shared + HALF;
    long long b = blockIdx.x / H;
    int h = blockIdx.x % H, C = H * D;
    int kv_tile = blockIdx.y;
    int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, row = kv_tile * TILE + warp_row + lane / 4;
    const scalar_t* q_base = qkv + b * T * 3 * C + h * D;
    load_tile(k, q_base + kv_tile * TILE * 3 * C + C, 3 * C, T - kv_tile * TILE);
    load_tile(v, q_base + kv_tile * TILE * 3 * C + 2 * C, 3 * C, T - kv_tile * TILE);
    copy_async_wait();
    __syncthreads();
    Rows k_rows, v_rows;
    auto read_rows = [&] {
        k_rows = load_rows(k + warp_row * PITCH);
        v_rows = load_rows(v + warp_row * PITCH);
    };
    if (HOLD_ROWS) read_rows();
    float scale_log2 = scale * LOG2_E;

    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    for (int q0 = kv_tile * TILE; q0 < T; q0 += HALF) {
        load_tile<HALF>(q, q_base + q0 * 3 * C, 3 * C, T - q0);
        load_tile<HALF>(dy_shared, dy + (b * T + q0) * C + h * D, C, T - q0);
#pragma unroll 1  // no thread has more than one query
        for (int i = threadIdx.x; i < HALF; i += THREADS) {
            long long at = (long long)blockIdx.x * T + q0 + i;
            lse_shared[i] = q0 + i < T ? lse[at] * LOG2_E : INFINITE;  // beyond the last query p is 0 everywhere
            delta_shared[i] = q0 + i < T ? delta[at] : 0.0f;
        }
        unsigned mask_bits = ~0u;
        if (mask) {
            const unsigned* words = mask + mask_tile(blockIdx.x, T, q0, kv_tile * TILE) + q0 % TILE / 16 * 32;
            mask_bits = load_mask_transposed<HALF / 8>(words);
        }
        copy_async_wait();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < HALF; step += STEP) {
            if (q0 + step + STEP <= kv_tile * TILE + warp_row) continue;  // all queries are before the warp's first key
            if (!HOLD_ROWS) read_rows();
            float p[STEP / 8][4], dp[STEP / 8][4];
            gemm_nt<AS_THEY_ARE>(p, k_rows, q + step * PITCH);  // scores, (16 x STEP)
            for (int j = 0; j < STEP / 8; j++)
                for (int i = 0; i < 4; i++) {
                    int query = step + 8 * j + lane % 4 * 2 + i % 2;
                    p[j][i] = fast_exp2(p[j][i] * scale_log2 - lse_shared[query]);
                    if (row + i / 2 * 8 > q0 + query) p[j][i] = 0.0f;
                }
            gemm_nt<AS_THEY_ARE>(dp, v_rows, dy_shared + step * PITCH);  // 1. dp_dropped, which becomes ds in place
            for (int j = 0; j < STEP / 8; j++)
                for (int i = 0; i < 4; i++) {
                    int query = step + 8 * j + lane % 4 * 2 + i % 2, bit = step / 2 + 4 * j + i;
                    dp[j][i] = p[j][i] * (apply_mask(dp[j][i], mask_bits, bit, inv_keep) - delta_shared[query]);  // 2., 3. ds
                    p[j][i] = apply_mask(p[j][i], mask_bits, bit, 1.0f);  // becomes p_dropped, without inv_keep
                }
            gemm_rs<AS_THEY_ARE>(dv, p, dy_shared + step * PITCH);  // 1. dv
            gemm_rs<AS_THEY_ARE>(dk, dp, q + step * PITCH);  // 4. dk
        }
        __syncthreads();
    }
    int valid_rows = T - kv_tile * TILE - warp_row;
    scalar_t* to = dkv + (b * T + kv_tile * TILE + warp_row) * 3 * C + h * D;
    store_fragment(to, 3 * C, valid_rows, dk, scale, scale);
    store_fragment(to + C, 3 * C, valid_rows, dv, inv_keep, inv_keep);
}
