// Token and position embeddings, and the batch that they read.
// They replace tensorlite/reference/embedding.py and get_batch of tensorlite/reference/ops.py.
//
// A block copies one row of the batch; a warp looks up one token, and writes one row of onehot. What differs from the reference:
// the batch is drawn on the device, and one kernel looks tokens up and adds their positions. The gradient of a lookup is
// onehot^T dy, a matmul as in the reference, which is bitwise reproducible; atomics would sum in the order of arrival. index_t is
// the integer type of the text.
#include "random.cuh"

// Row r of idx is a window of the text, which begins at a place drawn for the global row row0 + r. Row r of targets begins one
// character later. One block per row.
extern "C" __global__ void get_batch(const index_t* data, long long n, Key key, long long row0, index_t* idx, index_t* targets,
                                     long long T) {
    __shared__ long long start;
    if (threadIdx.x == 0) {
        long long row = row0 + blockIdx.x;
        uint2 k = resolve_key(key), x = threefry2x32(k.x, k.y, (unsigned)row, (unsigned)(row >> 32));
        start = (long long)(((unsigned long long)x.x << 32 | x.y) % (unsigned long long)(n - T));
    }
    __syncthreads();
    for (long long t = threadIdx.x; t < T; t += blockDim.x) {
        idx[blockIdx.x * T + t] = data[start + t];
        targets[blockIdx.x * T + t] = data[start + t + 1];
    }
}

// Call body(chunk) for all columns of a row, spread over the lanes of a warp.
template <class Body>
__device__ inline void warp_chunks(long long columns, Body body) {
    int count = columns % 4 == 0 ? 4 : 1;
    for (long long i = threadIdx.x % 32 * count; i < columns; i += 32 * count) body(Chunk{i, count});
}

// y_t = table_ids(t), plus wpe_(start + t) unless wpe_rows, which points at row `start` of wpe, is null.
// ids: (sequences, T). y: (sequences, T, C). One warp per token; grid: (sequences, blocks of tokens).
extern "C" __global__ void lookup(const index_t* ids, const scalar_t* table, const scalar_t* wpe_rows, scalar_t* y, long long T,
                                  long long C) {
    long long t = blockIdx.y * (blockDim.x / 32LL) + threadIdx.x / 32, n = blockIdx.x * T + t;
    if (t >= T) return;
    const scalar_t* token = table + (long long)ids[n] * C;
    warp_chunks(C, [&](Chunk chunk) {
        Vec4 x = chunk.load(token);
        if (wpe_rows) {
            Vec4 position = chunk.load(wpe_rows + t * C);
            for (int j = 0; j < 4; j++) x[j] += position[j];
        }
        chunk.store_to(y + n * C, x);
    });
}

// onehot_nv = 1 where ids_n = v, else 0. The last of the padded_vocab columns are beyond the vocabulary. One warp per row.
extern "C" __global__ void write_onehot(const index_t* ids, scalar_t* onehot, long long padded_vocab, long long rows) {
    long long warps = gridDim.x * (long long)blockDim.x / 32, warp = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    for (long long n = warp; n < rows; n += warps) {
        long long id = ids[n];
        warp_chunks(padded_vocab, [&](Chunk chunk) {
            Vec4 x;
            for (int j = 0; j < 4; j++) x[j] = chunk.i + j == id ? 1.0f : 0.0f;
            chunk.store_to(onehot + n * padded_vocab, x);
        });
    }
}

// y_t = x_t + wpe_(start + t), for x: (rows, T, C) and TC = T C. wpe_rows points at row `start` of wpe. Grid: (rows, blocks).
extern "C" __global__ void add_positions(const scalar_t* x, const scalar_t* wpe_rows, scalar_t* y, long long TC) {
    x += blockIdx.x * TC;
    y += blockIdx.x * TC;
    for (long long i = blockIdx.y * (long long)blockDim.x + threadIdx.x; i < TC; i += gridDim.y * (long long)blockDim.x)
        store(y + i, to_float(x[i]) + to_float(wpe_rows[i]));
}
