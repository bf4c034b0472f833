// One token (M = 1): from a row of activations to the outputs of an int8 layer in one launch.
//
// Idea: decode is bound by reading weights, N · K bytes, once. What else a layer needs of one row (norm,
// outlier scan, absmax, codes) is a few microseconds of one block and would idle the other multiprocessors, so
// every block does it for itself, out of L2, and no launch and no trip through memory lies between the norm and the
// matmul.
//
// Layout: `lanes` threads of a block share a row of weights, a power of two from 16 to 256 that leaves few of them
// without work (plan.rs); each has LOADS independent 16-byte loads under way. A block takes a set of 256 / lanes rows, then
// the set `gridDim.x` further on. Sums are of integers: the order does not matter. The first weights, and everything else
// that no kernel writes, are on their way into L2 before the kernels before this one have ended.
//
// Outliers are a bitmap of their columns in shared memory. The lanes of a row share its words; the activation of
// an outlier is computed again.
#include "epilogue.cuh"
#include "ptx.cuh"
#include "source.cuh"

struct GemvArgs {
    Source source;  // one row
    Int8Weight weight;
    Epilogue epilogue;
    u32 limit, lanes;
};

constexpr u32 GEMV_THREADS = 256;
constexpr u32 GEMV_LOADS = 5;
// Lines of weights that a thread fetches early, at most.
constexpr u32 GEMV_LINES = 4;

// The weights of the norm; then the rows of this block, set by set, with their scales and biases.
DEVICE void prefetch_gemv(const GemvArgs& a) {
    prefetch_source(a.source);
    u32 rows = GEMV_THREADS / a.lanes, lane = threadIdx.x % a.lanes, left = GEMV_LINES;
    for (u32 first = blockIdx.x * rows; first < a.weight.out_features && left > 0; first += gridDim.x * rows) {
        u32 n = first + threadIdx.x / a.lanes;
        if (n >= a.weight.out_features) return;
        if (lane == 0) {
            prefetch_line(a.weight.absmax + n);
            if (a.epilogue.bias != nullptr) prefetch_line(a.epilogue.bias + n);
        }
        const i8* weight = a.weight.codes + (size_t)n * a.weight.pitch;
        for (u32 k = lane * 128; k < a.weight.pitch && left > 0; k += a.lanes * 128, --left) prefetch_line(weight + k);
    }
}

// The sum of codes of this thread's share of a weight row.
DEVICE i32 dot_codes(const i8* weight, const i8* codes, u32 lane, u32 lanes, u32 pitch) {
    i32 sum = 0;
    for (u32 k = lane * 16; k < pitch; k += GEMV_LOADS * lanes * 16) {
        Words4 w[GEMV_LOADS];
#pragma unroll
        for (u32 i = 0; i < GEMV_LOADS; ++i) {
            u32 at = k + i * lanes * 16;
            w[i] = at < pitch ? load_streaming(weight + at) : Words4{{0, 0, 0, 0}};
        }
#pragma unroll
        for (u32 i = 0; i < GEMV_LOADS; ++i) {
            u32 at = k + i * lanes * 16;
            if (at >= pitch) break;
            Words4 x = load_words(codes + at);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sum = __dp4a((i32)w[i].word[j], (i32)x.word[j], sum);
        }
    }
    return sum;
}

template <class T>
DEVICE void gemv(const GemvArgs& a) {
    DYNAMIC_SHARED(shared);
    __shared__ i32 sums[GEMV_THREADS / WARP];
    i8* codes = reinterpret_cast<i8*>(shared);                              // [pitch]
    u32* outliers = reinterpret_cast<u32*>(shared + a.weight.pitch);  // [ceil(cols / 32)], a bit a column
    u32 words = (a.source.cols + WARP - 1) / WARP;

    Row<T> row(a.source, 0);
    bool has_outliers;
    float absmax = half_value(row_absmax(row, a.limit, has_outliers));
    float inverse = inverse_step(absmax);
    row.each(a.weight.pitch, [&](u32 k, float value) {
        half rounded = __float2half_rn(value);
        bool apart = k < row.cols && is_outlier(half_magnitude(rounded), a.limit);
        if (k < a.weight.pitch) codes[k] = apart ? (i8)0 : (i8)code_of(rounded, inverse);
        if (has_outliers) {
            u32 ballot = __ballot_sync(EVERY_LANE, apart);
            if (lane_index() == 0 && k < row.cols) outliers[k / WARP] = ballot;
        }
    });
    __syncthreads();

    u32 lanes = a.lanes, lane = threadIdx.x % lanes, rows = GEMV_THREADS / lanes;
    u32 together = lanes < WARP ? lanes : WARP;
    for (u32 first = blockIdx.x * rows; first < a.weight.out_features; first += gridDim.x * rows) {
        u32 n = first + threadIdx.x / lanes;
        bool inside = n < a.weight.out_features;
        if (!inside) n = a.weight.out_features - 1;
        const i8* weight = a.weight.codes + (size_t)n * a.weight.pitch;
        Operands operands(a.weight, a.epilogue, 0, n);

        i32 sum = lanes_reduce<Sum>(dot_codes(weight, codes, lane, lanes, a.weight.pitch), together);
        if (lanes > WARP) {
            // Warps of a row join their sums; the barrier after that is for the next set of rows.
            if (lane_index() == 0) sums[warp_index()] = sum;
            __syncthreads();
            u32 warps = lanes / WARP, first_warp = warp_index() / warps * warps;
            sum = 0;
            for (u32 w = 0; w < warps; ++w) sum += sums[first_warp + w];
            __syncthreads();
            if (lane >= WARP) continue;
        }

        float apart = 0.0f;
        if (has_outliers) {
            float step = operands.absmax * CODE_STEP;
            for (u32 w = lane; w < words; w += together)
                for (u32 bits = outliers[w]; bits != 0; bits &= bits - 1) {
                    u32 column = w * WARP + __ffs(bits) - 1;
                    apart += row[column] * ((float)weight[column] * step);
                }
            apart = lanes_reduce<Sum>(apart, together);
        }
        if (lane == 0 && inside)
            finish<T>(a.epilogue, operands, 0, n, dequantize(sum, absmax, operands) + apart);
    }
}

KERNEL_WITH_PREFETCH(gemv_f32, GemvArgs, 256, 4, prefetch_gemv) { gemv<float>(a); }
KERNEL_WITH_PREFETCH(gemv_f16, GemvArgs, 256, 4, prefetch_gemv) { gemv<half>(a); }
KERNEL_WITH_PREFETCH(gemv_bf16, GemvArgs, 256, 4, prefetch_gemv) { gemv<bf16>(a); }
