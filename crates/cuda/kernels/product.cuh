// The arguments of int8 matmuls, shared by thin.cu, gemm.cu and wgmma.cu.
#pragma once
#include "epilogue.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

struct ProductArgs {
    const i8* codes;      // [M, pitch]
    const float* absmax;  // [M]
    const void* values;   // [M, value_stride]: the float activations, for outliers
    const u32* columns;   // [count] the outlier columns, ascending
    const u32* count;     // [1]
    Int8Weight weight;
    Epilogue epilogue;
    i32* sums;      // with splits > 1, sums of each tile; zeros, reset to zeros
    u32* counters;  // with splits > 1, a counter for each tile; zeros, reset to zeros
    u32 rows, value_stride, limit, by_row, warps_k, splits;
};

// The value of row m in an outlier column. With outliers by row it is 0 if that value itself is not
// an outlier.
template <class T>
DEVICE float outlier_value(const ProductArgs& a, u32 m, u32 column) {
    float value = to_float(static_cast<const T*>(a.values)[(size_t)m * a.value_stride + column]);
    bool counts = a.by_row == 0 || is_outlier(half_magnitude(__float2half_rn(value)), a.limit);
    return counts ? value : 0.0f;
}
