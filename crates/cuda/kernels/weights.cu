// Quantises float weights while a checkpoint streams in (bitsandbytes' `int8_vectorwise_quant` of
// the weight in f16). A weight is read twice, the second time mostly from the caches, and its codes
// are written once.
#include "reduce.cuh"

struct WeightArgs {
    const void* weight;  // [N, K], or [K, N] for the transposed kernels
    i8* codes;           // [N, pitch], zeros from K on
    float* absmax;       // [N]
    u32* bad_row;        // [1] the first row that is not finite in f16; 0xffffffff: none
    u32 out_features, in_features, pitch, padding;
};

template <class T>
DEVICE void quantize_weight(const WeightArgs& a) {
    u32 n = blockIdx.x, largest = 0;
    const T* weight = static_cast<const T*>(a.weight) + (size_t)n * a.in_features;
    for (u32 k = threadIdx.x; k < a.in_features; k += blockDim.x)
        largest = Max::of(largest, half_magnitude(__float2half_rn(to_float(weight[k]))));
    largest = block_reduce<Max>(largest);
    float absmax = half_value(largest), inverse = inverse_step(absmax);
    i8* codes = a.codes + (size_t)n * a.pitch;
    for (u32 k = threadIdx.x; k < a.pitch; k += blockDim.x)
        codes[k] = k < a.in_features ? (i8)code_of(__float2half_rn(to_float(weight[k])), inverse) : (i8)0;
    if (threadIdx.x != 0) return;
    a.absmax[n] = absmax;
    if (largest >= HALF_INFINITY) atomicMin(a.bad_row, n);
}

// For GPT-2's Conv1D, which stores [in_features, out_features]. A block of 8 warps takes 32
// outputs, one for each lane, and transposes their codes in shared memory.
template <class T>
DEVICE void quantize_transposed(const WeightArgs& a) {
    __shared__ u32 found[8][WARP];
    __shared__ i8 tile[WARP][WARP + 4];
    u32 lane = lane_index(), warp = warp_index(), n = blockIdx.x * WARP + lane, largest = 0;
    const T* weight = static_cast<const T*>(a.weight);
    if (n < a.out_features)
        for (u32 k = warp; k < a.in_features; k += 8)
            largest = Max::of(largest, half_magnitude(__float2half_rn(to_float(weight[(size_t)k * a.out_features + n]))));
    found[warp][lane] = largest;
    __syncthreads();
    for (u32 w = 0; w < 8; ++w) largest = Max::of(largest, found[w][lane]);
    float absmax = half_value(largest), inverse = inverse_step(absmax);
    if (warp == 0 && n < a.out_features) {
        a.absmax[n] = absmax;
        if (largest >= HALF_INFINITY) atomicMin(a.bad_row, n);
    }
    for (u32 first = 0; first < a.pitch; first += WARP) {
        for (u32 row = warp; row < WARP; row += 8) {
            u32 k = first + row;
            bool inside = k < a.in_features && n < a.out_features;
            tile[row][lane] = inside ? (i8)code_of(__float2half_rn(to_float(weight[(size_t)k * a.out_features + n])), inverse) : (i8)0;
        }
        __syncthreads();
        for (u32 row = warp; row < WARP; row += 8) {
            u32 out = blockIdx.x * WARP + row, k = first + lane;
            if (out < a.out_features && k < a.pitch) a.codes[(size_t)out * a.pitch + k] = tile[lane][row];
        }
        __syncthreads();
    }
}

#define WEIGHTS(suffix, T)                                                             \
    KERNEL(quantize_weight_##suffix, WeightArgs, 1024, 1) { quantize_weight<T>(a); } \
    KERNEL(quantize_transposed_##suffix, WeightArgs, 256, 4) { quantize_transposed<T>(a); }

WEIGHTS(f32, float)
WEIGHTS(f16, half)
WEIGHTS(bf16, bf16)
