// Token and position embeddings, and the batch that they read.
// They replace tensorlite/reference/embedding.py and get_batch of tensorlite/reference/ops.py.
//
// A block copies one row of the batch or of the table; a warp writes one row of onehot. What differs from the reference: the
// batch is drawn on the device. The gradient of a lookup is onehot^T dy, a matmul as in the reference, which is bitwise
// reproducible; atomics would sum in the order of arrival. index_t is the integer type of the text.
#include "random.cuh"

// Row r of idx is a window of the text, which begins at a place drawn for the global row row0 + r. Row r of targets begins one
// character later. One block per row.
extern "C" __global__ void get_batch(const index_t* data, long long n, Key key, long long row0, index_t* idx, index_t* targets,
                                     long long T) {
    __shared__ long long start;
    if (threadIdx.x == 0) {
        uint2 k = resolve_key(key), x = threefry2x32(k.x, k.y, (unsigned)(row0 + blockIdx.x), 0);
        start = (long long)(((unsigned long long)x.x << 32 | x.y) % (unsigned long long)(n - T));
    }
    __syncthreads();
    for (long long t = threadIdx.x; t < T; t += blockDim.x) {
        idx[blockIdx.x * T + t] = data[start + t];
        targets[blockIdx.x * T + t] = data[start + t + 1];
    }
}

// y_n = table_ids(n). One block per row of C.
extern "C" __global__ void lookup(const index_t* ids, const scalar_t* table, scalar_t* y, long long C) {
    const scalar_t* row = table + (long long)ids[blockIdx.x] * C;
    for (long long c = threadIdx.x; c < C; c += blockDim.x) y[blockIdx.x * C + c] = row[c];
}

// onehot_nv = 1 where ids_n = v, else 0. The last of the padded_vocab columns are beyond the vocabulary. One warp per row.
extern "C" __global__ void write_onehot(const index_t* ids, scalar_t* onehot, long long padded_vocab, long long rows) {
    long long warps = gridDim.x * (long long)blockDim.x / 32, warp = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    for (long long n = warp; n < rows; n += warps)
        for (long long v = threadIdx.x % 32; v < padded_vocab; v += 32)
            store(onehot + n * padded_vocab + v, v == (long long)ids[n] ? 1.0f : 0.0f);
}

// y_t = x_t + wpe_(start + t), for x: (rows, T, C) and TC = T C. wpe_rows points at row `start` of wpe. Grid: (rows, blocks).
extern "C" __global__ void add_positions(const scalar_t* x, const scalar_t* wpe_rows, scalar_t* y, long long TC) {
    x += blockIdx.x * TC;
    y += blockIdx.x * TC;
    for (long long i = blockIdx.y * (long long)blockDim.x + threadIdx.x; i < TC; i += gridDim.y * (long long)blockDim.x)
        store(y + i, to_float(x[i]) + to_float(wpe_rows[i]));
}
