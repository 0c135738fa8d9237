// Layer normalisation, forward and backward, fused with the residual connection before it.
// It replaces tensorlite/reference/layernorm.py, residual in tensorlite/reference/dropout.py and dropout_add_layernorm in
// composites.py; the derivations are there.
//
// One warp owns one row of C channels in registers; a lane owns every 32nd vector of four channels. So each array is read once
// and written once.
//
// What differs from the reference: dropout, the residual sum and the sum of gradients are in the same pass. Mean and variance are
// computed from the sum after it is rounded to its stored type, because backward reads the stored sum. Each block sums dw, db
// and dbranch over its rows, and reduce.cu sums the blocks' partial sums. The sum of dbranch is the gradient of the bias that ends
// the branch.
#include "random.cuh"

constexpr int WARPS = 8;                      // rows that a block processes at a time
constexpr int VEC = C % 4 == 0 ? 4 : 1;       // neighbouring channels that a lane loads at once
constexpr int LANE_STRIDE = 32 * VEC;         // channels from one vector of a lane to its next
constexpr int VECS_PER_LANE = (C + LANE_STRIDE - 1) / LANE_STRIDE;
constexpr int PER_LANE = VECS_PER_LANE * VEC;
constexpr int PARTIAL_LD = (C + 3) / 4 * 4;   // floats from one partial sum of a block to its next, a multiple of 16 bytes

// The channels of a row that a lane owns. Beyond the last channel, values are zero.
struct Row {
    float x[PER_LANE];
};

// Return the channel of this lane's value i.
__device__ inline int channel(int i) { return i / VEC * LANE_STRIDE + threadIdx.x % 32 * VEC + i % VEC; }

// Load a row of C channels. p: its first channel.
template <class T>
__device__ inline Row load_row(const T* p) {
    Row row;
#pragma unroll
    for (int i = 0; i < PER_LANE; i += VEC) {
        int c = channel(i);
        if constexpr (VEC == 4) {
            Vec4 vec = c < C ? load4(p + c) : Vec4{};
            for (int j = 0; j < 4; j++) row.x[i + j] = vec[j];
        } else {
            row.x[i] = c < C ? to_float(p[c]) : 0.0f;
        }
    }
    return row;
}

template <class T>
__device__ inline void store_row(T* p, const Row& row) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i += VEC) {
        int c = channel(i);
        if (c >= C) continue;
        if constexpr (VEC == 4)
            store4(p + c, {row.x[i], row.x[i + 1], row.x[i + 2], row.x[i + 3]});
        else
            store(p + c, row.x[i]);
    }
}

// Multiply kept elements of a row by inv_keep and dropped ones by 0. offset: the position of channel 0 in the mask's stream.
__device__ inline void apply_dropout(Row& row, const DropoutParams& dropout, uint2 key, long long offset) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i += VEC) {
        int c = channel(i);
        if (c >= C) continue;
        unsigned mask_bits = VEC == 4 ? mask4(key, dropout.threshold, (offset + c) / 4) : mask1(key, dropout.threshold, offset + c);
#pragma unroll
        for (int j = 0; j < VEC; j++) row.x[i + j] = mask_bits >> j & 1 ? row.x[i + j] * dropout.inv_keep : 0.0f;
    }
}

// Write the sum of the warps' rows. They are added one after the other, always in the same order. sum: (C,).
__device__ inline void sum_warps(const Row& row, float* sum) {
    __shared__ float so_far[VECS_PER_LANE * LANE_STRIDE];
    for (int warp = 0; warp < WARPS; warp++) {
        if (threadIdx.x / 32 == warp)
            for (int i = 0; i < PER_LANE; i++) {
                int c = channel(i);
                so_far[c] = row.x[i] + (warp ? so_far[c] : 0.0f);
            }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < C; c += 32 * WARPS) sum[c] = so_far[c];
    __syncthreads();
}

// s = x + dropout(y),  h = (s - mean) rstd w + b. Where y is null, x itself is normalised and s is not written.
// x, y, s, h: (rows, C). w, b: (C,); b may be null. mean, rstd: (rows,).
extern "C" __global__ void __launch_bounds__(32 * WARPS)
layernorm_forward(const scalar_t* x, const scalar_t* y, DropoutParams dropout, scalar_t* s, const scalar_t* w, const scalar_t* b,
                  float eps, scalar_t* h, float* mean, float* rstd, long long rows) {
    uint2 key = block_key(dropout);
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS) {
        Row row = load_row(x + n * C);
        if (y) {
            Row branch = load_row(y + n * C);
            if (dropout.threshold) apply_dropout(branch, dropout, key, dropout.offset + n * C);
            for (int i = 0; i < PER_LANE; i++) row.x[i] = round_to_storage(s, row.x[i] + branch.x[i]);
            store_row(s + n * C, row);
        }
        // Mean.
        float sum = 0.0f;
        for (int i = 0; i < PER_LANE; i++) sum += row.x[i];
        float mean_n = warp_sum(sum) / C;

        // Reciprocal standard deviation.
        float sum_sq = 0.0f;
        for (int i = 0; i < PER_LANE; i++) {
            if (channel(i) < C) row.x[i] -= mean_n;
            sum_sq += row.x[i] * row.x[i];
        }
        float rstd_n = 1.0f / sqrtf(warp_sum(sum_sq) / C + eps);

        // Normalise.
        Row gain = load_row(w), bias = b ? load_row(b) : Row{};
        for (int i = 0; i < PER_LANE; i++) row.x[i] = row.x[i] * rstd_n * gain.x[i] + bias.x[i];
        store_row(h + n * C, row);
        if (threadIdx.x % 32 == 0) {
            mean[n] = mean_n;
            rstd[n] = rstd_n;
        }
    }
}

// dx = skip + rstd (g - mean(g) - xhat mean(g xhat)),  g = dh w,  and dbranch = dropout_backward(dx).
// dw = sum of dh xhat, db = sum of dh and sum of dbranch, as it is stored, over rows; each block stores its partial sums of these
// three in partial: (blocks, 3, PARTIAL_LD). skip: the gradient that reaches x past the norm, or null. dbranch: null where there
// was no dropout before the norm; then it would be dx.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
layernorm_backward(const scalar_t* dh, const scalar_t* x, const scalar_t* w, const float* mean, const float* rstd,
                   const scalar_t* skip, scalar_t* dx, DropoutParams dropout, scalar_t* dbranch, float* partial, long long rows) {
    uint2 key = block_key(dropout);
    Row dw = {}, db = {}, branch_sum = {}, gain = load_row(w);
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS) {
        float mean_n = mean[n], rstd_n = rstd[n];
        Row xhat = load_row(x + n * C), g = load_row(dh + n * C);
        float g_sum = 0.0f, g_xhat_sum = 0.0f;
        for (int i = 0; i < PER_LANE; i++) {
            xhat.x[i] = (xhat.x[i] - mean_n) * rstd_n;
            dw.x[i] += g.x[i] * xhat.x[i];  // 1. beyond the last channel g is 0
            db.x[i] += g.x[i];              // 1.
            g.x[i] *= gain.x[i];            // 2.
            g_sum += g.x[i];
            g_xhat_sum += g.x[i] * xhat.x[i];
        }
        float g_mean = warp_sum(g_sum) / C, g_xhat_mean = warp_sum(g_xhat_sum) / C;  // 3.
        Row dskip = skip ? load_row(skip + n * C) : Row{};
        for (int i = 0; i < PER_LANE; i++)
            g.x[i] = dskip.x[i] + rstd_n * (g.x[i] - g_mean - xhat.x[i] * g_xhat_mean);  // 4.
        store_row(dx + n * C, g);
        if (dbranch) {
            if (dropout.threshold) apply_dropout(g, dropout, key, dropout.offset + n * C);
            store_row(dbranch + n * C, g);
        }
        for (int i = 0; i < PER_LANE; i++) branch_sum.x[i] += round_to_storage(dx, g.x[i]);
    }
    partial += 3LL * blockIdx.x * PARTIAL_LD;
    sum_warps(dw, partial);
    sum_warps(db, partial + PARTIAL_LD);
    sum_warps(branch_sum, partial + 2 * PARTIAL_LD);
}
