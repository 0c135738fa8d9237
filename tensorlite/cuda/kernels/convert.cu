// A copy of an array in another precision, such as the copy of the parameters that the model reads.
// CUDAOps.cast launches it. It replaces no op of the reference.
#include "common.cuh"

// y = x, rounded to scalar_t. The elements of x have the type source_t.
extern "C" __global__ void convert(const source_t* x, scalar_t* y, long long n) {
    grid_stride_vec4(n, [&](Chunk chunk) { chunk.store_to(y, chunk.load(x)); });
}
