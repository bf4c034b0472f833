// Operations on rows between matmuls: embeddings, norms, sums, softcaps, copies.
#include "epilogue.cuh"
#include "ptx.cuh"
#include "source.cuh"

// Looks up rows of a token table and adds rows of a position table.
struct EmbedArgs {
    const u32* ids;             // [M]
    const u32* position_rows;   // [M] rows of `positions`
    const void* table;          // [V, table_pitch]
    const float* table_absmax;  // [V] if the table is int8, else null
    const void* positions;      // [P, position_pitch] or null
    float* out;                 // [M, width]
    u32 width, table_pitch, position_pitch;
    float factor;
};

template <class T>
DEVICE float table_value(const void* table, size_t i) { return to_float(static_cast<const T*>(table)[i]); }

template <class T>
DEVICE void embed(const EmbedArgs& a) {
    u32 m = blockIdx.x;
    size_t row = (size_t)a.ids[m] * a.table_pitch;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) {
        float x;
        if (a.table_absmax != nullptr) {
            float step = a.table_absmax[a.ids[m]] * CODE_STEP;
            x = (float)static_cast<const i8*>(a.table)[row + i] * step;
        } else {
            x = table_value<T>(a.table, row + i);
        }
        x *= a.factor;
        if (a.positions != nullptr) x += table_value<T>(a.positions, (size_t)a.position_rows[m] * a.position_pitch + i);
        a.out[(size_t)m * a.width + i] = x;
    }
}

KERNEL(embed_f32, EmbedArgs, 256, 4) { embed<float>(a); }
KERNEL(embed_f16, EmbedArgs, 256, 4) { embed<half>(a); }
KERNEL(embed_bf16, EmbedArgs, 256, 4) { embed<bf16>(a); }

// A norm as a launch of its own: of whole rows, or of each of the `heads` vectors of a row, with
// weights of its own if `weight_stride` is its width, and the same ones if it is 0. `out` may be
// `source`.
struct NormArgs {
    Source source;
    float* out;
    u32 heads, weight_stride, out_stride, padding;
};

KERNEL(norm_rows, NormArgs, 512, 1) {
    u32 m = blockIdx.x / a.heads, head = blockIdx.x % a.heads;
    Source source = a.source;
    source.x = static_cast<const float*>(source.x) + head * source.cols;
    source.weight += head * a.weight_stride;
    if (source.bias != nullptr) source.bias += head * a.weight_stride;
    GroupedRow<float, 2, false, false> row(source, m, 0);
    float* out = a.out + (size_t)m * a.out_stride + head * source.cols;
    row.each(source.cols, [&](u32 k, u32, const float (&value)[4]) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
            if (k + j < source.cols) out[k + j] = value[j];
    });
}

// out = x · up, or x + factor · up: gates and residuals that are not part of a matmul's launch.
struct CombineArgs {
    const float* x;   // [M, x_stride]
    const float* up;  // [M, up_stride]
    float* out;       // [M, width]
    u32 width, x_stride, up_stride, adds;
    float factor;
    u32 padding;
};

KERNEL(combine, CombineArgs, 256, 4) {
    u32 m = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.width) return;
    float x = a.x[(size_t)m * a.x_stride + i], up = a.up[(size_t)m * a.up_stride + i];
    a.out[(size_t)m * a.width + i] = a.adds != 0 ? __fmaf_rn(up, a.factor, x) : x * up;
}

// Of logits, in place: `scale · x`, then `cap · tanh(x / cap)` if cap is not 0.
struct SoftcapArgs {
    float* x;
    u64 count;
    float scale, cap;
};

KERNEL(softcap, SoftcapArgs, 256, 4) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float x = a.x[i] * a.scale;
    a.x[i] = a.cap != 0.0f ? a.cap * tanhf(x / a.cap) : x;
}

// Copies rows of 16-byte words from one pitch to another, when a cache grows.
struct CopyRowsArgs {
    const void* from;
    void* to;
    u32 words, from_pitch, to_pitch;  // in words of 16 bytes
    u32 padding;
};

KERNEL(copy_rows, CopyRowsArgs, 256, 4) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= a.words) return;
    static_cast<Words4*>(a.to)[(size_t)blockIdx.x * a.to_pitch + i] =
        load_words(static_cast<const Words4*>(a.from) + (size_t)blockIdx.x * a.from_pitch + i);
}
