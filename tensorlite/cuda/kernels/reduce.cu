// Sums over the rows of a matrix, for the gradients of biases, positions and norms. They replace the reference's NumPy sums.
//
// A block owns some columns of one part of the rows, one or four columns per lane. Warp w sums the rows w, w + 32, ... of the
// part, and warp 0 adds the 32 sums. The order is always the same, so the result is bitwise reproducible.
#include "common.cuh"

constexpr int BLOCK_COLS = 32, BLOCK_ROWS = 32;       // columns of threads in a block, and rows that it sums at a time
constexpr int VEC = K % 4 == 0 && K >= 4096 ? 4 : 1;  // columns per thread: 4 where there are still enough blocks

// partial_pk = sum of x_rk over the rows r of part p.
// x: (rows, K). partial: (parts, K). Grid: (blocks of columns, parts); each part has rows_each neighbouring rows.
extern "C" __global__ void __launch_bounds__(BLOCK_COLS * BLOCK_ROWS)
sum_rows(const scalar_t* x, float* partial, long long rows, long long rows_each) {
    int row = threadIdx.x / BLOCK_COLS, column = threadIdx.x % BLOCK_COLS;
    long long k = (blockIdx.x * (long long)BLOCK_COLS + column) * VEC;
    long long end = min(rows, (blockIdx.y + 1) * rows_each);
    Vec4 sum = {};
    for (long long r = blockIdx.y * rows_each + row; k < K && r < end; r += BLOCK_ROWS) {
        Vec4 value = VEC == 4 ? load4(x + r * K + k) : Vec4{to_float(x[r * K + k])};
        for (int j = 0; j < VEC; j++) sum[j] += value[j];
    }
    __shared__ Vec4 row_sums[BLOCK_ROWS][BLOCK_COLS];
    row_sums[row][column] = sum;
    __syncthreads();
    if (row > 0 || k >= K) return;
    for (int i = 1; i < BLOCK_ROWS; i++)
        for (int j = 0; j < VEC; j++) sum[j] += row_sums[i][threadIdx.x][j];
    for (int j = 0; j < VEC; j++) partial[blockIdx.y * (long long)K + k + j] = sum[j];
}
