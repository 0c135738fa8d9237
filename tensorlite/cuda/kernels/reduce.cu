// Sums in an order that is always the same: over the rows of a matrix, and over a list of blocks' shares.
#include "common.cuh"

constexpr int COLUMNS = 32, LANES = 32;                // of a block: columns, and rows at a time
constexpr int VEC = K % 4 == 0 && K >= 4096 ? 4 : 1;  // columns of a thread: 4 where there are blocks enough all the same

// out_pk = sum of x_rk over the rows r of part p: the gradient of a bias, of the positions, of a norm. x: (rows, K). out: (parts, K).
// Grid: (blocks of columns, parts); each part takes rows_each neighbouring rows.
extern "C" __global__ void __launch_bounds__(COLUMNS * LANES)
sum_rows(const REAL* x, float* out, long long rows, long long rows_each) {
    int lane = threadIdx.x / COLUMNS;
    long long k = (blockIdx.x * (long long)COLUMNS + threadIdx.x % COLUMNS) * VEC;
    long long end = min(rows, (blockIdx.y + 1) * rows_each);
    Four sum = {};
    for (long long r = blockIdx.y * rows_each + lane; k < K && r < end; r += LANES) {
        Four value = VEC == 4 ? load4(x + r * K + k) : Four{to_float(x[r * K + k])};
        for (int j = 0; j < VEC; j++) sum.at[j] += value.at[j];
    }
    __shared__ Four of_lane[LANES][COLUMNS];
    of_lane[lane][threadIdx.x % COLUMNS] = sum;
    __syncthreads();
    if (lane > 0 || k >= K) return;
    for (int i = 1; i < LANES; i++)
        for (int j = 0; j < VEC; j++) sum.at[j] += of_lane[i][threadIdx.x].at[j];
    for (int j = 0; j < VEC; j++) out[blockIdx.y * (long long)K + k + j] = sum.at[j];
}
