// Activations: which are outliers, absmax over the rest, codes; no host takes part.
//
// One launch, a row a block at a time, by as many blocks as are on the device together. A thread
// has groups of four values that lie side by side and keeps the first of them in registers. Most
// rows have no outliers: then a value costs a maximum, a product and a sum. Columns with outliers
// in any row are marked in a bitmap; the last block to end makes the list of them and leaves the
// bitmap and the counter of blocks as zeros, so that no launch is needed before or after. Only
// where an outlier takes its whole column with it, `clear_columns` follows.
//
// Bytes: up to 8192 values a row, x is read once; of longer rows the rest is read two to four
// times, but only once from device memory, as it stays in the caches. Codes are written once, a
// quarter of an f32 row.
#include "source.cuh"

struct QuantizeArgs {
    Source source;
    i8* codes;      // [M, pitch]
    float* absmax;  // [M]
    float* values;  // [M, cols] or null: the values themselves, where `source` does not lie like that
    u32* flags;     // [ceil(cols / 32)] zeros, left as zeros: a bit for each outlier column
    u32* blocks;    // [1] zero, left as zero: blocks that are done, and with outliers
    u32* columns;   // [cols]: the outlier columns of all rows, ascending
    u32* count;     // [1]
    u32 rows, pitch, limit;
    u32 padding;
};

// The list of the columns marked, by one warp; the marks are taken away.
DEVICE void list_columns(const QuantizeArgs& a) {
    constexpr u32 AT_ONCE = 4;
    u32 lane = lane_index(), words = (a.source.cols + WARP - 1) / WARP, count = 0;
#pragma unroll 1
    for (u32 first = 0; first < words; first += AT_ONCE * WARP) {
        // Marks of other blocks: read where the atomics are done, not out of a cache of this
        // multiprocessor.
        u32 marks[AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            u32 word = first + i * WARP + lane;
            marks[i] = word < words ? atomicExch(&a.flags[word], 0u) : 0;
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            if (__ballot_sync(EVERY_LANE, marks[i] != 0) == 0) continue;
            u32 before = __popc(marks[i]);
            for (u32 step = 1; step < WARP; step *= 2) {
                u32 other = __shfl_sync(EVERY_LANE, before, (lane - step) % WARP);
                if (lane >= step) before += other;
            }
            u32 place = count + before - __popc(marks[i]);
#pragma unroll 1
            for (u32 rest = marks[i]; rest != 0; rest &= rest - 1)
                a.columns[place++] = (first + i * WARP + lane) * WARP + __ffs(rest) - 1;
            count += __shfl_sync(EVERY_LANE, before, WARP - 1);
        }
    }
    if (lane == 0) *a.count = count;
}

// One row; whether it has outliers. `marked`: the columns of kept values that this thread has
// marked before.
template <class T, u32 GROUPS, bool IS_PLAIN, bool IS_WHOLE>
DEVICE bool quantize_row(const QuantizeArgs& a, u32 m, u32 round, u32& marked) {
    static_assert(GROUPS * 4 <= 32, "a bit for each value that is kept");
    u32 cols = a.source.cols;
    GroupedRow<T, GROUPS, IS_PLAIN, IS_WHOLE> row(a.source, m, round);
    bool has_outliers;
    u32 outliers;
    float absmax = half_value(row.absmax(a.limit, has_outliers, outliers));
    float inverse = inverse_step(absmax);
    i8* codes = a.codes + (size_t)m * a.pitch;
    float* values = !IS_PLAIN && a.values != nullptr ? a.values + (size_t)m * cols : nullptr;
    row.each(a.pitch, [&](u32 k, u32 group, const float (&value)[4]) {
        u32 word = codes_of(value, inverse);
        if (has_outliers) {
            u32 bits = group < GROUPS ? outliers >> (4 * group) & 15 : find_outliers(value, a.limit);
            if (bits != 0) {
                u32 fresh = group < GROUPS ? bits & ~(marked >> (4 * group)) : bits;
                if (group < GROUPS) marked |= bits << (4 * group);
                if (fresh != 0) atomicOr(&a.flags[k / 32], fresh << (k % 32));
#pragma unroll
                for (u32 j = 0; j < 4; ++j)
                    if ((bits >> j & 1) != 0) word &= ~(0xffu << (8 * j));
            }
        }
        *reinterpret_cast<u32*>(codes + k) = word;
        if (values == nullptr) return;
        if (IS_WHOLE) {
            if (k < cols) *reinterpret_cast<float4*>(values + k) = float4{value[0], value[1], value[2], value[3]};
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                if (k + j < cols) values[k + j] = value[j];
        }
    });
    if (threadIdx.x == 0) a.absmax[m] = absmax;
    return has_outliers;
}

// Brings a row into L2, a line a thread.
template <class T>
DEVICE void prefetch_row(const Source& source, u32 m) {
    constexpr u32 LINE = 128 / sizeof(T);
    for (u32 k = threadIdx.x * LINE; k < source.cols; k += blockDim.x * LINE) {
        prefetch_line(static_cast<const T*>(source.x) + (size_t)m * source.stride + k);
        if (source.kind == GATED) prefetch_line(static_cast<const T*>(source.up) + (size_t)m * source.stride + k);
    }
}

// The block's rows; whether any has outliers.
template <class T, u32 GROUPS, bool IS_PLAIN, bool IS_WHOLE>
DEVICE bool quantize_rows(const QuantizeArgs& a) {
    bool has_marked = false;
    u32 marked = 0, round = 0;
#pragma unroll 1
    for (u32 m = blockIdx.x; m < a.rows; m += gridDim.x, round ^= 1) {
        if (m + gridDim.x < a.rows) prefetch_row<T>(a.source, m + gridDim.x);
        has_marked |= quantize_row<T, GROUPS, IS_PLAIN, IS_WHOLE>(a, m, round, marked);
    }
    return has_marked;
}

// The same, by what kind of rows they are.
template <class T>
DEVICE bool quantize_any(const QuantizeArgs& a) {
    const Source& source = a.source;
    bool is_whole = source.cols % 4 == 0 && source.stride % 4 == 0 && source.cols <= blockDim.x * 16 &&
                    is_aligned(static_cast<const T*>(source.x)) && is_aligned(static_cast<const T*>(source.up)) &&
                    is_aligned(source.weight) && is_aligned(source.bias) && is_aligned(a.values);
    bool is_short = source.cols <= blockDim.x * 8;
    if (is_whole && source.kind == PLAIN && a.values == nullptr)
        return is_short ? quantize_rows<T, 2, true, true>(a) : quantize_rows<T, 4, true, true>(a);
    // Norms and gates are of rows of f32 where a matmul follows.
    if constexpr (sizeof(T) == sizeof(float))
        if (is_whole) return is_short ? quantize_rows<T, 2, false, true>(a) : quantize_rows<T, 4, false, true>(a);
    return quantize_rows<T, 2, false, false>(a);
}

template <class T>
DEVICE void quantize(const QuantizeArgs& a) {
    // In the counter of blocks: each that has marked columns adds this too.
    constexpr u32 MARKED = 1u << 16;
    bool has_marked = quantize_any<T>(a);
    if (has_marked) __syncthreads();
    if (warp_index() != 0) return;
    // The block's marks must be there before it is counted.
    if (has_marked && lane_index() == 0) __threadfence();
    u32 mine = has_marked ? MARKED + 1 : 1, all = lane_index() == 0 ? atomicAdd(a.blocks, mine) + mine : 0;
    all = __shfl_sync(EVERY_LANE, all, 0);
    if (all % MARKED != gridDim.x) return;
    if (all >= MARKED) {
        __threadfence();
        list_columns(a);
    } else if (lane_index() == 0) {
        *a.count = 0;
    }
    if (lane_index() == 0) *a.blocks = 0;
}

DEVICE void prefetch_quantize(const QuantizeArgs& a) { prefetch_source(a.source); }

KERNEL_WITH_PREFETCH(quantize_f32, QuantizeArgs, 512, 2, prefetch_quantize) { quantize<float>(a); }
KERNEL_WITH_PREFETCH(quantize_f16, QuantizeArgs, 512, 2, prefetch_quantize) { quantize<half>(a); }
KERNEL_WITH_PREFETCH(quantize_bf16, QuantizeArgs, 512, 2, prefetch_quantize) { quantize<bf16>(a); }

struct ClearArgs {
    i8* codes;           // [M, pitch]
    const u32* columns;  // [count]
    const u32* count;    // [1]
    u32 pitch, padding;
};

// With outliers of the whole batch: the codes of their columns become 0 in every row, a block each.
KERNEL(clear_columns, ClearArgs, 128, 8) {
    i8* codes = a.codes + (size_t)blockIdx.x * a.pitch;
    for (u32 i = threadIdx.x; i < *a.count; i += blockDim.x) codes[a.columns[i]] = 0;
}
