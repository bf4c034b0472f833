// An int8 layer for one token (M = 1): from a row of activations to the outputs in one launch.
//
// Idea: decode is bound by reading the weights, N · K bytes, once, and by latency: reading a layer
// of gpt2-large takes 1 to 2 us. Every block normalises and quantises the row again, from L2, which
// costs less than another launch and a trip through memory between norm and matmul. Whatever no
// kernel writes is fetched before this kernel waits for earlier ones: up to GEMV_STAGES · 8 KB of
// the block's weights by asynchronous copies into shared memory; scales, biases and the norm's
// weights into registers. With programmatic dependent launch all of that overlaps with the previous
// kernel.
//
// Layout: a block has `rows` adjacent rows of weights. `lanes` threads share a row, a power of two
// from 16 to 512 that leaves few of them idle (plan::gemv), and a block computes a set of 512 /
// lanes rows at a time. Each thread copies the 16-byte pieces that it multiplies itself, to its own
// place in shared memory, so no barrier is needed between copying and reading. It has the same
// columns of every row and keeps their codes in registers: a piece costs one load and four dp4a.
// Sums are of integers, so their order does not matter. At the end each thread finishes an output.
//
// Outliers are listed in shared memory, columns ascending, and added when an output is finished.
#include "epilogue.cuh"
#include "ptx.cuh"
#include "source.cuh"

struct GemvArgs {
    Source source;  // one row
    Int8Weight weight;
    Epilogue epilogue;
    OutlierRule rule;
    u32 lanes;
    u32 rows;  // weight rows of a block
};

constexpr u32 GEMV_THREADS = QuadRow<float>::THREADS;
constexpr u32 GEMV_STAGES = 10;
constexpr u32 GEMV_LOADS = 5;       // pieces of a weight row that a thread multiplies, at most
constexpr u32 GEMV_SETS = 2;        // sets that are summed at once
constexpr u32 GEMV_CHUNKS = GEMV_LOADS * GEMV_THREADS * 16 / RMS_CHUNK;
constexpr u32 GEMV_OUTLIERS = 256;  // room in the list; with more outliers all columns are scanned

// Shared memory.
struct GemvMemory {
    unsigned char* stage;  // [min(pieces, GEMV_STAGES), 512] pieces of 16 bytes
    i8* codes;             // [pitch]
    i32* sums;             // [rows, warps that share a row]
    u32* columns;          // [2, GEMV_OUTLIERS] of outliers: as found, then ascending
    float* values;         // [2, GEMV_OUTLIERS] their values, likewise
};

// This thread's share of a layer.
struct GemvShare {
    u32 lanes, lane, chunks, loads, sets, pieces;
    u32 row, together;  // this thread's row within a set, and the rows of a set
    u32 rows, warps;    // the block's rows; the warps that share a row
    const i8* weights;
    u32 pitch;

    __device__ __forceinline__ explicit GemvShare(const GemvArgs& a) {
        u32 shift = __ffs(a.lanes) - 1;
        lanes = a.lanes, lane = threadIdx.x & (lanes - 1), row = threadIdx.x >> shift, together = GEMV_THREADS >> shift;
        pitch = a.weight.pitch, chunks = pitch / 16, loads = (chunks + lanes - 1) >> shift;
        sets = (a.rows + together - 1) * lanes / GEMV_THREADS, pieces = sets * loads;
        warps = lanes < WARP ? 1 : lanes / WARP;
        u32 first = blockIdx.x * a.rows;
        rows = a.weight.out_features - first < a.rows ? a.weight.out_features - first : a.rows;
        weights = a.weight.codes + (size_t)first * pitch;
    }

    __device__ __forceinline__ u32 row_of(u32 set) const { return set * together + row; }

    // Where a weight of the block's row `at` is in shared memory, if all pieces have their own
    // stage.
    __device__ __forceinline__ const i8* staged(const GemvMemory& memory, u32 at, u32 column) const {
        u32 shift = __ffs(lanes) - 1, chunk = column / 16, slot = (at >> (__ffs(together) - 1)) * loads + (chunk >> shift);
        u32 thread = (at & (together - 1)) * lanes + (chunk & (lanes - 1));
        return reinterpret_cast<const i8*>(memory.stage) + (slot * GEMV_THREADS + thread) * 16 + column % 16;
    }

    // Starts copying piece `load` of this thread's row to stage `slot`; zeros past the end.
    __device__ __forceinline__ void fetch(const GemvMemory& memory, u32 set, u32 load, u32 slot) const {
        u32 at = row_of(set), chunk = load * lanes + lane;
        bool inside = at < rows && chunk < chunks;
        const i8* from = inside ? weights + (size_t)at * pitch + chunk * 16 : weights;
        copy_async(memory.stage + (slot * GEMV_THREADS + threadIdx.x) * 16, from, inside);
        commit_copies();
    }
};

// Sums SETS sets from `first` on into `memory`. STREAMS: there are more pieces than stages, so the
// stages of these pieces are refilled with later ones.
template <u32 SETS, bool STREAMS>
DEVICE void sum_sets(const GemvShare& share, const GemvMemory& memory, const Words4 (&x)[GEMV_LOADS], u32 first) {
    i32 sum[SETS] = {};
#pragma unroll
    for (u32 s = 0; s < SETS; ++s) {
        if (first + s >= share.sets) break;
#pragma unroll
        for (u32 load = 0; load < GEMV_LOADS; ++load) {
            if (load >= share.loads) break;
            u32 slot = (first + s) * share.loads + load;
            if (STREAMS) slot %= GEMV_STAGES;
            Words4 w = load_words(memory.stage + (slot * GEMV_THREADS + threadIdx.x) * 16);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sum[s] = __dp4a((i32)w.word[j], (i32)x[load].word[j], sum[s]);
        }
    }
    if (STREAMS) {
        // Every piece commits a group of copies, even past the last piece, so that
        // `wait_for_copies` counts right.
        u32 next_set = first + GEMV_STAGES / share.loads, next = GEMV_STAGES % share.loads;
        for (u32 load = 0; load < share.loads; ++load, ++next) {
            if (next == share.loads) next = 0, ++next_set;
            share.fetch(memory, next_set, next, (first * share.loads + load) % GEMV_STAGES);
        }
    }
    u32 together = share.lanes < WARP ? share.lanes : WARP;
    for (u32 step = together / 2; step > 0; step /= 2)
#pragma unroll
        for (u32 s = 0; s < SETS; ++s) sum[s] += __shfl_xor_sync(EVERY_LANE, sum[s], step);
#pragma unroll
    for (u32 s = 0; s < SETS; ++s) {
        u32 at = share.row_of(first + s);
        if ((threadIdx.x & (together - 1)) == 0 && at < share.rows)
            memory.sums[at * share.warps + share.lane / WARP] = sum[s];
    }
}

// Sorts outliers by column: each goes to the place that is the number of lower columns.
DEVICE void sort_outliers(const GemvMemory& memory, u32 count) {
    for (u32 i = threadIdx.x; i < count; i += GEMV_THREADS) {
        u32 column = memory.columns[i], before = 0;
        for (u32 other = 0; other < count; ++other) before += memory.columns[other] < column;
        memory.columns[GEMV_OUTLIERS + before] = column;
        memory.values[GEMV_OUTLIERS + before] = memory.values[i];
    }
}

// What outliers add to the output of the block's row `at`, before multiplying by the scale of its
// weights.
template <class Row>
DEVICE float sum_outliers(const GemvShare& share, const GemvMemory& memory, const Row& row, u32 at, u32 count, u32 limit) {
    const i8* weight = share.weights + (size_t)at * share.pitch;
    const u32* columns = memory.columns + GEMV_OUTLIERS;
    const float* values = memory.values + GEMV_OUTLIERS;
    float sum = 0.0f;
    if (count <= GEMV_OUTLIERS && share.pieces <= GEMV_STAGES) {
#pragma unroll 4
        for (u32 i = 0; i < count; ++i) sum = __fmaf_rn(values[i], (float)*share.staged(memory, at, columns[i]), sum);
        return sum;
    }
    if (count <= GEMV_OUTLIERS) {
#pragma unroll 4
        for (u32 i = 0; i < count; ++i) sum = __fmaf_rn(values[i], (float)weight[columns[i]], sum);
        return sum;
    }
    for (u32 k = 0; k < row.cols; ++k) {
        float value = row[k];
        if (is_outlier(half_magnitude(__float2half_rn(value)), limit)) sum = __fmaf_rn(value, (float)weight[k], sum);
    }
    return sum;
}

template <class T>
DEVICE void gemv(const GemvArgs& a) {
    DYNAMIC_SHARED(shared);
    __shared__ u32 found;     // number of outliers
    __shared__ u32 smallest;  // the bits of the smallest outlier
    start_kernels_after();
    GemvShare share(a);
    u32 stages = share.pieces < GEMV_STAGES ? share.pieces : GEMV_STAGES;
    GemvMemory memory;
    memory.stage = shared;
    memory.codes = reinterpret_cast<i8*>(shared + stages * GEMV_THREADS * 16);
    memory.columns = reinterpret_cast<u32*>(memory.codes + share.pitch);
    memory.values = reinterpret_cast<float*>(memory.columns + 2 * GEMV_OUTLIERS);
    memory.sums = reinterpret_cast<i32*>(memory.values + 2 * GEMV_OUTLIERS);

    for (u32 set = 0, piece = 0; piece < stages; ++set)
        for (u32 load = 0; load < share.loads && piece < stages; ++load, ++piece)
            share.fetch(memory, set, load, piece);
    QuadRow<T> row(a.source);
    row.load_constants();
    Constants constants;
    u32 first = blockIdx.x * a.rows, n = first + threadIdx.x;
    if (threadIdx.x < share.rows) constants = Constants(a.weight, a.epilogue, n);
    if (threadIdx.x == 0) found = 0;

    wait_for_kernels_before();
    row.load();
    float residual = threadIdx.x < share.rows ? residual_of(a.epilogue, 0, n) : 0.0f;
    row.normalise();
    __shared__ float chunks[GEMV_CHUNKS];
    u32 limit = row.find_limit(a.rule, chunks);
    // Rarely needed again, so not kept in a register.
    if (threadIdx.x == 0) smallest = limit;
    bool has_outliers;
    float absmax = half_value(row_absmax(row, limit, has_outliers));
    float inverse = inverse_step(absmax);
    row.each(share.pitch, [&](u32 k, const float (&value)[4]) {
        u32 word = codes_of(value, inverse);
        if (has_outliers) {
            u32 bits = find_outliers(value, limit);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if ((bits >> i & 1) == 0) continue;
                word &= ~(0xffu << (8 * i));
                u32 place = atomicAdd(&found, 1u);
                if (place < GEMV_OUTLIERS) memory.columns[place] = k + i, memory.values[place] = value[i];
            }
        }
        *reinterpret_cast<u32*>(memory.codes + k) = word;
    });
    __syncthreads();

    u32 outliers = has_outliers ? found : 0;
    if (outliers <= GEMV_OUTLIERS) sort_outliers(memory, outliers);
    Words4 x[GEMV_LOADS];
#pragma unroll
    for (u32 load = 0; load < GEMV_LOADS; ++load) {
        u32 chunk = load * share.lanes + share.lane;
        x[load] = chunk < share.chunks ? load_words(memory.codes + chunk * 16) : Words4{{0, 0, 0, 0}};
    }
    if (share.pieces <= GEMV_STAGES) {
        wait_for_copies<0>();
        for (u32 set = 0; set < share.sets; set += GEMV_SETS) sum_sets<GEMV_SETS, false>(share, memory, x, set);
    } else {
        for (u32 set = 0; set < share.sets; ++set) {
            // The oldest GEMV_LOADS pieces have arrived; a set has no more than that.
            wait_for_copies<GEMV_STAGES - GEMV_LOADS>();
            sum_sets<1, true>(share, memory, x, set);
        }
    }
    __syncthreads();

    for (u32 i = threadIdx.x; i < share.rows; i += GEMV_THREADS) {
        if (i != threadIdx.x) {
            constants = Constants(a.weight, a.epilogue, first + i);
            residual = residual_of(a.epilogue, 0, first + i);
        }
        i32 sum = 0;
        for (u32 warp = 0; warp < share.warps; ++warp) sum += memory.sums[i * share.warps + warp];
        float outlier_sum = 0.0f;
        if (outliers > 0) outlier_sum = sum_outliers(share, memory, row, i, outliers, smallest);
        Operands operands(constants, residual);
        float y = dequantize(sum, absmax, operands) + outlier_sum * (operands.absmax * CODE_STEP);
        finish<T>(a.epilogue, operands, 0, first + i, y);
    }
}

KERNEL_THAT_WAITS(gemv_f32, GemvArgs, 512, 2) { gemv<float>(a); }
KERNEL_THAT_WAITS(gemv_f16, GemvArgs, 512, 2) { gemv<half>(a); }
KERNEL_THAT_WAITS(gemv_bf16, GemvArgs, 512, 2) { gemv<bf16>(a); }
