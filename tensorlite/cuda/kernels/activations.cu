// GELU and ReLU, forward and backward. They replace tensorlite/reference/activations.py, where the derivations are.
//
// A thread processes four neighbouring elements at a time. GELU differs from the reference in that its gate (1 + tanh u) / 2 is
// computed as the equal 1 / (1 + exp(-2u)), for which backward needs no tanh.
#include "common.cuh"

constexpr float SQRT_2_OVER_PI = 0.7978845608028654f, CUBIC = 0.044715f;

// The gate s of y = x s:  s = (1 + tanh u) / 2 = 1 / (1 + exp(-2u)),  u = sqrt(2/pi) (x + 0.044715 x^3).
__device__ inline float gelu_gate(float x) { return 1.0f / (1.0f + expf(-2.0f * SQRT_2_OVER_PI * (x + CUBIC * x * x * x))); }

extern "C" __global__ void gelu_forward(const scalar_t* x, scalar_t* y, long long n) {
    grid_stride_vec4(n, [&](Chunk chunk) {
        Vec4 v = chunk.load(x);
        for (int j = 0; j < 4; j++) v[j] *= gelu_gate(v[j]);
        chunk.store_to(y, v);
    });
}

// dx = dy (s + x s'),  s' = 2 s (1 - s) u',  u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2).
extern "C" __global__ void gelu_backward(const scalar_t* dy, const scalar_t* x, scalar_t* dx, long long n) {
    grid_stride_vec4(n, [&](Chunk chunk) {
        Vec4 v = chunk.load(x), d = chunk.load(dy);
        for (int j = 0; j < 4; j++) {
            float s = gelu_gate(v[j]);
            float du = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * v[j] * v[j]);
            d[j] *= s + v[j] * 2.0f * s * (1.0f - s) * du;
        }
        chunk.store_to(dx, d);
    });
}

extern "C" __global__ void relu_forward(const scalar_t* x, scalar_t* y, long long n) {
    grid_stride_vec4(n, [&](Chunk chunk) {
        Vec4 v = chunk.load(x);
        for (int j = 0; j < 4; j++) v[j] = v[j] < 0.0f ? 0.0f : v[j];  // a NaN stays a NaN
        chunk.store_to(y, v);
    });
}

// dx = dy where y > 0, else 0.
extern "C" __global__ void relu_backward(const scalar_t* dy, const scalar_t* y, scalar_t* dx, long long n) {
    grid_stride_vec4(n, [&](Chunk chunk) {
        Vec4 v = chunk.load(y), d = chunk.load(dy);
        for (int j = 0; j < 4; j++) d[j] = v[j] > 0.0f ? d[j] : 0.0f;
        chunk.store_to(dx, d);
    });
}
