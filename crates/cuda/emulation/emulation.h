// The CUDA thread model on a CPU, so that the kernels of ../kernels can be run and tested without a
// GPU.
//
// The threads of a block are fibers of one CPU thread; a fiber runs until it reaches a barrier
// (__syncthreads, __syncwarp, or a shuffle). Lanes of a warp do not run in lockstep, and the order
// of fibers and of blocks can be shuffled: code that lacks a barrier gives different results in
// different orders. Errors are reported for a barrier that not all threads reach and for a
// misaligned vector load. Dynamic shared memory is filled with NaN before each block. An
// asynchronous copy completes only when it is waited for, which exposes reads that come too early;
// with an order that is even and not 0 it completes at once, which exposes refills that come too
// early.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__
// Static storage will do, since a CPU thread finishes a block before it begins the next. (__thread
// avoids the initialisation check that thread_local makes at every access.)
#define __shared__ static __thread
#define __align__(n) alignas(n)

namespace emulation {

struct Dim3 {
    uint32_t x, y, z;
};

constexpr uint32_t LANES = 32;
constexpr uint32_t EXCHANGED_BYTES = 32;

// The memory in which lanes of a warp exchange values.
struct Warp {
    alignas(16) unsigned char published[LANES][EXCHANGED_BYTES];
};

struct AsyncCopy {
    void* shared;
    const void* global;
    bool valid;
    uint32_t group;
};

constexpr uint32_t MAX_COPIES = 256;

// A wgmma, which reads shared memory. It is computed only when it is waited for, so that memory
// that is refilled too early gives wrong sums.
struct AsyncWgmma {
    int32_t* sums;
    const unsigned char *a, *b;
    uint32_t step, group;
};

constexpr uint32_t MAX_WGMMAS = 32;

struct Thread {
    Dim3 index;
    uint32_t lane;
    Warp* warp;
    AsyncCopy copies[MAX_COPIES];
    uint32_t copy_count, group;
    AsyncWgmma wgmmas[MAX_WGMMAS];
    uint32_t wgmma_count, wgmma_group;
};

extern __thread Thread* self;
extern __thread unsigned char prefetched;
extern __thread bool copies_at_once;
extern __thread Dim3 block_index, block_size, grid_size;

void sync_block();
void sync_warp();
unsigned char* dynamic_shared();
// Ends the launch with this error message.
void fail(const char* message);

typedef void (*Kernel)(const void* args);
struct Registration {
    Registration(const char* name, Kernel kernel, uint32_t args_bytes);
};

// Stores this lane's value and returns that of lane `source`.
template <class T>
T exchange(T value, uint32_t source) {
    static_assert(sizeof(T) <= EXCHANGED_BYTES, "too large to be exchanged");
    memcpy(self->warp->published[self->lane], &value, sizeof(T));
    sync_warp();
    T result;
    memcpy(&result, self->warp->published[source % LANES], sizeof(T));
    sync_warp();
    return result;
}

template <class T>
T published_by(uint32_t lane) {
    T result;
    memcpy(&result, self->warp->published[lane], sizeof(T));
    return result;
}

inline void check_aligned(const void* p) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) fail("a 16-byte access is not aligned");
}

}  // namespace emulation

#define threadIdx (emulation::self->index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

#define EMULATED_KERNEL(name, Args, prefetch)                                                                         \
    static void name##_on_cpu(const Args& a);                                                              \
    static emulation::Registration name##_registration(                                                    \
        #name,                                                                                             \
        [](const void* args) {                                                                              \
            prefetch(*static_cast<const Args*>(args));                                                     \
            name##_on_cpu(*static_cast<const Args*>(args));                                                \
        },                                                                                                 \
        sizeof(Args));                                                                                     \
    static void name##_on_cpu(const Args& a)

// Kernels of the emulated device do not overlap.
inline void start_kernels_after() {}
inline void wait_for_kernels_before() {}

// Reads a byte, so that a prefetch of unmapped memory crashes.
inline void prefetch_line(const void* p) { emulation::prefetched = *static_cast<const volatile unsigned char*>(p); }

inline void __syncthreads() { emulation::sync_block(); }
inline void __syncwarp(uint32_t = 0xffffffffu) { emulation::sync_warp(); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(uint32_t, T value, uint32_t mask) {
    return emulation::exchange(value, emulation::self->lane ^ mask);
}
template <class T>
T __shfl_sync(uint32_t, T value, uint32_t source) {
    return emulation::exchange(value, source);
}
inline uint32_t __ballot_sync(uint32_t, bool flag) {
    uint32_t mine = flag, ballot = 0;
    memcpy(emulation::self->warp->published[emulation::self->lane], &mine, sizeof mine);
    emulation::sync_warp();
    for (uint32_t lane = 0; lane < 32; ++lane) ballot |= emulation::published_by<uint32_t>(lane) << lane;
    emulation::sync_warp();
    return ballot;
}
inline uint32_t __popc(uint32_t x) { return __builtin_popcount(x); }
inline uint32_t __ffs(uint32_t x) { return __builtin_ffs(x); }

template <class T>
T atomicAdd(T* p, T x) {
    T old = *p;
    *p = old + x;
    return old;
}
inline uint32_t atomicOr(uint32_t* p, uint32_t x) {
    uint32_t old = *p;
    *p = old | x;
    return old;
}
inline uint32_t atomicExch(uint32_t* p, uint32_t x) {
    uint32_t old = *p;
    *p = x;
    return old;
}
inline uint32_t atomicMin(uint32_t* p, uint32_t x) {
    uint32_t old = *p;
    *p = old < x ? old : x;
    return old;
}

inline int32_t __dp4a(int32_t a, int32_t b, int32_t sum) {
    for (int i = 0; i < 4; ++i) sum += int32_t(int8_t(a >> (8 * i))) * int32_t(int8_t(b >> (8 * i)));
    return sum;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int32_t __float2int_rn(float x) { return int32_t(rintf(x)); }
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};

// 16-bit floats: storage, and conversions that round ties to even.
struct half {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};
inline uint16_t __half_as_ushort(half x) { return x.bits; }
inline half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(half x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31, fraction = x.bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = ldexpf(float(fraction), -24);
    return sign ? -magnitude : magnitude;
}
inline half __float2half_rn(float x) {
    uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7fffu)};
    if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
    // Subnormal numbers are multiples of 2^-24.
    if (magnitude < 0x38800000u) return {uint16_t(sign | uint16_t(rintf(ldexpf(__uint_as_float(magnitude), 24))))};
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return {uint16_t(sign | uint16_t((rounded - 0x38000000u) >> 13))};
}
inline float __bfloat162float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
inline bf16 __float2bfloat16_rn(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40u)};
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

// ptx.cuh
inline float power_of_2(float x) { return exp2f(x); }
inline uint32_t pack_floats(float low, float high, half) {
    return __float2half_rn(low).bits | uint32_t(__float2half_rn(high).bits) << 16;
}
inline uint32_t pack_floats(float low, float high, bf16) {
    return __float2bfloat16_rn(low).bits | uint32_t(__float2bfloat16_rn(high).bits) << 16;
}
inline void add_apart(int32_t* p, int32_t x) { *p += x; }
struct Words4;
Words4 load_words(const void* p);
Words4 load_streaming(const void* p);
void store_words(void* p, Words4 v);
void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_floats(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], half);
void mma_floats(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16);
void load_matrices(uint32_t (&words)[4], const void* row);
void load_transposed(uint32_t (&words)[4], const void* row);
void copy_async(void* shared, const void* global, bool valid);
void commit_copies();
void wait_for_copies_but(uint32_t pending);
template <int PENDING>
inline void wait_for_copies() {
    wait_for_copies_but(PENDING);
}
unsigned char* align_tiles(unsigned char* shared);
inline void show_to_tensor_cores() {}
inline void begin_wgmma() {}
void wgmma_s8(int32_t (&d)[64], const void* a, const void* b, uint32_t step);
void commit_wgmma();
void wait_for_wgmma_but(uint32_t pending);
template <int PENDING>
inline void wait_for_wgmma() {
    wait_for_wgmma_but(PENDING);
}
inline void use_sums(int32_t (&)[64]) {}
