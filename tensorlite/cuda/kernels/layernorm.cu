// Layer normalisation, with the residual connection before it and the sum of gradients after it in the same pass over memory.
// It replaces tensorlite/reference/layernorm.py, residual in tensorlite/reference/dropout.py and dropout_add_layernorm in composites.py; derivations are there.
//
// One warp holds one row of C channels in registers, so each array is read once and written once. Mean and variance are of the sum
// as stored, rounded, so that backward, which reads the stored one, normalises the same numbers.
#include "random.cuh"

constexpr int WARPS = 4;                  // rows of a block at a time
constexpr int VEC = C % 4 == 0 ? 4 : 1;   // neighbouring channels of a lane
constexpr int PIECE = 32 * VEC;           // channels of a warp
constexpr int PIECES = (C + PIECE - 1) / PIECE;
constexpr int SHARE = (C + 3) / 4 * 4;    // floats of a block's share of dw, and of db: 16 bytes are read at once

struct Row {
    float at[PIECES][VEC];
};

__device__ inline int channel(int piece) { return piece * PIECE + threadIdx.x % 32 * VEC; }

// A row of any array of C channels; zeros beyond its end.
template <class T>
__device__ inline Row load_row(const T* p) {
    Row row;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int c = channel(i);
        if constexpr (VEC == 4) {
            Four four = c < C ? load4(p + c) : Four{};
            for (int j = 0; j < 4; j++) row.at[i][j] = four.at[j];
        } else {
            row.at[i][0] = c < C ? to_float(p[c]) : 0.0f;
        }
    }
    return row;
}

template <class T>
__device__ inline void store_row(T* p, const Row& row) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int c = channel(i);
        if (c >= C) continue;
        if constexpr (VEC == 4)
            store4(p + c, {row.at[i][0], row.at[i][1], row.at[i][2], row.at[i][3]});
        else
            store(p + c, row.at[i][0]);
    }
}

// The row with 1 / keep, or 0 where dropped. `first` is the number of its first element.
__device__ inline void drop_row(Row& row, const Drop& drop, uint2 key, long long first) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int c = channel(i);
        if (c >= C) continue;
        unsigned keep = VEC == 4 ? keep4(key, drop.threshold, (first + c) / 4) : keep1(key, drop.threshold, first + c);
#pragma unroll
        for (int j = 0; j < VEC; j++) row.at[i][j] = keep >> j & 1 ? row.at[i][j] * drop.scale : 0.0f;
    }
}

// s = x + dropout(y),  h = (s - mean) rstd w + b. Without y, x itself is normalised and nothing is written to s.
// x, y, s, h: (rows, C). w, b: (C,), b or null. mean, rstd: (rows,).
extern "C" __global__ void __launch_bounds__(32 * WARPS)
layernorm_forward(const REAL* x, const REAL* y, Drop drop, REAL* s, const REAL* w, const REAL* b, float eps, REAL* h, float* mean,
                  float* rstd, long long rows) {
    uint2 key = block_key(drop);
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS) {
        Row row = load_row(x + n * C);
        if (y) {
            Row branch = load_row(y + n * C);
            if (drop.threshold) drop_row(branch, drop, key, drop.first + n * C);
            for (int i = 0; i < PIECES; i++)
                for (int j = 0; j < VEC; j++) row.at[i][j] = stored(s, row.at[i][j] + branch.at[i][j]);
            store_row(s + n * C, row);
        }
        float sum = 0.0f, squares = 0.0f;
        for (int i = 0; i < PIECES; i++)
            for (int j = 0; j < VEC; j++) sum += row.at[i][j];
        float mu = warp_sum(sum) / C;
        for (int i = 0; i < PIECES; i++)
            for (int j = 0; j < VEC; j++) {
                if (channel(i) < C) row.at[i][j] -= mu;
                squares += row.at[i][j] * row.at[i][j];
            }
        float r = 1.0f / sqrtf(warp_sum(squares) / C + eps);
        Row gain = load_row(w), shift = b ? load_row(b) : Row{};
        for (int i = 0; i < PIECES; i++)
            for (int j = 0; j < VEC; j++) row.at[i][j] = row.at[i][j] * r * gain.at[i][j] + shift.at[i][j];
        store_row(h + n * C, row);
        if (threadIdx.x % 32 == 0) mean[n] = mu, rstd[n] = r;
    }
}

// dx = skip + rstd (g - mean(g) - xhat mean(g xhat)),  g = dh w;   branch = dropout_backward(dx).
// And this block's share of dw = sum of dh xhat and db = sum of dh over rows, into partial: (blocks, 2, SHARE).
// skip: the gradient that x has from elsewhere, or null. branch: null where nothing was added before the norm.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
layernorm_backward(const REAL* dh, const REAL* x, const REAL* w, const float* mean, const float* rstd, const REAL* skip, REAL* dx,
                   Drop drop, REAL* branch, float* partial, long long rows) {
    uint2 key = block_key(drop);
    Row gain = load_row(w), dw = {}, db = {};
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS) {
        float mu = mean[n], r = rstd[n];
        Row xhat = load_row(x + n * C), g = load_row(dh + n * C);
        float g_sum = 0.0f, g_xhat_sum = 0.0f;
        for (int i = 0; i < PIECES; i++)
            for (int j = 0; j < VEC; j++) {
                xhat.at[i][j] = (xhat.at[i][j] - mu) * r;
                dw.at[i][j] += g.at[i][j] * xhat.at[i][j];  // 1. beyond the last channel g is 0
                db.at[i][j] += g.at[i][j];                  // 1.
                g.at[i][j] *= gain.at[i][j];                // 2.
                g_sum += g.at[i][j];
                g_xhat_sum += g.at[i][j] * xhat.at[i][j];
            }
        float g_mean = warp_sum(g_sum) / C, g_xhat_mean = warp_sum(g_xhat_sum) / C;  // 3.
        Row other = skip ? load_row(skip + n * C) : Row{};
        for (int i = 0; i < PIECES; i++)
            for (int j = 0; j < VEC; j++)
                g.at[i][j] = other.at[i][j] + r * (g.at[i][j] - g_mean - xhat.at[i][j] * g_xhat_mean);  // 4.
        store_row(dx + n * C, g);
        if (branch) {
            if (drop.threshold) drop_row(g, drop, key, drop.first + n * C);
            store_row(branch + n * C, g);
        }
    }
    // The warps' shares, one after the other, always in the same order.
    __shared__ float share[2][PIECES * PIECE];
    for (int warp = 0; warp < WARPS; warp++) {
        if (threadIdx.x / 32 == warp)
            for (int i = 0; i < PIECES; i++)
                for (int j = 0; j < VEC; j++) {
                    int c = channel(i) + j;
                    share[0][c] = dw.at[i][j] + (warp ? share[0][c] : 0.0f);
                    share[1][c] = db.at[i][j] + (warp ? share[1][c] : 0.0f);
                }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < C; c += 32 * WARPS) {
        partial[(2 * blockIdx.x + 0LL) * SHARE + c] = share[0][c];
        partial[(2 * blockIdx.x + 1LL) * SHARE + c] = share[1][c];
    }
}
