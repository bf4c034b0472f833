#include "attention.cuh"

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
    float slope = slope_of(a.rule, head);
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
                unpack(load_piece(key_memory + ((u64)(d / 8) * first.capacity + tile + p) * 8), key);
                unpack(load_piece(value_memory + (u64)(tile + p) * h.padded + d), value);
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
                dot[i][j] = seen ? rescore(a.rule, slope, position, dot[i][j]) : negative_infinity();
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

#define ATTEND_MANY(suffix, T) \
    KERNEL(attend_many_##suffix, AttendArgs, 256, 2) { attend_many<T>(a); }

ATTEND_MANY(f32, float)
ATTEND_MANY(f16, half)
ATTEND_MANY(bf16, bf16)
