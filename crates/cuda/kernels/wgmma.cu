// Many rows on Hopper (capability 9.0): as gemm.cu, by the tensor cores' instruction that reads its operands from shared
// memory. `mma.sync` reaches two thirds of the rate there.
//
// Idea: two warpgroups, each with 64 rows of activations against the same 128 rows of weights. Codes of 128 k at a time
// come into shared memory by copies in the background, STAGES deep. Two blocks fit on a multiprocessor, so that one
// multiplies while the other fills its first stages or finishes its outputs (tile.cuh).
//
// Order within a step: its codes are there; its products are started; those of the step before are done, in both
// warpgroups; the stage that those have read is filled for a later step, while the tensor cores work.
//
// Layout of a stage: 128 rows of activations and 128 of weights, 128 bytes each, swizzled as ptx.cuh says. 32 KB, of which
// the tensor cores read 48 KB and 32 KB are written in a step of 512 cycles at their full rate: 80 KB where
// shared memory can give 64 in that time, which limits this kernel to four fifths of the rate.
// On other devices the kernels are empty and never launched.
#include "tile.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(LLM_INT8_EMULATION)
template <class T>
DEVICE void wgmma_product(const ProductArgs& a) {
    constexpr u32 SIDE = 128, DEPTH = 128, FILLED = 3, THREADS = 256;
    typedef Tile<T, SIDE, SIDE, THREADS> Finish;
    typedef TileCopy<SIDE, DEPTH / 16, THREADS> Copy;
    constexpr u32 STAGE_BYTES = 2 * Copy::BYTES;
    static_assert(Finish::BYTES <= FILLED * STAGE_BYTES, "the epilogue works in the memory of the stages");

    DYNAMIC_SHARED(unaligned);
    unsigned char* shared = align_tiles(unaligned);
    u32 pitch = a.weight.pitch, warpgroup = threadIdx.x / 128;
    auto swizzle = [](u32 row, u32 chunk) { return chunk ^ row % 8; };
    Copy x(a.codes, pitch, blockIdx.x * SIDE, a.rows, swizzle);
    Copy w(a.weight.codes, pitch, blockIdx.y * SIDE, a.weight.out_features, swizzle);
    StepRange steps((pitch + DEPTH - 1) / DEPTH, a.splits);
    auto start = [&](u32 step) {
        if (step < steps.end) {
            unsigned char* stage = shared + step % FILLED * STAGE_BYTES;
            x.start(stage, step * DEPTH);
            w.start(stage + Copy::BYTES, step * DEPTH);
        }
        commit_copies();
    };
    Finish tile(a);
    i32 sum[64] = {};
#pragma unroll 1
    for (u32 i = 0; i < FILLED - 1; ++i) start(steps.first + i);
#pragma unroll 1
    for (u32 step = steps.first; step < steps.end; ++step) {
        wait_for_copies<FILLED - 2>();
        show_to_tensor_cores();
        __syncthreads();
        unsigned char* stage = shared + step % FILLED * STAGE_BYTES;
        begin_wgmma();
#pragma unroll
        for (u32 i = 0; i < DEPTH / 32; ++i) wgmma_s8(sum, stage + warpgroup * 64 * DEPTH, stage + Copy::BYTES, i);
        commit_wgmma();
        wait_for_wgmma<1>();
        __syncthreads();
        start(step + FILLED - 1);
    }
    wait_for_wgmma<0>();
    use_sums(sum);
    wait_for_copies<0>();
    __syncthreads();

    tile.finish(shared, [&](u32 part) {
        if (warpgroup != part) return;
        u32 row = warp_index() % 4 * 16 + lane_index() / 4, column = lane_index() % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < 64; i += 2) tile.put_pair(row + i / 2 % 2 * 8, column + i / 4 * 8, sum[i], sum[i + 1]);
    });
}
#else
template <class T>
DEVICE void wgmma_product(const ProductArgs&) {}
#endif

KERNEL(wgmma128_f32, ProductArgs, 256, 2) { wgmma_product<float>(a); }
KERNEL(wgmma128_f16, ProductArgs, 256, 2) { wgmma_product<half>(a); }
KERNEL(wgmma128_bf16, ProductArgs, 256, 2) { wgmma_product<bf16>(a); }
