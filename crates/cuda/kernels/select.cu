// Finds the largest logits on the device, so that only those are copied to the host. One block for
// each row.
#include "reduce.cuh"

// Maps f32 to u32 so that the order is the same.
DEVICE u32 ordered(float x) {
    u32 bits = __float_as_uint(x);
    return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
DEVICE bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// The repetition penalty: positive logits of the given tokens are divided by it, negative ones
// multiplied.
struct PenaliseArgs {
    float* logits;   // [V]
    const u32* ids;  // [count], distinct, below V
    u32 count;
    float penalty;
};

KERNEL(penalise, PenaliseArgs, 256, 4) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float* logit = &a.logits[a.ids[i]];
    *logit = *logit > 0.0f ? *logit / a.penalty : *logit * a.penalty;
}

struct SelectArgs {
    const float* logits;  // [rows, V]
    u32* ids;             // [rows, k]
    float* values;        // [rows, k] their logits
    u32* is_bad;          // [rows] nonzero: a logit is not finite
    u32 vocabulary, k;
};

// k = 1: the largest logit; of equal ones the first.
KERNEL(select_largest, SelectArgs, 1024, 1) {
    constexpr u32 THREADS = 1024, AT_ONCE_LOADED = 16;
    __shared__ u64 parts[THREADS / WARP];
    __shared__ u32 bad_parts[THREADS / WARP];
    const float* logits = a.logits + (size_t)blockIdx.x * a.vocabulary;
    u64 best = 0;
    u32 bad = 0;
    for (u32 first = threadIdx.x; first < a.vocabulary; first += THREADS * AT_ONCE_LOADED) {
        // All loads are issued before the first use: one after the other they would take 15 times
        // as long.
        float x[AT_ONCE_LOADED];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE_LOADED; ++j) {
            u32 i = first + j * THREADS;
            x[j] = logits[i < a.vocabulary ? i : first];
        }
#pragma unroll
        for (u32 j = 0; j < AT_ONCE_LOADED; ++j) {
            u32 i = first + j * THREADS;
            if (i >= a.vocabulary) break;
            bad |= !is_finite(x[j]);
            // Adding 0 turns -0 into 0, so that they compare as equal. The complement of the index
            // makes the first of equal ones the largest.
            best = Max::of(best, (u64)ordered(x[j] + 0.0f) << 32 | (0xffffffffu - i));
        }
    }
    best = block_reduce_of<THREADS / WARP, Max>(best, parts);
    bad = block_reduce_of<THREADS / WARP, Max>(bad, bad_parts);
    if (threadIdx.x != 0) return;
    u32 id = 0xffffffffu - (u32)best;
    a.ids[blockIdx.x] = id;
    a.values[blockIdx.x] = id < a.vocabulary ? logits[id] : 0.0f;
    a.is_bad[blockIdx.x] = bad;
}

// The k largest logits: first all above the k-th largest, by id, then the first of those equal to
// it. The k-th largest is found by radix selection, one byte at a time.
KERNEL(select_top, SelectArgs, 1024, 1) {
    __shared__ u32 histogram[256];
    const float* logits = a.logits + (size_t)blockIdx.x * a.vocabulary;
    u32 bad = 0, prefix = 0, mask = 0, remaining = a.k;
    for (u32 i = threadIdx.x; i < a.vocabulary; i += blockDim.x) bad |= !is_finite(logits[i]);
    bad = block_reduce<Max>(bad);
    for (i32 shift = 24; shift >= 0; shift -= 8) {
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < a.vocabulary; i += blockDim.x) {
            u32 key = ordered(logits[i]);
            if ((key & mask) == prefix) atomicAdd(&histogram[key >> shift & 255], 1u);
        }
        __syncthreads();
        u32 bucket = 255;
        while (bucket > 0 && histogram[bucket] < remaining) remaining -= histogram[bucket--];
        prefix |= bucket << shift;
        mask |= 255u << shift;
        __syncthreads();
    }
    u32 above = 0, equal = 0, all_above = a.k - remaining;
    for (u32 first = 0; first < a.vocabulary; first += blockDim.x) {
        u32 i = first + threadIdx.x, found;
        u32 key = i < a.vocabulary ? ordered(logits[i]) : 0;
        bool is_above = i < a.vocabulary && key > prefix, is_equal = i < a.vocabulary && key == prefix;
        u32 place = above + block_rank(is_above, found);
        above += found;
        u32 rank = equal + block_rank(is_equal, found);
        equal += found;
        bool taken = is_above || (is_equal && rank < remaining);
        if (is_equal) place = all_above + rank;
        if (taken) {
            a.ids[(size_t)blockIdx.x * a.k + place] = i;
            a.values[(size_t)blockIdx.x * a.k + place] = logits[i];
        }
    }
    if (threadIdx.x == 0) a.is_bad[blockIdx.x] = bad;
}
