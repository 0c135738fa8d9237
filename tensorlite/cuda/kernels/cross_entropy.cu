// Softmax cross-entropy. It replaces tensorlite/reference/cross_entropy.py, where the derivation is.
//
// One warp has a row, which it reads twice. Rows may lie `stride` elements apart, V of them in use: the head pads its vocabulary for the tensor cores.
// The logits are LOGIT, float32 out of the head; the gradient is REAL.
#include "common.cuh"

constexpr int WARPS = 8;

// lse_n = log sum_v exp(logits_nv), and this block's share of the mean of lse_n - logits_n,target.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
cross_entropy_forward(const LOGIT* logits, long long stride, long long V, const ID* targets, float* lse, float* partial,
                      long long rows) {
    int lane = threadIdx.x % 32;
    float loss = 0.0f;
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS) {
        const LOGIT* z = logits + n * stride;
        float top = -INFINITE, sum = 0.0f;
        for (long long v = lane; v < V; v += 32) top = fmaxf(top, to_float(z[v]));
        top = warp_max(top);
        for (long long v = lane; v < V; v += 32) sum += expf(to_float(z[v]) - top);
        float l = top + logf(warp_sum(sum));
        if (lane == 0) {
            lse[n] = l;
            loss += l - to_float(z[targets[n]]);
        }
    }
    loss = block_sum(loss);
    if (threadIdx.x == 0) partial[blockIdx.x] = loss;
}

// loss = the sum of the blocks' shares / rows. One block.
extern "C" __global__ void mean_loss(const float* partial, long long count, long long rows, float* loss) {
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss = sum / rows;
}

// dlogits = dloss (p - onehot) / rows; the padding gets zeros. dloss: a number, times a number in device memory where that is not null.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
cross_entropy_backward(float dloss, const float* dloss_at, const LOGIT* logits, long long stride, long long V, const ID* targets,
                       const float* lse, REAL* dlogits, long long rows) {
    float scale = dloss * (dloss_at ? *dloss_at : 1.0f) / rows;  // 3.
    for (long long n = blockIdx.x * (long long)WARPS + threadIdx.x / 32; n < rows; n += gridDim.x * (long long)WARPS)
        for (long long v = threadIdx.x % 32; v < stride; v += 32) {
            float p = v < V ? expf(to_float(logits[n * stride + v]) - lse[n]) : 0.0f;              // 1.
            store(dlogits + n * stride + v, (p - (v == (long long)targets[n] ? 1.0f : 0.0f)) * scale);  // 2.
        }
}
