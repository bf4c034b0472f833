// Linear layers with float weights: the head, and layers that are not int8. Arithmetic is f32;
// weights keep their stored dtype.
//
// A few rows: a warp has ROWS rows of weights and reads them once for up to TOKENS rows of
// activations. With one row of activations it has four rows of weights, to have enough loads in
// flight (64 bytes a lane), otherwise two.
//
// More rows, 16-bit weights: `dense_mma` on tensor cores, with the operands of thin.cu; weights are
// streamed once for 64 rows. f32 activations are split into a sum of 16-bit floats without loss, so
// the head is as precise for 32 sequences as for one. Bytes: the weights once for 64 rows; at 32
// rows of gpt2-large's head 0.13 GB.
//
// Otherwise: tiles of 64 × 64 in shared memory, f32 multiply-adds.
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

// Prefetches the first cache lines of each of the warp's rows, one line a lane.
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
    // Lane r · TOKENS + m finishes the output of weight row r for activation row m.
    static_assert(ROWS * TOKENS <= WARP, "a lane for each output");
    float mine = 0.0f;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
#pragma unroll
        for (u32 m = 0; m < TOKENS; ++m) {
            float y = warp_reduce<Sum>(sum[r][m]);
            if (lane == r * TOKENS + m) mine = y;
        }
    u32 n = first + lane / TOKENS, m = first_m + lane % TOKENS;
    if (lane >= ROWS * TOKENS || m >= a.rows || n > last) return;
    Operands operands(a.epilogue, m, n);
    finish<float>(a.epilogue, operands, m, n, mine + operands.bias);
}

// Finishes outputs from row first_m and column first_n on, from M × N sums in shared memory with a
// pitch: adjacent threads write adjacent outputs, and the activation functions' code exists once.
template <u32 M, u32 N, u32 PITCH>
DEVICE void finish_tile(const DenseArgs& a, const float* sums, u32 first_m, u32 first_n) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < M * N; i += blockDim.x) {
        u32 m = first_m + i / N, n = first_n + i % N;
        if (m >= a.rows || n >= a.out_features) continue;
        Operands operands(a.epilogue, m, n);
        finish<float>(a.epilogue, operands, m, n, sums[i / N * PITCH + i % N] + operands.bias);
    }
}

// Splits a value into a sum of PARTS 16-bit floats: two f16 hold 2 · 11 = 22 bits, three bf16 hold
// 3 · 8 = 24. With f16 magnitudes up to 131008 are in range; above, the result is not finite.
template <class W>
struct Split;
template <>
struct Split<half> {
    static constexpr u32 PARTS = 2;
    static __device__ __forceinline__ u32 bits(float x) {
        return __half_as_ushort(__float2half_rn(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x));
    }
    static __device__ __forceinline__ float value(u32 bits) { return __half2float(__ushort_as_half((u16)bits)); }
};
template <>
struct Split<bf16> {
    static constexpr u32 PARTS = 3;
    static __device__ __forceinline__ u32 bits(float x) {
        u32 word = __float_as_uint(x);
        // Rounds ties to even; NaN stays NaN.
        return (x != x ? word | 0x400000u : word + 0x7fffu + (word >> 16 & 1)) >> 16;
    }
    static __device__ __forceinline__ float value(u32 bits) { return __uint_as_float(bits << 16); }
};

// GROUPS: groups of 8 rows of activations. K is a multiple of 8, and rows of x are aligned to 16
// bytes.
template <class W, u32 GROUPS>
DEVICE void dense_mma(const DenseArgs& a) {
    constexpr u32 PARTS = Split<W>::PARTS;
    u32 lane = lane_index(), g = lane / 4, t = lane % 4, last = a.out_features - 1;
    u32 first = (blockIdx.x * DENSE_WARPS + warp_index()) * 16, first_m = blockIdx.y * 8 * GROUPS;
    const W* upper = static_cast<const W*>(a.weight) + (size_t)(first + g < last ? first + g : last) * a.pitch;
    const W* lower = static_cast<const W*>(a.weight) + (size_t)(first + g + 8 < last ? first + g + 8 : last) * a.pitch;
    float sum[GROUPS][4] = {};
    // The unrolled loop must fit in the instruction cache.
    [[maybe_unused]] constexpr u32 UNROLLED = GROUPS * PARTS > 8 ? 1 : 2;
#pragma unroll UNROLLED
    for (u32 k = t * 8; k - t * 8 < a.in_features; k += 32) {
        Words4 zero = {{0, 0, 0, 0}};
        bool inside = k < a.in_features;
        Words4 up = inside ? load_streaming(upper + k) : zero, low = inside ? load_streaming(lower + k) : zero;
        u32 front[4] = {up.word[0], low.word[0], up.word[1], low.word[1]};
        u32 back[4] = {up.word[2], low.word[2], up.word[3], low.word[3]};
#pragma unroll
        for (u32 j = 0; j < GROUPS; ++j) {
            u32 m = first_m + j * 8 + g;
            const float* x = a.x + (size_t)m * a.x_stride + k;
            bool valid = inside && m < a.rows;
            Words4 left = valid ? load_words(x) : zero, right = valid ? load_words(x + 4) : zero;
            float rest[8];
#pragma unroll
            for (u32 i = 0; i < 8; ++i) rest[i] = __uint_as_float(i < 4 ? left.word[i] : right.word[i - 4]);
#pragma unroll
            for (u32 part = 0; part < PARTS; ++part) {
                u32 words[4] = {0, 0, 0, 0};
#pragma unroll
                for (u32 i = 0; i < 8; ++i) {
                    u32 bits = Split<W>::bits(rest[i]);
                    rest[i] -= Split<W>::value(bits);
                    words[i / 2] |= bits << (i % 2 * 16);
                }
                u32 x_front[2] = {words[0], words[1]}, x_back[2] = {words[2], words[3]};
                mma_floats(sum[j], front, x_front, W());
                mma_floats(sum[j], back, x_back, W());
            }
        }
    }
    // With this pitch, the four lanes that share a g, whose rows of activations are two apart,
    // write to different banks.
    constexpr u32 OUTPUTS = 16 * DENSE_WARPS, PITCH = OUTPUTS + 4;
    __shared__ float sums[8 * GROUPS * PITCH];
#pragma unroll
    for (u32 j = 0; j < GROUPS; ++j)
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            sums[(j * 8 + 2 * t + i % 2) * PITCH + warp_index() * 16 + g + i / 2 * 8] = sum[j][i];
    __syncthreads();
    finish_tile<8 * GROUPS, OUTPUTS, PITCH>(a, sums, first_m, blockIdx.x * OUTPUTS);
}

// Prefetches the first 256 bytes of each of the warp's 16 rows.
template <class W>
DEVICE void prefetch_dense_mma(const DenseArgs& a) {
    u32 n = (blockIdx.x * DENSE_WARPS + warp_index()) * 16 + lane_index() / 2, k = lane_index() % 2 * (128 / sizeof(W));
    if (n < a.out_features && k < a.pitch) prefetch_line(static_cast<const W*>(a.weight) + (size_t)n * a.pitch + k);
}

constexpr u32 DENSE_TILE = 64;
constexpr u32 DENSE_DEPTH = 16;

template <class W>
DEVICE void dense_tile(const DenseArgs& a) {
    constexpr u32 PITCH = DENSE_TILE + 4;
    // Holds the operands, then the sums.
    __shared__ float memory[DENSE_TILE * PITCH];
    float(*x)[PITCH] = reinterpret_cast<float(*)[PITCH]>(memory), (*w)[PITCH] = x + DENSE_DEPTH;
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
        for (u32 j = 0; j < 4; ++j) memory[(row + i) * PITCH + column + j] = sum[i][j];
    __syncthreads();
    finish_tile<DENSE_TILE, DENSE_TILE, PITCH>(a, memory, tile_m, tile_n);
}

#define DENSE(suffix, W)                                                 \
    KERNEL_WITH_PREFETCH(dense_one_##suffix, DenseArgs, 256, 4, (prefetch_dense<W, 4>)) { dense_thin<W, 4, 1>(a); } \
    KERNEL_WITH_PREFETCH(dense_thin_##suffix, DenseArgs, 256, 3, (prefetch_dense<W, 2>)) { dense_thin<W, 2, 8>(a); } \
    KERNEL(dense_tile_##suffix, DenseArgs, 256, 4) { dense_tile<W>(a); }

DENSE(f32, float)
DENSE(f16, half)
DENSE(bf16, bf16)

#define DENSE_MMA(suffix, W)                                             \
    KERNEL_WITH_PREFETCH(dense_mma32_##suffix, DenseArgs, 256, 2, prefetch_dense_mma<W>) { dense_mma<W, 4>(a); } \
    KERNEL_WITH_PREFETCH(dense_mma64_##suffix, DenseArgs, 256, 2, prefetch_dense_mma<W>) { dense_mma<W, 8>(a); }

DENSE_MMA(f16, half)
DENSE_MMA(bf16, bf16)
