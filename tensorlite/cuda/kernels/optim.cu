// AdamW, clipping, the learning-rate schedule and the count of steps. They replace tensorlite/reference/optim.py.
//
// What differs: in a captured step the number of the step is in device memory, so the schedule and the two corrections of Adam's
// start are computed here, in double, by one thread of each block, as the reference does in Python.
#include "common.cuh"

// This block's share of the sum of squares.
extern "C" __global__ void sum_squares(const float* x, float* partial, long long n) {
    float sum = 0.0f;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        sum += x[i] * x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm = the root of the sum of the blocks' shares. One block.
extern "C" __global__ void root(const float* partial, long long count, float* norm) {
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *norm = sqrtf(sum);
}

// grads *= min(1, max_norm / (norm + 1e-6)); fminf takes the 1 where the norm is NaN.
extern "C" __global__ void clip(float* grads, const float* norm, float max_norm, long long n) {
    float scale = fminf(1.0f, max_norm / (*norm + 1e-6f));
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        grads[i] *= scale;
}

// The numbers of an update. tensorlite/cuda/optim.py packs them.
struct Update {
    const long long* step;  // null: t and lr are given. Else t is the step's number plus t, and lr is that of the schedule
    long long t;
    double lr, min_lr;
    long long warmup, total;
    double beta1, beta2, eps, weight_decay;
};

// tensorlite.optim.cosine_lr
__device__ inline double cosine_lr(const Update& u) {
    if (*u.step < u.warmup) return u.lr * (*u.step + 1) / (u.warmup + 1);
    double done = fmin(1.0, (double)(*u.step - u.warmup) / max(1LL, u.total - u.warmup));
    return u.min_lr + (u.lr - u.min_lr) * 0.5 * (1.0 + cospi(done));
}

// One AdamW update, in place, of n floats; the first n_decay decay.
//     params -= lr sqrt(c2)/c1 m / (sqrt(v) + eps sqrt(c2)),   c1 = 1 - beta1^t,  c2 = 1 - beta2^t
// which is the reference's, with the scalar factors moved together.
extern "C" __global__ void adamw(float* params, const float* grads, float* m, float* v, Update u, long long n_decay, long long n) {
    __shared__ float rate, epsilon, decay;
    if (threadIdx.x == 0) {
        double t = (double)(u.step ? *u.step + u.t : u.t), lr = u.step ? cosine_lr(u) : u.lr;
        double c1 = 1.0 - pow(u.beta1, t), root_c2 = sqrt(1.0 - pow(u.beta2, t));
        rate = (float)(lr * root_c2 / c1);
        epsilon = (float)(u.eps * root_c2);
        decay = (float)(1.0 - lr * u.weight_decay);
    }
    __syncthreads();
    float b1 = (float)u.beta1, b2 = (float)u.beta2, a1 = (float)(1.0 - u.beta1), a2 = (float)(1.0 - u.beta2);
    for_slices(n, [&](Slice slice) {
        Four p = slice.load(params), g = slice.load(grads), first = slice.load(m), second = slice.load(v);
        for (int j = 0; j < 4; j++) {
            first.at[j] = b1 * first.at[j] + a1 * g.at[j];
            second.at[j] = b2 * second.at[j] + a2 * g.at[j] * g.at[j];
            if (slice.i + j < n_decay) p.at[j] *= decay;
            p.at[j] -= rate * first.at[j] / (sqrtf(second.at[j]) + epsilon);
        }
        slice.store_to(params, p), slice.store_to(m, first), slice.store_to(v, second);
    });
}

// The end of a captured step: its loss and norm into the ring, where the host reads them later, and the count goes on.
extern "C" __global__ void end_step(long long* step, const float* loss, const float* norm, float* ring, long long slots) {
    long long slot = *step % slots;
    ring[2 * slot] = *loss;
    ring[2 * slot + 1] = *norm;
    *step += 1;
}
