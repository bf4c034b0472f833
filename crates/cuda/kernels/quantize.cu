// Activations: which are outliers, absmax over the rest, codes; no host takes part.
//
// One launch, a row a block at a time, by as many blocks as are on the device together. Columns with outliers in any row are marked in a bitmap; the last block to end makes the
// list of them and leaves the bitmap and the counter of blocks as zeros, so that no launch is needed before or after. Only
// where an outlier takes its whole column with it, `clear_columns` follows.
//
// Bytes: up to 4096 values a row, x is read once; of longer rows the rest is read two to four times, but only once from
// device memory, as it stays in the caches. Codes are written once, a quarter of an f32 row.
#include "source.cuh"

struct QuantizeArgs {
    Source source;
    i8* codes;      // [M, pitch]
    float* absmax;  // [M]
    float* values;  // [M, cols] or null: the values themselves, where `source` does not lie like that
    u32* flags;     // [ceil(cols / 32)] zeros, left as zeros: a bit for each outlier column
    u32* blocks;    // [1] zero, left as zero: blocks that are done
    u32* columns;   // [cols]: the outlier columns of all rows, ascending
    u32* count;     // [1]
    u32 rows, pitch, limit;
    u32 padding;
};

// The list of the columns marked, by one warp; the marks are taken away.
DEVICE void list_columns(const QuantizeArgs& a) {
    u32 lane = lane_index(), words = (a.source.cols + WARP - 1) / WARP, count = 0;
#pragma unroll 1
    for (u32 first = 0; first < words; first += WARP) {
        // Marks of other blocks: read where the atomics are done, not out of a cache of this multiprocessor.
        u32 marks = first + lane < words ? atomicExch(&a.flags[first + lane], 0u) : 0, before = __popc(marks);
        for (u32 step = 1; step < WARP; step *= 2) {
            u32 other = __shfl_sync(EVERY_LANE, before, (lane - step) % WARP);
            if (lane >= step) before += other;
        }
        u32 place = count + before - __popc(marks);
#pragma unroll 1
        for (; marks != 0; marks &= marks - 1) a.columns[place++] = (first + lane) * WARP + __ffs(marks) - 1;
        count += __shfl_sync(EVERY_LANE, before, WARP - 1);
    }
    if (lane == 0) *a.count = count;
}

// One row; whether it has outliers.
template <class T>
DEVICE bool quantize_row(const QuantizeArgs& a, u32 m) {
    Row<T> row(a.source, m);
    bool has_outliers;
    float absmax = half_value(row_absmax(row, a.limit, has_outliers));
    float inverse = inverse_step(absmax);
    i8* codes = a.codes + (size_t)m * a.pitch;
    float* values = a.values != nullptr ? a.values + (size_t)m * row.cols : nullptr;
    row.each(a.pitch, [&](u32 k, float value) {
        half rounded = __float2half_rn(value);
        bool apart = k < row.cols && is_outlier(half_magnitude(rounded), a.limit);
        if (k < row.cols && values != nullptr) values[k] = value;
        if (k < a.pitch) codes[k] = apart ? (i8)0 : (i8)code_of(rounded, inverse);
        if (has_outliers) {
            u32 ballot = __ballot_sync(EVERY_LANE, apart);
            if (ballot != 0 && lane_index() == 0) atomicOr(&a.flags[k / 32], ballot);
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

template <class T>
DEVICE void quantize(const QuantizeArgs& a) {
    bool has_marked = false;
#pragma unroll 1
    for (u32 m = blockIdx.x; m < a.rows; m += gridDim.x) {
        if (m + gridDim.x < a.rows) prefetch_row<T>(a.source, m + gridDim.x);
        has_marked |= quantize_row<T>(a, m);
        // The next row uses the same shared memory.
        __syncthreads();
    }
    // The block's marks must be there before it is counted.
    if (has_marked) __threadfence();
    __syncthreads();
    if (warp_index() != 0) return;
    u32 done = lane_index() == 0 ? atomicAdd(a.blocks, 1u) : 0;
    if (__shfl_sync(EVERY_LANE, done, 0) != gridDim.x - 1) return;
    __threadfence();
    list_columns(a);
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
