// Ops that touch each element once: activations, dropout, the residual connection, sums, changes of precision.
// They replace tensorlite/reference/activations.py and dropout.py, where the derivations are.
#include "random.cuh"

constexpr float SQRT_2_OVER_PI = 0.7978845608028654f, CUBIC = 0.044715f;

// x with 1 / keep, or 0 where dropped.
__device__ inline Four dropped(Four x, const Drop& drop, uint2 key, Slice slice) {
    unsigned long long element = drop.first + slice.i;
    unsigned keep = 0;
    if (slice.count == 4 && element % 4 == 0)
        keep = keep4(key, drop.threshold, element / 4);
    else
        for (int j = 0; j < slice.count; j++) keep |= (unsigned)keep1(key, drop.threshold, element + j) << j;
    for (int j = 0; j < 4; j++) x.at[j] = keep >> j & 1 ? x.at[j] * drop.scale : 0.0f;
    return x;
}

// out = x + dropout(y), or dropout(y) alone where x is null. dropout_backward is the same map, of dy.
extern "C" __global__ void residual(const REAL* x, const REAL* y, Drop drop, REAL* out, long long n) {
    uint2 key = block_key(drop);
    for_slices(n, [&](Slice slice) {
        Four sum = slice.load(y);
        if (drop.threshold) sum = dropped(sum, drop, key, slice);
        if (x) {
            Four other = slice.load(x);
            for (int j = 0; j < 4; j++) sum.at[j] += other.at[j];
        }
        slice.store_to(out, sum);
    });
}

// y = x s,  s = (1 + tanh u) / 2 = 1 / (1 + exp(-2u)),  u = sqrt(2/pi) (x + 0.044715 x^3).
__device__ inline float gelu_gate(float x) { return 1.0f / (1.0f + expf(-2.0f * SQRT_2_OVER_PI * (x + CUBIC * x * x * x))); }

extern "C" __global__ void gelu_forward(const REAL* x, REAL* y, long long n) {
    for_slices(n, [&](Slice slice) {
        Four v = slice.load(x);
        for (int j = 0; j < 4; j++) v.at[j] *= gelu_gate(v.at[j]);
        slice.store_to(y, v);
    });
}

// dx = dy (s + x s'),  s' = 2 s (1 - s) u',  u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2).
extern "C" __global__ void gelu_backward(const REAL* dy, const REAL* x, REAL* dx, long long n) {
    for_slices(n, [&](Slice slice) {
        Four v = slice.load(x), d = slice.load(dy);
        for (int j = 0; j < 4; j++) {
            float s = gelu_gate(v.at[j]), du = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * v.at[j] * v.at[j]);
            d.at[j] *= s + v.at[j] * 2.0f * s * (1.0f - s) * du;
        }
        slice.store_to(dx, d);
    });
}

extern "C" __global__ void relu_forward(const REAL* x, REAL* y, long long n) {
    for_slices(n, [&](Slice slice) {
        Four v = slice.load(x);
        for (int j = 0; j < 4; j++) v.at[j] = v.at[j] < 0.0f ? 0.0f : v.at[j];  // a NaN stays one
        slice.store_to(y, v);
    });
}

// dx = dy where y > 0, else 0.
extern "C" __global__ void relu_backward(const REAL* dy, const REAL* y, REAL* dx, long long n) {
    for_slices(n, [&](Slice slice) {
        Four v = slice.load(y), d = slice.load(dy);
        for (int j = 0; j < 4; j++) d.at[j] = v.at[j] > 0.0f ? d.at[j] : 0.0f;
        slice.store_to(dx, d);
    });
}

// out = a + b. Where a value is used twice its two gradients add; those of weights are float32 in any precision.
extern "C" __global__ void add(const REAL* a, const REAL* b, REAL* out, long long n) {
    for_slices(n, [&](Slice slice) {
        Four x = slice.load(a), y = slice.load(b);
        for (int j = 0; j < 4; j++) x.at[j] += y.at[j];
        slice.store_to(out, x);
    });
}

// y_nd += b_d, for a product whose library cannot add the bias itself. y: (n / D, D).
extern "C" __global__ void add_bias(REAL* y, const REAL* b, long long D, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        store(y + i, to_float(y[i]) + to_float(b[i % D]));
}

// y_ij = x_ji, for y: (rows, n / rows).
extern "C" __global__ void transpose(const REAL* x, REAL* y, long long rows, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        y[i] = x[i % (n / rows) * rows + i / (n / rows)];
}

extern "C" __global__ void to_bf16(const float* x, bf16* y, long long n) {
    for_slices(n, [&](Slice slice) { slice.store_to(y, slice.load(x)); });
}

extern "C" __global__ void to_float32(const bf16* x, float* y, long long n) {
    for_slices(n, [&](Slice slice) { slice.store_to(y, slice.load(x)); });
}

// Copy or add many arrays, each to a place of its own: the gradients into their slots of the flat buffer. One row of blocks an array.
struct Copies {
    const float* from[COPIES];
    float* to[COPIES];
    long long size[COPIES];
};

extern "C" __global__ void pack_grads(Copies copies, bool sum) {
    const float* from = copies.from[blockIdx.y];
    float* to = copies.to[blockIdx.y];
    for_slices(copies.size[blockIdx.y], [&](Slice slice) {
        Four x = slice.load(from);
        if (sum) {
            Four y = slice.load(to);
            for (int j = 0; j < 4; j++) x.at[j] += y.at[j];
        }
        slice.store_to(to, x);
    });
}

// out = total + share loss, or share loss where there is no total yet: the loss of several micro-batches.
extern "C" __global__ void accumulate_loss(const float* total, const float* loss, float share, float* out) {
    *out = (total ? *total : 0.0f) + share * *loss;
}
