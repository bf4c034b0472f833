// Rows of activations as a product reads them: as they lie, through a norm, or gated. The value is made again
// whenever it is looked at, which costs a few operations and saves a trip through memory.
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

// One row; the statistics of a norm are the whole block's work.
template <class T>
struct Row {
    const T *x, *up;
    const float *weight, *bias;
    u32 cols, kind;
    float mean, inverse;

    __device__ __forceinline__ Row(const Source& source, u32 row)
        : x(static_cast<const T*>(source.x) + (size_t)row * source.stride),
          up(source.kind == GATED ? static_cast<const T*>(source.up) + (size_t)row * source.stride : nullptr),
          weight(source.weight),
          bias(source.bias),
          cols(source.cols),
          kind(source.kind),
          mean(0.0f),
          inverse(1.0f) {
        if (kind == LAYER_NORM) {
            float sum = 0.0f;
            for (u32 k = threadIdx.x; k < cols; k += blockDim.x) sum += to_float(x[k]);
            mean = block_reduce<Sum>(sum) / (float)cols;
        }
        if (kind == LAYER_NORM || kind == RMS_NORM) {
            float squares = 0.0f;
            for (u32 k = threadIdx.x; k < cols; k += blockDim.x) {
                float centred = to_float(x[k]) - mean;
                squares += centred * centred;
            }
            inverse = rsqrtf(block_reduce<Sum>(squares) / (float)cols + source.eps);
        }
    }

    __device__ __forceinline__ float operator[](u32 k) const {
        float value = to_float(x[k]);
        if (kind == PLAIN) return value;
        if (kind == GATED) return value * to_float(up[k]);
        value = (value - mean) * inverse * weight[k];
        return bias != nullptr ? value + bias[k] : value;
    }
};

// The largest f16 magnitude of a row that is no outlier, as its bits, and whether there are outliers. NaN
// wins over every number.
template <class T>
DEVICE u32 row_absmax(const Row<T>& row, u32 limit, bool& has_outliers) {
    u32 largest = 0, found = 0;
    for (u32 k = threadIdx.x; k < row.cols; k += blockDim.x) {
        u32 magnitude = half_magnitude(__float2half_rn(row[k]));
        bool apart = is_outlier(magnitude, limit);
        found |= apart;
        if (!apart && magnitude > largest) largest = magnitude;
    }
    // One reduction for both: 15 bits of magnitude and one above.
    u32 all = block_reduce<Max>(largest);
    has_outliers = block_reduce<Max>(found) != 0;
    return all;
}
