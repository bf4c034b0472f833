// Rows of activations as a linear layer reads them: as they lie, through a norm, or gated. A thread keeps the first
// HELD of its values in registers; what lies beyond is computed again whenever it is needed, which costs a few
// operations and saves a trip through memory.
#pragma once
#include "reduce.cuh"

enum SourceKind : u32 { PLAIN = 0, LAYER_NORM = 1, RMS_NORM = 2, GATED = 3 };

struct Source {
    const void* x;        // [M, stride], of which `cols` count
    const void* up;       // GATED: what x is multiplied with, [M, stride]
    const float* weight;  // norms: [cols]
    const float* bias;    // LAYER_NORM: [cols] or null
    u32 stride, cols, kind;
    float eps;
};

// Brings the weights of a norm into L2.
DEVICE void prefetch_source(const Source& source) {
    if (source.weight == nullptr) return;
    constexpr u32 LINE = 128 / sizeof(float);
    for (u32 k = threadIdx.x * LINE; k < source.cols; k += blockDim.x * LINE) {
        prefetch_line(source.weight + k);
        if (source.bias != nullptr) prefetch_line(source.bias + k);
    }
}

// Values of a row that a thread keeps: 2048 of a row with 256 threads, 4096 with 512.
constexpr u32 HELD = 8;

// One row; every thread of the block makes its own, and the statistics of a norm are the whole block's work. Value k of
// the row is thread k % blockDim.x's.
template <class T>
struct Row {
    const T *x, *up;
    const float *weight, *bias;
    u32 cols, kind;
    float mean, inverse;
    float held[HELD];

    __device__ __forceinline__ Row(const Source& source, u32 row)
        : x(static_cast<const T*>(source.x) + (size_t)row * source.stride),
          up(source.kind == GATED ? static_cast<const T*>(source.up) + (size_t)row * source.stride : nullptr),
          weight(source.weight),
          bias(source.bias),
          cols(source.cols),
          kind(source.kind),
          mean(0.0f),
          inverse(1.0f) {
        // All loads before the first use, those of the norm's weights too: they arrive together.
        float factor[HELD], offset[HELD];
#pragma unroll
        for (u32 i = 0; i < HELD; ++i) {
            u32 k = i * blockDim.x + threadIdx.x;
            held[i] = k < cols ? to_float(x[k]) : 0.0f;
            factor[i] = k < cols && weight != nullptr ? weight[k] : 1.0f;
            offset[i] = k < cols && bias != nullptr ? bias[k] : 0.0f;
            if (k < cols && up != nullptr) factor[i] = to_float(up[k]);
        }
        if (kind == LAYER_NORM) {
            float sum = 0.0f;
            each_raw([&](float value) { sum += value; });
            __shared__ float parts[32];
            mean = block_reduce<Sum>(sum, parts) / (float)cols;
        }
        if (kind == LAYER_NORM || kind == RMS_NORM) {
            float squares = 0.0f;
            each_raw([&](float value) { squares += (value - mean) * (value - mean); });
            __shared__ float parts[32];
            inverse = rsqrtf(block_reduce<Sum>(squares, parts) / (float)cols + source.eps);
        }
        // Of what is not normed, mean and inverse are 0 and 1, and a value stays as it is.
#pragma unroll
        for (u32 i = 0; i < HELD; ++i) {
            u32 k = i * blockDim.x + threadIdx.x;
            if (k < cols) held[i] = (held[i] - mean) * inverse * factor[i] + offset[i];
        }
    }

    // Value k, of any thread.
    __device__ __forceinline__ float operator[](u32 k) const {
        float value = to_float(x[k]);
        if (kind == PLAIN) return value;
        if (kind == GATED) return value * to_float(up[k]);
        value = (value - mean) * inverse * weight[k];
        return bias != nullptr ? value + bias[k] : value;
    }

    // Calls f(k, value) for the values of this thread up to `end`, which may lie past the row, where they are 0. Lanes of a
    // warp have neighbouring k and make the same calls.
    template <class F>
    __device__ __forceinline__ void each(u32 end, F f) const {
        u32 first = threadIdx.x - lane_index();
#pragma unroll
        for (u32 i = 0; i < HELD; ++i)
            if (i * blockDim.x + first < end) f(i * blockDim.x + threadIdx.x, held[i]);
        for (u32 base = HELD * blockDim.x + first; base < end; base += blockDim.x) {
            u32 k = base + lane_index();
            f(k, k < cols ? (*this)[k] : 0.0f);
        }
    }

private:
    // Calls f(x) for the values of this thread, while `held` has them as they lie.
    template <class F>
    __device__ __forceinline__ void each_raw(F f) const {
#pragma unroll
        for (u32 i = 0; i < HELD; ++i)
            if (i * blockDim.x + threadIdx.x < cols) f(held[i]);
        for (u32 k = HELD * blockDim.x + threadIdx.x; k < cols; k += blockDim.x) f(to_float(x[k]));
    }
};

// The same row for blocks of 512 threads that start early: `load_constants` may come before the kernels before are waited for,
// `load` after; then `normalise`. A thread has the values 4 · (threadIdx.x + 512 i) … + 3, the first QUADS groups of them in
// registers: rows of up to 6144 values. Rows that are not a multiple of 4 long, or that lie where four values cannot be
// loaded together, are not kept at all.
constexpr u32 QUADS = 3;

template <class T>
struct QuadRow {
    const T *x, *up;
    const float *weight, *bias;
    u32 cols, kind, quads;  // quads: that are kept
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

    // All loads come before the first use.
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
        // Of what is not normed, mean and inverse are 0 and 1, and a value stays as it is.
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

    // Value k, of any thread.
    __device__ __forceinline__ float operator[](u32 k) const {
        float value = to_float(x[k]);
        if (kind == PLAIN) return value;
        if (kind == GATED) return value * to_float(up[k]);
        value = (value - mean) * inverse * weight[k];
        return bias != nullptr ? value + bias[k] : value;
    }

    // Calls f(k, values k … k + 3) for this thread's groups up to `end`, a multiple of 4 which may lie past the row, where
    // values are 0.
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
#pragma unroll
            for (u32 j = 0; j < 4; ++j) value[j] = k + j < cols ? (*this)[k + j] : 0.0f;
            f(k, value);
        }
    }

private:
    template <class V>
    static __device__ __forceinline__ bool is_aligned(const V* p) {
        return (reinterpret_cast<u64>(p) & (sizeof(V) * 4 - 1)) == 0;
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

    // Calls f(x) for the values of this thread, while `held` has them as they lie.
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

// The largest f16 magnitude of a row that is no outlier, in 15 bits, and above them whether there are outliers.
struct Magnitudes {
    static constexpr u32 OUTLIER = 1u << 16;

    static __device__ __forceinline__ u32 of(u32 x, u32 y) {
        u32 low_x = x & 0xffffu, low_y = y & 0xffffu;
        return (low_x > low_y ? low_x : low_y) | ((x | y) & OUTLIER);
    }
};

// The bits of the largest f16 magnitude of a row that is no outlier, and whether there are outliers. NaN wins over
// every number.
template <class T>
DEVICE u32 row_absmax(const Row<T>& row, u32 limit, bool& has_outliers) {
    u32 found = 0;
    row.each(row.cols, [&](u32, float value) {
        u32 magnitude = half_magnitude(__float2half_rn(value));
        found = Magnitudes::of(found, is_outlier(magnitude, limit) ? Magnitudes::OUTLIER : magnitude);
    });
    __shared__ u32 parts[32];
    found = block_reduce<Magnitudes>(found, parts);
    has_outliers = (found & Magnitudes::OUTLIER) != 0;
    return found & 0xffffu;
}

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
