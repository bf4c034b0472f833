// Quantises activations: finds outliers, the absmax of the rest, and the codes, without the host.
//
// One launch, with as many blocks as run on the device at once, each of which takes one row at a
// time. A thread has groups of four adjacent values and keeps the first groups in registers. Most
// rows have no outliers; then a value costs one maximum, one multiplication and one addition.
// Columns with outliers in any row are marked in a bitmap. The last block to finish lists them, and
// resets the bitmap and the counter of blocks to zero, so no other launch is needed. Only when an
// outlier's whole column must be zero does `clear_columns` follow.
//
// Bytes: x is read once if a row has up to 8192 values. The rest of longer rows is read two to four
// times, but only once from device memory, since it stays in the caches. Codes are written once, a
// quarter of an f32 row.
#include "source.cuh"

struct QuantizeArgs {
    Source source;
    i8* codes;      // [M, pitch]
    float* absmax;  // [M]
    float* values;  // [M, cols]: the values after a norm or gate, for the outliers; null if plain
    u32* flags;     // [ceil(cols / 32)] a bit for each outlier column; zeros, reset to zeros
    u32* blocks;    // [1] blocks that are done, and how many of them marked columns; reset to zero
    u32* columns;   // [cols]: the outlier columns of all rows, ascending
    u32* count;     // [1]
    u32* limits;    // [M]: the f16 bits of each row's smallest outlier
    OutlierRule rule;
    u32 rows, pitch;
};

constexpr u32 MAX_CHUNKS = 2048;  // of a row: plan::MAX_COLUMNS / RMS_CHUNK
// Sums of squares of a row's chunks. Two, used in turn like the memory of the reductions: a thread may
// still read those of the last row.
typedef float Chunks[2][MAX_CHUNKS];

// Lists the marked columns and clears the marks, in one warp.
DEVICE void list_columns(const QuantizeArgs& a) {
    constexpr u32 AT_ONCE = 4;
    u32 lane = lane_index(), words = (a.source.cols + WARP - 1) / WARP, count = 0;
#pragma unroll 1
    for (u32 first = 0; first < words; first += AT_ONCE * WARP) {
        // Other blocks set the marks by atomics in L2; a plain load could hit a stale L1 line.
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

// Quantises one row; returns whether it has outliers. `marked`: bits of the kept values whose
// columns this thread has already marked, so that it need not do so again.
template <class T, u32 GROUPS, bool IS_PLAIN, bool IS_WHOLE>
DEVICE bool quantize_row(const QuantizeArgs& a, u32 m, u32 round, Chunks& chunks, u32& marked) {
    static_assert(GROUPS * 4 <= 32, "a bit for each value that is kept");
    u32 cols = a.source.cols;
    GroupedRow<T, GROUPS, IS_PLAIN, IS_WHOLE> row(a.source, m, round);
    u32 limit = row.find_limit(a.rule, chunks[round]);
    if (threadIdx.x == 0) a.limits[m] = limit;
    bool has_outliers;
    u32 outliers;
    float absmax = half_value(row.absmax(limit, has_outliers, outliers));
    float inverse = inverse_step(absmax);
    i8* codes = a.codes + (size_t)m * a.pitch;
    float* values = !IS_PLAIN && a.values != nullptr ? a.values + (size_t)m * cols : nullptr;
    row.each(a.pitch, [&](u32 k, u32 group, const float (&value)[4]) {
        u32 word = codes_of(value, inverse);
        if (has_outliers) {
            u32 bits = group < GROUPS ? outliers >> (4 * group) & 15 : find_outliers(value, limit);
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

// Prefetches a row into L2, each thread one line at a time.
template <class T>
DEVICE void prefetch_row(const Source& source, u32 m) {
    constexpr u32 LINE = 128 / sizeof(T);
    for (u32 k = threadIdx.x * LINE; k < source.cols; k += blockDim.x * LINE) {
        prefetch_line(static_cast<const T*>(source.x) + (size_t)m * source.stride + k);
        if (source.kind == GATED) prefetch_line(static_cast<const T*>(source.up) + (size_t)m * source.stride + k);
    }
}

// Quantises the block's rows; returns whether any has outliers.
template <class T, u32 GROUPS, bool IS_PLAIN, bool IS_WHOLE>
DEVICE bool quantize_rows(const QuantizeArgs& a, Chunks& chunks) {
    bool has_marked = false;
    u32 marked = 0, round = 0;
#pragma unroll 1
    for (u32 m = blockIdx.x; m < a.rows; m += gridDim.x, round ^= 1) {
        if (m + gridDim.x < a.rows) prefetch_row<T>(a.source, m + gridDim.x);
        has_marked |= quantize_row<T, GROUPS, IS_PLAIN, IS_WHOLE>(a, m, round, chunks, marked);
    }
    return has_marked;
}

// The same, with the template that suits the rows.
template <class T>
DEVICE bool quantize_any(const QuantizeArgs& a, Chunks& chunks) {
    const Source& source = a.source;
    bool is_whole = source.cols % 4 == 0 && source.stride % 4 == 0 && source.cols <= blockDim.x * 16 &&
                    is_aligned(static_cast<const T*>(source.x)) && is_aligned(static_cast<const T*>(source.up)) &&
                    is_aligned(source.weight) && is_aligned(source.bias) && is_aligned(a.values);
    bool is_short = source.cols <= blockDim.x * 8;
    if (is_whole && source.kind == PLAIN && a.values == nullptr)
        return is_short ? quantize_rows<T, 2, true, true>(a, chunks) : quantize_rows<T, 4, true, true>(a, chunks);
    // A matmul takes values after a norm or gate only in f32; others need no fast path.
    if constexpr (sizeof(T) == sizeof(float))
        if (is_whole) return is_short ? quantize_rows<T, 2, false, true>(a, chunks) : quantize_rows<T, 4, false, true>(a, chunks);
    return quantize_rows<T, 2, false, false>(a, chunks);
}

template <class T>
DEVICE void quantize(const QuantizeArgs& a) {
    // The counter's upper half counts the blocks that have marked columns.
    constexpr u32 MARKED = 1u << 16;
    // One for all instances of the templates, which would each have their own.
    __shared__ Chunks chunks;
    bool has_marked = quantize_any<T>(a, chunks);
    if (has_marked) __syncthreads();
    if (warp_index() != 0) return;
    // The block's marks must be visible before it is counted.
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

// When outliers take effect for the whole batch: sets the codes of their columns to 0 in every row,
// one block for each row.
KERNEL(clear_columns, ClearArgs, 128, 8) {
    i8* codes = a.codes + (size_t)blockIdx.x * a.pitch;
    for (u32 i = threadIdx.x; i < *a.count; i += blockDim.x) codes[a.columns[i]] = 0;
}
