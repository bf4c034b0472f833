// The product of quantised rows, for any number of them: what thin.cu and gemm.cu share.
#pragma once
#include "epilogue.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

struct ProductArgs {
    const i8* codes;      // [M, pitch]
    const float* absmax;  // [M]
    const void* values;   // [M, value_stride]: what outliers are taken from
    const u32* columns;   // outlier columns, ascending
    const u32* count;     // how many
    Int8Weight weight;
    Epilogue epilogue;
    i32* sums;      // gemm.cu with splits > 1: zeros for each tile, left as zeros
    u32* counters;  // as above, one a tile
    u32 rows, value_stride, limit, by_row, warps_k, splits;
};

// What row m has in an outlier column: with outliers by row nothing where its own value is none.
template <class T>
DEVICE float outlier_value(const ProductArgs& a, u32 m, u32 column) {
    float value = to_float(static_cast<const T*>(a.values)[(size_t)m * a.value_stride + column]);
    bool counts = a.by_row == 0 || is_outlier(half_magnitude(__float2half_rn(value)), a.limit);
    return counts ? value : 0.0f;
}
