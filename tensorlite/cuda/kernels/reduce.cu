// Sums over the rows of matrices, for the gradients of biases, positions and norms. They replace the reference's NumPy sums.
//
// A block owns some columns, VEC of them per thread. Warp w sums the rows w, w + 32, ... and warp 0 adds the 32 sums. The order is
// always the same, so the result is bitwise reproducible. The file is compiled for VEC = 1, and for VEC = 4 where K, the number of
// columns, is a multiple of 4.
#include "common.cuh"

constexpr int BLOCK_COLS = 32, BLOCK_ROWS = 32;  // columns of threads in a block, and rows that it sums at a time
constexpr int SUMS = 64;                         // sums per launch of finish_sums

// out_k = sum of x_rk over the rows r from begin to end - 1, for the columns k of this block. x: (rows, K). out: (K,).
template <class T>
__device__ inline void sum_columns(const T* x, float* out, long long begin, long long end, long long K) {
    int row = threadIdx.x / BLOCK_COLS, column = threadIdx.x % BLOCK_COLS;
    long long k = (blockIdx.x * (long long)BLOCK_COLS + column) * VEC;
    Vec4 sum = {};
    for (long long r = begin + row; k < K && r < end; r += BLOCK_ROWS) {
        Vec4 value = VEC == 4 ? load4(x + r * K + k) : Vec4{to_float(x[r * K + k])};
        for (int j = 0; j < VEC; j++) sum[j] += value[j];
    }
    __shared__ Vec4 row_sums[BLOCK_ROWS][BLOCK_COLS];
    row_sums[row][column] = sum;
    __syncthreads();
    if (row > 0 || k >= K) return;
    for (int i = 1; i < BLOCK_ROWS; i++)
        for (int j = 0; j < VEC; j++) sum[j] += row_sums[i][column][j];
    for (int j = 0; j < VEC; j++) out[k + j] = sum[j];
}

// partial_p = sum of the rows of part p, for x: (rows, K) and partial: (parts, K).
// Grid: (blocks of columns, parts); each part has rows_each neighbouring rows.
extern "C" __global__ void __launch_bounds__(BLOCK_COLS * BLOCK_ROWS)
sum_rows(const scalar_t* x, float* partial, long long rows, long long rows_each, long long K) {
    long long begin = blockIdx.y * rows_each;
    sum_columns(x, partial + blockIdx.y * K, begin, min(rows, begin + rows_each), K);
}

// The sums of one launch of finish_sums, each over all rows of partial: (rows, K). tensorlite/cuda/reduce.py packs this struct.
struct PartialSums {
    const float* partial[SUMS];
    float* out[SUMS];
    long long rows[SUMS], K[SUMS];
};

// Finish many sums at once. Grid: (blocks of the most columns, sums).
extern "C" __global__ void __launch_bounds__(BLOCK_COLS * BLOCK_ROWS) finish_sums(PartialSums sums) {
    int i = blockIdx.y;
    sum_columns(sums.partial[i], sums.out[i], 0, sums.rows[i], sums.K[i]);
}
