// Included by every kernel file: short type names, the KERNEL macros, conversions.
//
// The kernels are compiled twice: by nvcc for GPUs, and by a C++ compiler with LLM_INT8_EMULATION
// for the emulated device of the tests (emulation/emulation.h), which runs every thread of every
// block on the CPU. Whatever is not plain C++ therefore goes through this file or ptx.cuh.
//
// A kernel is declared with its launch bounds: the threads of its largest block, and how many such
// blocks a multiprocessor must hold. A thread may then use 65536 / (threads · blocks) registers. It
// takes one struct, which src/args.rs mirrors field by field: pointers and numbers of 4 or 8 bytes
// without padding, so that C++ and Rust lay it out alike. Letters: M rows of activations, N
// out_features, K in_features.
//
// Kernels may start while the previous one still runs (programmatic dependent launch, capability
// 9.0 on), so each must wait before it touches anything that an earlier kernel writes. KERNEL waits
// first. KERNEL_WITH_PREFETCH first prefetches weights, which no kernel of a pass writes. The body
// of a KERNEL_THAT_WAITS calls `start_kernels_after` and `wait_for_kernels_before` itself, each
// exactly once in every thread.
#pragma once

#ifdef LLM_INT8_EMULATION
#include "emulation.h"
#define KERNEL_WITH_PREFETCH(name, Args, threads, blocks, prefetch) EMULATED_KERNEL(name, Args, prefetch)
#define KERNEL_THAT_WAITS(name, Args, threads, blocks) EMULATED_KERNEL(name, Args, no_prefetch)
#define DYNAMIC_SHARED(name) unsigned char* name = emulation::dynamic_shared()
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#define KERNEL_WITH_PREFETCH(name, Args, threads, blocks, prefetch)                                            \
    static __device__ void name##_body(const Args& a);                                                         \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a) {       \
        start_kernels_after();                                                                                 \
        prefetch(a);                                                                                           \
        wait_for_kernels_before();                                                                             \
        name##_body(a);                                                                                        \
    }                                                                                                          \
    static __device__ __forceinline__ void name##_body(const Args& a)
#define KERNEL_THAT_WAITS(name, Args, threads, blocks)                                                         \
    static __device__ void name##_body(const Args& a);                                                         \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a) {       \
        name##_body(a);                                                                                        \
    }                                                                                                          \
    static __device__ __forceinline__ void name##_body(const Args& a)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
typedef __half half;
typedef __nv_bfloat16 bf16;
#endif
#define KERNEL(name, Args, threads, blocks) KERNEL_WITH_PREFETCH(name, Args, threads, blocks, no_prefetch)

typedef int8_t i8;
typedef int32_t i32;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define DEVICE static __device__ __forceinline__

template <class Args>
DEVICE void no_prefetch(const Args&) {}

#ifndef LLM_INT8_EMULATION
// Lets the next kernel start once all blocks of this one have called this.
DEVICE void start_kernels_after() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until all earlier kernels have finished and their writes are visible. Both functions do
// nothing for a kernel that was not launched to overlap.
DEVICE void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Prefetches 128 bytes of global memory into L2.
DEVICE void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
#endif

constexpr u32 WARP = 32;
constexpr u32 EVERY_LANE = 0xffffffffu;

// 1 / 127 and 1 / 127², each rounded once.
constexpr float CODE_STEP = 1.0f / 127.0f;
constexpr float PRODUCT_STEP = 1.0f / (127.0f * 127.0f);

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(half x) { return __half2float(x); }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }

// Four adjacent values, aligned to the size of all four.
DEVICE void load4(const float* p, float (&out)[4]) {
    float4 v = *reinterpret_cast<const float4*>(p);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
template <class T>
DEVICE void load4(const T* p, float (&out)[4]) {
    uint2 v = *reinterpret_cast<const uint2*>(p);
    const T* values = reinterpret_cast<const T*>(&v);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) out[i] = to_float(values[i]);
}

template <class T>
DEVICE T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ half from_float<half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// The bits of an f16 without its sign. They are ordered like the magnitudes, with infinity above
// all finite values and NaN above infinity.
constexpr u32 HALF_INFINITY = 0x7c00;
constexpr u32 NO_OUTLIERS = 0xffff;  // above all magnitudes
DEVICE u32 half_magnitude(half x) { return __half_as_ushort(x) & 0x7fffu; }
DEVICE float half_value(u32 bits) { return __half2float(__ushort_as_half((u16)bits)); }

// `limit`: the smallest magnitude that is an outlier. NaN is not an outlier, so that it shows up in
// absmax.
DEVICE bool is_outlier(u32 magnitude, u32 limit) { return magnitude >= limit && magnitude <= HALF_INFINITY; }

// The code of a value is rint(value · 127 / absmax), with ties to even. 127 / absmax is computed as
// PyTorch does, as a reciprocal times 127. It is 0 if the row has no scale: absmax is 0 or not
// finite.
DEVICE float inverse_step(float absmax) {
    bool usable = absmax > 0.0f && absmax <= 65504.0f;
    return usable ? __fmul_rn(__fdiv_rn(1.0f, absmax), 127.0f) : 0.0f;
}
DEVICE i32 code_of(half x, float inverse) {
    return inverse == 0.0f ? 0 : __float2int_rn(__fmul_rn(__half2float(x), inverse));
}

// The codes of four values, one in each byte; those of outliers are unspecified. Adding 1.5 · 2^23
// rounds to an integer, ties to even, and leaves it in the low bits of the float.
DEVICE u32 codes_of(const float (&value)[4], float inverse) {
    u32 word = 0;
    if (inverse == 0.0f) return word;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        float scaled = __fmul_rn(__half2float(__float2half_rn(value[i])), inverse);
        word |= (__float_as_uint(__fadd_rn(scaled, 12582912.0f)) & 0xff) << (8 * i);
    }
    return word;
}
