// One token (M = 1): from a row of activations to the outputs of an int8 layer in one launch.
//
// Idea: decode is bound by reading weights, N · K bytes, once, and by latency: a layer of gpt2-large reads for 1 to 2 us.
// Every block normalises and quantises the row for itself, out of L2, which costs less than a launch and a trip through
// memory between norm and matmul. What no kernel writes is fetched before the kernels before this one are waited for: up to
// GEMV_STAGES · 4 KB of the block's weights on their way into shared memory, scales, biases and the norm's weights in
// registers. With programmatic dependent launch all of that overlaps with those kernels.
//
// Layout: a block has `rows` neighbouring rows of weights. `lanes` threads share a row, a power of two from 16 to 256 that
// leaves few of them without work (plan.rs), and a block takes 256 / lanes rows at a time. Each thread copies the 16-byte
// pieces that it multiplies, into a place of its own, so that no barrier is needed between copying and reading. Sums are of
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

// The pieces of a thread, one after the other: where in its row of weights, and which row.
struct Pieces {
    u32 lane, row, chunk;

    __device__ __forceinline__ explicit Pieces(u32 lanes)
        : lane(threadIdx.x % lanes), row(threadIdx.x / lanes), chunk(lane) {}

    // Whether a new row begins.
    __device__ __forceinline__ bool next(u32 lanes, u32 chunks) {
        chunk += lanes;
        if (chunk - lane < chunks) return false;
        chunk = lane;
        row += GEMV_THREADS / lanes;
        return true;
    }
};

// The product of 16 codes with 16 codes.
DEVICE i32 dot_codes(const Words4& w, const Words4& x, i32 sum) {
#pragma unroll
    for (u32 j = 0; j < 4; ++j) sum = __dp4a((i32)w.word[j], (i32)x.word[j], sum);
    return sum;
}

template <class T>
DEVICE void gemv(const GemvArgs& a) {
    DYNAMIC_SHARED(shared);
    start_kernels_after();
    u32 lanes = a.lanes, pitch = a.weight.pitch, chunks = pitch / 16, loads = (chunks + lanes - 1) / lanes;
    u32 first_row = blockIdx.x * a.rows;
    u32 rows = a.weight.out_features - first_row < a.rows ? a.weight.out_features - first_row : a.rows;
    u32 pieces = (a.rows * lanes + GEMV_THREADS - 1) / GEMV_THREADS * loads;
    u32 stages = pieces < GEMV_STAGES ? pieces : GEMV_STAGES;
    u32 warps = lanes < WARP ? 1 : lanes / WARP;  // that share a row

    unsigned char* stage = shared;                                          // [stages, 256] pieces of 16 bytes
    i8* codes = reinterpret_cast<i8*>(shared + stages * GEMV_THREADS * 16);  // [pitch]
    unsigned char* flags = reinterpret_cast<unsigned char*>(codes + pitch);  // [pitch / 4]: bit i: column 4k + i
    i32* sums = reinterpret_cast<i32*>(flags + pitch / 4);                   // [rows, warps]
    float* aparts = reinterpret_cast<float*>(sums + a.rows * warps);         // [rows, warps]
    float* values = aparts + a.rows * warps;                                 // [cols] if a.keeps_values

    const i8* weights = a.weight.codes + (size_t)first_row * pitch;
    Pieces fetched(lanes);
    auto fetch = [&](u32 slot) {
        bool inside = fetched.row < rows && fetched.chunk < chunks;
        const i8* from = inside ? weights + (size_t)fetched.row * pitch + fetched.chunk * 16 : weights;
        copy_async(stage + (slot * GEMV_THREADS + threadIdx.x) * 16, from, inside);
        commit_copies();
        fetched.next(lanes, chunks);
    };
    for (u32 piece = 0; piece < stages; ++piece) fetch(piece);

    QuadRow<T> row(a.source);
    row.load_constants();
    Constants constants;
    u32 n = first_row + threadIdx.x;
    if (threadIdx.x < rows) constants = Constants(a.weight, a.epilogue, n);

    wait_for_kernels_before();
    row.load();
    float residual = threadIdx.x < rows ? residual_of(a.epilogue, 0, n) : 0.0f;
    row.normalise();
    bool has_outliers;
    float absmax = half_value(row_absmax(row, a.limit, has_outliers));
    float inverse = inverse_step(absmax);
    row.each(pitch, [&](u32 k, const float (&value)[4]) {
        u32 word = 0, flag = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            half rounded = __float2half_rn(value[i]);
            bool apart = k + i < row.cols && is_outlier(half_magnitude(rounded), a.limit);
            u32 code = apart ? 0 : (u32)code_of(rounded, inverse) & 0xff;
            word |= code << (8 * i);
            flag |= (u32)apart << i;
            if (apart && a.keeps_values != 0) values[k + i] = value[i];
        }
        *reinterpret_cast<u32*>(codes + k) = word;
        if (has_outliers) flags[k / 4] = (unsigned char)flag;
    });
    __syncthreads();

    bool is_all_there = pieces <= GEMV_STAGES;
    if (is_all_there) wait_for_copies<0>();
    Pieces at(lanes);
    i32 sum = 0;
    float apart = 0.0f;
    for (u32 piece = 0; piece < pieces; ++piece) {
        if (!is_all_there) wait_for_copies<GEMV_STAGES - 1>();
        u32 slot = piece % GEMV_STAGES, column = at.chunk < chunks ? at.chunk * 16 : 0;
        const unsigned char* own = stage + (slot * GEMV_THREADS + threadIdx.x) * 16;
        sum = dot_codes(load_words(own), load_words(codes + column), sum);
        if (has_outliers && at.chunk < chunks) {
            for (u32 bits = *reinterpret_cast<const u32*>(flags + column / 4); bits != 0; bits &= bits - 1) {
                u32 bit = __ffs(bits) - 1, k = bit / 8 * 4 + bit % 8;
                float value = a.keeps_values != 0 ? values[column + k] : row[column + k];
                apart = __fmaf_rn(value, (float)(i8)own[k], apart);
            }
        }
        if (!is_all_there) fetch(slot);

        u32 of_row = at.row;
        if (!at.next(lanes, chunks)) continue;
        u32 together = lanes < WARP ? lanes : WARP;
        sum = lanes_reduce<Sum>(sum, together);
        if (has_outliers) apart = lanes_reduce<Sum>(apart, together);
        if (threadIdx.x % together == 0 && of_row < rows) {
            u32 place = of_row * warps + at.lane / WARP;
            sums[place] = sum;
            aparts[place] = apart;
        }
        sum = 0, apart = 0.0f;
    }
    __syncthreads();

    for (u32 i = threadIdx.x; i < rows; i += GEMV_THREADS) {
        if (i != threadIdx.x) {
            constants = Constants(a.weight, a.epilogue, first_row + i);
            residual = residual_of(a.epilogue, 0, first_row + i);
        }
        i32 whole = 0;
        float outliers = 0.0f;
        for (u32 warp = 0; warp < warps; ++warp) whole += sums[i * warps + warp], outliers += aparts[i * warps + warp];
        Operands operands(constants, residual);
        float y = dequantize(whole, absmax, operands) + outliers * (operands.absmax * CODE_STEP);
        finish<T>(a.epilogue, operands, 0, first_row + i, y);
    }
}

KERNEL_THAT_WAITS(gemv_f32, GemvArgs, 256, 2) { gemv<float>(a); }
KERNEL_THAT_WAITS(gemv_f16, GemvArgs, 256, 2) { gemv<half>(a); }
KERNEL_THAT_WAITS(gemv_bf16, GemvArgs, 256, 2) { gemv<bf16>(a); }
