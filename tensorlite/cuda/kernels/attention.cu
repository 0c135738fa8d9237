// Causal attention, forward and backward, for any head size, in float32 arithmetic.
// It replaces tensorlite/reference/attention.py, where the derivation is.
//
// One warp owns one query row and loops over tiles of 32 keys, one key per lane. In attention_backward_key, one warp owns one key
// row and loops over tiles of 32 queries, one query per lane. All 8 warps of a block load a tile into shared memory together.
// Of its own row, a lane accumulates the elements d = lane, lane + 32, ...
//
// What differs from the reference: the scores are never stored. Forward computes softmax with a running maximum (Milakov and
// Gimelshein 2018, arXiv:1805.02867). Backward recomputes the probabilities from lse, the log-sum-exp of each row, and uses
// sum(dprobs probs) = dy . y (Dao et al. 2022, arXiv:2205.14135). One warp computes each sum in a fixed order, so results do not
// depend on the order in which blocks run.
//
// Names. t is the position of a query, s that of a key; there are T queries and S keys. Names that this project does not define
// are those of the FlashAttention papers (arXiv:2205.14135 and 2307.08691):
//   paper                            here
//   S_ij                             score
//   P_ij, P_ij^dropped               p, p_dropped    the probability (probs in the derivation), before and after dropout
//   O_i, dO_i                        y, dy
//   dP_ij^dropped, dP_ij             dp_dropped, dp  (dprobs in the derivation)
//   dS_ij                            ds              (dscores in the derivation)
//   m_i                              m               running maximum of a row's scores; m_new includes the next tile
//   l_i                              l               running sum of exp(score - m)
//   e^(m_i - m_i^new)                alpha           rescales the sums computed under the old maximum
//   unscaled O_i                     acc             running sum of p_dropped v; y = acc / l at the end
//   L_i = m_i + log l_i              lse, lse_t
//   D_i = dO_i . O_i                 delta, delta_t
#include "attention_mask.cuh"

constexpr int WARPS = 8, TILE = 32;
constexpr int PITCH = D + 1;                // floats from one row to the next in shared memory: a column lies in 32 banks
constexpr int D_PER_LANE = (D + 31) / 32;   // elements of a row that a lane owns: d = lane + 32 i

// Where the rows of one head are, in elements: row t of batch entry b and head h begins at b * batch + h * head + t * row.
struct Strides {
    long long batch, head, row;
};

// Load 32 rows of D elements, from row `first_row` on, into a tile; rows from `end` on are zeros.
__device__ inline void load_tile(float* tile, const scalar_t* from, long long row_stride, int first_row, int end) {
    constexpr unsigned VEC = D % 4 == 0 ? 4 : 1, CHUNKS = D / VEC;
    from += first_row * row_stride;
    for (unsigned i = threadIdx.x; i < TILE * CHUNKS; i += 32 * WARPS) {
        unsigned r = i / CHUNKS, d = i % CHUNKS * VEC;
        const scalar_t* p = from + r * (unsigned)row_stride + d;
        Vec4 x = {};
        if (first_row + (int)r < end) x = VEC == 4 ? load4(p) : Vec4{to_float(*p)};
        for (unsigned j = 0; j < VEC; j++) tile[r * PITCH + d + j] = x[j];
    }
}

// Return a . b, where `row` is this lane's own row of a tile and b is a row of shared memory that all lanes read.
__device__ inline float dot(const float* row, const float* b) {
    float sum = 0.0f;
    for (int d = 0; d < D; d++) sum += row[d] * b[d];
    return sum;
}

// acc_i += sum over the 32 rows r of a tile of w_r tile_ri, where w_r is the w of lane r.
__device__ inline void add_weighted_rows(float acc[D_PER_LANE], float w, const float* tile) {
    for (int r = 0; r < TILE; r++) {
        float w_r = __shfl_sync(~0u, w, r);
#pragma unroll
        for (int i = 0; i < D_PER_LANE; i++) {
            int d = threadIdx.x % 32 + 32 * i;
            if (d < D) acc[i] += w_r * tile[r * PITCH + d];
        }
    }
}

// Store a row that the lanes of a warp own together, times a scale.
template <class T>
__device__ inline void store_row(T* to, const float row[D_PER_LANE], float scale) {
    for (int i = 0; i < D_PER_LANE; i++) {
        int d = threadIdx.x % 32 + 32 * i;
        if (d < D) store(to + d, row[i] * scale);
    }
}

// Return where the dropout mask of query t and 32 keys is stored, key s among them. Bit s % 32 is that of key s.
__device__ inline long long mask_word(int T, int t, int s) {
    return mask_tile(blockIdx.x, T, t, s) + t % MASK_TILE * (MASK_TILE / 32) + s % MASK_TILE / 32;
}

// Load a row into shared memory; one warp does this together.
__device__ inline void load_row(float* to, const scalar_t* from) {
    for (int d = threadIdx.x % 32; d < D; d += 32) to[d] = to_float(from[d]);
}

// y = dropout(softmax(mask(q k^T scale))) v, and lse, the log of each softmax's denominator. One warp per query.
// q: T rows. k, v: S rows; the first S - T + t + 1 of them are visible to query t. y: (B, T, H D). lse: (B, H, T), or null.
// mask: receives the bits of the dropout mask, see attention_mask.cuh; null without dropout, or where no backward follows.
// Grid: (B H, queries / WARPS). Shared memory: 2 TILE PITCH + WARPS D floats.
extern "C" __global__ void __launch_bounds__(32 * WARPS, D > 128 ? 3 : 4)
attention_forward(const scalar_t* q, Strides q_strides, const scalar_t* k, const scalar_t* v, Strides kv_strides, scalar_t* y,
                  float* lse, unsigned* mask, int H, int T, int S, float scale, DropoutParams dropout) {
    DYNAMIC_SHARED(memory);
    float *k_tile = (float*)memory, *v_tile = k_tile + TILE * PITCH, *q_row = v_tile + TILE * PITCH + threadIdx.x / 32 * D;
    uint2 key = block_key(dropout);
    long long b = blockIdx.x / H;
    int h = blockIdx.x % H;
    int lane = threadIdx.x % 32, t = blockIdx.y * WARPS + threadIdx.x / 32, n_visible = t < T ? S - T + t + 1 : 0;
    if (t < T) load_row(q_row, q + b * q_strides.batch + h * q_strides.head + t * q_strides.row);
    const scalar_t* k_base = k + b * kv_strides.batch + h * kv_strides.head;
    const scalar_t* v_base = v + b * kv_strides.batch + h * kv_strides.head;
    int end = min(S, S - T + (int)(blockIdx.y + 1) * WARPS);  // n_visible of this block's last query

    // The online softmax, tile by tile.
    float m = -INFINITE, l = 0.0f, acc[D_PER_LANE] = {};
    for (int kv0 = 0; kv0 < end; kv0 += TILE) {
        __syncthreads();
        load_tile(k_tile, k_base, kv_strides.row, kv0, end);
        load_tile(v_tile, v_base, kv_strides.row, kv0, end);
        __syncthreads();
        if (kv0 >= n_visible) continue;  // this warp has no keys left, but it still helps to load tiles

        int s = kv0 + lane;  // this lane's key
        float score = s < n_visible ? dot(k_tile + lane * PITCH, q_row) * scale : -INFINITE;
        float m_new = fmaxf(m, warp_max(score));
        float p = expf(score - m_new);
        float alpha = expf(m - m_new);
        l = l * alpha + warp_sum(p);
        m = m_new;

        float p_dropped = p;
        if (dropout.threshold) {
            unsigned long long element = dropout.offset + ((long long)blockIdx.x * T + t) * S + s;
            bool keep = mask1(key, dropout.threshold, element);
            unsigned mask_bits = __ballot_sync(~0u, keep);  // bit i is that of lane i
            if (mask && lane == 0) mask[mask_word(T, t, kv0)] = mask_bits;
            p_dropped = keep ? p * dropout.inv_keep : 0.0f;
        }
        for (int i = 0; i < D_PER_LANE; i++) acc[i] *= alpha;
        add_weighted_rows(acc, p_dropped, v_tile);
    }
    if (t >= T) return;
    store_row(y + (b * T + t) * H * D + h * D, acc, 1.0f / l);
    if (lse && lane == 0) lse[(long long)blockIdx.x * T + t] = m + logf(l);
}

// dq = sum over the keys of ds k scale,  ds = p (dp - delta),  dp = dropout_backward(dp_dropped),  dp_dropped = dy . v,
// delta = dy . y. One warp per query. qkv: (B, T, 3 H D). dq: the first third of the last axis of an array of qkv's shape.
// y, dy: (B, T, H D). delta: (B, H, T), which attention_backward_key reads. mask: that of forward, or null; inv_keep is 1 without
// dropout. Shared memory: 2 TILE PITCH + 2 WARPS D floats.
extern "C" __global__ void __launch_bounds__(32 * WARPS, D > 128 ? 3 : 4)
attention_backward_query(const scalar_t* qkv, const scalar_t* y, const scalar_t* dy, const float* lse, float* delta, scalar_t* dq,
                         const unsigned* mask, long long H, int T, float scale, float inv_keep) {
    DYNAMIC_SHARED(memory);
    float *k_tile = (float*)memory, *v_tile = k_tile + TILE * PITCH, *q_row = v_tile + TILE * PITCH + threadIdx.x / 32 * 2 * D;
    float* dy_row = q_row + D;
    long long b = blockIdx.x / H, h = blockIdx.x % H, C = H * D;
    int lane = threadIdx.x % 32, t = blockIdx.y * WARPS + threadIdx.x / 32, n_visible = t < T ? t + 1 : 0;
    const scalar_t* q_base = qkv + b * T * 3 * C + h * D;  // q of position 0; k follows C elements later, v 2 C
    float lse_t = 0.0f, delta_t = 0.0f, acc[D_PER_LANE] = {};
    if (t < T) {
        const scalar_t* y_row = y + (b * T + t) * C + h * D;
        load_row(q_row, q_base + t * 3 * C);
        load_row(dy_row, dy + (b * T + t) * C + h * D);
        for (int d = lane; d < D; d += 32) delta_t += dy_row[d] * to_float(y_row[d]);
        delta_t = warp_sum(delta_t);
        lse_t = lse[(long long)blockIdx.x * T + t];
        if (lane == 0) delta[(long long)blockIdx.x * T + t] = delta_t;
    }
    int end = min(T, (int)(blockIdx.y + 1) * WARPS);
    for (int kv0 = 0; kv0 < end; kv0 += TILE) {
        __syncthreads();
        load_tile(k_tile, q_base + C, 3 * C, kv0, end);
        load_tile(v_tile, q_base + 2 * C, 3 * C, kv0, end);
        __syncthreads();
        if (kv0 >= n_visible) continue;
        int s = kv0 + lane;
        float ds = 0.0f;
        if (s < n_visible) {
            float p = expf(dot(k_tile + lane * PITCH, q_row) * scale - lse_t);
            float dp = dot(v_tile + lane * PITCH, dy_row);  // 1. dp_dropped
            bool keep = !mask || mask[mask_word(T, t, s)] >> s % 32 & 1;
            dp = keep ? dp * inv_keep : 0.0f;  // 2. dp
            ds = p * (dp - delta_t);  // 3. ds
        }
        add_weighted_rows(acc, ds, k_tile);  // 4. dq
    }
    if (t < T) store_row(dq + (b * T + t) * 3 * C + h * D, acc, scale);
}

// dk = sum over the queries of ds q scale,  dv = sum over the queries of p_dropped dy. One warp per key.
// dkv: the other two thirds of the array that dq is part of. Shared memory: 2 TILE PITCH + 2 WARPS D floats.
extern "C" __global__ void __launch_bounds__(32 * WARPS, D > 128 ? 3 : 4)
attention_backward_key(const scalar_t* qkv, const scalar_t* dy, const float* lse, const float* delta, scalar_t* dkv,
                       const unsigned* mask, long long H, int T, float scale, float inv_keep) {
    DYNAMIC_SHARED(memory);
    float *q_tile = (float*)memory, *dy_tile = q_tile + TILE * PITCH, *k_row = dy_tile + TILE * PITCH + threadIdx.x / 32 * 2 * D;
    float* v_row = k_row + D;
    long long b = blockIdx.x / H, h = blockIdx.x % H, C = H * D;
    int lane = threadIdx.x % 32, s = blockIdx.y * WARPS + threadIdx.x / 32;
    const scalar_t* q_base = qkv + b * T * 3 * C + h * D;
    float dk[D_PER_LANE] = {}, dv[D_PER_LANE] = {};
    if (s < T) {
        load_row(k_row, q_base + s * 3 * C + C);
        load_row(v_row, q_base + s * 3 * C + 2 * C);
    }
    for (int q0 = blockIdx.y * WARPS / TILE * TILE; q0 < T; q0 += TILE) {  // begin at the tile of this block's first key
        __syncthreads();
        load_tile(q_tile, q_base, 3 * C, q0, T);
        load_tile(dy_tile, dy + b * T * C + h * D, C, q0, T);
        __syncthreads();
        if (s >= T) continue;
        int t = q0 + lane;  // this lane's query
        float ds = 0.0f, p_dropped = 0.0f;
        if (s <= t && t < T) {
            long long row = (long long)blockIdx.x * T + t;
            float p = expf(dot(q_tile + lane * PITCH, k_row) * scale - lse[row]);
            float dp = dot(dy_tile + lane * PITCH, v_row);  // 1. dp_dropped
            bool keep = !mask || mask[mask_word(T, t, s)] >> s % 32 & 1;
            p_dropped = keep ? p * inv_keep : 0.0f;
            dp = keep ? dp * inv_keep : 0.0f;  // 2. dp
            ds = p * (dp - delta[row]);  // 3. ds
        }
        add_weighted_rows(dk, ds, q_tile);  // 4. dk
        add_weighted_rows(dv, p_dropped, dy_tile);  // 1. dv
    }
    if (s >= T) return;
    store_row(dkv + (b * T + s) * 3 * C + h * D, dk, scale);
    store_row(dkv + (b * T + s) * 3 * C + C + h * D, dv, 1.0f);
}
