// Attention of many new positions (prefill): a block takes a tile of 64 positions of one sequence,
// and one head.
//
// `attend_many64` and `attend_many128` (heads of up to 64 and 128 values, 16-bit caches, capability
// 8.0 and later) use tensor cores, like FlashAttention-2. Each of 4 warps holds 16 queries in
// registers, with their online softmax. 64 keys at a time pass through shared memory, while the
// next 64 are being copied (cp.async). The tensor cores return scores in the layout in which they
// take attention weights, so neither goes through memory. Queries, which are f32, and attention
// weights are each split into a sum of two 16-bit floats, which keeps 22 bits of them in f16 and 16
// in bf16, for twice the multiply-adds. Tiles of keys that are hidden from all of a warp's queries
// by the causal mask or window are skipped; those partly hidden are masked. The longest tiles of a
// sequence start first. Shared memory holds keys, and values, as [values / 8, 64 positions] pieces
// of 16 bytes. That is the cache's layout of keys; values are permuted within groups of 8 positions
// so that neither the copies nor `ldmatrix` have bank conflicts.
//
// `attend_many`, for everything else: 32 queries of a head and 64 positions in shared memory, f32
// multiply-adds, two queries by four keys for each thread; two blocks for each tile.
//
// Bytes: keys and values once for each tile and head, from L2.
#include "attention.cuh"

constexpr u32 TILE_ROWS = 64;   // plan::TILE_QUERIES
constexpr u32 TILE_KEYS = 64;
constexpr float LOG2_E = 1.4426950408889634f;

template <class T, u32 DIMS>
struct AttendTile {
    static constexpr u32 PIECES = DIMS / 8, STEPS = DIMS / 16, THREADS = 128;
    static constexpr u32 STAGE = 2 * PIECES * TILE_KEYS;  // pieces of keys, then of values

    struct Stage {
        Words4 *keys, *values;
    };

    // Splits two floats, each into a 16-bit value and its 16-bit remainder.
    static __device__ __forceinline__ void split(float x, float y, u32& whole, u32& rest) {
        whole = pack_floats(x, y, T());
        rest = pack_floats(x - value_of(whole), y - value_of(whole >> 16), T());
    }
    static __device__ __forceinline__ float value_of(u32 bits) { return value_of(bits, T()); }
    static __device__ __forceinline__ float value_of(u32 bits, half) { return __half2float(__ushort_as_half((u16)bits)); }
    static __device__ __forceinline__ float value_of(u32 bits, bf16) { return __uint_as_float(bits << 16); }

    // Where a piece of a position's value vector is in a stage.
    static __device__ __forceinline__ u32 value_place(u32 piece, u32 position) {
        return piece * TILE_KEYS + (position ^ (piece & 7));
    }

    // Starts copying the keys and values of a tile of positions from `tile` on; zeros from `stop`
    // on.
    static __device__ __forceinline__ void copy(Stage stage, const T* keys, const T* values, const AttendedRow& sequence,
                                                u32 padded, u32 tile, u32 stop) {
        // A step of mma is 16 values; if a head fills only half of the last step, the rest is
        // zeros.
        u32 pieces = padded / 8, whole = (pieces + 1) / 2 * 2;
#pragma unroll
        for (u32 c = 0; c < PIECES * TILE_KEYS / THREADS; ++c) {
            u32 i = threadIdx.x + c * THREADS, piece = i / TILE_KEYS, position = tile + i % TILE_KEYS;
            bool valid = piece < pieces && position < stop;
            const T* key = keys + (valid ? (piece * sequence.capacity + position) * 8 : 0);
            if (piece < whole) copy_async(stage.keys + i, key, valid);
        }
#pragma unroll
        for (u32 c = 0; c < PIECES * TILE_KEYS / THREADS; ++c) {
            u32 i = threadIdx.x + c * THREADS, piece = i % PIECES, position = i / PIECES;
            bool valid = piece < pieces && tile + position < stop;
            const T* value = values + (valid ? (tile + position) * padded + piece * 8 : 0);
            if (piece < whole) copy_async(stage.values + value_place(piece, position), value, valid);
        }
        commit_copies();
    }

    static __device__ __forceinline__ void run(const AttendArgs& a) {
        DYNAMIC_SHARED(shared);
        Words4* memory = reinterpret_cast<Words4*>(shared);
        const Heads& h = a.heads;
        // Last tiles first: they attend to more positions.
        u32 number = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, kv = head / a.group;
        u32 first_row = a.tiles[2 * number], count = a.tiles[2 * number + 1];
        AttendedRow sequence = a.rows[first_row];
        const T *keys = keys_of<T>(sequence, h, kv), *values = values_of<T>(sequence, h, kv);
        auto stage = [&](u32 i) {
            Words4* start = memory + i * STAGE;
            return Stage{start, start + PIECES * TILE_KEYS};
        };
        u32 begin = first_seen(a.rule, sequence.position) / TILE_KEYS * TILE_KEYS, stop = sequence.position + count;
        copy(stage(0), keys, values, sequence, h.padded, begin, stop);

        u32 lane = lane_index(), g = lane / 4, t = lane % 4, warp_row = uniform_warp() * 16;
        float slope = slope_of(a.rule, head);
        // Lane 4g + t has the warp's rows g and g + 8: the positions that they attend to.
        u32 start[2], end[2];
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            u32 row = warp_row + g + 8 * r;
            start[r] = first_seen(a.rule, sequence.position + row);
            end[r] = row < count ? sequence.position + row + 1 : 0;
        }
        // The positions that all of the warp's rows attend to, and those that any does.
        u32 last_row = warp_row + 16 < count ? warp_row + 15 : count - 1;
        u32 all_from = first_seen(a.rule, sequence.position + warp_row + 15);
        u32 all_to = warp_row + 16 <= count ? sequence.position + warp_row + 1 : 0;
        u32 any_from = first_seen(a.rule, sequence.position + warp_row);
        u32 any_to = warp_row < count ? sequence.position + last_row + 1 : 0;
        bool has_rule = a.rule.softcap != 0.0f || a.rule.slopes != nullptr;

        u32 query[2][STEPS][4];
#pragma unroll
        for (u32 k = 0; k < STEPS; ++k)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                u32 row = warp_row + g + i % 2 * 8, d = k * 16 + i / 2 * 8 + 2 * t;
                const float* x = a.queries + ((size_t)(first_row + row) * h.heads + head) * h.size + d;
                float low = row < count && d < h.size ? x[0] : 0.0f;
                float high = row < count && d + 1 < h.size ? x[1] : 0.0f;
                split(low, high, query[0][k][i], query[1][k][i]);
            }

        float sum[PIECES][4] = {}, largest[2], total[2] = {};
        largest[0] = largest[1] = negative_infinity();
        u32 current = 0;
#pragma unroll 1
        for (u32 tile = begin; tile < stop; tile += TILE_KEYS, current ^= 1) {
            wait_for_copies<0>();
            // This tile has arrived, and all warps are done with the previous one.
            __syncthreads();
            if (tile + TILE_KEYS < stop) copy(stage(current ^ 1), keys, values, sequence, h.padded, tile + TILE_KEYS, stop);
            if (tile >= any_to || tile + TILE_KEYS <= any_from) continue;
            Stage here = stage(current);

            float score[TILE_KEYS / 8][4] = {};
#pragma unroll
            for (u32 k = 0; k < STEPS; ++k) {
                if (k * 16 >= h.padded) break;
#pragma unroll
                for (u32 n = 0; n < TILE_KEYS / 16; ++n) {
                    u32 b[4];
                    load_matrices(b, here.keys + (2 * k + lane / 8 % 2) * TILE_KEYS + n * 16 + lane / 16 * 8 + lane % 8);
                    u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
                    for (u32 part = 0; part < 2; ++part) {
                        mma_floats(score[2 * n], query[part][k], left, T());
                        mma_floats(score[2 * n + 1], query[part][k], right, T());
                    }
                }
            }
            if (has_rule) {
#pragma unroll
                for (u32 n = 0; n < TILE_KEYS / 8; ++n)
#pragma unroll
                    for (u32 i = 0; i < 4; ++i)
                        score[n][i] = rescore(a.rule, slope, tile + n * 8 + 2 * t + i % 2, score[n][i]);
            }
            if (tile < all_from || tile + TILE_KEYS > all_to) {
#pragma unroll
                for (u32 n = 0; n < TILE_KEYS / 8; ++n)
#pragma unroll
                    for (u32 i = 0; i < 4; ++i) {
                        u32 position = tile + n * 8 + 2 * t + i % 2;
                        bool seen = position >= start[i / 2] && position < end[i / 2];
                        score[n][i] = seen ? score[n][i] : negative_infinity();
                    }
            }
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                float grown = largest[r];
#pragma unroll
                for (u32 n = 0; n < TILE_KEYS / 8; ++n)
                    grown = Max::of(grown, Max::of(score[n][2 * r], score[n][2 * r + 1]));
                grown = lanes_reduce<Max>(grown, 4);
                float factor = shrink(largest[r], grown), part = 0.0f;
                // A row that attends to nothing so far: all weights are 0.
                float base = grown == negative_infinity() ? 0.0f : grown * LOG2_E;
#pragma unroll
                for (u32 n = 0; n < TILE_KEYS / 8; ++n)
#pragma unroll
                    for (u32 i = 2 * r; i < 2 * r + 2; ++i) {
                        score[n][i] = power_of_2(__fmaf_rn(score[n][i], LOG2_E, -base));
                        part += score[n][i];
                    }
                total[r] = total[r] * factor + part;
                largest[r] = grown;
#pragma unroll
                for (u32 d = 0; d < PIECES; ++d) sum[d][2 * r] *= factor, sum[d][2 * r + 1] *= factor;
            }
#pragma unroll
            for (u32 k = 0; k < TILE_KEYS / 16; ++k) {
                u32 weight[2][4];
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    const float(&from)[4] = score[2 * k + i / 2];
                    split(from[i % 2 * 2], from[i % 2 * 2 + 1], weight[0][i], weight[1][i]);
                }
#pragma unroll
                for (u32 d = 0; d < STEPS; ++d) {
                    if (d * 16 >= h.padded) break;
                    u32 b[4];
                    load_transposed(b, here.values + value_place(2 * d + lane / 16, k * 16 + lane % 16));
                    u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
                    for (u32 part = 0; part < 2; ++part) {
                        mma_floats(sum[2 * d], weight[part], left, T());
                        mma_floats(sum[2 * d + 1], weight[part], right, T());
                    }
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            float inverse = 1.0f / lanes_reduce<Sum>(total[r], 4);
            u32 row = warp_row + g + 8 * r;
            if (row >= count) continue;
            float* out = a.out + ((size_t)(first_row + row) * h.heads + head) * h.size;
#pragma unroll
            for (u32 d = 0; d < PIECES; ++d)
#pragma unroll
                for (u32 i = 0; i < 2; ++i)
                    if (d * 8 + 2 * t + i < h.size) out[d * 8 + 2 * t + i] = sum[d][2 * r + i] * inverse;
        }
    }
};

constexpr u32 TILE_Q = 32;
constexpr u32 MAX_DIMS = 128;

template <class T>
DEVICE void attend_many(const AttendArgs& a) {
    DYNAMIC_SHARED(shared);
    const Heads& h = a.heads;
    u32 pitch = h.padded + 1, head = blockIdx.y, kv = head / (h.heads / h.kv_heads);
    float* queries = reinterpret_cast<float*>(shared);  // [TILE_Q, pitch]
    float* keys = queries + TILE_Q * pitch;             // [TILE_KEYS, pitch]
    float* values = keys + TILE_KEYS * pitch;           // [TILE_KEYS, pitch]
    float* scores = values + TILE_KEYS * pitch;         // [TILE_Q, TILE_KEYS + 1]
    u32 tile_row = blockIdx.x % 2 * TILE_Q, rows = a.tiles[blockIdx.x / 2 * 2 + 1];
    if (tile_row >= rows) return;
    u32 first_row = a.tiles[blockIdx.x / 2 * 2] + tile_row, count = rows - tile_row < TILE_Q ? rows - tile_row : TILE_Q;
    AttendedRow first = a.rows[first_row];
    u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (u32 i = threadIdx.x; i < TILE_Q * h.padded; i += blockDim.x) {
        u32 q = i / h.padded, d = i % h.padded;
        bool inside = q < count && d < h.size;
        queries[q * pitch + d] = inside ? a.queries[((size_t)(first_row + q) * h.heads + head) * h.size + d] : 0.0f;
    }
    float slope = slope_of(a.rule, head);
    float largest[2], total[2], sum[2][MAX_DIMS / 16] = {};
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
                unpack(load_piece<false>(key_memory + ((u64)(d / 8) * first.capacity + tile + p) * 8), key);
                unpack(load_piece<false>(value_memory + (u64)(tile + p) * h.padded + d), value);
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
                // Before the first position that the row attends to, all are -infinity.
                float p = dot[i][j] == negative_infinity() ? 0.0f : expf(dot[i][j] - grown);
                scores[(y * 2 + i) * (TILE_KEYS + 1) + x + 16 * j] = p;
                part += p;
            }
            for (u32 step = 8; step > 0; step /= 2) part += __shfl_xor_sync(EVERY_LANE, part, step);
            total[i] = total[i] * factor + part;
            largest[i] = grown;
#pragma unroll
            for (u32 c = 0; c < MAX_DIMS / 16; ++c) sum[i][c] *= factor;
        }
        __syncthreads();
        for (u32 p = 0; p < TILE_KEYS; ++p)
#pragma unroll
            for (u32 c = 0; c < MAX_DIMS / 16; ++c) {
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
        for (u32 c = 0; c < MAX_DIMS / 16; ++c) {
            u32 d = x + 16 * c, q = y * 2 + i;
            if (d < h.size && q < count) a.out[((size_t)(first_row + q) * h.heads + head) * h.size + d] = sum[i][c] / total[i];
        }
}

#define ATTEND_MANY(suffix, T) \
    KERNEL(attend_many_##suffix, AttendArgs, 256, 2) { attend_many<T>(a); }

ATTEND_MANY(f32, float)
ATTEND_MANY(f16, half)
ATTEND_MANY(bf16, bf16)

#define ATTEND_TILE(suffix, T)                                                                              \
    KERNEL(attend_many64_##suffix, AttendArgs, 128, 2) { (AttendTile<T, 64>::run(a)); }                     \
    KERNEL(attend_many128_##suffix, AttendArgs, 128, 2) { (AttendTile<T, 128>::run(a)); }

ATTEND_TILE(f16, half)
ATTEND_TILE(bf16, bf16)
