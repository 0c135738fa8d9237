// Causal attention, any head size, in float32 arithmetic. It replaces tensorlite/reference/attention.py, where the derivation is.
//
// The scores are never stored: a warp holds one query (in one of the backward kernels one key) and meets the others in tiles of 32,
// one a lane, with a running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867). Backward computes the probabilities again from
// the log-sum-exp of each row, and sum(dprobs probs) is dy . y (Dao et al. 2022, arXiv:2205.14135). Every number is summed by one
// warp in one order, so nothing depends on the order in which blocks run.
#include "random.cuh"

constexpr int WARPS = 8, TILE = 32;
constexpr int PITCH = D + 1;              // of a row in shared memory: lanes that read one column meet 32 banks
constexpr int PARTS = (D + 31) / 32;      // numbers of a row that a lane holds: d = lane + 32 i

// Where the rows of one head are: row t of batch entry b and head h begins at b * batch + h * head + t * row.
struct Rows {
    long long batch, head, row;
};

// 32 rows of D numbers from row `first` on, zeros beyond `end`.
__device__ inline void load_tile(float* tile, const REAL* from, long long row, int first, int end) {
    constexpr unsigned VEC = D % 4 == 0 ? 4 : 1, CHUNKS = D / VEC;
    from += first * row;
    for (unsigned i = threadIdx.x; i < TILE * CHUNKS; i += 32 * WARPS) {
        unsigned r = i / CHUNKS, d = i % CHUNKS * VEC;
        const REAL* at = from + r * (unsigned)row + d;
        Four x = {};
        if (first + (int)r < end) x = VEC == 4 ? load4(at) : Four{to_float(*at)};
        for (unsigned j = 0; j < VEC; j++) tile[r * PITCH + d + j] = x.at[j];
    }
}

// a . b for each lane's row of a tile; b is a row of shared memory that all lanes read.
__device__ inline float dot(const float* row, const float* b) {
    float sum = 0.0f;
    for (int d = 0; d < D; d++) sum += row[d] * b[d];
    return sum;
}

// sum_i += w_r tile_ri over the 32 rows of a tile, w_r being lane r's number.
__device__ inline void add_weighted_rows(float sum[PARTS], float w, const float* tile) {
    for (int r = 0; r < TILE; r++) {
        float of_r = __shfl_sync(~0u, w, r);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            int d = threadIdx.x % 32 + 32 * i;
            if (d < D) sum[i] += of_r * tile[r * PITCH + d];
        }
    }
}

template <class T>
__device__ inline void store_parts(T* to, const float parts[PARTS], float scale) {
    for (int i = 0; i < PARTS; i++) {
        int d = threadIdx.x % 32 + 32 * i;
        if (d < D) store(to + d, parts[i] * scale);
    }
}

__device__ inline void load_parts(float* to, const REAL* from) {
    for (int d = threadIdx.x % 32; d < D; d += 32) to[d] = to_float(from[d]);
}

// y = dropout(softmax(mask(q k^T scale))) v, and lse, the log of each softmax's denominator.
// q: T rows; k, v: S rows, of which the query t sees the first S - T + t + 1. y: (B, T, H D). lse: (B, H, T), or null.
// Grid: (B H, queries / WARPS). Shared memory: 2 TILE PITCH + WARPS D floats.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 3)
attention_forward(const REAL* q, Rows qs, const REAL* k, const REAL* v, Rows ks, REAL* y, float* lse, long long H, int T, int S,
                  float scale, Drop drop) {
    DYNAMIC_SHARED(memory);
    float *k_tile = (float*)memory, *v_tile = k_tile + TILE * PITCH, *q_row = v_tile + TILE * PITCH + threadIdx.x / 32 * D;
    uint2 key = block_key(drop);
    long long b = blockIdx.x / H, h = blockIdx.x % H;
    int lane = threadIdx.x % 32, t = blockIdx.y * WARPS + threadIdx.x / 32, sees = t < T ? S - T + t + 1 : 0;
    if (t < T) load_parts(q_row, q + b * qs.batch + h * qs.head + t * qs.row);
    const REAL *k_head = k + b * ks.batch + h * ks.head, *v_head = v + b * ks.batch + h * ks.head;
    float top = -INFINITE, sum = 0.0f, out[PARTS] = {};
    int end = min(S, S - T + (int)(blockIdx.y + 1) * WARPS);  // what this block's last query sees
    for (int first = 0; first < end; first += TILE) {
        __syncthreads();
        load_tile(k_tile, k_head, ks.row, first, end);
        load_tile(v_tile, v_head, ks.row, first, end);
        __syncthreads();
        if (first >= sees) continue;
        int s = first + lane;
        float score = s < sees ? dot(k_tile + lane * PITCH, q_row) * scale : -INFINITE;
        float higher = fmaxf(top, warp_max(score));
        float p = expf(score - higher), shrink = expf(top - higher);
        sum = sum * shrink + warp_sum(p);
        top = higher;
        if (drop.threshold) {
            unsigned long long element = drop.first + ((long long)blockIdx.x * T + t) * S + s;
            p = keep1(key, drop.threshold, element) ? p * drop.scale : 0.0f;
        }
        for (int i = 0; i < PARTS; i++) out[i] *= shrink;
        add_weighted_rows(out, p, v_tile);
    }
    if (t >= T) return;
    store_parts(y + (b * T + t) * H * D + h * D, out, 1.0f / sum);
    if (lse && lane == 0) lse[(long long)blockIdx.x * T + t] = top + logf(sum);
}

// dq = sum over the keys of dscore k scale,  dscore = p (dropout_backward(dkept) - delta),  dkept = dy . v,  delta = dy . y.
// One warp a query. qkv: (B, T, 3 H D), and dq is the first third of an array like it. y, dy: (B, T, H D). delta: (B, H, T), for the
// other kernel. Shared memory: 2 TILE PITCH + 2 WARPS D floats.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 3)
attention_backward_query(const REAL* qkv, const REAL* y, const REAL* dy, const float* lse, float* delta, REAL* dq, long long H, int T,
                         float scale, Drop drop) {
    DYNAMIC_SHARED(memory);
    float *k_tile = (float*)memory, *v_tile = k_tile + TILE * PITCH, *q_row = v_tile + TILE * PITCH + threadIdx.x / 32 * 2 * D;
    float* dy_row = q_row + D;
    uint2 key = block_key(drop);
    long long b = blockIdx.x / H, h = blockIdx.x % H, C = H * D;
    int lane = threadIdx.x % 32, t = blockIdx.y * WARPS + threadIdx.x / 32, sees = t < T ? t + 1 : 0;
    const REAL* head = qkv + b * T * 3 * C + h * D;  // q of position 0; k is C further on, v 2 C
    float l = 0.0f, dy_y = 0.0f, sum[PARTS] = {};
    if (t < T) {
        const REAL* y_row = y + (b * T + t) * C + h * D;
        load_parts(q_row, head + t * 3 * C);
        load_parts(dy_row, dy + (b * T + t) * C + h * D);
        for (int d = lane; d < D; d += 32) dy_y += dy_row[d] * to_float(y_row[d]);
        dy_y = warp_sum(dy_y);
        l = lse[(long long)blockIdx.x * T + t];
        if (lane == 0) delta[(long long)blockIdx.x * T + t] = dy_y;
    }
    int end = min(T, (int)(blockIdx.y + 1) * WARPS);
    for (int first = 0; first < end; first += TILE) {
        __syncthreads();
        load_tile(k_tile, head + C, 3 * C, first, end);
        load_tile(v_tile, head + 2 * C, 3 * C, first, end);
        __syncthreads();
        if (first >= sees) continue;
        int s = first + lane;
        float ds = 0.0f;
        if (s < sees) {
            float p = expf(dot(k_tile + lane * PITCH, q_row) * scale - l), dp = dot(v_tile + lane * PITCH, dy_row);  // 1. dkept
            if (drop.threshold) {
                unsigned long long element = drop.first + ((long long)blockIdx.x * T + t) * T + s;
                dp = keep1(key, drop.threshold, element) ? dp * drop.scale : 0.0f;  // 2.
            }
            ds = p * (dp - dy_y);  // 3.
        }
        add_weighted_rows(sum, ds, k_tile);  // 4. dq
    }
    if (t < T) store_parts(dq + (b * T + t) * 3 * C + h * D, sum, scale);
}

// dk = sum over the queries of dscore q scale,  dv = sum over the queries of kept dy. One warp a key; a lane has one query of a tile.
// dkv: the other two thirds of dq's array.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 3)
attention_backward_key(const REAL* qkv, const REAL* dy, const float* lse, const float* delta, REAL* dkv, long long H, int T,
                       float scale, Drop drop) {
    DYNAMIC_SHARED(memory);
    float *q_tile = (float*)memory, *dy_tile = q_tile + TILE * PITCH, *k_row = dy_tile + TILE * PITCH + threadIdx.x / 32 * 2 * D;
    float* v_row = k_row + D;
    uint2 key = block_key(drop);
    long long b = blockIdx.x / H, h = blockIdx.x % H, C = H * D;
    int lane = threadIdx.x % 32, s = blockIdx.y * WARPS + threadIdx.x / 32;
    const REAL* head = qkv + b * T * 3 * C + h * D;
    float dk[PARTS] = {}, dv[PARTS] = {};
    if (s < T) {
        load_parts(k_row, head + s * 3 * C + C);
        load_parts(v_row, head + s * 3 * C + 2 * C);
    }
    for (int first = blockIdx.y * WARPS / TILE * TILE; first < T; first += TILE) {  // from the tile of this block's first key on
        __syncthreads();
        load_tile(q_tile, head, 3 * C, first, T);
        load_tile(dy_tile, dy + b * T * C + h * D, C, first, T);
        __syncthreads();
        if (s >= T) continue;
        int t = first + lane;
        float ds = 0.0f, kept = 0.0f;
        if (s <= t && t < T) {
            long long row = (long long)blockIdx.x * T + t;
            float p = expf(dot(q_tile + lane * PITCH, k_row) * scale - lse[row]), dp = dot(dy_tile + lane * PITCH, v_row);  // 1. dkept
            kept = p;
            if (drop.threshold) {
                bool keep = keep1(key, drop.threshold, drop.first + row * T + s);
                kept = keep ? p * drop.scale : 0.0f;
                dp = keep ? dp * drop.scale : 0.0f;  // 2.
            }
            ds = p * (dp - delta[row]);  // 3.
        }
        add_weighted_rows(dk, ds, q_tile);  // 4. dk
        add_weighted_rows(dv, kept, dy_tile);  // 1. dv
    }
    if (s >= T) return;
    store_parts(dkv + (b * T + s) * 3 * C + h * D, dk, scale);
    store_parts(dkv + (b * T + s) * 3 * C + C + h * D, dv, 1.0f);
}
