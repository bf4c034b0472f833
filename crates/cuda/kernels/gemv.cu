// One token (M = 1): from a row of activations to the outputs of an int8 layer in one launch.
//
// Idea: decode is bound by reading weights, N · K bytes, once. What else a layer needs of one row (norm,
// outlier scan, absmax, codes) is a few microseconds of one block and would idle the other multiprocessors, so
// every block does it for itself, out of the second cache, and no launch and no trip through memory lies
// between the norm and the product.
//
// Layout: a block is 8 warps, `warps_k` of which share the same rows of weights, K split among them; each
// holds ROWS rows, so that a lane has ROWS independent 16-byte loads under way (ROWS · 512 bytes a warp).
// Sums are of integers: the order does not matter. Lanes of one warp then share the outliers of a row. Weights are
// under way before anything else is done.
#include "epilogue.cuh"
#include "ptx.cuh"

struct GemvArgs {
    Source source;  // one row
    Int8Weight weight;
    Epilogue epilogue;
    u32 limit, warps_k;
};

constexpr u32 GEMV_WARPS = 8;
constexpr u32 GEMV_ROWS = 4;

// The first 1024 bytes of the warp's share of each of its rows, a line a lane: they travel while the row of
// activations is quantised.
DEVICE void prefetch_gemv(const GemvArgs& a) {
    u32 part = warp_index() % a.warps_k, group = warp_index() / a.warps_k;
    u32 n = (blockIdx.x * (GEMV_WARPS / a.warps_k) + group) * GEMV_ROWS + lane_index() / 8;
    u32 k = part * 1024 + lane_index() % 8 * 128;
    if (n < a.weight.out_features && k < a.weight.pitch) prefetch_line(a.weight.codes + (size_t)n * a.weight.pitch + k);
}

template <class T>
DEVICE void gemv(const GemvArgs& a) {
    DYNAMIC_SHARED(shared);
    __shared__ i32 sums[GEMV_WARPS][GEMV_ROWS];
    i8* codes = reinterpret_cast<i8*>(shared);                 // [pitch]
    u16* columns = reinterpret_cast<u16*>(shared + a.weight.pitch);  // [cols]

    Row<T> row(a.source, 0);
    bool has_outliers;
    float absmax = half_value(row_absmax(row, a.limit, has_outliers));
    float inverse = inverse_step(absmax);
    for (u32 k = threadIdx.x; k < a.weight.pitch; k += blockDim.x) {
        i32 code = 0;
        if (k < row.cols) {
            half rounded = __float2half_rn(row[k]);
            if (!is_outlier(half_magnitude(rounded), a.limit)) code = code_of(rounded, inverse);
        }
        codes[k] = (i8)code;
    }
    u32 count = has_outliers ? list_outliers(row, a.limit, columns) : 0;
    __syncthreads();

    u32 lane = lane_index(), warp = warp_index();
    u32 part = warp % a.warps_k, group = warp / a.warps_k;
    u32 first = (blockIdx.x * (GEMV_WARPS / a.warps_k) + group) * GEMV_ROWS;
    const i8* weights[GEMV_ROWS];
    i32 sum[GEMV_ROWS];
#pragma unroll
    for (u32 r = 0; r < GEMV_ROWS; ++r) {
        u32 n = first + r < a.weight.out_features ? first + r : a.weight.out_features - 1;
        weights[r] = a.weight.codes + (size_t)n * a.weight.pitch;
        sum[r] = 0;
    }
    for (u32 k = (part * WARP + lane) * 16; k < a.weight.pitch; k += a.warps_k * WARP * 16) {
        Words4 w[GEMV_ROWS];
#pragma unroll
        for (u32 r = 0; r < GEMV_ROWS; ++r) w[r] = load_streaming(weights[r] + k);
        Words4 x = load_words(codes + k);
#pragma unroll
        for (u32 r = 0; r < GEMV_ROWS; ++r)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) sum[r] = __dp4a((i32)w[r].word[i], (i32)x.word[i], sum[r]);
    }
#pragma unroll
    for (u32 r = 0; r < GEMV_ROWS; ++r) {
        sum[r] = warp_reduce<Sum>(sum[r]);
        if (lane == 0) sums[warp][r] = sum[r];
    }
    __syncthreads();

    // Each of the warps of a group finishes its share of the group's rows.
    for (u32 r = part; r < GEMV_ROWS; r += a.warps_k) {
        u32 n = first + r;
        if (n >= a.weight.out_features) break;
        i32 all = 0;
        for (u32 w = 0; w < a.warps_k; ++w) all += sums[group * a.warps_k + w][r];
        float absmax_w = a.weight.absmax[n], step = absmax_w * CODE_STEP, apart = 0.0f;
        const i8* weight = a.weight.codes + (size_t)n * a.weight.pitch;
        for (u32 o = lane; o < count; o += WARP) apart += row[columns[o]] * ((float)weight[columns[o]] * step);
        apart = warp_reduce<Sum>(apart);
        if (lane == 0) finish<T>(a.epilogue, 0, n, dequantize(all, absmax, absmax_w, a.epilogue.bias, n) + apart);
    }
}

KERNEL_WITH_PREFETCH(gemv_f32, GemvArgs, 256, 4, prefetch_gemv) { gemv<float>(a); }
KERNEL_WITH_PREFETCH(gemv_f16, GemvArgs, 256, 4, prefetch_gemv) { gemv<half>(a); }
KERNEL_WITH_PREFETCH(gemv_bf16, GemvArgs, 256, 4, prefetch_gemv) { gemv<bf16>(a); }
