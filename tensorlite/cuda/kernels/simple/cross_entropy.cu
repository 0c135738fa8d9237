// Softmax cross-entropy, forward and backward, with one thread per row.
// Read it beside tensorlite/reference/cross_entropy.py, whose derivation has the step numbers at the lines, and then read the fused
// cross_entropy.cu, one folder up. Only the tests run this file. They compare it with both.
//
// A thread computes a whole row and needs nothing from other threads. The number of a thread, from 0 over all blocks of a launch,
// is blockIdx.x * blockDim.x + threadIdx.x. There may be more threads than rows, and the surplus ones return at once.
//
// Names. n is a row and v an entry of the vocabulary; there are `rows` rows of V logits.
//   logits, dlogits   (rows, V): entry v of row n is logits[n * V + v]
//   targets           (rows,), the right v of each row
//   lse               (rows,), log sum_v exp(logits_v), which forward saves for backward
//   losses, loss      (rows,), the loss of each row, and their mean
//   probs             softmax(logits), computed again from lse
//   dloss             the gradient of the value that the loss enters; 1 in training

// losses = lse - logits at the target. Thread n computes row n.
extern "C" __global__ void cross_entropy_forward(const float* logits, const long long* targets, float* lse, float* losses,
                                                 int rows, int V) {
    long long n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    float max_logit = logits[n * V];
    for (int v = 1; v < V; v++) max_logit = fmaxf(max_logit, logits[n * V + v]);
    float exp_sum = 0.0f;
    for (int v = 0; v < V; v++) exp_sum += expf(logits[n * V + v] - max_logit);  // exp(0) at most, so it cannot overflow
    lse[n] = max_logit + logf(exp_sum);
    losses[n] = lse[n] - logits[n * V + targets[n]];
}

// loss = mean of losses. A single thread computes it.
extern "C" __global__ void mean_loss(const float* losses, float* loss, int rows) {
    float sum = 0.0f;
    for (int n = 0; n < rows; n++) sum += losses[n];
    *loss = sum / rows;
}

// dlogits = (probs - onehot) dloss / rows. Thread n computes row n.
extern "C" __global__ void cross_entropy_backward(float dloss, const float* logits, const long long* targets, const float* lse,
                                                  float* dlogits, int rows, int V) {
    long long n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    for (int v = 0; v < V; v++) {
        float probs = expf(logits[n * V + v] - lse[n]);          // 1.
        float onehot = v == targets[n] ? 1.0f : 0.0f;            // 2.
        dlogits[n * V + v] = (probs - onehot) * (dloss / rows);  // 3.
    }
}
