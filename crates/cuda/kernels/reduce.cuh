// Reductions over a warp and a block. Every thread of the block must call the block functions, and
// every thread gets the result. The order of additions is fixed, so a sum has the same bits in
// every run.
#pragma once
#include "common.cuh"

DEVICE u32 lane_index() { return threadIdx.x % WARP; }
DEVICE u32 warp_index() { return threadIdx.x / WARP; }

struct Sum {
    template <class T>
    static __device__ __forceinline__ T of(T x, T y) { return x + y; }
};
struct Max {
    template <class T>
    static __device__ __forceinline__ T of(T x, T y) { return x > y ? x : y; }
};

// Over groups of `lanes` adjacent lanes; a power of two.
template <class Op, class T>
DEVICE T lanes_reduce(T x, u32 lanes) {
    for (u32 step = lanes / 2; step > 0; step /= 2) x = Op::of(x, __shfl_xor_sync(EVERY_LANE, x, step));
    return x;
}

template <class Op, class T>
DEVICE T warp_reduce(T x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x = Op::of(x, __shfl_xor_sync(EVERY_LANE, x, step));
    return x;
}

// With one barrier. `parts` is shared memory for one value of each warp, which nothing else in the
// kernel uses.
template <class Op, class T>
DEVICE T block_reduce(T x, T* parts) {
    x = warp_reduce<Op>(x);
    if (lane_index() == 0) parts[warp_index()] = x;
    __syncthreads();
    T all = parts[0];
    for (u32 warp = 1; warp < blockDim.x / WARP; ++warp) all = Op::of(all, parts[warp]);
    return all;
}

// The same for blocks of WARPS warps, a power of two up to 32. Additions are in another order.
template <u32 WARPS, class Op, class T>
DEVICE T block_reduce_of(T x, T (&parts)[WARPS]) {
    x = warp_reduce<Op>(x);
    if (lane_index() == 0) parts[warp_index()] = x;
    __syncthreads();
    x = parts[lane_index() % WARPS];
#pragma unroll
    for (u32 step = WARPS / 2; step > 0; step /= 2) x = Op::of(x, __shfl_xor_sync(EVERY_LANE, x, step));
    return x;
}

// With two barriers, so that it may be called repeatedly.
template <class Op, class T>
DEVICE T block_reduce(T x) {
    __shared__ T parts[32];
    T all = block_reduce<Op>(x, parts);
    // The next call writes to the same `parts`.
    __syncthreads();
    return all;
}

// How many threads of lower number have the flag set; `total`: how many of the block have.
DEVICE u32 block_rank(bool flag, u32& total) {
    __shared__ u32 counts[32];
    u32 ballot = __ballot_sync(EVERY_LANE, flag);
    if (lane_index() == 0) counts[warp_index()] = __popc(ballot);
    __syncthreads();
    u32 before = __popc(ballot & ((1u << lane_index()) - 1));
    total = 0;
    for (u32 warp = 0; warp < blockDim.x / WARP; ++warp) {
        if (warp < warp_index()) before += counts[warp];
        total += counts[warp];
    }
    __syncthreads();
    return before;
}
