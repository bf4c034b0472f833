// What is done with the outputs of a matmul: bias, activation function, residual.
#pragma once
#include "common.cuh"

// The numbers of llm_int8_kernels::Activation.
enum Activation : u32 {
    IDENTITY = 0, GELU = 1, GELU_TANH = 2, QUICK_GELU = 3, RELU = 4, RELU_SQUARED = 5, SILU = 6, TANH = 7,
    GELU_CLIPPED = 8, LAPLACE = 9, LEAKY_RELU = 10, MISH = 11, RELU6 = 12, SIGMOID = 13
};

DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// x clamped, and NaN for NaN.
DEVICE float between(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

// tanh(ln(1 + e)) = n / (n + 2) with e = exp(x), n = e² + 2e. For x > 20 it is 1 in f32.
DEVICE float mish(float x) {
    if (x > 20.0f) return x;
    float e = expf(x), n = e * (e + 2.0f);
    return x * (n / (n + 2.0f));
}

DEVICE float activate(u32 function, float x) {
    switch (function) {
        case GELU: return gelu(x);
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case QUICK_GELU: return x / (1.0f + expf(-1.702f * x));
        case RELU: return x < 0.0f ? 0.0f : x;
        case RELU_SQUARED: return x < 0.0f ? 0.0f : x * x;
        case SILU: return x / (1.0f + expf(-x));
        case TANH: return tanhf(x);
        case GELU_CLIPPED: return between(gelu(x), -10.0f, 10.0f);
        case LAPLACE: return 0.5f * (1.0f + erff((x - 0.707107f) / (0.282095f * 1.41421356237309505f)));
        case LEAKY_RELU: return x < 0.0f ? 0.01f * x : x;
        case MISH: return mish(x);
        case RELU6: return between(x, 0.0f, 6.0f);
        case SIGMOID: return 1.0f / (1.0f + expf(-x));
        default: return x;
    }
}

// Not inlined, so that a kernel contains its code only once.
static __device__ __noinline__ float activate_apart(u32 function, float x) { return activate(function, x); }

// An activation function that is known at compile time.
template <u32 FUNCTION>
struct Activate {
    static __device__ __forceinline__ float of(float x) { return activate(FUNCTION, x); }
};

// Calls f(Activate<function>()), so that a loop in f does not branch on the function for each
// value.
template <u32 FUNCTION = GELU, class F>
DEVICE void with_activation(u32 function, F f) {
    if (function == FUNCTION) {
        f(Activate<FUNCTION>());
    } else if constexpr (FUNCTION < SIGMOID) {
        with_activation<FUNCTION + 1>(function, f);
    }
}

struct Epilogue {
    const float* bias;      // [N] or null
    const float* residual;  // [M, residual_stride] or null: out = residual + residual_scale · y
    void* out;              // [M, out_stride]
    u32 out_stride, residual_stride;
    u32 activation, activated;  // the function, applied to the first `activated` outputs of a row
    float residual_scale;
    u32 padding;
};

// int8 weights: rows of `pitch` codes, a multiple of 16; zeros from K on.
struct Int8Weight {
    const i8* codes;
    const float* absmax;  // [N]
    u32 out_features, pitch;
};

// The operands of an output that no kernel writes, so that they may be loaded before the kernel
// waits for earlier ones.
struct Constants {
    float absmax, bias;  // of the weight row; bias 0 if there is none

    __device__ __forceinline__ Constants() : absmax(0.0f), bias(0.0f) {}
    __device__ __forceinline__ Constants(const Int8Weight& weight, const Epilogue& e, u32 n)
        : absmax(weight.absmax[n]), bias(e.bias != nullptr ? e.bias[n] : 0.0f) {}
};

DEVICE float residual_of(const Epilogue& e, u32 m, u32 n) {
    return e.residual != nullptr ? e.residual[(size_t)m * e.residual_stride + n] : 0.0f;
}

// The operands of an output other than its sum. They are loaded before the sum is complete, so that
// the end of the kernel does not wait for them.
struct Operands {
    float absmax;    // of the weight row; 0 for float weights
    float bias;      // 0 if there is none
    float residual;  // 0 if there is none

    __device__ __forceinline__ Operands(const Epilogue& e, u32 m, u32 n)
        : absmax(0.0f),
          bias(e.bias != nullptr ? e.bias[n] : 0.0f),
          residual(residual_of(e, m, n)) {}

    __device__ __forceinline__ Operands(const Int8Weight& weight, const Epilogue& e, u32 m, u32 n) : Operands(e, m, n) {
        absmax = weight.absmax[n];
    }

    __device__ __forceinline__ Operands(const Constants& constants, float residual)
        : absmax(constants.absmax), bias(constants.bias), residual(residual) {}
};

// Activates y, which includes outliers and bias, adds the residual, and stores output n of row m.
template <class O>
DEVICE void finish(const Epilogue& e, const Operands& operands, u32 m, u32 n, float y) {
    if (n < e.activated && e.activation != IDENTITY) y = activate_apart(e.activation, y);
    if (e.residual != nullptr) y = __fmaf_rn(y, e.residual_scale, operands.residual);
    static_cast<O*>(e.out)[(size_t)m * e.out_stride + n] = from_float<O>(y);
}

// The int8 part of one output, plus the bias (LLM.int8(), equation 5 of the paper; bitsandbytes'
// `int8_mm_dequant`). In f32 throughout: f16 could overflow.
DEVICE float dequantize(i32 sum, float absmax_x, float absmax_w, float bias) {
    float y = __fmul_rn(__fmul_rn((float)sum, __fmul_rn(absmax_x, absmax_w)), PRODUCT_STEP);
    return __fadd_rn(y, bias);
}
DEVICE float dequantize(i32 sum, float absmax_x, const Operands& operands) {
    return dequantize(sum, absmax_x, operands.absmax, operands.bias);
}
