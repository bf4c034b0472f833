// One token (M = 1): from a row of activations to the outputs of an int8 layer in one launch.
//
// Idea: decode is bound by reading weights, N · K bytes, once, and by latency: a layer of gpt2-large reads for 1 to 2 us.
// Every block normalises and quantises the row for itself, out of L2, which costs less than a launch and a trip through
// memory between norm and matmul. What no kernel writes is fetched before the kernels before this one are waited for: up to
// GEMV_STAGES · 4 KB of the block's weights on their way into shared memory, scales, biases and the norm's weights in
// registers. With programmatic dependent launch all of that overlaps with those kernels.
//
// Layout: a block has `rows` neighbouring rows of weights. `lanes` threads share a row, a power of two from 16 to 256 that
// leaves few of them without work (plan.rs), and a block takes a set of 256 / lanes rows at a time. Each thread copies the
// pieces of 16 bytes that it multiplies, into a place of its own, so that no barrier is needed between copying and reading.
// Of every row it has the same columns, whose codes it keeps in registers: a piece costs one load and four dp4a. Sums are of
// integers: their order does not matter. Outputs are finished at the end, a thread each.
//
// Outliers are bits beside the codes, one byte for four columns. Whoever multiplies a piece also adds the outliers among
// its columns: their weights are there already.
#include "epilogue.cuh"
#include "ptx.cuh"
#include "source.cuh"

struct GemvArgs {
    Source source;  // one row
    Int8Weight weight;
    Epilogue epilogue;
    u32 limit, lanes;
    u32 rows;          // of weights, of a block
    u32 keeps_values;  // whether shared memory has room for the row's values, of which outliers are taken
};

constexpr u32 GEMV_THREADS = 256;
constexpr u32 GEMV_STAGES = 16;
constexpr u32 GEMV_LOADS = 8;  // pieces of a row that a thread has, at most
constexpr u32 GEMV_SETS = 4;   // sets whose sums are taken together

// Shared memory.
struct GemvMemory {
    unsigned char* stage;  // [min(pieces, GEMV_STAGES), 256] pieces of 16 bytes
    i8* codes;             // [pitch]
    unsigned char* flags;  // [pitch / 4]: bit i is set if column 4k + i is an outlier
    i32* sums;             // [rows, warps that share a row]
    float* aparts;         // [rows, warps that share a row]: of outliers
    float* values;         // [cols] if they are kept
};

// This thread's share of a layer.
struct GemvShare {
    u32 lanes, lane, chunks, loads, sets, pieces;
    u32 row, together;  // of a set: this thread's row, and how many there are
    u32 rows, warps;    // of the block; that share a row
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

    // Starts copying piece `load` of a row to stage `slot`; zeros where there is no such piece.
    __device__ __forceinline__ void fetch(const GemvMemory& memory, u32 set, u32 load, u32 slot) const {
        u32 at = row_of(set), chunk = load * lanes + lane;
        bool inside = at < rows && chunk < chunks;
        const i8* from = inside ? weights + (size_t)at * pitch + chunk * 16 : weights;
        copy_async(memory.stage + (slot * GEMV_THREADS + threadIdx.x) * 16, from, inside);
        commit_copies();
    }
};

// Bit i is set if value i is an outlier.
DEVICE u32 outliers_of(const float (&value)[4], u32 limit) {
    u32 bits = 0;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) bits |= (u32)is_outlier(half_magnitude(__float2half_rn(value[i])), limit) << i;
    return bits;
}

// The sums of SETS sets from `first` on, into `memory`. STREAMS: there are more pieces than stages, and the places of these
// are filled with later ones.
template <u32 SETS, bool STREAMS, class Row>
DEVICE void sum_sets(const GemvShare& share, const GemvMemory& memory, const Words4 (&x)[GEMV_LOADS], const Row& row,
                     bool has_outliers, bool keeps_values, u32 first) {
    auto place = [&](u32 set, u32 load) {
        u32 slot = set * share.loads + load;
        if (STREAMS) slot %= GEMV_STAGES;
        return memory.stage + (slot * GEMV_THREADS + threadIdx.x) * 16;
    };
    i32 sum[SETS] = {};
    float apart[SETS] = {};
#pragma unroll
    for (u32 s = 0; s < SETS; ++s) {
        if (first + s >= share.sets) break;
#pragma unroll
        for (u32 load = 0; load < GEMV_LOADS; ++load) {
            if (load >= share.loads) break;
            Words4 w = load_words(place(first + s, load));
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sum[s] = __dp4a((i32)w.word[j], (i32)x[load].word[j], sum[s]);
        }
    }
    if (has_outliers) {
#pragma unroll 1
        for (u32 load = 0; load < share.loads; ++load) {
            u32 column = (load * share.lanes + share.lane) * 16;
            u32 bits = column < share.pitch ? *reinterpret_cast<const u32*>(memory.flags + column / 4) : 0;
#pragma unroll 1
            for (; bits != 0; bits &= bits - 1) {
                u32 bit = __ffs(bits) - 1, k = bit / 8 * 4 + bit % 8;
                float value = keeps_values ? memory.values[column + k] : row[column + k];
#pragma unroll
                for (u32 s = 0; s < SETS; ++s)
                    if (first + s < share.sets) apart[s] = __fmaf_rn(value, (float)(i8)place(first + s, load)[k], apart[s]);
            }
        }
    }
    if (STREAMS) {
        // Every piece of this set counts as one of those under way, also where no other takes its place.
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
    if (has_outliers)
        for (u32 step = together / 2; step > 0; step /= 2)
#pragma unroll
            for (u32 s = 0; s < SETS; ++s) apart[s] += __shfl_xor_sync(EVERY_LANE, apart[s], step);
#pragma unroll
    for (u32 s = 0; s < SETS; ++s) {
        u32 at = share.row_of(first + s);
        if (threadIdx.x % together != 0 || at >= share.rows) continue;
        memory.sums[at * share.warps + share.lane / WARP] = sum[s];
        memory.aparts[at * share.warps + share.lane / WARP] = apart[s];
    }
}

template <class T>
DEVICE void gemv(const GemvArgs& a) {
    DYNAMIC_SHARED(shared);
    start_kernels_after();
    GemvShare share(a);
    u32 stages = share.pieces < GEMV_STAGES ? share.pieces : GEMV_STAGES;
    GemvMemory memory;
    memory.stage = shared;
    memory.codes = reinterpret_cast<i8*>(shared + stages * GEMV_THREADS * 16);
    memory.flags = reinterpret_cast<unsigned char*>(memory.codes + share.pitch);
    memory.sums = reinterpret_cast<i32*>(memory.flags + share.pitch / 4);
    memory.aparts = reinterpret_cast<float*>(memory.sums + a.rows * share.warps);
    memory.values = memory.aparts + a.rows * share.warps;
    bool keeps_values = a.keeps_values != 0;

    for (u32 set = 0, piece = 0; piece < stages; ++set)
        for (u32 load = 0; load < share.loads && piece < stages; ++load, ++piece)
            share.fetch(memory, set, load, piece);
    QuadRow<T> row(a.source);
    row.load_constants();
    Constants constants;
    u32 first = blockIdx.x * a.rows, n = first + threadIdx.x;
    if (threadIdx.x < share.rows) constants = Constants(a.weight, a.epilogue, n);

    wait_for_kernels_before();
    row.load();
    float residual = threadIdx.x < share.rows ? residual_of(a.epilogue, 0, n) : 0.0f;
    row.normalise();
    bool has_outliers;
    u32 kept_outliers;
    float absmax = half_value(row_absmax(row, a.limit, has_outliers, kept_outliers));
    float inverse = inverse_step(absmax);
    row.each(share.pitch, [&](u32 k, u32 group, const float (&value)[4]) {
        u32 word = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) word |= ((u32)code_of(__float2half_rn(value[i]), inverse) & 0xff) << (8 * i);
        if (has_outliers) {
            u32 flags = group < QUADS ? kept_outliers >> (4 * group) & 15 : outliers_of(value, a.limit);
            for (u32 bits = flags; bits != 0; bits &= bits - 1) {
                u32 i = __ffs(bits) - 1;
                word &= ~(0xffu << (8 * i));
                if (keeps_values) memory.values[k + i] = i == 0 ? value[0] : i == 1 ? value[1] : i == 2 ? value[2] : value[3];
            }
            memory.flags[k / 4] = (unsigned char)flags;
        }
        *reinterpret_cast<u32*>(memory.codes + k) = word;
    });
    __syncthreads();

    Words4 x[GEMV_LOADS];
#pragma unroll
    for (u32 load = 0; load < GEMV_LOADS; ++load) {
        u32 chunk = load * share.lanes + share.lane;
        x[load] = chunk < share.chunks ? load_words(memory.codes + chunk * 16) : Words4{{0, 0, 0, 0}};
    }
    if (share.pieces <= GEMV_STAGES) {
        wait_for_copies<0>();
        for (u32 set = 0; set < share.sets; set += GEMV_SETS)
            sum_sets<GEMV_SETS, false>(share, memory, x, row, has_outliers, keeps_values, set);
    } else {
        for (u32 set = 0; set < share.sets; ++set) {
            // Then the oldest GEMV_LOADS pieces are there, of which this set has no more.
            wait_for_copies<GEMV_STAGES - GEMV_LOADS>();
            sum_sets<1, true>(share, memory, x, row, has_outliers, keeps_values, set);
        }
    }
    __syncthreads();

    for (u32 i = threadIdx.x; i < share.rows; i += GEMV_THREADS) {
        if (i != threadIdx.x) {
            constants = Constants(a.weight, a.epilogue, first + i);
            residual = residual_of(a.epilogue, 0, first + i);
        }
        i32 sum = 0;
        float apart = 0.0f;
        for (u32 warp = 0; warp < share.warps; ++warp) {
            sum += memory.sums[i * share.warps + warp];
            apart += memory.aparts[i * share.warps + warp];
        }
        Operands operands(constants, residual);
        float y = dequantize(sum, absmax, operands) + apart * (operands.absmax * CODE_STEP);
        finish<T>(a.epilogue, operands, 0, first + i, y);
    }
}

KERNEL_THAT_WAITS(gemv_f32, GemvArgs, 256, 2) { gemv<float>(a); }
KERNEL_THAT_WAITS(gemv_f16, GemvArgs, 256, 2) { gemv<half>(a); }
KERNEL_THAT_WAITS(gemv_bf16, GemvArgs, 256, 2) { gemv<bf16>(a); }
