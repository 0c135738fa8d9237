// CUDA on the CPU, for the tests: included before an unchanged kernel file, it lets g++ compile it and `launch` run it.
//
// Every CUDA thread is a fiber with a stack of its own. One fiber runs at a time, until it waits for others. The order is the
// harshest that the rules allow: a warp runs until it needs another warp, and blocks run one after another. `reversed` reverses
// the order of threads and blocks. So where a __syncthreads is missing, a thread reads too early in one of the two orders. Shared
// memory starts as NaN, and an asynchronous copy arrives as late as it may. A barrier that some threads miss, a misaligned access
// or an index out of bounds, on which a GPU would hang or go silently wrong, ends the launch with a message.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>

// ------------------------------------------------------------------------------------------------------------ the language
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Blocks run in turn, so one copy of each shared variable serves all of them. They are in a section of their own, which gives their
// addresses; `used` tells the compiler that other code, which poisons them, writes there.
#define __shared__ static __attribute__((section("shared_memory"), used))
#ifndef SM75_PATH // -DSM75_PATH=1: the kernels take their path for compute capability 7.5, otherwise that for 8.0
#define SM75_PATH 0
#endif
#define DYNAMIC_SHARED(name) unsigned char* name = shim::dynamic_memory + shim::guard

extern "C" {
extern unsigned char __start_shared_memory[] __attribute__((weak, visibility("hidden"))); // the linker's names; null without any
extern unsigned char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));
}

namespace {
struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ------------------------------------------------------------------------------------------------------------ the machine
namespace shim {
constexpr int max_threads = 1024, max_shared = 227 * 1024, guard = 1024, stack_bytes = 128 * 1024;

struct Place { // in a kernel file: as a default argument, the place of the call
    const char *what, *file;
    int line;
    Place(const char* what, const char* file = __builtin_FILE(), int line = __builtin_LINE())
        : what(what), file(file), line(line) {}
    bool operator==(const Place& other) const { return what == other.what && line == other.line && file == other.file; }
};
#define HERE(what) shim::Place place = shim::Place(what)

struct Fiber {
    void* here[5]; // where it stopped
    void* stack;
    bool started;
};
struct Copy { void* to; const void* from; };
struct Thread {
    uint3 index;
    Fiber* fiber; // null until the thread starts
    // What it waits for. A collective runs once all lanes of the mask are there, on the data that each has put out.
    Place place = Place("");
    unsigned mask;
    void* data;
    void (*run)(void* const* data, unsigned lanes);
    Copy* copies; // asked for and not yet waited for
    int copy_count, copy_room;
};
struct Warp { unsigned live, waiting; }; // lanes that have not returned; lanes that wait in a collective

Thread threads[max_threads], *current; // null: no thread is running
Warp warps[max_threads / 32];
Fiber fibers[max_threads], *idle[max_threads];
int idle_count, warp_count, thread_count;
bool reversed;
unsigned todo;       // lanes of the present warp still to run before it can go on
int warps_begun;     // since the last barrier
long blocks_begun, block_count;
const Place* barrier; // the __syncthreads that threads wait at
alignas(128) unsigned char dynamic_memory[guard + max_shared + guard];
int dynamic_bytes;
void (*kernel)(void** arguments);
void** arguments;
char* stacks; // of all fibers, and of all libraries' fibers: one launch runs at a time, and a process may have 65530 mappings
jmp_buf done;
char error[1024];

int present_warp() { return reversed ? warp_count - warps_begun : warps_begun - 1; }

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    int length = vsnprintf(error, sizeof error - 100, format, values);
    va_end(values);
    length = length < (int)sizeof error - 100 ? length : (int)sizeof error - 101;
    length += sprintf(error + length, " [block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
    sprintf(error + length, current ? ", thread (%u, %u, %u)]" : "]", threadIdx.x, threadIdx.y, threadIdx.z);
    _longjmp(done, 2);
}

bool is_shared(const void* p) {
    auto* byte = (const unsigned char*)p;
    return (byte >= __start_shared_memory && byte < __stop_shared_memory) ||
           (byte >= dynamic_memory && byte < dynamic_memory + sizeof dynamic_memory);
}

bool is_poison(const unsigned char* bytes, int count) {
    for (int i = 0; i < count; i++)
        if (bytes[i] != 0xFF) return false;
    return true;
}

void begin_block() {
    long block = reversed ? block_count - 1 - blocks_begun : blocks_begun;
    blocks_begun++;
    blockIdx = {unsigned(block % gridDim.x), unsigned(block / gridDim.x % gridDim.y), unsigned(block / gridDim.x / gridDim.y)};
    if (__start_shared_memory) memset(__start_shared_memory, 0xFF, __stop_shared_memory - __start_shared_memory);
    memset(dynamic_memory + guard, 0xFF, dynamic_bytes);
    for (int t = 0; t < thread_count; t++) threads[t].fiber = nullptr;
    for (int w = 0; w < warp_count; w++) warps[w].live = thread_count - 32 * w >= 32 ? ~0u : (1u << (thread_count - 32 * w)) - 1;
    warps_begun = 0;
    barrier = nullptr;
}

void end_block() {
    if (!is_poison(dynamic_memory, guard) || !is_poison(dynamic_memory + guard + dynamic_bytes, guard))
        fail("a write outside the %d bytes of dynamic shared memory", dynamic_bytes);
}

// Run a collective that all its lanes have reached, and say which lanes can go on.
unsigned run_collective(Warp& warp, Thread* lane) {
    void* data[32];
    for (unsigned left = warp.waiting; left;) {
        Thread& first = lane[__builtin_ctz(left)];
        unsigned group = first.mask & warp.live;
        bool all = !(group & ~warp.waiting);
        for (unsigned rest = group; rest && all; rest &= rest - 1) {
            Thread& t = lane[__builtin_ctz(rest)];
            all = t.run == first.run && t.mask == first.mask && t.place == first.place;
            data[__builtin_ctz(rest)] = t.data;
        }
        if (all) {
            first.run(data, group);
            warp.waiting &= ~group;
            return group;
        }
        left &= ~group;
    }
    return 0;
}

[[noreturn]] void fail_divergent(Warp& warp, Thread* lane) {
    char text[800];
    int length = 0;
    for (int i = 0, end; i < 32; i = end) { // equal lanes together
        for (end = i + 1; end < 32 && !((warp.live >> i ^ warp.live >> end) & 1) && lane[i].place == lane[end].place;) end++;
        const Place& place = lane[i].place;
        if ((warp.live >> i & 1) && length < 600)
            length +=
                snprintf(text + length, 200, "lanes %d-%d wait in %s (%s:%d), ", i, end - 1, place.what, place.file, place.line);
    }
    current = nullptr;
    fail("the lanes of a warp do not meet: %sthe others have returned", text);
}

// The thread to run next; null when all blocks are done.
Thread* next() {
    while (!todo) {
        if (warps_begun) {
            Warp& warp = warps[present_warp()];
            if (warp.waiting) {
                todo = run_collective(warp, threads + 32 * present_warp());
                if (!todo) fail_divergent(warp, threads + 32 * present_warp());
                break;
            }
        }
        if (warps_begun == warp_count) { // the whole block has returned or waits at a barrier
            int waiting = 0;
            for (int w = 0; w < warp_count; w++) waiting += __builtin_popcount(warps[w].live);
            if (!waiting || waiting < thread_count) current = nullptr;
            if (waiting && waiting < thread_count)
                fail("%d threads wait at __syncthreads (%s:%d) that %d others never reach", waiting, barrier->file, barrier->line,
                     thread_count - waiting);
            warps_begun = 0;
            barrier = nullptr;
            if (!waiting) {
                end_block();
                if (blocks_begun == block_count) return nullptr;
                begin_block();
            }
        }
        warps_begun++;
        todo = warps[present_warp()].live;
    }
    int lane = reversed ? 31 - __builtin_clz(todo) : __builtin_ctz(todo);
    todo &= ~(1u << lane);
    return &threads[32 * present_warp() + lane];
}

void run_threads();

[[noreturn]] __attribute__((noinline)) void go_to(Thread* thread) {
    current = thread;
    threadIdx = thread->index;
    if (!thread->fiber) thread->fiber = idle[--idle_count];
    Fiber* fiber = thread->fiber;
    if (fiber->started) __builtin_longjmp(fiber->here, 1);
    if (!fiber->stack) {
        fiber->stack = stacks + (fiber - fibers) * stack_bytes;
        mprotect(fiber->stack, 4096, PROT_NONE); // a thread that needs more fails, and does not write over the next one's
    }
    fiber->started = true;
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = fiber->stack;
    start.uc_stack.ss_size = stack_bytes - (fiber - fibers) * 320 % 32768; // staggered: equal tops would share few cache lines
    start.uc_link = nullptr;
    makecontext(&start, run_threads, 0);
    setcontext(&start);
    abort();
}

// What a fiber does: thread after thread, on one stack as long as none waits. That makes a kernel without barriers a plain loop.
void run_threads() {
    for (;;) {
        kernel(arguments);
        if (current->copy_count) fail("a thread ends and has not waited for its asynchronous copies");
        int t = int(current - threads);
        warps[t / 32].live &= ~(1u << t % 32);
        Fiber* mine = current->fiber;
        Thread* thread = next();
        if (thread && !thread->fiber) {
            thread->fiber = mine;
            current = thread;
            threadIdx = thread->index;
        } else {
            idle[idle_count++] = mine;
            if (!__builtin_setjmp(mine->here)) {
                if (!thread) _longjmp(done, 1);
                go_to(thread);
            }
        }
    }
}

__attribute__((noinline)) void wait() {
    Thread* thread = next();
    if (thread != current && !__builtin_setjmp(current->fiber->here)) go_to(thread);
}

// Wait for the other lanes of the mask; the last one runs `run` for all.
inline void collective(const Place& place, unsigned mask, void* data, void (*run)(void* const*, unsigned)) {
    int t = int(current - threads);
    if (!(mask >> t % 32 & 1)) fail("%s (%s:%d): the mask %08x lacks the lane itself", place.what, place.file, place.line, mask);
    current->place = place;
    current->mask = mask;
    current->data = data;
    current->run = run;
    warps[t / 32].waiting |= 1u << t % 32;
    wait();
}

template <class Visit> inline void each(unsigned lanes, Visit visit) {
    for (; lanes; lanes &= lanes - 1) visit(__builtin_ctz(lanes));
}

// ------------------------------------------------------------------------------------------------------------ launching
void on_signal(int number, siginfo_t* info, void*) {
    if (number == SIGFPE) fail("an integer divided by zero");
    fail("an access to %p, which is no memory of this process", info->si_addr);
}

const char* launch(const unsigned* size, unsigned shared, bool in_reverse) {
    gridDim = dim3(size[0], size[1], size[2]);
    blockDim = dim3(size[3], size[4], size[5]);
    block_count = (long)size[0] * size[1] * size[2];
    long count = (long)size[3] * size[4] * size[5];
    if (!block_count || size[1] > 65535 || size[2] > 65535) return "a grid that CUDA refuses";
    if (!count || count > max_threads || size[5] > 64) return "a block that CUDA refuses";
    if (shared > max_shared) return "more shared memory than a block can have";
    thread_count = int(count), warp_count = (thread_count + 31) / 32, dynamic_bytes = int(shared), reversed = in_reverse;
    for (int t = 0; t < thread_count; t++) {
        threads[t].index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        threads[t].copy_count = 0;
    }
    memset(dynamic_memory, 0xFF, guard);
    memset(dynamic_memory + guard + dynamic_bytes, 0xFF, guard);
    for (Warp& warp : warps) warp.waiting = 0;
    blocks_begun = 0, todo = 0;
    static bool ready = false;
    if (!ready) { // the first time, and after a failure, whose threads stopped halfway
        for (int f = 0; f < max_threads; f++) fibers[f].started = false, idle[f] = &fibers[max_threads - 1 - f];
        idle_count = max_threads;
    }
    ready = false;
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
    static char signal_stack[64 * 1024]; // a thread that has used up its own has no room for the handler
    stack_t alternate = {signal_stack, 0, sizeof signal_stack}, alternate_before;
    sigaltstack(&alternate, &alternate_before);
    struct sigaction before[3], ours = {};
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    for (int s = 0; s < 3; s++) sigaction(signals[s], &ours, &before[s]);
    int outcome = _setjmp(done);
    if (!outcome) {
        begin_block();
        go_to(next());
    }
    for (int s = 0; s < 3; s++) sigaction(signals[s], &before[s], nullptr);
    sigaltstack(&alternate_before, nullptr);
    ready = outcome == 1;
    return ready ? nullptr : error;
}

struct Entry {
    const char* (*launch)(const unsigned* size, unsigned shared, bool in_reverse, void** given);
    int (*parameters)(int* sizes, char* kinds);
};
template <auto function> struct Kernel;
template <class... P, void (*function)(P...)> struct Kernel<function> {
    template <size_t... i> static void call(void** arguments, std::index_sequence<i...>) { function(*(P*)arguments[i]...); }
    static const char* launch(const unsigned* size, unsigned shared, bool in_reverse, void** given) {
        kernel = [](void** arguments) { call(arguments, std::index_sequence_for<P...>()); };
        arguments = given;
        return shim::launch(size, shared, in_reverse);
    }
    // For each parameter its size and its kind: float (F) or other (P) pointer, f floating, i integer, s struct.
    template <class T> static constexpr char kind() {
        if (std::is_pointer_v<T>) return std::is_same_v<std::remove_cv_t<std::remove_pointer_t<T>>, float> ? 'F' : 'P';
        return std::is_floating_point_v<T> ? 'f' : std::is_class_v<T> ? 's' : 'i';
    }
    static int parameters(int* sizes, char* kinds) {
        int n = 0;
        ((sizes[n] = sizeof(P), kinds[n++] = kind<P>()), ...);
        return n;
    }
    static constexpr Entry entry = {launch, parameters};
};
} // namespace shim

// ------------------------------------------------------------------------------------------------------------ barriers, warps
inline void __syncthreads(HERE("__syncthreads")) {
    using namespace shim;
    current->place = place;
    if (!barrier) barrier = &current->place;
    if (!(place == *barrier))
        fail("a thread waits at __syncthreads of %s:%d, others at that of %s:%d", place.file, place.line, barrier->file,
             barrier->line);
    wait();
}

inline void __syncwarp(unsigned mask = ~0u, HERE("__syncwarp")) {
    shim::collective(place, mask, nullptr, [](void* const*, unsigned) {});
}

namespace shim {
template <class T> struct Shuffle { T value; int source; };
// A lane that is not there gives NaN; on a GPU the value is undefined.
template <class T> T shuffle(const Place& place, unsigned mask, T value, int source) {
    Shuffle<T> mine = {value, source};
    collective(place, mask, &mine, [](void* const* data, unsigned lanes) {
        T values[32];
        memset(values, 0xFF, sizeof values);
        each(lanes, [&](int i) { values[i] = ((Shuffle<T>*)data[i])->value; });
        each(lanes, [&](int i) { ((Shuffle<T>*)data[i])->value = values[((Shuffle<T>*)data[i])->source]; });
    });
    return mine.value;
}
inline int lane() { return int(current - threads) % 32; }
} // namespace shim

template <class T> T __shfl_sync(unsigned mask, T value, int source, HERE("__shfl_sync")) {
    return shim::shuffle(place, mask, value, source & 31);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, HERE("__shfl_xor_sync")) {
    return shim::shuffle(place, mask, value, (shim::lane() ^ bits) & 31);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, HERE("__shfl_down_sync")) {
    return shim::shuffle(place, mask, value, shim::lane() + by > 31 ? shim::lane() : shim::lane() + by);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, HERE("__shfl_up_sync")) {
    return shim::shuffle(place, mask, value, shim::lane() < (int)by ? shim::lane() : shim::lane() - by);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HERE("__ballot_sync")) {
    unsigned vote = predicate != 0;
    shim::collective(place, mask, &vote, [](void* const* data, unsigned lanes) {
        unsigned votes = 0;
        shim::each(lanes, [&](int i) { votes |= *(unsigned*)data[i] << i; });
        shim::each(lanes, [&](int i) { *(unsigned*)data[i] = votes; });
    });
    return vote;
}
inline int __any_sync(unsigned mask, int predicate, HERE("__any_sync")) { return __ballot_sync(mask, predicate, place) != 0; }
inline int __all_sync(unsigned mask, int predicate, HERE("__all_sync")) { return __ballot_sync(mask, !predicate, place) == 0; }

// ------------------------------------------------------------------------------------------------------------ ptx.cuh
template <class To, class From> To shim_as(From value) {
    To result;
    static_assert(sizeof result == sizeof value);
    memcpy(&result, &value, sizeof result);
    return result;
}
inline unsigned __float_as_uint(float x) { return shim_as<unsigned>(x); }
inline int __float_as_int(float x) { return shim_as<int>(x); }
inline float __uint_as_float(unsigned x) { return shim_as<float>(x); }
inline float __int_as_float(int x) { return shim_as<float>(x); }

inline unsigned pack_bf16(float low, float high) {
    auto round = [](float x) {
        unsigned bits = __float_as_uint(x);
        return x != x ? 0x7FFFu : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    };
    return round(low) | round(high) << 16;
}

// To nearest with ties to even: below 2^-14 a multiple of 2^-24, otherwise 11 significant bits.
inline unsigned short round_fp16(float x) {
    unsigned bits = __float_as_uint(fabsf(x)), sign = __float_as_uint(x) >> 16 & 0x8000u;
    if (x != x) return 0x7FFF;
    if (fabsf(x) >= 65520.0f) return sign | 0x7C00; // infinite
    if (fabsf(x) < 0x1p-14f) return sign | (unsigned)nearbyintf(fabsf(x) * 0x1p24f);
    return sign | ((bits + 0xFFF + (bits >> 13 & 1)) >> 13) - (112u << 10); // exponents begin at -14 in place of -126
}
inline float widen_fp16(unsigned short half) {
    unsigned bits = half & 0x7FFFu, sign = (half & 0x8000u) << 16;
    float size = bits < 0x400 ? bits * 0x1p-24f : __uint_as_float((bits << 13) + ((bits < 0x7C00 ? 112u : 224u) << 23));
    return __uint_as_float(__float_as_uint(size) | sign);
}
inline float widen_bf16(unsigned short half) { return __uint_as_float((unsigned)half << 16); }

namespace shim {
inline void need_16(const Place& place, const void* p, bool shared) {
    if ((size_t)p % 16) fail("%s (%s:%d): %p is no multiple of 16", place.what, place.file, place.line, p);
    if (is_shared(p) != shared)
        fail("%s (%s:%d): %p is %sshared memory", place.what, place.file, place.line, p, shared ? "not " : "");
}
struct Rows { const void* row; unsigned* m; };
// Lane 8i + r points to row r of matrix i.
inline unsigned short element(void* const* data, int i, int r, int c) {
    return ((const unsigned short*)((Rows*)data[8 * i + r])->row)[c];
}
template <bool trans> void ldmatrix(void* const* data, unsigned lanes) {
    if (lanes != ~0u) fail("ldmatrix needs all 32 lanes");
    unsigned all[32][4];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int r = l / 4, c = 2 * (l % 4);
            all[l][i] = trans ? element(data, i, c, r) | element(data, i, c + 1, r) << 16
                              : element(data, i, r, c) | element(data, i, r, c + 1) << 16;
        }
    for (int l = 0; l < 32; l++) memcpy(((Rows*)data[l])->m, all[l], sizeof all[l]);
}
struct Fragments { float* c; const unsigned *a, *b; };
// c (16 x 8) += a (16 x K) b (K x 8), of 16-bit elements that `widen` makes floats.
template <int K, float (*widen)(unsigned short)>
__attribute__((optimize("O3"), no_sanitize("bounds", "alignment"))) void mma(void* const* data, unsigned lanes) {
    if (lanes != ~0u) fail("mma needs all 32 lanes");
    float a[16][K], b[K][8], c[16][8];
    auto low = [](unsigned pair) { return widen((unsigned short)pair); };
    auto high = [](unsigned pair) { return widen((unsigned short)(pair >> 16)); };
    for (int l = 0; l < 32; l++) {
        const Fragments& f = *(Fragments*)data[l];
        int r = l / 4, t = 2 * (l % 4);
        for (int i = 0; i < K / 4; i++) {
            int row = r + 8 * (i % 2), column = t + 8 * (i / 2);
            a[row][column] = low(f.a[i]), a[row][column + 1] = high(f.a[i]);
        }
        for (int i = 0; i < K / 8; i++) b[t + 8 * i][r] = low(f.b[i]), b[t + 8 * i + 1][r] = high(f.b[i]);
        for (int i = 0; i < 4; i++) c[r + 8 * (i / 2)][t + i % 2] = f.c[i];
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < 8; j++) c[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) ((Fragments*)data[l])->c[i] = c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
}
} // namespace shim

inline void ldmatrix_x4(unsigned m[4], const void* row, HERE("ldmatrix_x4")) {
    shim::need_16(place, row, true);
    shim::Rows mine = {row, m};
    shim::collective(place, ~0u, &mine, shim::ldmatrix<false>);
}
inline void ldmatrix_x4_trans(unsigned m[4], const void* row, HERE("ldmatrix_x4_trans")) {
    shim::need_16(place, row, true);
    shim::Rows mine = {row, m};
    shim::collective(place, ~0u, &mine, shim::ldmatrix<true>);
}
inline void mma_16x8x16_bf16(float c[4], const unsigned a[4], const unsigned b[2], HERE("mma_16x8x16_bf16")) {
    shim::Fragments mine = {c, a, b};
    shim::collective(place, ~0u, &mine, shim::mma<16, widen_bf16>);
}
inline void mma_16x8x8_fp16(float c[4], const unsigned a[2], unsigned b, HERE("mma_16x8x8_fp16")) {
    shim::Fragments mine = {c, a, &b};
    shim::collective(place, ~0u, &mine, shim::mma<8, widen_fp16>);
}

#if !SM75_PATH
inline unsigned pack_fp16(float low, float high) { return round_fp16(low) | (unsigned)round_fp16(high) << 16; }
inline void mma_16x8x16_fp16(float c[4], const unsigned a[4], const unsigned b[2], HERE("mma_16x8x16_fp16")) {
    shim::Fragments mine = {c, a, b};
    shim::collective(place, ~0u, &mine, shim::mma<16, widen_fp16>);
}

// Nothing arrives before the wait, and a thread that reads earlier reads NaN.
inline void copy_async_16(void* to_shared, const void* from_global, bool exists, HERE("copy_async_16")) {
    shim::need_16(place, to_shared, true);
    shim::need_16(place, from_global, false);
    shim::Thread& t = *shim::current;
    if (t.copy_count == t.copy_room) {
        t.copy_room = 2 * t.copy_room + 8;
        t.copies = (shim::Copy*)realloc(t.copies, t.copy_room * sizeof(shim::Copy));
    }
    t.copies[t.copy_count++] = {to_shared, exists ? from_global : nullptr};
    memset(to_shared, 0xFF, 16);
}
inline void copy_async_wait() {
    shim::Thread& t = *shim::current;
    for (int i = 0; i < t.copy_count; i++) {
        if (t.copies[i].from) memcpy(t.copies[i].to, t.copies[i].from, 16);
        else memset(t.copies[i].to, 0, 16);
    }
    t.copy_count = 0;
}
#endif

// ------------------------------------------------------------------------------------------------------------ arithmetic
#define SHIM_MIN_MAX(T) \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
SHIM_MIN_MAX(int)
SHIM_MIN_MAX(unsigned)
SHIM_MIN_MAX(long)
SHIM_MIN_MAX(unsigned long)
SHIM_MIN_MAX(long long)
SHIM_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Macros, because the C library has functions of these names. C libraries round their float32 functions differently, but all round
// their float64 functions to the same float32 value, so results do not depend on the machine.
#define expf(x) ((float)exp((double)(x)))
#define exp2f(x) ((float)exp2((double)(x)))
#define logf(x) ((float)log((double)(x)))
#define sinf(x) ((float)sin((double)(x)))
#define cosf(x) ((float)cos((double)(x)))
#define powf(x, y) ((float)pow((double)(x), (double)(y)))
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float fast_exp2(float x) { return exp2f(x); }  // ptx.cuh
inline unsigned rotate_left(unsigned x, int n) { return x << n | x >> (32 - n); }  // ptx.cuh
inline double cospi(double x) { return cos(3.14159265358979323846 * x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
template <class T> T __ldg(const T* p) { return *p; }
[[noreturn]] inline void __trap() { shim::fail("__trap"); }
} // namespace
#undef HERE
#undef SHIM_MIN_MAX

// ------------------------------------------------------------------------------------------------------------ -fsanitize
// The functions that compiled code calls where -fsanitize finds an error. They replace the compiler's library, which would end the
// process.
extern "C" {
struct UbsanPlace { const char* file; unsigned line, column; };
struct UbsanType { unsigned short kind, info; char name[1]; };
struct UbsanData { UbsanPlace place; const UbsanType *type, *index_type; };
__attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1_abort(UbsanData* data, void* p) {
    shim::fail("%s:%u: %p is misaligned for %s", data->place.file, data->place.line, p, data->type->name);
}
__attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds_abort(UbsanData* data, size_t index) {
    shim::fail("%s:%u: index %ld out of bounds of %s", data->place.file, data->place.line, (long)index, data->type->name);
}
__attribute__((visibility("hidden"))) void __ubsan_handle_shift_out_of_bounds_abort(UbsanData* data, size_t, size_t by) {
    shim::fail("%s:%u: a shift by %ld", data->place.file, data->place.line, (long)by);
}
}
