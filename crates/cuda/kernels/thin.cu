// int8 matmuls of a few rows (M = 1 … 16): weights are read once and multiplied on tensor cores.
//
// Idea: the operands of mma.m16n8k32 are swapped: its 16 rows are weights, its 8 columns
// activations. A sum over k may be taken in any order, so a lane loads 16 adjacent bytes of a
// weight row, and the same of an activation row, and passes them as the k of two instructions. That
// way loads are 16 bytes wide, and 4 lanes read 64 contiguous bytes.
//
// Layout: a block has 8 warps, of which `warps_k` share 16 rows of weights and split K. Each lane
// copies the weights it needs to its own place in shared memory, THIN_STAGES steps of 64 columns
// ahead. The first steps are started before the kernel waits for earlier ones: with programmatic
// dependent launch they arrive while the rows are quantised. At M = 16 each byte of weights takes
// 16 multiply-adds, so 4.8 TB/s of them take 77 T/s: far below the rate of tensor cores, but above
// that of dp4a.
#include "product.cuh"

constexpr u32 THIN_WARPS = 8;
constexpr u32 THIN_STAGES = 4;

// GROUPS: groups of 8 rows of activations.
template <class T, u32 GROUPS>
DEVICE void thin(const ProductArgs& a) {
    DYNAMIC_SHARED(shared);  // [min(steps, THIN_STAGES), 2, 256] pieces of 16 bytes
    __shared__ i32 sums[THIN_WARPS][16][8 * GROUPS + 1];
    start_kernels_after();
    u32 lane = lane_index(), warp = warp_index(), g = lane / 4, t = lane % 4;
    u32 part = warp % a.warps_k, group = warp / a.warps_k;
    u32 pitch = a.weight.pitch, last = a.weight.out_features - 1;
    u32 first = (blockIdx.x * (THIN_WARPS / a.warps_k) + group) * 16;
    const i8* upper = a.weight.codes + (size_t)(first + g < last ? first + g : last) * pitch;
    const i8* lower = a.weight.codes + (size_t)(first + g + 8 < last ? first + g + 8 : last) * pitch;

    u32 steps = (pitch + a.warps_k * 64 - 1) / (a.warps_k * 64), first_k = (part * 4 + t) * 16;
    auto place = [&](u32 step, u32 row) {
        return shared + ((step % THIN_STAGES * 2 + row) * THIN_WARPS * WARP + threadIdx.x) * 16;
    };
    auto fetch = [&](u32 step) {
        u32 k = first_k + step * a.warps_k * 64;
        bool inside = step < steps && k < pitch;
        if (step < steps) {
            copy_async(place(step, 0), inside ? upper + k : upper, inside);
            copy_async(place(step, 1), inside ? lower + k : lower, inside);
        }
        commit_copies();
    };
    for (u32 step = 0; step < THIN_STAGES; ++step) fetch(step);
    if (lane < 16 && first + lane <= last) {
        prefetch_line(a.weight.absmax + first + lane);
        if (a.epilogue.bias != nullptr) prefetch_line(a.epilogue.bias + first + lane);
    }
    wait_for_kernels_before();

    i32 sum[GROUPS][4] = {};
#pragma unroll 2
    for (u32 step = 0; step < steps; ++step) {
        Words4 zero = {{0, 0, 0, 0}}, x[GROUPS];
        u32 k = first_k + step * a.warps_k * 64;
#pragma unroll
        for (u32 j = 0; j < GROUPS; ++j) {
            u32 m = j * 8 + g;
            x[j] = k < pitch && m < a.rows ? load_words(a.codes + (size_t)m * pitch + k) : zero;
        }
        wait_for_copies<THIN_STAGES - 1>();
        Words4 up = load_words(place(step, 0)), low = load_words(place(step, 1));
        u32 front[4] = {up.word[0], low.word[0], up.word[1], low.word[1]};
        u32 back[4] = {up.word[2], low.word[2], up.word[3], low.word[3]};
#pragma unroll
        for (u32 j = 0; j < GROUPS; ++j) {
            u32 x_front[2] = {x[j].word[0], x[j].word[1]}, x_back[2] = {x[j].word[2], x[j].word[3]};
            mma_s8(sum[j], front, x_front);
            mma_s8(sum[j], back, x_back);
        }
        fetch(step + THIN_STAGES);
    }
#pragma unroll
    for (u32 j = 0; j < GROUPS; ++j)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) sums[warp][g + i / 2 * 8][j * 8 + 2 * t + i % 2] = sum[j][i];
    __syncthreads();

    // The warps of a group share the outputs of its 16 weight rows; adjacent lanes write adjacent
    // outputs.
    u32 count = *a.count;
    for (u32 i = part * WARP + lane; i < 16 * a.rows; i += a.warps_k * WARP) {
        u32 m = i / 16, r = i % 16, n = first + r;
        if (n > last) continue;
        i32 all = 0;
        for (u32 w = 0; w < a.warps_k; ++w) all += sums[group * a.warps_k + w][r][m];
        Operands operands(a.weight, a.epilogue, m, n);
        float step = operands.absmax * CODE_STEP, y = dequantize(all, a.absmax[m], operands);
        const i8* weight = a.weight.codes + (size_t)n * pitch;
        for (u32 o = 0; o < count; ++o) {
            u32 column = a.columns[o];
            y = __fmaf_rn(outlier_value<T>(a, m, column), (float)weight[column] * step, y);
        }
        finish<T>(a.epilogue, operands, m, n, y);
    }
}

#define THIN(suffix, T)                                                    \
    KERNEL_THAT_WAITS(thin8_##suffix, ProductArgs, 256, 3) { thin<T, 1>(a); } \
    KERNEL_THAT_WAITS(thin16_##suffix, ProductArgs, 256, 3) { thin<T, 2>(a); }

THIN(f32, float)
THIN(f16, half)
THIN(bf16, bf16)
