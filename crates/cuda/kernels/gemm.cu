// Many rows (prefill): int8 tensor cores, tiles in shared memory, everything else of the layer in the epilogue.
//
// Idea: a block computes TILE_M × TILE_N outputs; codes of 64 k at a time come into shared memory by copies in
// the background, STAGES deep, and go from there to the registers of mma.m16n8k32 by ldmatrix. The epilogue
// multiplies the outliers of the tile, 16 columns at a time, and writes each output once: no i32 matrix is
// ever in device memory (bitsandbytes writes and reads M · N · 4 bytes there).
//
// Layout of a stage: rows of 64 bytes, their four 16-byte chunks permuted by (row / 2) % 4, so that the eight
// rows an ldmatrix reads lie in different banks.
// Any M, N, K: rows beyond the end read as zeros and are not written, K is filled up to 16 by the pitch and to
// 64 by the copies.
// Not here: wgmma, without which Hopper's tensor cores reach about 60 % of their rate by published measurements
// (arXiv 2402.13499). It was not written because it could not be run.
#include "product.cuh"

constexpr u32 STAGES = 4;
constexpr u32 TILE_K = 64;
constexpr u32 OUTLIERS_AT_ONCE = 16;

template <class T, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N>
struct Gemm {
    static constexpr u32 WARPS_N = TILE_N / WARP_N;
    static constexpr u32 THREADS = TILE_M / WARP_M * WARPS_N * WARP;
    static constexpr u32 STAGE_BYTES = (TILE_M + TILE_N) * TILE_K;
    static constexpr u32 HIGH = WARP_M / 16, WIDE = WARP_N / 8;

    static __device__ __forceinline__ unsigned char* place(unsigned char* tile, u32 row, u32 chunk) {
        return tile + row * TILE_K + ((chunk ^ (row / 2 % 4)) * 16);
    }

    // Starts copying the codes k .. k + 64 of `count` rows from `first` on.
    static __device__ __forceinline__ void load(unsigned char* tile, const i8* codes, u32 first, u32 end, u32 count,
                                                u32 pitch, u32 k) {
        for (u32 i = threadIdx.x; i < count * 4; i += THREADS) {
            u32 row = i / 4, chunk = i % 4, column = k + chunk * 16;
            bool inside = first + row < end && column < pitch;
            const i8* from = inside ? codes + (size_t)(first + row) * pitch + column : codes;
            copy_async(place(tile, row, chunk), from, inside);
        }
    }

    static __device__ __forceinline__ void multiply(i32 (&sum)[HIGH][WIDE][4], unsigned char* x, unsigned char* w,
                                                    u32 warp_m, u32 warp_n) {
        u32 lane = lane_index();
#pragma unroll
        for (u32 step = 0; step < TILE_K / 32; ++step) {
            u32 left[HIGH][4], right[WIDE][2];
#pragma unroll
            for (u32 i = 0; i < HIGH; ++i)
                load_matrices(left[i], place(x, warp_m + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (u32 j = 0; j < WIDE; j += 2) {
                u32 words[4];
                load_matrices(words, place(w, warp_n + j * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
                right[j][0] = words[0], right[j][1] = words[1];
                right[j + 1][0] = words[2], right[j + 1][1] = words[3];
            }
#pragma unroll
            for (u32 i = 0; i < HIGH; ++i)
#pragma unroll
                for (u32 j = 0; j < WIDE; ++j) mma_s8(sum[i][j], left[i], right[j]);
        }
    }

    static __device__ __forceinline__ void run(const ProductArgs& a) {
        DYNAMIC_SHARED(shared);
        u32 pitch = a.weight.pitch, n_end = a.weight.out_features;
        u32 tile_m = blockIdx.x * TILE_M, tile_n = blockIdx.y * TILE_N;
        u32 warp_m = warp_index() / WARPS_N * WARP_M, warp_n = warp_index() % WARPS_N * WARP_N;
        u32 steps = (pitch + TILE_K - 1) / TILE_K;
        auto start = [&](u32 step) {
            if (step < steps) {
                unsigned char* stage = shared + step % STAGES * STAGE_BYTES;
                load(stage, a.codes, tile_m, a.rows, TILE_M, pitch, step * TILE_K);
                load(stage + TILE_M * TILE_K, a.weight.codes, tile_n, n_end, TILE_N, pitch, step * TILE_K);
            }
            commit_copies();
        };
        i32 sum[HIGH][WIDE][4] = {};
        for (u32 step = 0; step < STAGES - 1; ++step) start(step);
        for (u32 step = 0; step < steps; ++step) {
            wait_for_copies<STAGES - 2>();
            // Also: every warp is done with the stage that is filled next.
            __syncthreads();
            start(step + STAGES - 1);
            unsigned char* stage = shared + step % STAGES * STAGE_BYTES;
            multiply(sum, stage, stage + TILE_M * TILE_K, warp_m, warp_n);
        }
        wait_for_copies<0>();
        __syncthreads();
        finish_tile(a, sum, tile_m, tile_n, warp_m, warp_n, reinterpret_cast<float*>(shared));
    }

    // Calls f(m, n, i, j, c) for each output of this thread: where it lies, and its place among the sums.
    template <class F>
    static __device__ __forceinline__ void for_outputs(u32 first_m, u32 first_n, F f) {
        u32 g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (u32 i = 0; i < HIGH; ++i)
#pragma unroll
            for (u32 j = 0; j < WIDE; ++j)
#pragma unroll
                for (u32 c = 0; c < 4; ++c) f(first_m + i * 16 + g + c / 2 * 8, first_n + j * 8 + 2 * t + c % 2, i, j, c);
    }

    static __device__ __forceinline__ void finish_tile(const ProductArgs& a, i32 (&sum)[HIGH][WIDE][4], u32 tile_m,
                                                       u32 tile_n, u32 warp_m, u32 warp_n, float* shared) {
        constexpr u32 PITCH = OUTLIERS_AT_ONCE + 1;
        float *x = shared, *w = shared + TILE_M * PITCH;
        u32 n_end = a.weight.out_features, count = *a.count;
        float y[HIGH][WIDE][4];
        for_outputs(tile_m + warp_m, tile_n + warp_n, [&](u32 m, u32 n, u32 i, u32 j, u32 c) {
            bool inside = m < a.rows && n < n_end;
            y[i][j][c] = inside ? dequantize(sum[i][j][c], a.absmax[m], Operands(a.weight, a.epilogue, m, n)) : 0.0f;
        });
        for (u32 first = 0; first < count; first += OUTLIERS_AT_ONCE) {
            u32 here = count - first < OUTLIERS_AT_ONCE ? count - first : OUTLIERS_AT_ONCE;
            for (u32 i = threadIdx.x; i < (TILE_M + TILE_N) * here; i += THREADS) {
                u32 row = i / here, o = i % here, column = a.columns[first + o];
                if (row < TILE_M) {
                    u32 m = tile_m + row;
                    x[row * PITCH + o] = m < a.rows ? outlier_value<T>(a, m, column) : 0.0f;
                } else {
                    u32 n = tile_n + row - TILE_M;
                    float code = n < n_end ? (float)a.weight.codes[(size_t)n * a.weight.pitch + column] : 0.0f;
                    w[(row - TILE_M) * PITCH + o] = n < n_end ? code * (a.weight.absmax[n] * CODE_STEP) : 0.0f;
                }
            }
            __syncthreads();
            for (u32 o = 0; o < here; ++o)
                for_outputs(warp_m, warp_n, [&](u32 m, u32 n, u32 i, u32 j, u32 c) {
                    y[i][j][c] = __fmaf_rn(x[m * PITCH + o], w[n * PITCH + o], y[i][j][c]);
                });
            __syncthreads();
        }
        for_outputs(tile_m + warp_m, tile_n + warp_n, [&](u32 m, u32 n, u32 i, u32 j, u32 c) {
            if (m < a.rows && n < n_end) finish<T>(a.epilogue, Operands(a.epilogue, m, n), m, n, y[i][j][c]);
        });
    }
};

// Large tiles, and small ones for products that would leave multiprocessors without work.
#define GEMM(suffix, T)                                                                 \
    KERNEL(gemm128_##suffix, ProductArgs, 256, 2) { Gemm<T, 128, 128, 64, 32>::run(a); } \
    KERNEL(gemm64_##suffix, ProductArgs, 128, 4) { Gemm<T, 64, 64, 32, 32>::run(a); }

GEMM(f32, float)
GEMM(f16, half)
GEMM(bf16, bf16)
