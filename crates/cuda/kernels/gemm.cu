// int8 matmuls of many rows (prefill): tensor cores, tiles in shared memory, the rest of the layer
// in the epilogue.
//
// Idea: a block computes TILE_M × TILE_N outputs. Asynchronous copies bring 64 columns of codes at
// a time into shared memory, STAGES deep (weights of the first stages before the kernel waits for
// earlier ones); ldmatrix loads them into registers for mma.m16n8k32. tile.cuh turns the sums into
// outputs and writes each once. No i32 matrix goes through device memory (bitsandbytes writes and
// reads M · N · 4 bytes there), except for small matmuls with a split K.
//
// Layout of a stage: rows of 64 bytes, whose four 16-byte chunks are permuted by (row / 2) % 4, so
// that the eight rows of an ldmatrix are in different banks. Any M, N and K will do: rows past the
// end read as zeros and are not written; K is padded to 16 by the pitch and to 64 by the copies.
#include "tile.cuh"

constexpr u32 STAGES = 4;
constexpr u32 TILE_K = 64;

template <class T, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N>
struct Gemm {
    static constexpr u32 WARPS_N = TILE_N / WARP_N;
    static constexpr u32 THREADS = TILE_M / WARP_M * WARPS_N * WARP;
    static constexpr u32 STAGE_BYTES = (TILE_M + TILE_N) * TILE_K;
    static constexpr u32 HIGH = WARP_M / 16, WIDE = WARP_N / 8;
    typedef Tile<T, TILE_M, TILE_N, THREADS, 64> Finish;
    static_assert(Finish::BYTES <= STAGES * STAGE_BYTES, "the epilogue works in the memory of the stages");

    static __device__ __forceinline__ u32 swizzle(u32 row, u32 chunk) { return chunk ^ (row / 2 % 4); }
    static __device__ __forceinline__ unsigned char* place(unsigned char* tile, u32 row, u32 chunk) {
        return tile + row * TILE_K + swizzle(row, chunk) * 16;
    }

    static __device__ __forceinline__ void multiply(i32 (&sum)[HIGH][WIDE][4], unsigned char* x, unsigned char* w,
                                                    u32 warp_m, u32 warp_n) {
        u32 lane = lane_index();
#pragma unroll
        for (u32 step = 0; step < TILE_K / 32; ++step) {
            u32 left[HIGH][4];
#pragma unroll
            for (u32 i = 0; i < HIGH; ++i)
                load_matrices(left[i], place(x, warp_m + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (u32 j = 0; j < WIDE; j += 2) {
                u32 words[4];
                load_matrices(words, place(w, warp_n + j * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
                u32 right[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
#pragma unroll
                for (u32 i = 0; i < HIGH; ++i) {
                    mma_s8(sum[i][j], left[i], right[0]);
                    mma_s8(sum[i][j + 1], left[i], right[1]);
                }
            }
        }
    }

    static __device__ __forceinline__ void run(const ProductArgs& a) {
        DYNAMIC_SHARED(shared);
        start_kernels_after();
        u32 pitch = a.weight.pitch, n_end = a.weight.out_features;
        u32 tile_m = blockIdx.x * TILE_M, tile_n = blockIdx.y * TILE_N;
        u32 warp_m = warp_index() / WARPS_N * WARP_M, warp_n = warp_index() % WARPS_N * WARP_N;
        StepRange steps((pitch + TILE_K - 1) / TILE_K, a.splits);
        TileCopy<TILE_M, TILE_K / 16, THREADS> x(a.codes, pitch, tile_m, a.rows, swizzle);
        TileCopy<TILE_N, TILE_K / 16, THREADS> w(a.weight.codes, pitch, tile_n, n_end, swizzle);
        auto start_x = [&](u32 step) {
            if (step < steps.end) x.start(shared + step % STAGES * STAGE_BYTES, step * TILE_K);
        };
        auto start_w = [&](u32 step) {
            if (step < steps.end) w.start(shared + step % STAGES * STAGE_BYTES + x.BYTES, step * TILE_K);
        };
        i32 sum[HIGH][WIDE][4] = {};
#pragma unroll 1
        for (u32 i = 0; i < STAGES - 1; ++i) start_w(steps.first + i);
        wait_for_kernels_before();
        // The copies of weights above belong to the first group committed here.
#pragma unroll 1
        for (u32 i = 0; i < STAGES - 1; ++i) {
            start_x(steps.first + i);
            commit_copies();
        }
        Finish tile(a);
#pragma unroll 1
        for (u32 step = steps.first; step < steps.end; ++step) {
            wait_for_copies<STAGES - 2>();
            // This barrier also means that every warp has read the stage that is refilled next.
            __syncthreads();
            start_x(step + STAGES - 1);
            start_w(step + STAGES - 1);
            commit_copies();
            unsigned char* stage = shared + step % STAGES * STAGE_BYTES;
            multiply(sum, stage, stage + x.BYTES, warp_m, warp_n);
        }
        wait_for_copies<0>();
        __syncthreads();

        typedef i32 Flat[Finish::SUMS];
        tile.finish(shared, reinterpret_cast<Flat&>(sum), tile_m + warp_m < a.rows, [&](u32 part) {
            if (warp_m / 64 != part) return;
            u32 row = warp_m % 64 + lane_index() / 4, column = warp_n + lane_index() % 4 * 2;
#pragma unroll
            for (u32 i = 0; i < HIGH; ++i)
#pragma unroll
                for (u32 j = 0; j < WIDE; ++j)
#pragma unroll
                    for (u32 c = 0; c < 4; c += 2)
                        tile.put_pair(row + i * 16 + c * 4, column + j * 8, sum[i][j][c], sum[i][j][c + 1]);
        });
    }
};

// Large tiles, and small ones for matmuls that would leave multiprocessors idle.
#define GEMM(suffix, T)                                                                              \
    KERNEL_THAT_WAITS(gemm128_##suffix, ProductArgs, 256, 2) { Gemm<T, 128, 128, 64, 32>::run(a); } \
    KERNEL_THAT_WAITS(gemm64_##suffix, ProductArgs, 128, 4) { Gemm<T, 64, 64, 32, 32>::run(a); }

GEMM(f32, float)
GEMM(f16, half)
GEMM(bf16, bf16)
