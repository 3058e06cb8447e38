// In place of a CUDA device: a block's threads are fibers of one processor thread, taken in turn. A fiber gives way where
// it waits for its block or its warp; so a barrier that is missing shows when the order of turns is reversed. Shared
// memory holds NaN before each block (0 in reversed order), and what lies behind it is looked after.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __shared__ static
#define ROOM double *room = device::room

struct float4 { float x, y, z, w; };
struct double2 { double x, y; };
struct int2 { int x, y; };
struct Index { unsigned x, y, z; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static double2 make_double2(double x, double y) { return {x, y}; }
static Index threadIdx, blockIdx, blockDim, gridDim;

template <class T> static T min(T a, T b) { return b < a ? b : a; }
template <class T> static T max(T a, T b) { return a < b ? b : a; }
template <class To, class From> static To bits(From value) {
    To result;
    static_assert(sizeof(To) == sizeof(From), "one size");
    memcpy(&result, &value, sizeof result);
    return result;
}
static float __uint_as_float(unsigned v) { return bits<float>(v); }
static unsigned __float_as_uint(float v) { return bits<unsigned>(v); }
static float __int_as_float(int v) { return bits<float>(v); }
static int __float_as_int(float v) { return bits<int>(v); }
static double __longlong_as_double(long long v) { return bits<double>(v); }
static long long __double_as_longlong(double v) { return bits<long long>(v); }
template <class T> static T atomicAdd(T *at, T value) { T old = *at; *at += value; return old; }
template <class T> static T atomicMin(T *at, T value) { T old = *at; *at = min(old, value); return old; }
template <class T> static T atomicMax(T *at, T value) { T old = *at; *at = max(old, value); return old; }

namespace device {
enum Wait { NOTHING, BLOCK, WARP, FOREVER };
const size_t STACK = 1 << 17, ROOM_BYTES = 48 << 10, GUARD = 1 << 12;

struct Fiber {
    jmp_buf here;
    Wait wait;
    int turn;  // which of two slots the next exchange in the warp uses
    std::vector<char> stack;
};

static std::vector<Fiber> fibers;
static std::function<void()> body;
static jmp_buf scheduler;
static ucontext_t start_context, main_context;
static unsigned current;
alignas(16) static unsigned char room_bytes[ROOM_BYTES + GUARD];
static double *room = (double *)room_bytes;
static uint64_t slots[2][1024];
static const char *fault;

static void give_way(Wait wait) {
    Fiber &me = fibers[current];
    me.wait = wait;
    if (!_setjmp(me.here)) _longjmp(scheduler, 1);
}

static void enter() {
    body();
    fibers[current].wait = FOREVER;
    _longjmp(scheduler, 1);
}

static void resume(unsigned t, bool fresh) {
    current = t;
    threadIdx = {t, 0, 0};
    if (_setjmp(scheduler)) return;
    if (!fresh) _longjmp(fibers[t].here, 1);
    getcontext(&start_context);
    start_context.uc_stack.ss_sp = fibers[t].stack.data();
    start_context.uc_stack.ss_size = STACK;
    start_context.uc_link = nullptr;
    makecontext(&start_context, enter, 0);
    swapcontext(&main_context, &start_context);
}

// whether all threads from first to last wait for the same thing; they then need not any more
static bool release(unsigned first, unsigned last, Wait wait) {
    for (unsigned t = first; t < last; ++t)
        if (fibers[t].wait != wait) return false;
    for (unsigned t = first; t < last; ++t) fibers[t].wait = NOTHING;
    return true;
}

static void run_block(bool reversed) {
    unsigned n = blockDim.x;
    for (unsigned t = 0; t < n; ++t) fibers[t].wait = NOTHING, fibers[t].turn = 0;
    for (bool fresh = true;; fresh = false) {
        for (unsigned k = 0; k < n; ++k) {
            unsigned t = reversed ? n - 1 - k : k;
            if (fibers[t].wait == NOTHING) resume(t, fresh);
        }
        bool progress = false, done = true;
        for (unsigned first = 0; first < n; first += 32) progress |= release(first, first + 32, WARP);
        for (unsigned t = 0; t < n; ++t) done &= fibers[t].wait == FOREVER;
        if (done) return;
        if (!progress && !release(0, n, BLOCK)) {
            fault = "threads wait for others that never come";
            return;
        }
    }
}

static const char *run(unsigned blocks, unsigned threads, unsigned shared, bool reversed, std::function<void()> what) {
    if (threads % 32 || threads > 1024 || shared > ROOM_BYTES) return "a block that no device takes";
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned t = 0; t < threads; ++t) fibers[t].stack.resize(STACK);
    body = std::move(what);
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    fault = nullptr;
    for (unsigned k = 0; k < blocks && !fault; ++k) {
        blockIdx = {reversed ? blocks - 1 - k : k, 0, 0};
        memset(room_bytes, reversed ? 0 : 0xff, shared);
        memset(room_bytes + shared, 0xff, sizeof room_bytes - shared);
        run_block(reversed);
        for (size_t i = shared; i < sizeof room_bytes; ++i)
            if (room_bytes[i] != 0xff) fault = "a block wrote behind its shared memory";
    }
    return fault;
}

template <class T> static T exchange(T value, unsigned from) {
    Fiber &me = fibers[current];
    unsigned turn = me.turn, t = current;
    me.turn ^= 1;
    memcpy(&slots[turn][t], &value, sizeof value);
    give_way(WARP);
    T result;
    memcpy(&result, &slots[turn][(t & ~31u) + from], sizeof result);
    return result;
}

static unsigned ballot(bool value) {
    exchange(value, threadIdx.x & 31);
    unsigned result = 0, turn = fibers[current].turn ^ 1;
    for (unsigned k = 0; k < 32; ++k) {
        bool said;
        memcpy(&said, &slots[turn][(current & ~31u) + k], sizeof said);
        result |= (unsigned)said << k;
    }
    return result;
}

template <class... A, size_t... I>
static std::function<void()> bound(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    return [=] { kernel(*(std::remove_const_t<A> *)arguments[I]...); };
}
}  // namespace device

static void __syncthreads() { device::give_way(device::BLOCK); }
static void __syncwarp() { device::give_way(device::WARP); }
template <class T> static T __shfl_xor_sync(unsigned, T value, int k) {
    return device::exchange(value, (threadIdx.x & 31) ^ k);
}
template <class T> static T __shfl_sync(unsigned, T value, int lane) { return device::exchange(value, lane & 31); }
template <class T> static T __shfl_up_sync(unsigned, T value, int k) {
    unsigned lane = threadIdx.x & 31;
    return device::exchange(value, (int)lane >= k ? lane - k : lane);
}
static unsigned __ballot_sync(unsigned, bool value) { return device::ballot(value); }
static int __popc(unsigned value) { return __builtin_popcount(value); }
template <class T> static T __shfl_down_sync(unsigned, T value, int k) {
    unsigned lane = threadIdx.x & 31;
    return device::exchange(value, lane + k < 32 ? lane + k : lane);
}

#define EXPORT(name)                                                                                              \
    extern "C" const char *launch_##name(                                                                         \
        unsigned blocks, unsigned threads, unsigned shared, int reversed, void **arguments, unsigned n            \
    ) {                                                                                                           \
        return device::exported(name, blocks, threads, shared, reversed, arguments, n);                           \
    }

namespace device {
template <class... A>
static const char *exported(
    void (*kernel)(A...), unsigned blocks, unsigned threads, unsigned shared, int reversed, void **arguments, unsigned n
) {
    if (n != sizeof...(A)) return "another number of arguments than the kernel has";
    return run(blocks, threads, shared, reversed, bound(kernel, arguments, std::index_sequence_for<A...>()));
}
// bytes of each argument, so that a caller's types can be held against them
template <class... A> static std::vector<unsigned> sizes(void (*)(A...)) { return {sizeof(A)...}; }
}  // namespace device
#define SIZES(name)                                                                                               \
    extern "C" unsigned size_of_##name(unsigned i) { return device::sizes(name).at(i); }
