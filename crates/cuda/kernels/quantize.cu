// Activations: which are outliers, absmax over the rest, codes; no host takes part.
//
// One launch, a row a block at a time, by as many blocks as are on the device together. A thread has groups of four values that
// lie side by side and keeps the first of them in registers. Most rows have no outliers: then a value costs a maximum, a
// product and a sum. Columns with outliers in any row are marked in a bitmap; the last block to end makes the list of them
// and leaves the bitmap and the counter of blocks as zeros, so that no launch is needed before or after. Only
// where an outlier takes its whole column with it, `clear_columns` follows.
//
// Bytes: up to 8192 values a row, x is read once; of longer rows the rest is read two to four times, but only once from
// device memory, as it stays in the caches. Codes are written once, a quarter of an f32 row.
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
        // Marks of other blocks: read where the atomics are done, not out of a cache of this multiprocessor.
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

// Which of four values are outliers, a bit each.
DEVICE u32 find_outliers(const float (&value)[4], u32 limit) {
    u32 bits = 0;
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
        if (is_outlier(half_magnitude(__float2half_rn(value[i])), limit)) bits |= 1u << i;
    return bits;
}

// One row, of which a thread has the groups of four values 4 · (threadIdx.x + blockDim.x · i) …, and keeps the first GROUPS.
// IS_PLAIN: no norm and no gate. IS_WHOLE: all groups are kept, and four values can be loaded together. What a kind of rows
// does not need is not in its code, which runs once in a small product and has to come from memory first.
template <class T, u32 GROUPS, bool IS_PLAIN, bool IS_WHOLE>
struct GroupedRow {
    const Source& source;
    const T *x, *up;
    u32 round;  // which of two places reductions use: with the next row the other one
    float mean, inverse;
    float held[GROUPS][4];

    __device__ __forceinline__ GroupedRow(const Source& source, u32 row, u32 round)
        : source(source),
          x(static_cast<const T*>(source.x) + (size_t)row * source.stride),
          up(source.kind == GATED ? static_cast<const T*>(source.up) + (size_t)row * source.stride : nullptr),
          round(round),
          mean(0.0f),
          inverse(1.0f) {
        // All loads before the first use.
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i) load(x, place(i), held[i], 0.0f);
        if (IS_PLAIN || source.kind == PLAIN) return;
        // Those of a norm's weights too, where there is room for them. Of what is not normed, mean and inverse are 0 and 1, and
        // a value stays as it is.
        if constexpr (GROUPS <= 2) {
            float factor[GROUPS][4], offset[GROUPS][4];
#pragma unroll
            for (u32 i = 0; i < GROUPS; ++i) load_constants(place(i), factor[i], offset[i]);
            if (source.kind != GATED) find_statistics();
#pragma unroll
            for (u32 i = 0; i < GROUPS; ++i) apply(place(i), held[i], factor[i], offset[i]);
        } else {
            if (source.kind != GATED) find_statistics();
#pragma unroll
            for (u32 i = 0; i < GROUPS; ++i) {
                float factor[4], offset[4];
                load_constants(place(i), factor, offset);
                apply(place(i), held[i], factor, offset);
            }
        }
    }

    // Calls f(k, group, values k … k + 3) for this thread's groups before `end`; past the row values are 0. `group` is GROUPS
    // for those that are not kept.
    template <class F>
    __device__ __forceinline__ void each(u32 end, F f) const {
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i)
            if (place(i) < end) f(place(i), i, held[i]);
        if constexpr (!IS_WHOLE) {
#pragma unroll 1
            for (u32 k = place(GROUPS); k < end; k += blockDim.x * 4) {
                float value[4];
                load(x, k, value, 0.0f);
                if (source.kind != PLAIN) {
                    float factor[4], offset[4];
                    load_constants(k, factor, offset);
                    apply(k, value, factor, offset);
                }
                f(k, GROUPS, value);
            }
        }
    }

    // The bits of the largest f16 magnitude that is no outlier, whether the row has outliers, and which of the kept values of
    // this thread are some: bit 4i + j is that of value j of group i. NaN wins over every number.
    __device__ __forceinline__ u32 absmax(u32 limit, bool& has_outliers, u32& outliers) const {
        u32 found = 0;
        each(source.cols, [&](u32, u32, const float (&value)[4]) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) found = Max::of(found, half_magnitude(__float2half_rn(value[j])));
        });
        outliers = 0;
        if (found >= limit) {
            found = 0;
            each(source.cols, [&](u32, u32 group, const float (&value)[4]) {
                u32 bits = find_outliers(value, limit);
                if (bits != 0) found |= Magnitudes::OUTLIER;
                if (group < GROUPS) outliers |= bits << (4 * group);
#pragma unroll
                for (u32 j = 0; j < 4; ++j)
                    if ((bits >> j & 1) == 0) found = Magnitudes::of(found, half_magnitude(__float2half_rn(value[j])));
            });
        }
        __shared__ u32 parts[2][32];
        found = block_reduce<Magnitudes>(found, parts[round]);
        has_outliers = (found & Magnitudes::OUTLIER) != 0;
        return found & 0xffffu;
    }

private:
    static __device__ __forceinline__ u32 place(u32 group) { return (group * blockDim.x + threadIdx.x) * 4; }

    // Values k … k + 3; `otherwise` past the row, or where there are none at all.
    template <class V>
    __device__ __forceinline__ void load(const V* from, u32 k, float (&to)[4], float otherwise) const {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) to[j] = otherwise;
        if (from == nullptr) return;
        if (IS_WHOLE) {
            if (k < source.cols) load4(from + k, to);
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                if (k + j < source.cols) to[j] = to_float(from[k + j]);
        }
    }

    // What a value is multiplied with, and what is added.
    __device__ __forceinline__ void load_constants(u32 k, float (&factor)[4], float (&offset)[4]) const {
        if (up != nullptr) {
            load(up, k, factor, 1.0f);
        } else {
            load(source.weight, k, factor, 1.0f);
        }
        load(source.bias, k, offset, 0.0f);
    }
    __device__ __forceinline__ void apply(u32 k, float (&value)[4], const float (&factor)[4], const float (&offset)[4]) const {
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
            if (k + j < source.cols) value[j] = (value[j] - mean) * inverse * factor[j] + offset[j];
    }

    // Mean and inverse of the norm, while `held` has the values as they lie.
    __device__ __forceinline__ void find_statistics() {
        if (source.kind == LAYER_NORM) {
            float sum = 0.0f;
            each_raw([&](float value) { sum += value; });
            __shared__ float parts[2][32];
            mean = block_reduce<Sum>(sum, parts[round]) / (float)source.cols;
        }
        float squares = 0.0f;
        each_raw([&](float value) { squares += (value - mean) * (value - mean); });
        __shared__ float parts[2][32];
        inverse = rsqrtf(block_reduce<Sum>(squares, parts[round]) / (float)source.cols + source.eps);
    }

    template <class F>
    __device__ __forceinline__ void each_raw(F f) const {
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i)
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                if (place(i) + j < source.cols) f(held[i][j]);
        if constexpr (!IS_WHOLE) {
#pragma unroll 1
            for (u32 k = place(GROUPS); k < source.cols; k += blockDim.x * 4) {
                float value[4];
                load(x, k, value, 0.0f);
#pragma unroll
                for (u32 j = 0; j < 4; ++j)
                    if (k + j < source.cols) f(value[j]);
            }
        }
    }
};

// One row; whether it has outliers. `marked`: the columns of kept values that this thread has marked before.
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

template <class V>
DEVICE bool is_aligned(const V* p) {
    return (reinterpret_cast<u64>(p) & (sizeof(V) * 4 - 1)) == 0;
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
