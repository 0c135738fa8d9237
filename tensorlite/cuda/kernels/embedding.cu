// Embeddings, and the batch that they begin with. It replaces tensorlite/reference/embedding.py and Reference.get_batch.
//
// The gradient of a lookup is onehot^T dy, a matrix product as in the reference: the same bits every time, where atomics would sum
// in the order of arrival. ID is the integer type of the text.
#include "random.cuh"

// Row r: a window of the text that begins at a place drawn for the global row row0 + r, and the same one character later.
extern "C" __global__ void get_batch(const ID* data, long long n, Key key, long long row0, ID* idx, ID* targets, long long T) {
    __shared__ long long start;
    if (threadIdx.x == 0) {
        uint2 k = mixed(key), x = threefry2x32(k.x, k.y, (unsigned)(row0 + blockIdx.x), 0);
        start = (long long)(((unsigned long long)x.x << 32 | x.y) % (unsigned long long)(n - T));
    }
    __syncthreads();
    for (long long t = threadIdx.x; t < T; t += blockDim.x) {
        idx[blockIdx.x * T + t] = data[start + t];
        targets[blockIdx.x * T + t] = data[start + t + 1];
    }
}

// y_n = table_ids(n). One block a row of C.
extern "C" __global__ void lookup(const ID* ids, const REAL* table, REAL* y, long long C) {
    const REAL* row = table + (long long)ids[blockIdx.x] * C;
    for (long long c = threadIdx.x; c < C; c += blockDim.x) y[blockIdx.x * C + c] = row[c];
}

// onehot_nv = 1 where ids_n = v, else 0; `width` columns, some beyond the vocabulary. One warp a row.
extern "C" __global__ void onehot(const ID* ids, REAL* out, long long width, long long rows) {
    long long warps = gridDim.x * (long long)blockDim.x / 32, warp = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    for (long long n = warp; n < rows; n += warps)
        for (long long v = threadIdx.x % 32; v < width; v += 32) store(out + n * width + v, v == (long long)ids[n] ? 1.0f : 0.0f);
}

// y_t = x_t + wpe_(start + t), for x: (rows, T, C) and TC = T C. wpe points at row `start`. Grid: (rows, blocks).
extern "C" __global__ void add_positions(const REAL* x, const REAL* wpe, REAL* y, long long TC) {
    x += blockIdx.x * TC;
    y += blockIdx.x * TC;
    for (long long i = blockIdx.y * (long long)blockDim.x + threadIdx.x; i < TC; i += gridDim.y * (long long)blockDim.x)
        store(y + i, to_float(x[i]) + to_float(wpe[i]));
}

// Rows of another width: those of x: (rows, from) from column `at` on in y: (rows, to), as far as they fit, and zeros elsewhere.
extern "C" __global__ void resize_rows(const REAL* x, long long from, REAL* y, long long to, long long at, long long rows) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < rows * to; i += gridDim.x * (long long)blockDim.x) {
        long long column = i % to - at;
        if (0 <= column && column < from)
            y[i] = x[i / to * from + column];
        else
            store(y + i, 0.0f);
    }
}
