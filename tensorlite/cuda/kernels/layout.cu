// Copies of an array in another layout, which kernels and GEMMs require.
// tensorlite/cuda/layout.py launches them. They replace no op of the reference. pad_columns_float32 also widens its values.
#include "common.cuh"

// y_ij = x_ji, for y: (rows, n / rows).
extern "C" __global__ void transpose(const scalar_t* x, scalar_t* y, long long rows, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        y[i] = x[i % (n / rows) * rows + i / (n / rows)];
}

// Copy the columns of x: (rows, x_width) to those of y: (rows, y_width) from column `at` on, as far as they fit; zeros elsewhere.
template <class T>
__device__ inline void place_columns(const scalar_t* x, long long x_width, T* y, long long y_width, long long at, long long rows) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < rows * y_width;
         i += gridDim.x * (long long)blockDim.x) {
        long long column = i % y_width - at;
        store(y + i, 0 <= column && column < x_width ? to_float(x[i / y_width * x_width + column]) : 0.0f);
    }
}

extern "C" __global__ void pad_columns(const scalar_t* x, long long x_width, scalar_t* y, long long y_width, long long at,
                                       long long rows) {
    place_columns(x, x_width, y, y_width, at, rows);
}

extern "C" __global__ void pad_columns_float32(const scalar_t* x, long long x_width, float* y, long long y_width, long long at,
                                               long long rows) {
    place_columns(x, x_width, y, y_width, at, rows);
}
