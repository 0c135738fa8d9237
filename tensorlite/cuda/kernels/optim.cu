// The flat gradient buffer, its norm, clipping, AdamW, its schedule, the loss scale, and the step.
// They replace tensorlite/reference/optim.py and pack_grads of tensorlite/reference/ops.py.
//
// A thread of pack_grads and adamw processes four neighbouring elements at a time. What differs from the reference: in a
// captured step the step number is in device memory. So the schedule and the two bias corrections of Adam are computed here, in
// double, by one thread of each block, with the reference's formulas. And pack_grads also sums the squares of what it writes, so
// that the norm of a step needs no pass of its own.
#include "common.cuh"

constexpr int COPIES = 128;  // arrays per launch: their addresses and sizes take 3 of the 4 KiB that arguments may have

// The arrays of one launch of pack_grads. tensorlite/cuda/optim.py packs this struct.
struct Copies {
    const float* from[COPIES];
    float* to[COPIES];
    long long size[COPIES];
};

// The loss scale of a float16 run. tensorlite/cuda/loss_scale.py writes these floats; kernels take a null pointer without one.
struct LossScale {
    float scale;          // a power of two, so multiplication by it or by its inverse is exact
    float finite_steps;   // since the scale last changed
    float skipped_steps;  // of the whole run
    float overflow;       // 1: a gradient of this step is not finite, 0: all are
};

// Copy many arrays, the gradients, into their slots of the flat buffer, or add them to it. One row of blocks per array.
// The gradients are those of the scaled loss, and the buffer receives those of the loss itself.
// partial: (arrays, blocks per array) receives each block's sum of squares of what it has written.
extern "C" __global__ void pack_grads(Copies copies, const LossScale* loss_scale, bool add, float* partial) {
    const float* from = copies.from[blockIdx.y];
    float* to = copies.to[blockIdx.y];
    float unscale = loss_scale ? 1.0f / loss_scale->scale : 1.0f, sum = 0.0f;
    grid_stride_vec4(copies.size[blockIdx.y], [&](Chunk chunk) {
        Vec4 x = chunk.load(from);
        for (int j = 0; j < 4; j++) x[j] *= unscale;
        if (add) {
            Vec4 y = chunk.load(to);
            for (int j = 0; j < 4; j++) x[j] += y[j];
        }
        chunk.store_to(to, x);
        for (int j = 0; j < 4; j++) sum += x[j] * x[j];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// partial = this block's sum of squares.
extern "C" __global__ void sum_squares(const float* grads, float* partial, long long n) {
    float sum = 0.0f;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        sum += grads[i] * grads[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm = the root of the sum of the blocks' partial sums. One block.
extern "C" __global__ void finish_norm(const float* partial, long long count, float* norm) {
    float sum = sum_partial(partial, count);
    if (threadIdx.x == 0) *norm = sqrtf(sum);
}

// grads *= min(1, max_norm / (norm + 1e-6)). Where the norm is NaN, fminf returns 1.
extern "C" __global__ void clip(float* grads, const float* norm, float max_norm, long long n) {
    float scale = fminf(1.0f, max_norm / (*norm + 1e-6f));
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        grads[i] *= scale;
}

// End the backward pass of a step: its gradients overflowed if their norm is not finite. The rule is that of LossScale.after in
// tensorlite/loss_scale.py. Every micro-batch has been packed by now, and AdamW is still to come.
extern "C" __global__ void update_loss_scale(LossScale* loss_scale, const float* norm, long long growth_interval, float max_scale) {
    LossScale s = *loss_scale;
    s.overflow = isfinite(*norm) ? 0.0f : 1.0f;
    if (s.overflow) {
        s.scale = fmaxf(1.0f, s.scale / 2.0f);
        s.finite_steps = 0.0f;
        s.skipped_steps += 1.0f;
    } else if (++s.finite_steps == growth_interval) {
        s.scale = fminf(max_scale, s.scale * 2.0f);
        s.finite_steps = 0.0f;
    }
    *loss_scale = s;
}

// The parameters of an update. tensorlite/cuda/optim.py packs this struct.
struct AdamWParams {
    const long long* step;  // null: use t and lr. Otherwise use *step + t, and the lr of the schedule at *step
    long long t;
    double lr, min_lr;
    long long warmup, total;
    double beta1, beta2, eps, weight_decay;
};

// Return the learning rate, as cosine_lr of tensorlite/reference/optim.py.
__device__ inline double cosine_lr(const AdamWParams& hyper) {
    if (*hyper.step < hyper.warmup) return hyper.lr * (*hyper.step + 1) / (hyper.warmup + 1);
    double done = fmin(1.0, (double)(*hyper.step - hyper.warmup) / max(1LL, hyper.total - hyper.warmup));
    return hyper.min_lr + (hyper.lr - hyper.min_lr) * 0.5 * (1.0 + cospi(done));
}

// Make one AdamW update, in place, of n floats; weight decay applies to the first n_decay.
//     params -= lr sqrt(c2)/c1 m / (sqrt(v) + eps sqrt(c2)),   c1 = 1 - beta1^t,  c2 = 1 - beta2^t
// This is the reference's update with the scalar factors moved together. After an overflow nothing is updated, and t counts only
// the updates that were made.
extern "C" __global__ void adamw(float* params, const float* grads, float* m, float* v, AdamWParams hyper,
                                 const LossScale* loss_scale, long long n_decay, long long n) {
    if (loss_scale && loss_scale->overflow) return;
    __shared__ float rate, epsilon, decay;
    if (threadIdx.x == 0) {
        double t = (double)(hyper.step ? *hyper.step + hyper.t : hyper.t) - (loss_scale ? loss_scale->skipped_steps : 0.0f);
        double lr = hyper.step ? cosine_lr(hyper) : hyper.lr;
        double c1 = 1.0 - pow(hyper.beta1, t);
        double root_c2 = sqrt(1.0 - pow(hyper.beta2, t));
        rate = (float)(lr * root_c2 / c1);
        epsilon = (float)(hyper.eps * root_c2);
        decay = (float)(1.0 - lr * hyper.weight_decay);
    }
    __syncthreads();
    float b1 = (float)hyper.beta1, a1 = (float)(1.0 - hyper.beta1);
    float b2 = (float)hyper.beta2, a2 = (float)(1.0 - hyper.beta2);
    grid_stride_vec4(n, [&](Chunk chunk) {
        Vec4 p4 = chunk.load(params), g4 = chunk.load(grads), m4 = chunk.load(m), v4 = chunk.load(v);
        for (int j = 0; j < 4; j++) {
            m4[j] = b1 * m4[j] + a1 * g4[j];
            v4[j] = b2 * v4[j] + a2 * g4[j] * g4[j];
            if (chunk.i + j < n_decay) p4[j] *= decay;
            p4[j] -= rate * m4[j] / (sqrtf(v4[j]) + epsilon);
        }
        chunk.store_to(params, p4);
        chunk.store_to(m, m4);
        chunk.store_to(v, v4);
    });
}

// End a captured step: store its loss and norm in a ring buffer, which the host reads later, and increment the step number.
extern "C" __global__ void end_step(long long* step, const float* loss, const float* norm, float* loss_ring, long long ring_size) {
    long long slot = *step % ring_size;
    loss_ring[2 * slot] = *loss;
    loss_ring[2 * slot + 1] = *norm;
    *step += 1;
}
