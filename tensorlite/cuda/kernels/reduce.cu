// Sums over the rows of a matrix, in an order that is always the same.
#include "common.cuh"

constexpr int BLOCK_COLS = 32, BLOCK_ROWS = 32;       // of a block: columns, and rows at a time
constexpr int VEC = K % 4 == 0 && K >= 4096 ? 4 : 1;  // columns per thread: 4 where there are blocks enough all the same

// partial_pk = sum of x_rk over the rows r of part p: the gradient of a bias, of the positions, of a norm.
// x: (rows, K). partial: (parts, K). Grid: (blocks of columns, parts); each part takes rows_each neighbouring rows.
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
