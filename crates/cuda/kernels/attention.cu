// Attention of few new positions: decode, and short continuations.
//
// A block takes one row, one key/value head, up to HEADS of the query heads that share it, and a
// share of the positions (split-K, as in flash decoding). It is bound by latency, not bandwidth, so
// what counts is the chain of dependent loads: the row, which says where the cache is; then keys
// and values, and the queries while those are in flight. A block has two barriers in all. Each of
// the 8 warps has its own positions, 32 at a time, and its own softmax. For scores, each lane has a
// position, whose key it reads in 16-byte pieces; adjacent lanes read adjacent pieces. For values,
// each lane has one piece of a value vector, so that with heads of 64 a warp reads 4 positions per
// load. Keys and values of the next 32 positions are loaded while these are computed. At the end
// the warps combine their maxima, totals and sums in shared memory.
//
// `attend_new` is for rows that are the only new ones of their sequences. A row's own key and value
// then come from the linear layer's output, not from the cache; the block that uses them also
// stores them in the cache.
//
// The grid is fixed when a graph is recorded: for each row it has as many blocks as a full cache
// could need. Here the actual number of positions decides how many of them work; the others exit at
// once. A single active block writes the result. Several write partial sums, which the last of them
// to finish combines.
//
// Heads wider than 256 values are summed 256 values at a time, computing the scores again for each
// part.
//
// Bytes: keys and values once for each set of HEADS heads; with several blocks, 8 · (padded + 2)
// for the partial sums of each block and head.
#include "attention.cuh"

// Prepares the queries of all rows and stores their keys and values in the caches, one value for
// each thread.
template <class T>
DEVICE void prepare(const PrepareArgs& a) {
    const Heads& h = a.heads;
    u32 m = blockIdx.x, group = h.heads / h.kv_heads;
    u32 width = 1u << h.shift, vectors_at_once = blockDim.x >> h.shift;
    u32 place = blockIdx.y * (vectors_at_once > 0 ? vectors_at_once : 1) + (threadIdx.x >> h.shift);
    if (place >= h.heads + 2 * h.kv_heads) return;
    u32 kind, index;
    if (a.is_grouped != 0) {
        u32 kv = place / (group + 2), within = place % (group + 2);
        kind = within < group ? QUERY : within == group ? KEY : VALUE;
        index = kind == QUERY ? kv * group + within : kv;
    } else {
        kind = place < h.heads ? QUERY : place < h.heads + h.kv_heads ? KEY : VALUE;
        index = place - (kind == QUERY ? 0 : kind == KEY ? h.heads : h.heads + h.kv_heads);
    }
    for (u32 d = threadIdx.x & (width - 1); d < h.padded; d += blockDim.x) {
        float value = prepared(a, m, place, kind, d);
        if (kind != QUERY) {
            store(h, a.rows[m], kind, index, d, from_float<T>(value));
        } else if (d < h.size) {
            a.queries[((size_t)m * h.heads + index) * h.size + d] = value;
        }
    }
}

constexpr u32 FEW_WARPS = 8;
constexpr u32 FEW_THREADS = FEW_WARPS * WARP;
// Positions that a block computes in one round, and the number up to which one block does all:
// combining several takes about as long as another round.
constexpr u32 ROUND = FEW_THREADS;
constexpr u32 ALONE = 2 * ROUND;
// Values of a head that a warp sums at once, 8 in each lane.
constexpr u32 MOST_TOGETHER = 8 * WARP;

// The positions that a row attends to in the cache, `start` to `end` exclusive, in chunks of 32
// from `base` on; and how many blocks share them.
struct Share {
    u32 start, end, base, chunks, active;

    __device__ __forceinline__ Share(const AttendArgs& a, u32 position, bool is_new) {
        start = first_seen(a.rule, position), end = position + (is_new ? 0 : 1), base = start / WARP * WARP;
        chunks = end > start ? (end - base + WARP - 1) / WARP : 0;
        active = chunks * WARP <= ALONE ? 1 : (chunks * WARP + ROUND - 1) / ROUND;
        if (active > a.splits) active = a.splits;
    }
};

template <class T, u32 HEADS, bool IS_NEW>
struct AttendFew {
    // Loads of 16 bytes that a lane has in flight for keys, and as many for values.
    static constexpr u32 BATCH = 16 / sizeof(T);

    const AttendArgs& a;
    const PrepareArgs& fresh;  // IS_NEW
    const AttendedRow row;
    const Share share;
    u32 m, kv, set, first, count;       // `count` query heads from `first` on
    float *vectors, *sums, *extremes;   // [HEADS + 2, width]; [HEADS, warps · side, 8 · lanes]; [2, HEADS, warps]
    u32 width;                          // padded, rounded up to whole batches of keys; zeros from padded on

    __device__ __forceinline__ float* part(u32 head, u32 split) const {
        return a.partial + (((size_t)m * a.heads.heads + head) * a.splits + split) * (a.heads.padded + 2);
    }

    // Whether this block has the new position.
    __device__ __forceinline__ bool has_fresh() const { return IS_NEW && blockIdx.x == share.active - 1; }

    // Puts into shared memory the queries, zeros from `count` on, and the new key and value,
    // rounded to the cache's dtype.
    __device__ __forceinline__ void fill_vectors() const {
        const Heads& h = a.heads;
        u32 total = (HEADS + (has_fresh() ? 2 : 0)) << h.shift;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < total; i += FEW_THREADS) {
            u32 slot = i >> h.shift, d = i & ((1u << h.shift) - 1);
            if (d >= width) continue;
            float value = 0.0f;
            if constexpr (IS_NEW) {
                u32 kind = slot < HEADS ? QUERY : slot == HEADS ? KEY : VALUE;
                u32 within = kind == QUERY ? set * HEADS + slot : a.group + kind - KEY;
                u32 place = kv * (a.group + 2) + within;
                if (fresh.is_grouped == 0)
                    place = kind == QUERY ? first + slot : kv + (kind == KEY ? h.heads : h.heads + h.kv_heads);
                if (kind != QUERY || slot < count) value = prepared(fresh, m, place, kind, d);
                if (kind != QUERY) {
                    T rounded = from_float<T>(value);
                    value = to_float(rounded);
                    if (set == 0 && d < h.padded) store(h, row, kind, kv, d, rounded);
                }
            } else if (slot < count && d < h.size) {
                value = a.queries[((size_t)m * h.heads + first + slot) * h.size + d];
            }
            vectors[slot * width + d] = value;
        }
    }

    // Attends to this block's positions, for values from … from + 255 of its heads.
    __device__ __forceinline__ void run(u32 from) const {
        const Heads& h = a.heads;
        const u32 lane = lane_index(), warp = uniform_warp();
        const u32 start = share.start, end = share.end, base = share.base, chunks = share.chunks, active = share.active;
        u32 lanes = (h.padded < MOST_TOGETHER ? h.padded : MOST_TOGETHER) / 8;
        u32 side = WARP * a.inverse >> 16, place = lane * a.inverse >> 16, piece = lane - place * lanes;
        const T *keys = keys_of<T>(row, h, kv), *values = values_of<T>(row, h, kv);
        u32 column = from + piece * 8 < h.padded ? from + piece * 8 : h.padded - 8;

        // Lanes without a position of their own load one that other lanes load.
        auto inside = [&](u32 position) { return position < start ? start : position < end ? position : end - 1; };
        // Pieces that are not loaded are zero or stale; they are multiplied by zeros among the
        // queries or attention weights.
        Piece<T> key[BATCH] = {}, value[BATCH] = {};
        u32 stride = row.capacity * 8;
        auto load_keys = [&](u32 chunk, u32 d) {
            u32 offset = d * row.capacity + inside(base + chunk * WARP + lane) * 8;
#pragma unroll
            for (u32 j = 0; j < BATCH; ++j)
                if (d + 8 * j < h.padded) key[j] = load_piece<IS_NEW>(keys + (offset + j * stride));
        };
        auto load_values = [&](u32 chunk, u32 offset) {
#pragma unroll
            for (u32 j = 0; j < BATCH; ++j) {
                u32 within = offset + j * side;
                if (within < WARP)
                    value[j] = load_piece<IS_NEW>(values + (inside(base + chunk * WARP + within + place) * h.padded + column));
            }
        };
        u32 chunk = blockIdx.x * FEW_WARPS + warp, step = active * FEW_WARPS;
        if (chunk < chunks) {
            load_keys(chunk, 0);
            load_values(chunk, 0);
        }
        float slope[HEADS];
#pragma unroll
        for (u32 q = 0; q < HEADS; ++q) slope[q] = slope_of(a.rule, first + (q < count ? q : 0));
        if (from == 0) fill_vectors();
        // The vectors are in shared memory, and all warps have read the sums of values before
        // `from`.
        __syncthreads();

        float largest[HEADS], total[HEADS], sum[HEADS][8] = {};
#pragma unroll
        for (u32 q = 0; q < HEADS; ++q) largest[q] = negative_infinity(), total[q] = 0.0f;
        if (has_fresh() && warp == FEW_WARPS - 1) {
            const float *new_key = vectors + HEADS * width, *new_value = new_key + width;
#pragma unroll
            for (u32 q = 0; q < HEADS; ++q) {
                float dot = 0.0f;
#pragma unroll 1
                for (u32 d = lane; d < h.padded; d += WARP) dot = __fmaf_rn(vectors[q * width + d], new_key[d], dot);
                largest[q] = rescore(a.rule, slope[q], row.position, warp_reduce<Sum>(dot));
                total[q] = lane == 0 ? 1.0f : 0.0f;
#pragma unroll
                for (u32 i = 0; i < 8; ++i) sum[q][i] = place == 0 ? new_value[column + i] : 0.0f;
            }
        }
        for (; chunk < chunks; chunk += step) {
            u32 next = chunk + step;
            float dot[HEADS][2] = {};
#pragma unroll 1
            for (u32 d = 0; d < h.padded; d += 8 * BATCH) {
#pragma unroll
                for (u32 j = 0; j < BATCH; ++j) {
                    float floats[8];
                    unpack(key[j], floats);
#pragma unroll
                    for (u32 q = 0; q < HEADS; ++q) {
                        const float* query = vectors + q * width + d + 8 * j;
                        Words4 front = load_words(query), back = load_words(query + 4);
#pragma unroll
                        for (u32 i = 0; i < 8; ++i)
                            dot[q][i % 2] =
                                __fmaf_rn(__uint_as_float(i < 4 ? front.word[i] : back.word[i - 4]), floats[i], dot[q][i % 2]);
                    }
                }
                bool goes_on = d + 8 * BATCH < h.padded;
                if (goes_on || next < chunks) load_keys(goes_on ? chunk : next, goes_on ? d + 8 * BATCH : 0);
            }
            u32 position = base + chunk * WARP + lane;
            bool seen = position >= start && position < end;
            float weight[HEADS];
#pragma unroll
            for (u32 q = 0; q < HEADS; ++q) {
                float score = seen ? rescore(a.rule, slope[q], position, dot[q][0] + dot[q][1]) : negative_infinity();
                // `grown` is finite: every chunk has a position that the row attends to.
                float grown = Max::of(largest[q], warp_reduce<Max>(score)), factor = shrink(largest[q], grown);
                weight[q] = seen ? expf(score - grown) : 0.0f;
                total[q] = total[q] * factor + weight[q];
                largest[q] = grown;
#pragma unroll
                for (u32 i = 0; i < 8; ++i) sum[q][i] *= factor;
            }
#pragma unroll 1
            for (u32 offset = 0; offset < WARP; offset += BATCH * side) {
#pragma unroll
                for (u32 j = 0; j < BATCH; ++j) {
                    u32 within = offset + j * side + place;
                    float floats[8];
                    unpack(value[j], floats);
#pragma unroll
                    for (u32 q = 0; q < HEADS; ++q) {
                        float shared_weight = __shfl_sync(EVERY_LANE, weight[q], within % WARP);
                        // Lanes beyond the last whole group, and positions past this chunk.
                        if (place >= side || within >= WARP) shared_weight = 0.0f;
#pragma unroll
                        for (u32 i = 0; i < 8; ++i) sum[q][i] = __fmaf_rn(shared_weight, floats[i], sum[q][i]);
                    }
                }
                bool goes_on = offset + BATCH * side < WARP;
                if (goes_on || next < chunks) load_values(goes_on ? chunk : next, goes_on ? offset + BATCH * side : 0);
            }
        }
        u32 pitch = 8 * lanes, sums_a_head = FEW_WARPS * side;
#pragma unroll
        for (u32 q = 0; q < HEADS; ++q) {
            float* mine = sums + (q * sums_a_head + warp * side + place) * pitch + piece * 8;
            float all = warp_reduce<Sum>(total[q]);
            if (place < side) {
#pragma unroll
                for (u32 i = 0; i < 8; i += 4)
                    *reinterpret_cast<Words4*>(mine + i) = {{__float_as_uint(sum[q][i]), __float_as_uint(sum[q][i + 1]),
                                                             __float_as_uint(sum[q][i + 2]), __float_as_uint(sum[q][i + 3])}};
            }
            if (lane == 0) extremes[q * FEW_WARPS + warp] = largest[q], extremes[(HEADS + q) * FEW_WARPS + warp] = all;
        }
        __syncthreads();
        u32 shift = h.shift < 8 ? h.shift : 8;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < count << shift; i += FEW_THREADS) {
            u32 q = i >> shift, within = i & ((1u << shift) - 1), d = from + within;
            if (within >= pitch || d >= h.padded) continue;
            float most = extremes[q * FEW_WARPS], all = 0.0f, result = 0.0f;
#pragma unroll
            for (u32 w = 1; w < FEW_WARPS; ++w) most = Max::of(most, extremes[q * FEW_WARPS + w]);
            const float* column_sums = sums + q * sums_a_head * pitch + within;
#pragma unroll 1
            for (u32 w = 0; w < FEW_WARPS; ++w) {
                float factor = shrink(extremes[q * FEW_WARPS + w], most), of_warp = 0.0f;
#pragma unroll 4
                for (u32 p = 0; p < side; ++p) of_warp += column_sums[(w * side + p) * pitch];
                result = __fmaf_rn(factor, of_warp, result);
                all = __fmaf_rn(factor, extremes[(HEADS + q) * FEW_WARPS + w], all);
            }
            if (active > 1) {
                float* mine = part(first + q, blockIdx.x);
                mine[d] = result;
                if (d == 0) mine[h.padded] = most, mine[h.padded + 1] = all;
            } else if (d < h.size) {
                a.out[((size_t)m * h.heads + first + q) * h.size + d] = result / all;
            }
        }
    }

    // Combines the partial sums of all active blocks. `sums` is reused for a factor of each block.
    __device__ __forceinline__ void join() const {
        const Heads& h = a.heads;
        const u32 lane = lane_index(), warp = uniform_warp(), active = share.active;
        if (warp < count) {
            float largest = negative_infinity(), total = 0.0f;
#pragma unroll 1
            for (u32 split = lane; split < active; split += WARP)
                largest = Max::of(largest, part(first + warp, split)[h.padded]);
            largest = warp_reduce<Max>(largest);
#pragma unroll 1
            for (u32 split = lane; split < active; split += WARP) {
                float factor = shrink(part(first + warp, split)[h.padded], largest);
                total += part(first + warp, split)[h.padded + 1] * factor;
                sums[warp * active + split] = factor;
            }
            total = warp_reduce<Sum>(total);
            if (lane == 0) extremes[warp] = total;
        }
        __syncthreads();
#pragma unroll 1
        for (u32 i = threadIdx.x; i < count << h.shift; i += FEW_THREADS) {
            u32 q = i >> h.shift, d = i & ((1u << h.shift) - 1);
            if (d >= h.size) continue;
            float sum = 0.0f;
#pragma unroll 4
            for (u32 split = 0; split < active; ++split)
                sum = __fmaf_rn(part(first + q, split)[d], sums[q * active + split], sum);
            a.out[((size_t)m * h.heads + first + q) * h.size + d] = sum / extremes[q];
        }
    }
};

template <class T, u32 HEADS, bool IS_NEW>
DEVICE void attend_few(const AttendArgs& a, const PrepareArgs& fresh) {
    DYNAMIC_SHARED(shared);
    __shared__ bool is_last;
    u32 m = blockIdx.z;
    AttendedRow row = a.rows[m];
    // HEADS is 1 only if no query heads share a key/value head.
    u32 kv = HEADS == 1 ? blockIdx.y : blockIdx.y / a.sets, set = HEADS == 1 ? 0 : blockIdx.y - kv * a.sets;
    u32 rest = a.group - set * HEADS;
    Share share(a, row.position, IS_NEW);
    if (blockIdx.x >= share.active) return;

    u32 lanes = (a.heads.padded < MOST_TOGETHER ? a.heads.padded : MOST_TOGETHER) / 8, side = WARP * a.inverse >> 16;
    float* vectors = reinterpret_cast<float*>(shared);
    constexpr u32 WHOLE = 8 * AttendFew<T, HEADS, IS_NEW>::BATCH;
    u32 width = (a.heads.padded + WHOLE - 1) / WHOLE * WHOLE;
    float* sums = vectors + (HEADS + 2) * width;
    float* extremes = sums + HEADS * FEW_WARPS * side * lanes * 8;
    AttendFew<T, HEADS, IS_NEW> block{a,     fresh, row, share, m, kv, set, kv * a.group + set * HEADS, rest < HEADS ? rest : HEADS,
                                      vectors, sums, extremes, width};
#pragma unroll 1
    for (u32 from = 0; from < a.heads.padded; from += MOST_TOGETHER) block.run(from);
    if (share.active == 1) return;
    // What this block wrote must be visible before it is counted.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* counter = &a.counters[m * gridDim.y + blockIdx.y];
        is_last = atomicAdd(counter, 1u) == share.active - 1;
        if (is_last) *counter = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    block.join();
}

// For rows that are the only new ones of their sequences; `prepare` does not run first.
struct AttendNewArgs {
    AttendArgs attend;
    PrepareArgs prepare;
    u32 prefetches;  // whether the previous kernel may still run when this one starts
    u32 padding;
};

// Prefetches the keys and values that a warp reads first. It may read the row before it waits for
// earlier kernels: rows are inputs of the pass, copied to the device before its first kernel, and
// no kernel writes them. The old keys and values were written by earlier passes.
template <class T>
DEVICE void prefetch_new(const AttendNewArgs& args) {
    if (args.prefetches == 0) return;
    constexpr u32 LINE = 128 / sizeof(T), POSITIONS = LINE / 8;
    const AttendArgs& a = args.attend;
    const Heads& h = a.heads;
    AttendedRow row = a.rows[blockIdx.z];
    Share share(a, row.position, true);
    u32 chunk = blockIdx.x * FEW_WARPS + warp_index(), kv = blockIdx.y / a.sets;
    if (blockIdx.x >= share.active || chunk >= share.chunks) return;
    const T *keys = keys_of<T>(row, h, kv), *values = values_of<T>(row, h, kv);
    u32 first = share.base + chunk * WARP;
    for (u32 i = lane_index(); i < h.padded / 8 * (WARP / POSITIONS); i += WARP) {
        u32 position = first + i % (WARP / POSITIONS) * POSITIONS;
        if (position < share.end) prefetch_line(keys + (i / (WARP / POSITIONS) * row.capacity + position) * 8);
    }
    for (u32 i = first * h.padded + lane_index() * LINE; i < (first + WARP) * h.padded; i += WARP * LINE)
        if (i < share.end * h.padded) prefetch_line(values + i);
}

// Four heads at once need more registers than are available with two blocks on a multiprocessor.
#define ATTEND_FEW(suffix, T, HEADS, blocks)                                                                             \
    KERNEL(attend_one##HEADS##_##suffix, AttendArgs, 256, blocks) { attend_few<T, HEADS, false>(a, PrepareArgs()); }     \
    KERNEL_WITH_PREFETCH(attend_new##HEADS##_##suffix, AttendNewArgs, 256, blocks, prefetch_new<T>) {                     \
        attend_few<T, HEADS, true>(a.attend, a.prepare);                                                                 \
    }

#define ATTENTION(suffix, T)                                          \
    KERNEL(prepare_##suffix, PrepareArgs, 256, 4) { prepare<T>(a); }  \
    ATTEND_FEW(suffix, T, 1, 2)                                       \
    ATTEND_FEW(suffix, T, 4, 1)

ATTENTION(f32, float)
ATTENTION(f16, half)
ATTENTION(bf16, bf16)
