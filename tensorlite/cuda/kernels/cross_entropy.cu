// Softmax cross-entropy, forward and backward. It replaces tensorlite/reference/cross_entropy.py, where the derivation is.
//
// One warp owns one row of logits; a lane reads every 32nd logit of it. Forward reads the row twice, once for the maximum and
// once for the sum.
//
// What differs from the reference: rows lie `stride` elements apart and have V logits and then padding, because
// linear_cross_entropy pads the vocabulary for the tensor cores. The logits have the type logit_t, their gradient scalar_t, and
// the targets index_t; the head computes float32 logits in any precision.
#include "common.cuh"

constexpr int WARPS = 8;

// lse_n = log sum_v exp(logits_nv), and partial, this block's sum of lse_n - logits_n,target.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
cross_entropy_forward(const logit_t* logits, int stride, int V, const index_t* targets, float* lse, float* partial,
                      long long rows) {
    int lane = threadIdx.x % 32;
    float loss = 0.0f;
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS) {
        const logit_t* z = logits + n * stride;
        float max_logit = -INFINITE, sum = 0.0f;
        for (int v = lane; v < V; v += 32) max_logit = fmaxf(max_logit, to_float(z[v]));
        max_logit = warp_max(max_logit);
        for (int v = lane; v < V; v += 32) sum += expf(to_float(z[v]) - max_logit);
        float lse_n = max_logit + logf(warp_sum(sum));
        if (lane == 0) {
            lse[n] = lse_n;
            loss += lse_n - to_float(z[targets[n]]);
        }
    }
    loss = block_sum(loss);
    if (threadIdx.x == 0) partial[blockIdx.x] = loss;
}

// loss = the sum of the blocks' partial sums, over rows. One block.
extern "C" __global__ void mean_loss(const float* partial, long long count, long long rows, float* loss) {
    float sum = sum_partial(partial, count);
    if (threadIdx.x == 0) *loss = sum / rows;
}

// dlogits = dloss (p - onehot) / rows, and zeros in the padding. dloss is `value`, times *dloss_ptr unless that is null.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
cross_entropy_backward(float value, const float* dloss_ptr, const logit_t* logits, int stride, int V,
                       const index_t* targets, const float* lse, scalar_t* dlogits, long long rows) {
    float scale = value * (dloss_ptr ? *dloss_ptr : 1.0f) / rows;  // 3.
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS) {
        const logit_t* z = logits + n * stride;
        scalar_t* dz = dlogits + n * stride;
        int target = targets[n];
        float lse_n = lse[n];
        for (int v = threadIdx.x % 32; v < stride; v += 32) {
            float p = v < V ? expf(to_float(z[v]) - lse_n) : 0.0f;     // 1.
            store(dz + v, (p - (v == target ? 1.0f : 0.0f)) * scale);  // 2.
        }
    }
}
