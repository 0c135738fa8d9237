// Layer normalisation, forward and backward, with one thread per row.
// Read it beside tensorlite/reference/layernorm.py, whose derivation has the step numbers at the lines, and then read the fused
// layernorm.cu, one folder up. Only the tests run this file. They compare it with both.
//
// A thread computes a whole row (for dw and db, a whole channel) and needs nothing from other threads. The number of a thread, from
// 0 over all blocks of a launch, is blockIdx.x * blockDim.x + threadIdx.x. There may be more threads than rows (or channels), and
// the surplus ones return at once.
//
// Names. n is a row and i a channel; there are `rows` rows of C channels.
//   x, y, dx, dy          (rows, C): channel i of row n is x[n * C + i]
//   w, b, dw, db          (C,)
//   mean, rstd            (rows,), which forward saves for backward
//   xhat                  the normalised value, (x - mean) rstd
//   g                     the gradient of xhat, dy w
//   g_mean, g_xhat_mean   the means over the row of g and of g xhat

// y = xhat w + b. Thread n computes row n.
extern "C" __global__ void layernorm_forward(const float* x, const float* w, const float* b, float eps, float* y, float* mean,
                                             float* rstd, int rows, int C) {
    long long n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    mean[n] = 0.0f;
    for (int i = 0; i < C; i++) mean[n] += x[n * C + i] / C;
    float var = 0.0f;
    for (int i = 0; i < C; i++) var += (x[n * C + i] - mean[n]) * (x[n * C + i] - mean[n]) / C;
    rstd[n] = 1.0f / sqrtf(var + eps);
    for (int i = 0; i < C; i++) y[n * C + i] = (x[n * C + i] - mean[n]) * rstd[n] * w[i] + b[i];
}

// dx = rstd (g - g_mean - xhat g_xhat_mean). Thread n computes row n.
extern "C" __global__ void layernorm_backward_row(const float* dy, const float* x, const float* w, const float* mean,
                                                  const float* rstd, float* dx, int rows, int C) {
    long long n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    float g_mean = 0.0f, g_xhat_mean = 0.0f;
    for (int i = 0; i < C; i++) {
        float xhat = (x[n * C + i] - mean[n]) * rstd[n];
        float g = dy[n * C + i] * w[i];  // 2.
        g_mean += g / C;                 // 3. through the mean
        g_xhat_mean += g * xhat / C;     // 3. through rstd
    }
    for (int i = 0; i < C; i++) {
        float xhat = (x[n * C + i] - mean[n]) * rstd[n];
        float g = dy[n * C + i] * w[i];                               // 2.
        dx[n * C + i] = rstd[n] * (g - g_mean - xhat * g_xhat_mean);  // 4.
    }
}

// dw = sum of dy xhat and db = sum of dy, over the rows. Thread i computes channel i.
extern "C" __global__ void layernorm_backward_channel(const float* dy, const float* x, const float* mean, const float* rstd,
                                                      float* dw, float* db, int rows, int C) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= C) return;
    dw[i] = db[i] = 0.0f;
    for (long long n = 0; n < rows; n++) {
        float xhat = (x[n * C + i] - mean[n]) * rstd[n];
        dw[i] += dy[n * C + i] * xhat;  // 1.
        db[i] += dy[n * C + i];         // 1.
    }
}
