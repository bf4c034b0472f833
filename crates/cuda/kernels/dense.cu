// Products with float weights: the head, and layers that are not int8. f32 arithmetic, weights as stored.
//
// A few rows: a warp holds ROWS rows of weights and reads them once for up to TOKENS rows of activations; with one
// row four of them, so that enough loads are under way (64 bytes a lane), else two. Many rows:
// tiles of 64 × 64 in shared memory, plain multiply-adds (this is not what the crate is for).
#include "epilogue.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

struct DenseArgs {
    const float* x;      // [M, x_stride]
    const void* weight;  // [N, pitch], pitch a multiple of 16 bytes, zeros from K on
    Epilogue epilogue;
    u32 rows, out_features, in_features, x_stride, pitch;
    u32 padding;
};

constexpr u32 DENSE_WARPS = 8;

// The first lines of each of the warp's rows, a line a lane.
template <class W, u32 ROWS>
DEVICE void prefetch_dense(const DenseArgs& a) {
    constexpr u32 LINES = WARP / ROWS, VALUES = 128 / sizeof(W);
    u32 n = (blockIdx.x * DENSE_WARPS + warp_index()) * ROWS + lane_index() / LINES;
    u32 k = lane_index() % LINES * VALUES;
    if (n < a.out_features && k < a.pitch) prefetch_line(static_cast<const W*>(a.weight) + (size_t)n * a.pitch + k);
}

template <class W, u32 ROWS, u32 TOKENS>
DEVICE void dense_thin(const DenseArgs& a) {
    constexpr u32 VALUES = 16 / sizeof(W);
    u32 lane = lane_index(), last = a.out_features - 1;
    u32 first = (blockIdx.x * DENSE_WARPS + warp_index()) * ROWS, first_m = blockIdx.y * TOKENS;
    float sum[ROWS][TOKENS] = {};
    for (u32 k = lane * VALUES; k < a.pitch; k += WARP * VALUES) {
        Words4 words[ROWS];
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            u32 n = first + r < last ? first + r : last;
            words[r] = load_streaming(static_cast<const W*>(a.weight) + (size_t)n * a.pitch + k);
        }
#pragma unroll
        for (u32 m = 0; m < TOKENS; ++m) {
            if (first_m + m >= a.rows) break;
            const float* x = a.x + (size_t)(first_m + m) * a.x_stride;
#pragma unroll
            for (u32 i = 0; i < VALUES; ++i) {
                float value = k + i < a.in_features ? x[k + i] : 0.0f;
#pragma unroll
                for (u32 r = 0; r < ROWS; ++r) {
                    W weight = reinterpret_cast<const W*>(&words[r])[i];
                    sum[r][m] = __fmaf_rn(value, to_float(weight), sum[r][m]);
                }
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
#pragma unroll
        for (u32 m = 0; m < TOKENS; ++m) {
            if (first_m + m >= a.rows) break;
            float y = warp_reduce<Sum>(sum[r][m]);
            u32 n = first + r;
            if (lane != 0 || n > last) continue;
            if (a.epilogue.bias != nullptr) y += a.epilogue.bias[n];
            finish<float>(a.epilogue, first_m + m, n, y);
        }
}

constexpr u32 DENSE_TILE = 64;
constexpr u32 DENSE_DEPTH = 16;

template <class W>
DEVICE void dense_tile(const DenseArgs& a) {
    __shared__ float x[DENSE_DEPTH][DENSE_TILE + 4], w[DENSE_DEPTH][DENSE_TILE + 4];
    u32 tile_m = blockIdx.y * DENSE_TILE, tile_n = blockIdx.x * DENSE_TILE;
    u32 row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    for (u32 k = 0; k < a.in_features; k += DENSE_DEPTH) {
        for (u32 i = threadIdx.x; i < DENSE_TILE * DENSE_DEPTH; i += blockDim.x) {
            u32 r = i / DENSE_DEPTH, d = i % DENSE_DEPTH, m = tile_m + r, n = tile_n + r;
            bool inside = k + d < a.in_features;
            x[d][r] = inside && m < a.rows ? a.x[(size_t)m * a.x_stride + k + d] : 0.0f;
            w[d][r] = inside && n < a.out_features
                          ? to_float(static_cast<const W*>(a.weight)[(size_t)n * a.pitch + k + d])
                          : 0.0f;
        }
        __syncthreads();
        for (u32 d = 0; d < DENSE_DEPTH; ++d)
#pragma unroll
            for (u32 i = 0; i < 4; ++i)
#pragma unroll
                for (u32 j = 0; j < 4; ++j) sum[i][j] = __fmaf_rn(x[d][row + i], w[d][column + j], sum[i][j]);
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            u32 m = tile_m + row + i, n = tile_n + column + j;
            if (m >= a.rows || n >= a.out_features) continue;
            float y = a.epilogue.bias != nullptr ? sum[i][j] + a.epilogue.bias[n] : sum[i][j];
            finish<float>(a.epilogue, m, n, y);
        }
}

#define DENSE(suffix, W)                                                 \
    KERNEL_WITH_PREFETCH(dense_one_##suffix, DenseArgs, 256, 4, (prefetch_dense<W, 4>)) { dense_thin<W, 4, 1>(a); } \
    KERNEL_WITH_PREFETCH(dense_thin_##suffix, DenseArgs, 256, 3, (prefetch_dense<W, 2>)) { dense_thin<W, 2, 8>(a); } \
    KERNEL(dense_tile_##suffix, DenseArgs, 256, 4) { dense_tile<W>(a); }

DENSE(f32, float)
DENSE(f16, half)
DENSE(bf16, bf16)
