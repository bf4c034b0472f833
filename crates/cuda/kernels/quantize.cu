// Activations: which are outliers, absmax over the rest, codes; no host takes part.
//
// One block a row and one launch for one row. With several rows the columns of outliers of all rows are needed
// first: `quantize` marks them in a bitmap, `collect` makes the list of them.
//
// Bytes: x is read two to four times, but only once from device memory (a row is at most some 100 KB and stays
// in the caches); codes are written once, a quarter of an f32 row.
#include "source.cuh"

struct QuantizeArgs {
    Source source;
    i8* codes;      // [M, pitch]
    float* absmax;  // [M]
    float* values;  // [M, cols] or null: the values themselves, where `source` does not lie like that
    u32* flags;     // [ceil(cols / 32)] zeros: a bit for each outlier column
    u32* columns;   // [cols]: of one row, the outlier columns, ascending
    u32* count;     // [1]
    u32 rows, pitch, limit;
    u32 padding;
};

// The outlier columns of a row, ascending, into `columns`; the same for every thread.
template <class T, class Column>
DEVICE u32 list_outliers(const Row<T>& row, u32 limit, Column* columns) {
    u32 count = 0;
    for (u32 first = 0; first < row.cols; first += blockDim.x) {
        u32 k = first + threadIdx.x, found;
        bool apart = k < row.cols && is_outlier(half_magnitude(__float2half_rn(row[k])), limit);
        u32 place = count + block_rank(apart, found);
        if (apart) columns[place] = (Column)k;
        count += found;
    }
    return count;
}

template <class T>
DEVICE void quantize(const QuantizeArgs& a) {
    u32 m = blockIdx.x;
    Row<T> row(a.source, m);
    bool has_outliers;
    float absmax = half_value(row_absmax(row, a.limit, has_outliers));
    float inverse = inverse_step(absmax);
    i8* codes = a.codes + (size_t)m * a.pitch;
    for (u32 k = threadIdx.x; k < a.pitch; k += blockDim.x) {
        i32 code = 0;
        if (k < row.cols) {
            float value = row[k];
            half rounded = __float2half_rn(value);
            if (a.values != nullptr) a.values[(size_t)m * row.cols + k] = value;
            if (!is_outlier(half_magnitude(rounded), a.limit)) {
                code = code_of(rounded, inverse);
            } else if (a.rows > 1) {
                atomicOr(&a.flags[k / 32], 1u << (k % 32));
            }
        }
        codes[k] = (i8)code;
    }
    if (threadIdx.x == 0) a.absmax[m] = absmax;
    if (a.rows == 1) {
        u32 count = has_outliers ? list_outliers(row, a.limit, a.columns) : 0;
        if (threadIdx.x == 0) *a.count = count;
    }
}

KERNEL(quantize_f32, QuantizeArgs, 1024, 1) { quantize<float>(a); }
KERNEL(quantize_f16, QuantizeArgs, 1024, 1) { quantize<half>(a); }
KERNEL(quantize_bf16, QuantizeArgs, 1024, 1) { quantize<bf16>(a); }

struct CollectArgs {
    i8* codes;         // [M, pitch]
    const u32* flags;  // [ceil(cols / 32)]
    u32* columns;      // [cols]
    u32* count;        // [1]
    u32 cols, pitch, by_row;
    u32 padding;
};

// The list of the columns marked, ascending; with outliers of the whole batch their codes become 0 in every
// row (a block each), with outliers by row they stay.
KERNEL(collect, CollectArgs, 256, 8) {
    i8* codes = a.codes + (size_t)blockIdx.x * a.pitch;
    u32 count = 0;
    for (u32 first = 0; first < a.cols; first += blockDim.x) {
        u32 k = first + threadIdx.x, found;
        bool apart = k < a.cols && (a.flags[k / 32] >> (k % 32) & 1);
        u32 place = count + block_rank(apart, found);
        if (apart && blockIdx.x == 0) a.columns[place] = k;
        if (apart && a.by_row == 0) codes[k] = 0;
        count += found;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) *a.count = count;
}
