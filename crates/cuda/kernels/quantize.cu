// Activations: which are outliers, absmax over the rest, codes; no host takes part.
//
// One block a row and one launch for one row. With several rows the columns of outliers of all rows are needed
// first: `quantize` marks them in a bitmap, `collect` makes the list of them.
//
// Bytes: up to 4096 values a row, x is read once; of longer rows the rest is read two to four times, but only once from
// device memory, as it stays in the caches. Codes are written once, a quarter of an f32 row.
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
    row.each(a.pitch, [&](u32 k, float value) {
        half rounded = __float2half_rn(value);
        bool apart = k < row.cols && is_outlier(half_magnitude(rounded), a.limit);
        if (k < row.cols && a.values != nullptr) a.values[(size_t)m * row.cols + k] = value;
        if (k < a.pitch) codes[k] = apart ? (i8)0 : (i8)code_of(rounded, inverse);
        if (has_outliers && a.rows > 1) {
            u32 ballot = __ballot_sync(EVERY_LANE, apart);
            if (ballot != 0 && lane_index() == 0) atomicOr(&a.flags[k / 32], ballot);
        }
    });
    if (threadIdx.x == 0) a.absmax[m] = absmax;
    if (a.rows == 1) {
        u32 count = has_outliers ? list_outliers(row, a.limit, a.columns) : 0;
        if (threadIdx.x == 0) *a.count = count;
    }
}

DEVICE void prefetch_quantize(const QuantizeArgs& a) { prefetch_source(a.source); }

KERNEL_WITH_PREFETCH(quantize_f32, QuantizeArgs, 512, 1, prefetch_quantize) { quantize<float>(a); }
KERNEL_WITH_PREFETCH(quantize_f16, QuantizeArgs, 512, 1, prefetch_quantize) { quantize<half>(a); }
KERNEL_WITH_PREFETCH(quantize_bf16, QuantizeArgs, 512, 1, prefetch_quantize) { quantize<bf16>(a); }

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
