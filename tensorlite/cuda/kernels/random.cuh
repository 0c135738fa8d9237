// Random bits and dropout masks on the device. They equal those of tensorlite/random.py bit for bit.
//
// What differs: no mask is stored, except attention's (attention_mask.cuh). A kernel draws the 16-bit lanes that it needs, in forward
// and again in backward. In a captured step, where the arguments of a launch are frozen, the kernel derives the key from the step number in device memory.
#pragma once
#include "common.cuh"

__device__ inline uint2 threefry2x32(unsigned k0, unsigned k1, unsigned x0, unsigned x1) {
    const unsigned key[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
    const int rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
    x0 += k0;
    x1 += k1;
#pragma unroll
    for (int i = 0; i < 13; i++) {
        x0 += x1;
        x1 = rotate_left(x1, rotations[i % 8]) ^ x0;
        if (i % 4 == 3) {
            int j = i / 4 + 1;
            x0 += key[j % 3];
            x1 += key[(j + 1) % 3] + j;
        }
    }
    return make_uint2(x0, x1);
}

// The key of one use of randomness, such as the dropout of one layer. tensorlite/cuda/runtime/device_key.py packs this struct.
struct Key {
    const long long* step;  // null: k0 and k1 are the key. Otherwise they are the seed, from which the device derives the key
    unsigned k0, k1;
    unsigned layer, site;
};

// Return the key, derived here if only the device knows the step.
__device__ inline uint2 resolve_key(const Key& key) {
    if (key.step == nullptr) return make_uint2(key.k0, key.k1);
    uint2 k = threefry2x32(key.k0, key.k1, (unsigned)*key.step, (unsigned)(*key.step >> 32));  // step_key
    return threefry2x32(k.x, k.y, key.layer, key.site);                                        // fold_in
}

// One dropout. tensorlite/cuda/runtime/device_key.py packs this struct.
struct DropoutParams {
    Key key;
    long long offset;    // position of this array's first element in the stream of the whole batch; earlier rows come before it
    unsigned threshold;  // an element is dropped if its 16-bit lane is below this; 0: no dropout
    float inv_keep;      // 1 / the probability of keeping an element
};

// Return the key, which one thread resolves for its block. All threads of the block must call this.
__device__ inline uint2 block_key(const DropoutParams& dropout) {
    __shared__ uint2 key;
    if (threadIdx.x == 0 && dropout.threshold) key = resolve_key(dropout.key);
    __syncthreads();
    return key;
}

// Return the dropout mask of the elements 4 counter .. 4 counter + 3. Bit i is 1 if element 4 counter + i is kept.
__device__ inline unsigned mask4(uint2 key, unsigned threshold, unsigned long long counter) {
    uint2 x = threefry2x32(key.x, key.y, (unsigned)counter, (unsigned)(counter >> 32));
    threshold <<= 16;  // so each 16-bit lane is compared in the upper half of a word, without an instruction to isolate it there
    return (x.x << 16 >= threshold) | (x.x >= threshold) << 1 | (x.y << 16 >= threshold) << 2 | (x.y >= threshold) << 3;
}

// Return the dropout mask of one element.
__device__ inline bool mask1(uint2 key, unsigned threshold, unsigned long long element) {
    return mask4(key, threshold, element / 4) >> (element % 4) & 1;
}
