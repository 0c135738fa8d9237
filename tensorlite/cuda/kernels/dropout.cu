// Dropout, alone and with the residual connection. It replaces tensorlite/reference/dropout.py, where the derivation is.
//
// A thread processes four neighbouring elements at a time, as many as one Threefry counter yields. What differs from the
// reference: no mask is stored; backward draws it again.
#include "random.cuh"

// Return x times inv_keep where it is kept, and 0 where it is dropped.
__device__ inline Vec4 apply_dropout(Vec4 x, const DropoutParams& dropout, uint2 key, Chunk chunk) {
    unsigned long long element = dropout.offset + chunk.i;
    unsigned mask_bits = 0;
    if (chunk.count == 4 && element % 4 == 0)
        mask_bits = mask4(key, dropout.threshold, element / 4);
    else
        for (int j = 0; j < chunk.count; j++) mask_bits |= (unsigned)mask1(key, dropout.threshold, element + j) << j;
    for (int j = 0; j < 4; j++) x[j] = mask_bits >> j & 1 ? x[j] * dropout.inv_keep : 0.0f;
    return x;
}

// out = x + dropout(y), or dropout(y) where x is null. dropout_backward is the same map, applied to dy.
extern "C" __global__ void residual(const scalar_t* x, const scalar_t* y, DropoutParams dropout, scalar_t* out, long long n) {
    uint2 key = block_key(dropout);
    grid_stride_vec4(n, [&](Chunk chunk) {
        Vec4 sum = chunk.load(y);
        if (dropout.threshold) sum = apply_dropout(sum, dropout, key, chunk);
        if (x) {
            Vec4 skip = chunk.load(x);
            for (int j = 0; j < 4; j++) sum[j] += skip[j];
        }
        chunk.store_to(out, sum);
    });
}
