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
    const u32* limits;    // [M]: the f16 bits of each row's smallest outlier; null: for the batch
    Int8Weight weight;
    Epilogue epilogue;
    i32* sums;      // with splits > 1, sums of each tile; zeros, reset to zeros
    u32* counters;  // with splits > 1, a counter for each tile; zeros, reset to zeros
    u32 rows, value_stride, warps_k, splits;
};

// Whether a value of row m in an outlier column is multiplied in floats. With outliers by row, only if
// it is an outlier itself.
DEVICE bool is_outlier_of(const ProductArgs& a, u32 m, float value) {
    return a.limits == nullptr || is_outlier(half_magnitude(__float2half_rn(value)), a.limits[m]);
}

// The value of row m in an outlier column; 0 if it is not multiplied in floats.
template <class T>
DEVICE float outlier_value(const ProductArgs& a, u32 m, u32 column) {
    float value = to_float(static_cast<const T*>(a.values)[(size_t)m * a.value_stride + column]);
    return is_outlier_of(a, m, value) ? value : 0.0f;
}
