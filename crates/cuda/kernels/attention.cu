// Causal attention over a cache of keys and values, for every family: grouped heads, windows, rotations,
// biases, soft caps. f32 arithmetic, keys and values in the dtype they are kept in.
//
// A text's cache is one piece of memory, so that all a launch needs to know of it is its address and capacity,
// which lie on the device: a captured graph serves every text. Of each layer first the keys, of each head in
// groups of 8 values, [kv_heads, size / 8, capacity, 8]: neighbouring threads read neighbouring positions,
// 16 bytes each; then the values, [kv_heads, capacity, padded size].
#include "epilogue.cuh"
#include "reduce.cuh"

// One new position: a row of the products.
struct AttendedRow {
    u64 cache;  // address of its text's cache on this device
    u32 capacity, position;
};

// How the heads lie, as everything here needs it.
struct Heads {
    u32 heads, kv_heads, size, padded;  // padded: size up to a multiple of 8
    u32 layer, reserved;
};

template <class T>
DEVICE T* keys_of(const AttendedRow& row, const Heads& h, u32 kv) {
    u64 head = (u64)row.capacity * h.padded, layer = 2 * head * h.kv_heads;
    return reinterpret_cast<T*>(row.cache) + h.layer * layer + kv * head;
}
template <class T>
DEVICE T* values_of(const AttendedRow& row, const Heads& h, u32 kv) {
    return keys_of<T>(row, h, kv) + (u64)row.capacity * h.padded * h.kv_heads;
}

struct PrepareArgs {
    const float* qkv;         // [M, stride]: the products
    const AttendedRow* rows;  // [M]
    const float *cos, *sin;   // [M, dims / 2]; dims 0: no rotation
    float* queries;           // [M, heads, size], rotated and multiplied with `factor`
    Heads heads;
    u32 stride, is_grouped, dims, neighbours;
    float clamp, factor;  // clamp 0: none
};

enum HeadKind : u32 { QUERY = 0, KEY = 1, VALUE = 2 };

// Value d of a head of row m: clamped, queries and keys rotated, queries multiplied with the factor. Where the
// heads lie, `is_grouped` says: all queries, all keys, all values; or each head of keys behind its queries.
DEVICE float prepared(const PrepareArgs& a, u32 m, u32 kind, u32 index, u32 d) {
    const Heads& h = a.heads;
    if (d >= h.size) return 0.0f;
    u32 group = h.heads / h.kv_heads;
    u32 place = index + (kind == QUERY ? 0 : kind == KEY ? h.heads : h.heads + h.kv_heads);
    if (a.is_grouped != 0)
        place = kind == QUERY ? index / group * (group + 2) + index % group : index * (group + 2) + group + kind - 1;
    const float* x = a.qkv + (size_t)m * a.stride + place * h.size;
    auto clamped = [&](u32 i) {
        float value = x[i];
        if (a.clamp == 0.0f) return value;
        return value < -a.clamp ? -a.clamp : value > a.clamp ? a.clamp : value;
    };
    float value = clamped(d);
    u32 half_dims = a.dims / 2;
    if (kind != VALUE && d < a.dims) {
        bool second = a.neighbours != 0 ? d % 2 == 1 : d >= half_dims;
        u32 pair = a.neighbours != 0 ? d / 2 : d % half_dims;
        u32 other = a.neighbours != 0 ? d ^ 1 : second ? d - half_dims : d + half_dims;
        float cos = a.cos[(size_t)m * half_dims + pair], sin = a.sin[(size_t)m * half_dims + pair];
        float partner = clamped(other);
        value = second ? value * cos + partner * sin : value * cos - partner * sin;
    }
    return kind == QUERY ? value * a.factor : value;
}

// Puts value d of the key and of the value of row m into the cache.
template <class T>
DEVICE void store(const PrepareArgs& a, const AttendedRow& row, u32 m, u32 kind, u32 kv, u32 d) {
    T value = from_float<T>(prepared(a, m, kind, kv, d));
    if (kind == KEY) {
        keys_of<T>(row, a.heads, kv)[((u64)(d / 8) * row.capacity + row.position) * 8 + d % 8] = value;
    } else {
        values_of<T>(row, a.heads, kv)[(u64)row.position * a.heads.padded + d] = value;
    }
}

// Queries, keys and values of all rows, before attention looks at them: a block a row and head.
template <class T>
DEVICE void prepare(const PrepareArgs& a) {
    const Heads& h = a.heads;
    u32 m = blockIdx.x, head = blockIdx.y;
    for (u32 d = threadIdx.x; d < h.padded; d += blockDim.x) {
        if (head < h.heads) {
            if (d < h.size) a.queries[((size_t)m * h.heads + head) * h.size + d] = prepared(a, m, QUERY, head, d);
        } else {
            u32 kind = head < h.heads + h.kv_heads ? KEY : VALUE;
            store<T>(a, a.rows[m], m, kind, head - h.heads - (kind == VALUE ? h.kv_heads : 0), d);
        }
    }
}

struct Rule {
    const float* slopes;  // [heads] or null: position biases
    u32 window;           // positions seen, the own one included; 0: all
    float softcap;        // 0: none
    float bias_factor;    // not 0: biases are rounded to bf16 and multiplied with it (Falcon)
    u32 padding;
};

DEVICE float rescore(const Rule& rule, u32 head, u32 position, float score) {
    if (rule.softcap != 0.0f) score = rule.softcap * tanhf(score / rule.softcap);
    if (rule.slopes != nullptr) {
        float slope = rule.slopes[head];
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

struct alignas(16) Half8 {
    u16 value[8];
};

// Eight values that lie side by side, 16-byte aligned.
DEVICE void load8(const float* p, float (&out)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) out[i] = p[i];
}
DEVICE void load8(const half* p, float (&out)[8]) {
    Half8 words = *reinterpret_cast<const Half8*>(p);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) out[i] = __half2float(__ushort_as_half(words.value[i]));
}
DEVICE void load8(const bf16* p, float (&out)[8]) {
    Half8 words = *reinterpret_cast<const Half8*>(p);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) out[i] = __uint_as_float((u32)words.value[i] << 16);
}

DEVICE float negative_infinity() { return __uint_as_float(0xff800000u); }

// What old sums are multiplied with when the largest score grows; also right where there was none yet.
DEVICE float shrink(float old_max, float new_max) { return old_max == new_max ? 1.0f : expf(old_max - new_max); }

struct AttendArgs {
    const float* queries;     // [M, heads, size]
    const AttendedRow* rows;  // [M]
    float* out;               // [M, heads · size]
    float* partial;           // [M, heads, splits, padded + 2] where splits > 1
    u32* counters;            // [M, kv_heads] zeros, left as zeros
    const u32* tiles;         // attend_many: first row and number of rows of each tile, all of one text
    Heads heads;
    Rule rule;
    u32 splits, padding;
};

// Few new positions. A block takes some chunks of positions of one row and one head of keys, for all
// heads of queries that share it, `AT_ONCE` of them together; the last block of a row and head to end joins
// what they found. Bytes: keys and values once, plus splits · (padded + 2) · 8 a head.
constexpr u32 CHUNK = 128;
constexpr u32 AT_ONCE = 4;

template <class T>
struct AttendOne {
    const AttendArgs& a;
    // Where each row is a text's only new one, nothing needs to be prepared by a launch of its own; else null.
    const PrepareArgs* unprepared;
    const AttendedRow row;
    float *query, *score, *shared_sums;  // [AT_ONCE, padded], [AT_ONCE, CHUNK], [CHUNK, 8]
    u32 m, kv, group;

    // What this block's positions give to the query heads first .. first + count.
    __device__ __forceinline__ void run(u32 first, u32 count) {
        const Heads& h = a.heads;
        __syncthreads();
        for (u32 i = threadIdx.x; i < AT_ONCE * h.padded; i += blockDim.x) {
            u32 q = i / h.padded, d = i % h.padded;
            bool inside = q < count && d < h.size;
            if (unprepared != nullptr) {
                query[i] = inside ? prepared(*unprepared, m, QUERY, first + q, d) : 0.0f;
            } else {
                query[i] = inside ? a.queries[((size_t)m * h.heads + first + q) * h.size + d] : 0.0f;
            }
        }
        __syncthreads();
        u32 start = first_seen(a.rule, row.position), end = row.position + 1;
        u32 lanes = h.padded / 8, side = CHUNK / lanes, lane = threadIdx.x % lanes, place = threadIdx.x / lanes;
        float largest[AT_ONCE], total[AT_ONCE], sum[AT_ONCE][8] = {};
#pragma unroll
        for (u32 q = 0; q < AT_ONCE; ++q) largest[q] = negative_infinity(), total[q] = 0.0f;
        const T *keys = keys_of<T>(row, h, kv), *values = values_of<T>(row, h, kv);
        for (u32 chunk = start / CHUNK + blockIdx.x; chunk * CHUNK < end; chunk += a.splits) {
            u32 position = chunk * CHUNK + threadIdx.x;
            bool seen = position >= start && position < end;
            float dot[AT_ONCE] = {};
            if (seen) {
#pragma unroll 4
                for (u32 d = 0; d < h.padded; d += 8) {
                    float key[8];
                    load8(keys + ((u64)(d / 8) * row.capacity + position) * 8, key);
#pragma unroll
                    for (u32 q = 0; q < AT_ONCE; ++q)
#pragma unroll
                        for (u32 i = 0; i < 8; ++i) dot[q] = __fmaf_rn(query[q * h.padded + d + i], key[i], dot[q]);
                }
            }
#pragma unroll
            for (u32 q = 0; q < AT_ONCE; ++q) {
                if (q >= count) break;
                float s = seen ? rescore(a.rule, first + q, position, dot[q]) : negative_infinity();
                float grown = Max::of(largest[q], block_reduce<Max>(s));
                float p = seen ? expf(s - grown) : 0.0f, factor = shrink(largest[q], grown);
                total[q] = total[q] * factor + block_reduce<Sum>(p);
                largest[q] = grown;
                score[q * CHUNK + threadIdx.x] = p;
#pragma unroll
                for (u32 i = 0; i < 8; ++i) sum[q][i] *= factor;
            }
            __syncthreads();
            if (place < side) {
#pragma unroll 4
                for (u32 p = place; p < CHUNK && chunk * CHUNK + p < end; p += side) {
                    if (chunk * CHUNK + p < start) continue;
                    float value[8];
                    load8(values + (u64)(chunk * CHUNK + p) * h.padded + lane * 8, value);
#pragma unroll
                    for (u32 q = 0; q < AT_ONCE; ++q)
#pragma unroll
                        for (u32 i = 0; i < 8; ++i)
                            sum[q][i] = q < count ? __fmaf_rn(score[q * CHUNK + p], value[i], sum[q][i]) : 0.0f;
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (u32 q = 0; q < AT_ONCE; ++q) {
            if (q >= count) break;
#pragma unroll
            for (u32 i = 0; i < 8; ++i) shared_sums[threadIdx.x * 8 + i] = sum[q][i];
            __syncthreads();
            for (u32 d = threadIdx.x; d < h.padded; d += blockDim.x) {
                float all = 0.0f;
                for (u32 p = 0; p < side; ++p) all += shared_sums[(p * lanes + d / 8) * 8 + d % 8];
                if (a.splits > 1) {
                    part(first + q, blockIdx.x)[d] = all;
                } else if (d < h.size) {
                    a.out[((size_t)m * h.heads + first + q) * h.size + d] = all / total[q];
                }
            }
            if (a.splits > 1 && threadIdx.x == 0) {
                part(first + q, blockIdx.x)[h.padded] = largest[q];
                part(first + q, blockIdx.x)[h.padded + 1] = total[q];
            }
            __syncthreads();
        }
    }

    __device__ __forceinline__ float* part(u32 head, u32 split) const {
        return a.partial + (((size_t)m * a.heads.heads + head) * a.splits + split) * (a.heads.padded + 2);
    }

    __device__ __forceinline__ void join(u32 head) const {
        const Heads& h = a.heads;
        float largest = negative_infinity(), total = 0.0f;
        for (u32 split = 0; split < a.splits; ++split) largest = Max::of(largest, part(head, split)[h.padded]);
        for (u32 split = 0; split < a.splits; ++split)
            total += part(head, split)[h.padded + 1] * shrink(part(head, split)[h.padded], largest);
        for (u32 d = threadIdx.x; d < h.size; d += blockDim.x) {
            float sum = 0.0f;
            for (u32 split = 0; split < a.splits; ++split)
                sum += part(head, split)[d] * shrink(part(head, split)[h.padded], largest);
            a.out[((size_t)m * h.heads + head) * h.size + d] = sum / total;
        }
    }
};

template <class T>
DEVICE void attend_one(const AttendArgs& a, const PrepareArgs* unprepared) {
    DYNAMIC_SHARED(shared);
    __shared__ bool is_last;
    float* memory = reinterpret_cast<float*>(shared);
    u32 m = blockIdx.z, kv = blockIdx.y, group = a.heads.heads / a.heads.kv_heads;
    float* score = memory + AT_ONCE * a.heads.padded;
    AttendedRow row = a.rows[m];
    AttendOne<T> block{a, unprepared, row, memory, score, score + AT_ONCE * CHUNK, m, kv, group};
    if (unprepared != nullptr) {
        // The block that looks at the new position is the only one that needs it now.
        u32 chunk = row.position / CHUNK - first_seen(a.rule, row.position) / CHUNK;
        if (chunk % a.splits == blockIdx.x) {
            for (u32 d = threadIdx.x; d < a.heads.padded; d += blockDim.x) {
                store<T>(*unprepared, row, m, KEY, kv, d);
                store<T>(*unprepared, row, m, VALUE, kv, d);
            }
        }
    }
    for (u32 first = 0; first < group; first += AT_ONCE)
        block.run(kv * group + first, group - first < AT_ONCE ? group - first : AT_ONCE);
    if (a.splits == 1) return;
    // What this block wrote must be seen before it is counted.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* counter = &a.counters[m * a.heads.kv_heads + kv];
        is_last = atomicAdd(counter, 1u) == a.splits - 1;
        if (is_last) *counter = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (u32 head = kv * group; head < (kv + 1) * group; ++head) block.join(head);
}

// Every row is the only new one of its text (decode): `prepare` and `attend_one` in one launch.
struct AttendNewArgs {
    AttendArgs attend;
    PrepareArgs prepare;
};

// Many new positions (prefill): 32 queries of a head and 64 positions at a time in shared memory, sums of
// products in registers, two queries by four keys a thread. For heads of up to 128 values.
constexpr u32 TILE_Q = 32;
constexpr u32 TILE_KEYS = 64;
constexpr u32 MOST_DIMS = 128;

template <class T>
DEVICE void attend_many(const AttendArgs& a) {
    DYNAMIC_SHARED(shared);
    const Heads& h = a.heads;
    u32 pitch = h.padded + 1, head = blockIdx.y, kv = head / (h.heads / h.kv_heads);
    float* queries = reinterpret_cast<float*>(shared);  // [TILE_Q, pitch]
    float* keys = queries + TILE_Q * pitch;             // [TILE_KEYS, pitch]
    float* values = keys + TILE_KEYS * pitch;           // [TILE_KEYS, pitch]
    float* scores = values + TILE_KEYS * pitch;         // [TILE_Q, TILE_KEYS + 1]
    u32 first_row = a.tiles[2 * blockIdx.x], count = a.tiles[2 * blockIdx.x + 1];
    AttendedRow first = a.rows[first_row];
    u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (u32 i = threadIdx.x; i < TILE_Q * h.padded; i += blockDim.x) {
        u32 q = i / h.padded, d = i % h.padded;
        bool inside = q < count && d < h.size;
        queries[q * pitch + d] = inside ? a.queries[((size_t)(first_row + q) * h.heads + head) * h.size + d] : 0.0f;
    }
    float largest[2], total[2], sum[2][MOST_DIMS / 16] = {};
    u32 start[2], end[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        u32 position = first.position + y * 2 + i;
        largest[i] = negative_infinity(), total[i] = 0.0f;
        start[i] = first_seen(a.rule, position);
        end[i] = y * 2 + i < count ? position + 1 : 0;
    }
    const T *key_memory = keys_of<T>(first, h, kv), *value_memory = values_of<T>(first, h, kv);
    u32 begin = first_seen(a.rule, first.position) / TILE_KEYS * TILE_KEYS, stop = first.position + count;
    for (u32 tile = begin; tile < stop; tile += TILE_KEYS) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < TILE_KEYS * h.padded / 8; i += blockDim.x) {
            u32 p = i % TILE_KEYS, d = i / TILE_KEYS * 8;
            float key[8] = {}, value[8] = {};
            if (tile + p < stop) {
                load8(key_memory + ((u64)(d / 8) * first.capacity + tile + p) * 8, key);
                load8(value_memory + (u64)(tile + p) * h.padded + d, value);
            }
#pragma unroll
            for (u32 c = 0; c < 8; ++c) keys[p * pitch + d + c] = key[c], values[p * pitch + d + c] = value[c];
        }
        __syncthreads();
        float dot[2][4] = {};
        for (u32 d = 0; d < h.size; ++d)
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
#pragma unroll
                for (u32 j = 0; j < 4; ++j)
                    dot[i][j] = __fmaf_rn(queries[(y * 2 + i) * pitch + d], keys[(x + 16 * j) * pitch + d], dot[i][j]);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            float grown = largest[i];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                u32 position = tile + x + 16 * j;
                bool seen = position >= start[i] && position < end[i];
                dot[i][j] = seen ? rescore(a.rule, head, position, dot[i][j]) : negative_infinity();
                grown = Max::of(grown, dot[i][j]);
            }
            for (u32 step = 8; step > 0; step /= 2) grown = Max::of(grown, __shfl_xor_sync(EVERY_LANE, grown, step));
            float factor = shrink(largest[i], grown), part = 0.0f;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                // Without any position seen so far all are minus infinity.
                float p = dot[i][j] == negative_infinity() ? 0.0f : expf(dot[i][j] - grown);
                scores[(y * 2 + i) * (TILE_KEYS + 1) + x + 16 * j] = p;
                part += p;
            }
            for (u32 step = 8; step > 0; step /= 2) part += __shfl_xor_sync(EVERY_LANE, part, step);
            total[i] = total[i] * factor + part;
            largest[i] = grown;
#pragma unroll
            for (u32 c = 0; c < MOST_DIMS / 16; ++c) sum[i][c] *= factor;
        }
        __syncthreads();
        for (u32 p = 0; p < TILE_KEYS; ++p)
#pragma unroll
            for (u32 c = 0; c < MOST_DIMS / 16; ++c) {
                u32 d = x + 16 * c;
                if (d >= h.size) break;
                float value = values[p * pitch + d];
#pragma unroll
                for (u32 i = 0; i < 2; ++i)
                    sum[i][c] = __fmaf_rn(scores[(y * 2 + i) * (TILE_KEYS + 1) + p], value, sum[i][c]);
            }
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i)
#pragma unroll
        for (u32 c = 0; c < MOST_DIMS / 16; ++c) {
            u32 d = x + 16 * c, q = y * 2 + i;
            if (d < h.size && q < count) a.out[((size_t)(first_row + q) * h.heads + head) * h.size + d] = sum[i][c] / total[i];
        }
}

#define ATTENTION(suffix, T)                                             \
    KERNEL(prepare_##suffix, PrepareArgs, 128, 8) { prepare<T>(a); }        \
    KERNEL(attend_one_##suffix, AttendArgs, 128, 4) { attend_one<T>(a, nullptr); } \
    KERNEL(attend_new_##suffix, AttendNewArgs, 128, 4) { attend_one<T>(a.attend, &a.prepare); } \
    KERNEL(attend_many_##suffix, AttendArgs, 256, 2) { attend_many<T>(a); }

ATTENTION(f32, float)
ATTENTION(f16, half)
ATTENTION(bf16, bf16)
