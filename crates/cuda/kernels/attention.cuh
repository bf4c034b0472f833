// Shared by all attention kernels: the layout of the cache, the preparation of queries, keys and
// values, and the scores. Causal attention for every model family: grouped heads, windows,
// rotations, ALiBi, softcaps.
//
// A sequence's cache is one allocation, so a launch needs only its address and capacity. Both are
// read from device memory, so that one captured graph serves every sequence. For each layer it has
// first the keys, in groups of 8 values, [kv_heads, size / 8, capacity, 8], so that adjacent
// threads read adjacent positions, 16 bytes each (in 16 bits); then the values, [kv_heads,
// capacity, padded size].
#pragma once
#include "ptx.cuh"
#include "reduce.cuh"

// The warp's number, computed so that the compiler knows it to be the same for all lanes: loops
// that depend on it do not diverge, and shuffles in them need no version for lanes that have left.
DEVICE u32 uniform_warp() { return __shfl_sync(EVERY_LANE, warp_index(), 0); }

// One row of a pass, a new position of a sequence. capacity · padded size is below 2^32.
struct AttendedRow {
    u64 cache;  // device address of its sequence's cache
    u32 capacity, position;
};

// Numbers and sizes of heads.
struct Heads {
    u32 heads, kv_heads, size, padded;  // padded: size rounded up to a multiple of 8
    u32 layer;
    u32 shift;  // at least 6, padded <= 1 << shift: gives a thread its head and value without a division
};

template <class T>
DEVICE T* keys_of(const AttendedRow& row, const Heads& h, u32 kv) {
    return reinterpret_cast<T*>(row.cache) + (u64)(row.capacity * h.padded) * (2 * h.layer * h.kv_heads + kv);
}
template <class T>
DEVICE T* values_of(const AttendedRow& row, const Heads& h, u32 kv) {
    return keys_of<T>(row, h, kv + h.kv_heads);
}

struct PrepareArgs {
    const float* qkv;         // [M, stride]: queries, keys and values as the linear layer left them
    const AttendedRow* rows;  // [M]
    const float *cos, *sin;   // [M, dims / 2]; dims 0: no rotation
    float* queries;           // [M, heads, size], rotated and multiplied by `factor`
    Heads heads;
    u32 stride, is_grouped, dims, neighbours;
    float clamp, factor;  // clamp 0: none
};

enum HeadKind : u32 { QUERY = 0, KEY = 1, VALUE = 2 };

// Value d of the head at `place` in row m: clamped; rotated, if a query or key; multiplied by the
// factor, if a query.
DEVICE float prepared(const PrepareArgs& a, u32 m, u32 place, u32 kind, u32 d) {
    if (d >= a.heads.size) return 0.0f;
    const float* x = a.qkv + (size_t)m * a.stride + place * a.heads.size;
    auto clamped = [&](float value) {
        if (a.clamp == 0.0f) return value;
        return value < -a.clamp ? -a.clamp : value > a.clamp ? a.clamp : value;
    };
    float value = clamped(x[d]);
    if (kind != VALUE && d < a.dims) {
        u32 half_dims = a.dims / 2;
        bool second = a.neighbours != 0 ? d % 2 == 1 : d >= half_dims;
        u32 pair = a.neighbours != 0 ? d / 2 : second ? d - half_dims : d;
        u32 other = a.neighbours != 0 ? d ^ 1 : second ? d - half_dims : d + half_dims;
        float cos = a.cos[(size_t)m * half_dims + pair], sin = a.sin[(size_t)m * half_dims + pair];
        float partner = clamped(x[other]);
        value = second ? value * cos + partner * sin : value * cos - partner * sin;
    }
    return kind == QUERY ? value * a.factor : value;
}

// Stores value d of a key or value vector in the cache.
template <class T>
DEVICE void store(const Heads& h, const AttendedRow& row, u32 kind, u32 kv, u32 d, T value) {
    if (kind == KEY) {
        keys_of<T>(row, h, kv)[(d / 8 * row.capacity + row.position) * 8 + d % 8] = value;
    } else {
        values_of<T>(row, h, kv)[row.position * h.padded + d] = value;
    }
}

struct Rule {
    const float* slopes;  // [heads] of ALiBi, or null
    u32 window;           // positions a row attends to, its own included; 0: all
    float softcap;        // 0: none
    float bias_factor;    // nonzero: ALiBi biases are rounded to bf16 and multiplied by it (Falcon)
    float softcap_inverse;
};

DEVICE float slope_of(const Rule& rule, u32 head) { return rule.slopes != nullptr ? rule.slopes[head] : 0.0f; }

// Applies softcap and ALiBi to a score; `slope` is that of the head.
DEVICE float rescore(const Rule& rule, float slope, u32 position, float score) {
    if (rule.softcap != 0.0f) score = rule.softcap * tanhf(score * rule.softcap_inverse);
    if (rule.slopes != nullptr) {
        if (rule.bias_factor == 0.0f) {
            score += slope * (float)position;
        } else {
            float rounded = to_float(from_float<bf16>(slope));
            score += to_float(from_float<bf16>(rounded * (float)position)) * rule.bias_factor;
        }
    }
    return score;
}

DEVICE u32 first_seen(const Rule& rule, u32 position) {
    return rule.window != 0 && position + 1 > rule.window ? position + 1 - rule.window : 0;
}

DEVICE float negative_infinity() { return __uint_as_float(0xff800000u); }

// The factor for earlier sums when the largest score grows (online softmax). Also right for an old
// maximum of -infinity.
DEVICE float shrink(float old_max, float new_max) { return old_max == new_max ? 1.0f : expf(old_max - new_max); }

struct AttendArgs {
    const float* queries;     // [M, heads, size]
    const AttendedRow* rows;  // [M]
    float* out;               // [M, heads · size]
    float* partial;           // [M, heads, splits, padded + 2] if splits > 1: sums, maximum, total
    u32* counters;            // [M, kv_heads · sets] zeros, reset to zeros
    const u32* tiles;         // attend_many: first row and number of rows of each tile
    Heads heads;
    Rule rule;
    u32 splits;  // blocks that may share the positions of a row
    u32 group;   // query heads that share a key/value head
    u32 sets;    // blocks that these heads are divided among
    u32 inverse; // 65536 / lanes + 1, where lanes · 8 = min(padded, 256)
};

// Eight adjacent values, aligned to 16 bytes, in the cache's dtype.
template <class T>
struct Piece {
    Words4 words[sizeof(T) / 2];
};

// `IS_OLD`: written before this pass, so that loads may use the read-only path even if the previous
// kernel still runs.
template <bool IS_OLD, class T>
DEVICE Piece<T> load_piece(const T* p) {
    Piece<T> piece;
#pragma unroll
    for (u32 i = 0; i < sizeof(T) / 2; ++i) {
        const T* words = p + i * 16 / sizeof(T);
        piece.words[i] = IS_OLD ? load_streaming(words) : load_words(words);
    }
    return piece;
}

DEVICE void unpack(const Piece<float>& piece, float (&out)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) out[i] = __uint_as_float(piece.words[i / 4].word[i % 4]);
}
DEVICE void unpack(const Piece<half>& piece, float (&out)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) out[i] = __half2float(__ushort_as_half((u16)(piece.words[0].word[i / 2] >> (i % 2 * 16))));
}
DEVICE void unpack(const Piece<bf16>& piece, float (&out)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        u32 pair = piece.words[0].word[i / 2];
        out[i] = __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
}
