// Rows of activations as a linear layer reads them: plain, after a norm, or gated. A thread keeps
// its first values in registers. Those of longer rows are computed again whenever they are needed,
// which costs a few operations but saves a trip through memory.
#pragma once
#include "reduce.cuh"

enum SourceKind : u32 { PLAIN = 0, LAYER_NORM = 1, RMS_NORM = 2, GATED = 3 };

struct Source {
    const void* x;        // [M, stride], of which the first `cols` values of a row are used
    const void* up;       // GATED: [M, stride], multiplied by x
    const float* weight;  // norms: [cols]
    const float* bias;    // LAYER_NORM: [cols] or null
    u32 stride, cols, kind;
    float eps;
};

// Prefetches the weights of a norm into L2.
DEVICE void prefetch_source(const Source& source) {
    if (source.weight == nullptr) return;
    constexpr u32 LINE = 128 / sizeof(float);
    for (u32 k = threadIdx.x * LINE; k < source.cols; k += blockDim.x * LINE) {
        prefetch_line(source.weight + k);
        if (source.bias != nullptr) prefetch_line(source.bias + k);
    }
}

// Whether four values can be loaded as one vector.
template <class V>
DEVICE bool is_aligned(const V* p) {
    return (reinterpret_cast<u64>(p) & (sizeof(V) * 4 - 1)) == 0;
}

// A reduction over values packed as a u32: the largest f16 magnitude that is not an outlier in the
// low 16 bits, and above them a flag that there are outliers.
struct Magnitudes {
    static constexpr u32 OUTLIER = 1u << 16;

    static __device__ __forceinline__ u32 of(u32 x, u32 y) {
        u32 low_x = x & 0xffffu, low_y = y & 0xffffu;
        return (low_x > low_y ? low_x : low_y) | ((x | y) & OUTLIER);
    }
};

// Which of four values are outliers, one bit for each.
DEVICE u32 find_outliers(const float (&value)[4], u32 limit) {
    u32 bits = 0;
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
        if (is_outlier(half_magnitude(__float2half_rn(value[i])), limit)) bits |= 1u << i;
    return bits;
}

// Which values of a row are outliers: those whose f16 magnitude has at least the bits `limit`, or, if
// `factor` is not 0, that reach `factor` times the row's root mean square.
struct OutlierRule {
    u32 limit;
    float factor;
};

// Values whose squares are added as a tree, by one warp. Sums of such chunks are added in order, so
// that the root mean square has the bits of `reference::row_rms` of llm-int8-kernels.
constexpr u32 RMS_CHUNK = WARP * 4;

// The sum of the squares of a warp's values as f16: value i + 64 is added to value i, then i + 32,
// and so on.
DEVICE float sum_of_squares(const float (&value)[4]) {
    float square[4];
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
        float x = __half2float(__float2half_rn(value[j]));
        square[j] = warp_reduce<Sum>(__fmul_rn(x, x));
    }
    return (square[0] + square[2]) + (square[1] + square[3]);
}

// The f16 bits of the smallest outlier of a row. `chunks`: its sums of squares.
DEVICE u32 rms_limit(const float* chunks, u32 cols, float factor) {
    float sum = 0.0f;
    for (u32 i = 0; i < (cols + RMS_CHUNK - 1) / RMS_CHUNK; ++i) sum += chunks[i];
    float threshold = __fmul_rn(factor, __fsqrt_rn(__fdiv_rn(sum, (float)cols)));
    // A NaN in the row: nothing is an outlier, so that it shows up in absmax.
    if (!(threshold >= 0.0f)) return NO_OUTLIERS;
    half nearest = __float2half_rn(threshold);
    u32 bits = half_magnitude(nearest) + (__half2float(nearest) < threshold ? 1 : 0);
    // 0 is never an outlier.
    return bits > 0 ? bits : 1;
}

// One row. A thread has the groups of four values that begin at 4 · (threadIdx.x + blockDim.x · i),
// and keeps the first GROUPS of them. IS_PLAIN: no norm and no gate. IS_WHOLE: all groups are kept,
// and four values can be loaded as one vector. Each kind of rows has its own instance, without the
// code that it does not need: in a small launch the code runs once and must be fetched first.
template <class T, u32 GROUPS, bool IS_PLAIN, bool IS_WHOLE>
struct GroupedRow {
    const Source& source;
    const T *x, *up;
    u32 round;  // 0 or 1, alternating with rows: which of two arrays reductions use
    float mean, inverse;
    float held[GROUPS][4];

    __device__ __forceinline__ GroupedRow(const Source& source, u32 row, u32 round)
        : source(source),
          x(static_cast<const T*>(source.x) + (size_t)row * source.stride),
          up(source.kind == GATED ? static_cast<const T*>(source.up) + (size_t)row * source.stride : nullptr),
          round(round),
          mean(0.0f),
          inverse(1.0f) {
        // All loads are issued before the first use.
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i) load(x, place(i), held[i], 0.0f);
        if (IS_PLAIN || source.kind == PLAIN) return;
        // The norm's weights are loaded early too, if there are registers for them. Without a norm,
        // mean and inverse are 0 and 1, which leave a value unchanged.
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

    // Calls f(k, group, values k … k + 3) for this thread's groups before `end`; values past the
    // end of the row are 0. `group` is GROUPS for groups that are not kept.
    template <class F>
    __device__ __forceinline__ void each(u32 end, F f) const {
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i)
            if (place(i) < end) f(place(i), i, held[i]);
        if constexpr (!IS_WHOLE) {
#pragma unroll 1
            for (u32 k = place(GROUPS); k < end; k += blockDim.x * 4) {
                float value[4];
                compute(k, value);
                f(k, GROUPS, value);
            }
        }
    }

    // The f16 bits of the smallest outlier. `chunks`: shared memory for a number of each RMS_CHUNK
    // values.
    __device__ __forceinline__ u32 find_limit(const OutlierRule& rule, float* chunks) const {
        if (rule.factor == 0.0f) return rule.limit;
        // All lanes of a warp take part in a sum, also those past the end of the row, whose values
        // are 0.
        u32 first = warp_index() * RMS_CHUNK, stride = blockDim.x * 4;
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i) {
            if (first + i * stride >= source.cols) break;
            float sum = sum_of_squares(held[i]);
            if (lane_index() == 0) chunks[(first + i * stride) / RMS_CHUNK] = sum;
        }
        if constexpr (!IS_WHOLE) {
#pragma unroll 1
            for (u32 k = first + GROUPS * stride; k < source.cols; k += stride) {
                float value[4];
                compute(k + lane_index() * 4, value);
                float sum = sum_of_squares(value);
                if (lane_index() == 0) chunks[k / RMS_CHUNK] = sum;
            }
        }
        __syncthreads();
        return rms_limit(chunks, source.cols, rule.factor);
    }

    // The bits of the largest f16 magnitude that is not an outlier, with NaN above every number;
    // whether the row has outliers; and which of this thread's kept values are outliers: bit 4i + j
    // is for value j of group i.
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

    // Values k … k + 3; `otherwise` past the end of the row, or if `from` is null.
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

    // Values k … k + 3, from memory and through the norm or gate.
    __device__ __forceinline__ void compute(u32 k, float (&value)[4]) const {
        load(x, k, value, 0.0f);
        if (source.kind == PLAIN) return;
        float factor[4], offset[4];
        load_constants(k, factor, offset);
        apply(k, value, factor, offset);
    }

    // The factors and offsets of four values.
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

    // Computes the norm's mean and inverse deviation, while `held` still has the plain values.
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

// A row for blocks of 512 threads in kernels that overlap: `load_constants` may be called before
// the kernel waits for earlier ones, `load` only after, then `normalise`. A thread has the groups
// of four values that begin at 4 · (threadIdx.x + 512 i), and keeps the first QUADS of them in
// registers: all values of rows up to 6144. Nothing is kept of rows whose length is not a multiple
// of 4 or that are not aligned for vectors of four values.
constexpr u32 QUADS = 3;

template <class T>
struct QuadRow {
    const T *x, *up;
    const float *weight, *bias;
    u32 cols, kind, quads;  // quads: groups that are kept
    float mean, inverse, eps;
    float held[QUADS][4], factor[QUADS][4], offset[QUADS][4];

    static constexpr u32 THREADS = 512, WARPS = THREADS / WARP;

    __device__ __forceinline__ explicit QuadRow(const Source& source)
        : x(static_cast<const T*>(source.x)),
          up(source.kind == GATED ? static_cast<const T*>(source.up) : nullptr),
          weight(source.weight),
          bias(source.bias),
          cols(source.cols),
          kind(source.kind),
          quads(source.cols % 4 == 0 && is_aligned(x) && is_aligned(up) && is_aligned(weight) && is_aligned(bias) ? QUADS : 0),
          mean(0.0f),
          inverse(1.0f),
          eps(source.eps) {}

    __device__ __forceinline__ void load_constants() {
        load_quads(weight, factor, 1.0f);
        load_quads(bias, offset, 0.0f);
    }

    // All loads are issued before the first use.
    __device__ __forceinline__ void load() {
        load_quads(x, held, 0.0f);
        if (up != nullptr) load_quads(up, factor, 1.0f);
    }

    __device__ __forceinline__ void normalise() {
        if (kind == LAYER_NORM) {
            float sum = 0.0f;
            each_raw([&](float value) { sum += value; });
            __shared__ float parts[WARPS];
            mean = block_reduce_of<WARPS, Sum>(sum, parts) / (float)cols;
        }
        if (kind == LAYER_NORM || kind == RMS_NORM) {
            float squares = 0.0f;
            each_raw([&](float value) { squares += (value - mean) * (value - mean); });
            __shared__ float parts[WARPS];
            inverse = rsqrtf(block_reduce_of<WARPS, Sum>(squares, parts) / (float)cols + eps);
        }
        // Without a norm, mean and inverse are 0 and 1, which leave a gated value unchanged.
        if (kind == PLAIN) return;
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            if (i * THREADS * 4 >= cols) break;
            bool inside = (i * THREADS + threadIdx.x) * 4 < cols;
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                held[i][j] = inside ? (held[i][j] - mean) * inverse * factor[i][j] + offset[i][j] : 0.0f;
        }
    }

    // Value k, even if another thread keeps it.
    __device__ __forceinline__ float operator[](u32 k) const {
        float value = to_float(x[k]);
        if (kind == PLAIN) return value;
        if (kind == GATED) return value * to_float(up[k]);
        value = (value - mean) * inverse * weight[k];
        return bias != nullptr ? value + bias[k] : value;
    }

    // Calls f(k, values k … k + 3) for this thread's groups before `end`, a multiple of 4 that may
    // be past the end of the row, where values are 0.
    template <class F>
    __device__ __forceinline__ void each(u32 end, F f) const {
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            u32 k = (i * THREADS + threadIdx.x) * 4;
            if (i >= quads || i * THREADS * 4 >= end) break;
            if (k < end) f(k, held[i]);
        }
#pragma unroll 1
        for (u32 k = (quads * THREADS + threadIdx.x) * 4; k < end; k += THREADS * 4) {
            float value[4];
            compute(k, value);
            f(k, value);
        }
    }

    // The f16 bits of the smallest outlier. `chunks`: shared memory for a number of each RMS_CHUNK
    // values.
    __device__ __forceinline__ u32 find_limit(const OutlierRule& rule, float* chunks) const {
        if (rule.factor == 0.0f) return rule.limit;
        u32 first = warp_index() * RMS_CHUNK;
        // All lanes of a warp take part in a sum, also those past the end of the row, whose values
        // are 0.
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            u32 k = i * THREADS * 4 + first;
            if (i >= quads || k >= cols) break;
            float sum = sum_of_squares(held[i]);
            if (lane_index() == 0) chunks[k / RMS_CHUNK] = sum;
        }
#pragma unroll 1
        for (u32 k = quads * THREADS * 4 + first; k < cols; k += THREADS * 4) {
            float value[4];
            compute(k + lane_index() * 4, value);
            float sum = sum_of_squares(value);
            if (lane_index() == 0) chunks[k / RMS_CHUNK] = sum;
        }
        __syncthreads();
        return rms_limit(chunks, cols, rule.factor);
    }

private:
    // Values k … k + 3, from memory; 0 past the end of the row.
    __device__ __forceinline__ void compute(u32 k, float (&value)[4]) const {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) value[j] = k + j < cols ? (*this)[k + j] : 0.0f;
    }

    template <class V>
    __device__ __forceinline__ void load_quads(const V* from, float (&to)[QUADS][4], float otherwise) const {
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            u32 k = (i * THREADS + threadIdx.x) * 4;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) to[i][j] = otherwise;
            if (from != nullptr && i < quads && k < cols) load4(from + k, to[i]);
        }
    }

    // Calls f(x) for this thread's values, while `held` still has the plain values.
    template <class F>
    __device__ __forceinline__ void each_raw(F f) const {
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            if (i >= quads || i * THREADS * 4 >= cols) break;
            if ((i * THREADS + threadIdx.x) * 4 >= cols) break;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) f(held[i][j]);
        }
#pragma unroll 1
        for (u32 k = quads * THREADS * 4 + threadIdx.x; k < cols; k += THREADS) f(to_float(x[k]));
    }
};

// The bits of the largest f16 magnitude of a row that is not an outlier, with NaN above every
// number; and whether there are outliers.
template <class T>
DEVICE u32 row_absmax(const QuadRow<T>& row, u32 limit, bool& has_outliers) {
    u32 found = 0;
    row.each(row.cols, [&](u32, const float (&value)[4]) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 magnitude = half_magnitude(__float2half_rn(value[i]));
            found = Magnitudes::of(found, is_outlier(magnitude, limit) ? Magnitudes::OUTLIER : magnitude);
        }
    });
    __shared__ u32 parts[QuadRow<T>::WARPS];
    found = block_reduce_of<QuadRow<T>::WARPS, Magnitudes>(found, parts);
    has_outliers = (found & Magnitudes::OUTLIER) != 0;
    return found & 0xffffu;
}
