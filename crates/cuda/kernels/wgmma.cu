// int8 matmuls of many rows on Hopper (capability 9.0): like gemm.cu, but with wgmma, which reads
// its operands from shared memory. `mma.sync` reaches only two thirds of the rate there.
//
// Idea: one, two or four warpgroups, each with 64 rows of activations, and all with the same 128
// rows of weights. Asynchronous copies bring 128 columns of codes at a time into shared memory,
// FILLED stages deep; weights of the first stages before the kernel waits for earlier ones. With
// tiles of 128 rows, two blocks fit on a multiprocessor, so that one multiplies while the other
// fills its first stages or finishes its outputs (tile.cuh). Tiles of 256 rows are for large
// matmuls, which L2 limits: they read a quarter less from it. When there are no more blocks than
// multiprocessors, each block has one to itself and as many stages as fit: `wgmma64` and
// `wgmma128_deep`.
//
// Order within a step: wait for its codes; start its wgmma; wait until those of the previous step
// are done, in all warpgroups; refill the stage that those have read, while the tensor cores work.
//
// Layout of a stage: rows of activations and 128 rows of weights, 128 bytes each, swizzled as
// described in ptx.cuh. A step with 128 rows writes 32 KB to shared memory and reads 48 KB, in 512
// cycles at the tensor cores' full rate, in which shared memory can deliver 64 KB; with 256 rows it
// is 48 and 96 KB in 1024 cycles, with 128 KB possible. L2 delivers about 25 KB to each
// multiprocessor in 1024 cycles. On other devices the kernels are empty and never launched.
#include "tile.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(LLM_INT8_EMULATION)
template <class T, u32 WARPGROUPS, u32 FILLED>
DEVICE void wgmma_matmul(const ProductArgs& a) {
    constexpr u32 TILE_M = 64 * WARPGROUPS, TILE_N = 128, DEPTH = 128, THREADS = 128 * WARPGROUPS;
    typedef Tile<T, TILE_M, TILE_N, THREADS> Finish;
    typedef TileCopy<TILE_M, DEPTH / 16, THREADS> CopyX;
    typedef TileCopy<TILE_N, DEPTH / 16, THREADS> CopyW;
    constexpr u32 STAGE_BYTES = CopyX::BYTES + CopyW::BYTES;
    static_assert(Finish::BYTES <= FILLED * STAGE_BYTES, "the epilogue works in the memory of the stages");

    DYNAMIC_SHARED(unaligned);
    start_kernels_after();
    unsigned char* shared = align_tiles(unaligned);
    u32 pitch = a.weight.pitch, warpgroup = threadIdx.x / 128;
    auto swizzle = [](u32 row, u32 chunk) { return chunk ^ row % 8; };
    CopyX x(a.codes, pitch, blockIdx.x * TILE_M, a.rows, swizzle);
    CopyW w(a.weight.codes, pitch, blockIdx.y * TILE_N, a.weight.out_features, swizzle);
    StepRange steps((pitch + DEPTH - 1) / DEPTH, a.splits);
    auto start_x = [&](u32 step) {
        if (step < steps.end) x.start(shared + step % FILLED * STAGE_BYTES, step * DEPTH);
    };
    auto start_w = [&](u32 step) {
        if (step < steps.end) w.start(shared + step % FILLED * STAGE_BYTES + CopyX::BYTES, step * DEPTH);
    };
    i32 sum[64] = {};
#pragma unroll 1
    for (u32 i = 0; i < FILLED - 1; ++i) start_w(steps.first + i);
    wait_for_kernels_before();
    // The copies of weights above belong to the first group committed here.
#pragma unroll 1
    for (u32 i = 0; i < FILLED - 1; ++i) {
        start_x(steps.first + i);
        commit_copies();
    }
    Finish tile(a);
#pragma unroll 1
    for (u32 step = steps.first; step < steps.end; ++step) {
        wait_for_copies<FILLED - 2>();
        show_to_tensor_cores();
        __syncthreads();
        unsigned char* stage = shared + step % FILLED * STAGE_BYTES;
        begin_wgmma();
#pragma unroll
        for (u32 i = 0; i < DEPTH / 32; ++i) wgmma_s8(sum, stage + warpgroup * 64 * DEPTH, stage + CopyX::BYTES, i);
        commit_wgmma();
        wait_for_wgmma<1>();
        __syncthreads();
        start_x(step + FILLED - 1);
        start_w(step + FILLED - 1);
        commit_copies();
    }
    wait_for_wgmma<0>();
    use_sums(sum);
    wait_for_copies<0>();
    __syncthreads();

    u32 row = warp_index() * 16;
    tile.finish(shared, sum, blockIdx.x * TILE_M + row < a.rows, [&](u32) {
        u32 first = row + lane_index() / 4, column = lane_index() % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < 64; i += 2) tile.put_pair(first + i / 2 % 2 * 8, column + i / 4 * 8, sum[i], sum[i + 1]);
    });
}
#else
template <class T, u32 WARPGROUPS, u32 FILLED>
DEVICE void wgmma_matmul(const ProductArgs&) {}
#endif

#define WGMMA(suffix, T)                                                                                  \
    KERNEL_THAT_WAITS(wgmma64_##suffix, ProductArgs, 128, 1) { wgmma_matmul<T, 1, 8>(a); }       \
    KERNEL_THAT_WAITS(wgmma128_##suffix, ProductArgs, 256, 2) { wgmma_matmul<T, 2, 3>(a); }      \
    KERNEL_THAT_WAITS(wgmma128_deep_##suffix, ProductArgs, 256, 1) { wgmma_matmul<T, 2, 6>(a); } \
    KERNEL_THAT_WAITS(wgmma256_##suffix, ProductArgs, 512, 1) { wgmma_matmul<T, 4, 4>(a); }

WGMMA(f32, float)
WGMMA(f16, half)
WGMMA(bf16, bf16)
