// Causal attention, forward and backward, with one thread per row.
// Read it beside tensorlite/reference/attention.py, whose derivation has the step numbers at the lines, and then read the fused
// attention.cu, one folder up. Step 2 is dropout, which this file leaves out. Only the tests run it. They compare it with both.
//
// A thread computes a whole row and needs nothing from other threads. The number of a thread, from 0 over all blocks of a launch,
// is blockIdx.x * blockDim.x + threadIdx.x. There may be more threads than rows, and the surplus ones return at once.
//
// The (T, T) scores of a head are never stored. Forward is Algorithm 1 of FlashAttention-2 (Dao 2023, arXiv:2307.08691) with blocks
// of one query and one key: it reads key after key and keeps a running softmax. Backward recomputes each probability from lse. In
// step 3 it computes sum(dprobs probs), a sum over the keys, as delta = dy . y, because dprobs = dy . v and y = sum(probs v).
//
// Names. There are rows = B H T rows, because split_heads returns q, k and v of shape (B, H, T, D). The T rows of one head are
// neighbours, and the first of them is row n / T * T, where n is any of them. n is the row of this thread, t a row of q, y and dy
// (a query), s a row of k and v (a key). The causal mask is the bound of the loops: s <= t, and both in one head.
//   q, k, v, y, dq, dk, dv, dy   (rows, D): element d of row n is q[n * D + d]
//   scale    1 / sqrt(D)
//   score    q_t . k_s scale
//   m        the largest score of the row so far; m_new includes the next key
//   l        the sum of exp(score - m) so far
//   alpha    exp(m - m_new): a sum of exp(score - m), times alpha, is the sum of exp(score - m_new)
//   lse      (rows,), m + log l after the last key, which is log sum_s exp(score); forward saves it for backward
//   p        exp(score - lse), the probability (probs in the derivation); in forward exp(score - m_new), and l divides y at the end
//   delta    dy_t . y_t
//   dp, ds   the gradients of p and of score (dprobs and dscores in the derivation)

__device__ float dot(const float* a, const float* b, int D) {
    float sum = 0.0f;
    for (int d = 0; d < D; d++) sum += a[d] * b[d];
    return sum;
}

// y = softmax(mask(q k^T scale)) v. Thread n computes row n of y.
extern "C" __global__ void attention_forward(const float* q, const float* k, const float* v, float scale, float* y, float* lse,
                                             int rows, int T, int D) {
    long long n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    float m = __uint_as_float(0xff800000u);  // -infinity
    float l = 0.0f;
    for (int d = 0; d < D; d++) y[n * D + d] = 0.0f;
    for (long long s = n / T * T; s <= n; s++) {  // from the first key of this head to key n
        float score = dot(q + n * D, k + s * D, D) * scale;
        float m_new = fmaxf(m, score);
        float alpha = expf(m - m_new);
        float p = expf(score - m_new);
        l = l * alpha + p;
        for (int d = 0; d < D; d++) y[n * D + d] = y[n * D + d] * alpha + p * v[s * D + d];
        m = m_new;
    }
    for (int d = 0; d < D; d++) y[n * D + d] /= l;
    lse[n] = m + logf(l);
}

// dq = sum over keys of ds k scale,  dk = sum over queries of ds q scale,  dv = sum over queries of p dy.
// Thread n computes row n of dq, where n is a query, and then row n of dk and dv, where n is a key.
extern "C" __global__ void attention_backward(const float* dy, const float* q, const float* k, const float* v, float scale,
                                              const float* y, const float* lse, float* dq, float* dk, float* dv, int rows, int T,
                                              int D) {
    long long n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    for (int d = 0; d < D; d++) dq[n * D + d] = dk[n * D + d] = dv[n * D + d] = 0.0f;
    for (long long s = n / T * T; s <= n; s++) {  // query n and each key that it sees
        float p = expf(dot(q + n * D, k + s * D, D) * scale - lse[n]);
        float dp = dot(dy + n * D, v + s * D, D);  // 1.
        float delta = dot(dy + n * D, y + n * D, D);
        float ds = p * (dp - delta);                                             // 3.
        for (int d = 0; d < D; d++) dq[n * D + d] += ds * k[s * D + d] * scale;  // 4.
    }
    for (long long t = n; t < n / T * T + T; t++) {  // key n and each query that sees it
        float p = expf(dot(q + t * D, k + n * D, D) * scale - lse[t]);
        float dp = dot(dy + t * D, v + n * D, D);  // 1.
        float delta = dot(dy + t * D, y + t * D, D);
        float ds = p * (dp - delta);                                             // 3.
        for (int d = 0; d < D; d++) dv[n * D + d] += p * dy[t * D + d];          // 1.
        for (int d = 0; d < D; d++) dk[n * D + d] += ds * q[t * D + d] * scale;  // 4.
    }
}
