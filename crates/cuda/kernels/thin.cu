// A few rows (M = 1 … 16): weights are read once, tensor cores do the products.
//
// Idea: the operands are swapped, so that 16 rows of weights are the tall one of mma.m16n8k32 and 8 rows of
// activations the wide one. A sum over k may be taken in any order, so a lane loads 16 bytes that lie side by
// side, of a weight row and of an activation row alike, and feeds them as the k of two instructions: the loads
// are 16 bytes wide without shared memory, and 4 lanes read 64 bytes in a row.
//
// Layout: a block is 8 warps, `warps_k` of which share 16 rows of weights, K split among them.
// Multiply-adds: at M = 16 a byte of weight needs 16, 4.8 TB/s of them 77 T/s: far below the tensor cores,
// above what dp4a gives.
#include "product.cuh"

constexpr u32 THIN_WARPS = 8;

// The first 256 bytes of the warp's share of each of its 16 rows, a line a lane.
DEVICE void prefetch_thin(const ProductArgs& a) {
    u32 part = warp_index() % a.warps_k, group = warp_index() / a.warps_k;
    u32 n = (blockIdx.x * (THIN_WARPS / a.warps_k) + group) * 16 + lane_index() / 2;
    u32 k = part * 256 + lane_index() % 2 * 128;
    if (n < a.weight.out_features && k < a.weight.pitch) prefetch_line(a.weight.codes + (size_t)n * a.weight.pitch + k);
    if (part == 0 && lane_index() == 0 && n < a.weight.out_features) {
        // 16 rows: half a line of each.
        prefetch_line(a.weight.absmax + n);
        if (a.epilogue.bias != nullptr) prefetch_line(a.epilogue.bias + n);
    }
}

// GROUPS: of 8 rows of activations.
template <class T, u32 GROUPS>
DEVICE void thin(const ProductArgs& a) {
    __shared__ i32 sums[THIN_WARPS][16][8 * GROUPS + 1];
    u32 lane = lane_index(), warp = warp_index(), g = lane / 4, t = lane % 4;
    u32 part = warp % a.warps_k, group = warp / a.warps_k;
    u32 pitch = a.weight.pitch, last = a.weight.out_features - 1;
    u32 first = (blockIdx.x * (THIN_WARPS / a.warps_k) + group) * 16;
    const i8* upper = a.weight.codes + (size_t)(first + g < last ? first + g : last) * pitch;
    const i8* lower = a.weight.codes + (size_t)(first + g + 8 < last ? first + g + 8 : last) * pitch;
    i32 sum[GROUPS][4] = {};
    for (u32 k = (part * 4 + t) * 16; k - t * 16 < pitch; k += a.warps_k * 64) {
        Words4 zero = {{0, 0, 0, 0}};
        bool inside = k < pitch;
        Words4 up = inside ? load_streaming(upper + k) : zero, low = inside ? load_streaming(lower + k) : zero;
        u32 front[4] = {up.word[0], low.word[0], up.word[1], low.word[1]};
        u32 back[4] = {up.word[2], low.word[2], up.word[3], low.word[3]};
#pragma unroll
        for (u32 j = 0; j < GROUPS; ++j) {
            u32 m = j * 8 + g;
            Words4 x = inside && m < a.rows ? load_words(a.codes + (size_t)m * pitch + k) : zero;
            u32 x_front[2] = {x.word[0], x.word[1]}, x_back[2] = {x.word[2], x.word[3]};
            mma_s8(sum[j], front, x_front);
            mma_s8(sum[j], back, x_back);
        }
    }
#pragma unroll
    for (u32 j = 0; j < GROUPS; ++j)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) sums[warp][g + i / 2 * 8][j * 8 + 2 * t + i % 2] = sum[j][i];
    __syncthreads();

    // The outputs of the group's 16 weight rows, shared by its warps: neighbours write neighbours.
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

#define THIN(suffix, T)                                                      \
    KERNEL_WITH_PREFETCH(thin8_##suffix, ProductArgs, 256, 4, prefetch_thin) { thin<T, 1>(a); } \
    KERNEL_WITH_PREFETCH(thin16_##suffix, ProductArgs, 256, 4, prefetch_thin) { thin<T, 2>(a); }

THIN(f32, float)
THIN(f16, half)
THIN(bf16, bf16)
