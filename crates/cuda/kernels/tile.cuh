// The epilogue of gemm.cu and wgmma.cu: from the sums of a tile to outputs.
//
// Idea: the sums go from registers, in the layout of the tensor cores, to shared memory, where they
// replace the stages of the main loop. From there a thread finishes blocks of 4 rows by 4 adjacent
// columns: 16 independent outputs at once, with 16-byte loads from shared memory, and vector loads
// and stores of residuals and outputs if alignment permits. A thread keeps its columns, and so
// their absmax and bias, in registers. The loops over the tile are not unrolled: with a copy of the
// activation functions for each output, the code would not fit in the instruction cache. absmax,
// biases and the numbers of outlier columns are fetched before the main loop; outlier values after
// it, once for the tile if there are up to 16 columns.
//
// Split K, for few tiles with a long K: `splits` blocks (blockIdx.z) share the K of a tile. Each
// adds its sums to those of the tile in device memory, which is exact in any order. The last one
// reads the totals back into registers, resets sums and counter to zero, and finishes the tile.
// Memory holds sum i of all threads contiguously. Bytes: 4 · splits + 8 for each output, all in L2.
#pragma once
#include "product.cuh"

constexpr u32 OUTLIERS_AT_ONCE = 16;

// Four adjacent values, aligned to the size of all four.
DEVICE void store4(float* p, const float (&x)[4]) { *reinterpret_cast<float4*>(p) = float4{x[0], x[1], x[2], x[3]}; }
template <class T>
DEVICE void store4(T* p, const float (&x)[4]) {
    *reinterpret_cast<uint2*>(p) = uint2{pack_floats(x[0], x[1], T()), pack_floats(x[2], x[3], T())};
}

// The block's share of the steps along K: from `first` to `end`, exclusive.
struct StepRange {
    u32 first, end;

    __device__ __forceinline__ StepRange(u32 steps, u32 splits) {
        u32 share = (steps + splits - 1) / splits;
        first = blockIdx.z * share < steps ? blockIdx.z * share : steps;
        end = first + share < steps ? first + share : steps;
    }
};

// Copies a tile of codes into shared memory asynchronously: ROWS rows of CHUNKS · 16 bytes, of
// which a thread copies the same chunk of every STRIDE-th row. STRIDE is a multiple of 8, the
// period of the swizzle.
template <u32 ROWS, u32 CHUNKS, u32 THREADS>
struct TileCopy {
    static constexpr u32 STRIDE = THREADS / CHUNKS, BYTES = ROWS * CHUNKS * 16;
    static_assert(STRIDE % 8 == 0 && ROWS % STRIDE == 0, "whole rounds of all threads");

    const i8* from;  // this thread's chunk of its first row
    u32 pitch, rows, column;
    u32 place;       // its offset in the tile

    // swizzle(row, chunk): the place of a chunk in its row.
    template <class Swizzle>
    __device__ __forceinline__ TileCopy(const i8* codes, u32 pitch, u32 first, u32 end, Swizzle swizzle) : pitch(pitch) {
        u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        rows = first + row < end ? end - first - row : 0;
        column = chunk * 16;
        from = codes + (size_t)(first + row) * pitch + column;
        place = (row * CHUNKS + swizzle(row, chunk)) * 16;
    }

    // Starts copying the codes from column k on; zeros past the end.
    __device__ __forceinline__ void start(unsigned char* tile, u32 k) const {
        const i8* next = from + k;
#pragma unroll
        for (u32 i = 0; i < ROWS / STRIDE; ++i, next += STRIDE * (size_t)pitch)
            copy_async(tile + place + i * STRIDE * CHUNKS * 16, next, i * STRIDE < rows && k + column < pitch);
    }
};

// HEIGHT: rows of the tile that are in shared memory at once.
template <class T, u32 TILE_M, u32 TILE_N, u32 THREADS, u32 HEIGHT = TILE_M>
struct Tile {
    // With this pitch the lanes' pairs of adjacent sums, of rows g and columns 2t, are in different
    // banks.
    static constexpr u32 PITCH = TILE_N + 8;
    static constexpr u32 BOTH = TILE_M + TILE_N, FETCHED = (BOTH + THREADS - 1) / THREADS;
    // A thread finishes ROWS rows out of every STRIDE, always in the same 4 columns.
    static constexpr u32 ROWS = 4, QUADS = TILE_N / 4, STRIDE = THREADS / QUADS * ROWS;
    static constexpr u32 SUMS = TILE_M * TILE_N / THREADS, PARTS = TILE_M / HEIGHT;
    static constexpr u32 BYTES = 4 * (HEIGHT * PITCH + (OUTLIERS_AT_ONCE + 1) * BOTH + TILE_N + 4);
    static_assert(PARTS == 1 || FETCHED == 1, "load_outliers supports only one of them above 1");
    static_assert(TILE_M % WARP == 0 && BOTH % WARP == 0, "a warp fetches what belongs to rows, or to columns");
    static_assert(THREADS % QUADS == 0 && HEIGHT % STRIDE == 0 && TILE_M % HEIGHT == 0, "whole rounds of all threads");

    const ProductArgs& a;
    u32 first_m, first_n, count;
    // Fetched before the main loop: absmax of rows of activations or weights, biases, and an
    // outlier column in each lane.
    float factor[FETCHED], offset[FETCHED];
    u32 column;
    // In shared memory, after the main loop.
    i32* sums;        // [HEIGHT, PITCH], later f32 outputs
    float* outliers;  // [OUTLIERS_AT_ONCE, BOTH]: activations, then weights, of outlier columns
    float* factors;   // [BOTH]
    float* offsets;   // [TILE_N]
    u32* is_last;

    __device__ __forceinline__ Tile(const ProductArgs& a)
        : a(a), first_m(blockIdx.x * TILE_M), first_n(blockIdx.y * TILE_N), count(*a.count), column(0) {
#pragma unroll
        for (u32 i = 0; i < FETCHED; ++i) {
            u32 place = i * THREADS + threadIdx.x, m = first_m + place, n = first_n + place - TILE_M;
            factor[i] = offset[i] = 0.0f;
            if (place < TILE_M) {
                if (m < a.rows) factor[i] = a.absmax[m];
            } else if (place < BOTH && n < a.weight.out_features) {
                factor[i] = a.weight.absmax[n];
                if (a.epilogue.bias != nullptr) offset[i] = a.epilogue.bias[n];
            }
        }
        if (lane_index() < OUTLIERS_AT_ONCE && lane_index() < count) column = a.columns[lane_index()];
    }

    // Finishes the tile, using BYTES of shared memory, which no thread may still use for anything
    // else. put(part) passes the rows of a part (HEIGHT rows) of `sum` to put_pair; all threads
    // call it. `has_rows`: whether any of the warp's rows is within M.
    template <class Put>
    __device__ __forceinline__ void finish(void* shared, i32 (&sum)[SUMS], bool has_rows, Put put) {
        sums = static_cast<i32*>(shared);
        outliers = static_cast<float*>(shared) + HEIGHT * PITCH;
        factors = outliers + OUTLIERS_AT_ONCE * BOTH;
        offsets = factors + BOTH;
        is_last = reinterpret_cast<u32*>(offsets + TILE_N);
        if (a.splits > 1 && !join(sum, has_rows)) return;
        if (count != 0) load_outliers(0);
#pragma unroll
        for (u32 i = 0; i < FETCHED; ++i) {
            u32 place = i * THREADS + threadIdx.x;
            if (place < BOTH) factors[place] = factor[i];
            if (place >= TILE_M && place < BOTH) offsets[place - TILE_M] = offset[i];
        }
#pragma unroll 1
        for (u32 part = 0; part < PARTS; ++part) {
            put(part);
            finish_rows(part);
            if (part + 1 < PARTS) __syncthreads();
        }
    }

    // Stores two adjacent sums of a row of the part.
    __device__ __forceinline__ void put_pair(u32 row, u32 column, i32 left, i32 right) const {
        struct alignas(8) Pair {
            i32 left, right;
        };
        *reinterpret_cast<Pair*>(&sums[row * PITCH + column]) = {left, right};
    }

private:
    // Adds this block's sums to those of the tile. Returns whether it is the last block to do so;
    // then `sum` holds the totals.
    __device__ __forceinline__ bool join(i32 (&sum)[SUMS], bool has_rows) const {
        u32 tile = blockIdx.x + gridDim.x * blockIdx.y;
        i32* all = a.sums + (size_t)tile * (TILE_M * TILE_N) + threadIdx.x;
        if (has_rows) {
#pragma unroll
            for (u32 i = 0; i < SUMS; ++i) add_apart(&all[i * THREADS], sum[i]);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            // What this block added must be visible before it is counted, and what others added
            // must be visible to it once they are.
            __threadfence();
            u32 before = atomicAdd(&a.counters[tile], 1u);
            __threadfence();
            *is_last = before == a.splits - 1;
            if (before == a.splits - 1) a.counters[tile] = 0;
        }
        __syncthreads();
        if (*is_last == 0) return false;
        if (has_rows) {
#pragma unroll
            for (u32 i = 0; i < SUMS; ++i) sum[i] = all[i * THREADS];
#pragma unroll
            for (u32 i = 0; i < SUMS; ++i) all[i * THREADS] = 0;
        }
        return true;
    }

    // Loads up to OUTLIERS_AT_ONCE outlier columns, from number `first` on, to shared memory: each
    // thread the values of a row of activations in them, or the scaled weights of an output.
    __device__ __forceinline__ void load_outliers(u32 first) const {
        u32 here = count - first < OUTLIERS_AT_ONCE ? count - first : OUTLIERS_AT_ONCE;
        // Sums of later parts still occupy registers, so load one value at a time.
        if constexpr (PARTS > 1) {
            u32 m = first_m + threadIdx.x, n = first_n + threadIdx.x - TILE_M;
            bool is_x = threadIdx.x < TILE_M, inside = is_x ? m < a.rows : threadIdx.x < BOTH && n < a.weight.out_features;
            float* to = outliers + threadIdx.x;
#pragma unroll 1
            for (u32 o = 0; o < here; ++o, to += BOTH) {
                u32 k = a.columns[first + o];
                float value = 0.0f;
                if (inside && is_x) value = outlier_value<T>(a, m, k);
                if (inside && !is_x) value = (float)a.weight.codes[(size_t)n * a.weight.pitch + k] * (factor[0] * CODE_STEP);
                if (threadIdx.x < BOTH) *to = value;
            }
            return;
        }
        u32 mine = column;
        if (first != 0) mine = lane_index() < here ? a.columns[first + lane_index()] : 0;
#pragma unroll 1
        for (u32 i = 0; i < FETCHED; ++i) {
            u32 place = i * THREADS + threadIdx.x;
            // This condition is the same for all lanes of a warp.
            if (place < TILE_M) {
                u32 m = first_m + place;
                bool is_there = m < a.rows;
                if (!is_there) m = first_m;
                const T* x = static_cast<const T*>(a.values) + (size_t)m * a.value_stride;
                fetch_outliers(x, mine, here, outliers + place, [&](T found) {
                    float value = to_float(found);
                    return is_there && is_outlier_of(a, m, value) ? value : 0.0f;
                });
            } else if (place < BOTH) {
                u32 n = first_n + place - TILE_M;
                bool is_there = n < a.weight.out_features;
                if (!is_there) n = first_n;
                float step = is_there ? a.weight.absmax[n] * CODE_STEP : 0.0f;
                const i8* codes = a.weight.codes + (size_t)n * a.weight.pitch;
                fetch_outliers(codes, mine, here, outliers + place, [&](i8 code) { return (float)code * step; });
            }
        }
    }

    // Stores f(value) to shared memory for the values of a row in `here` columns. Lane o holds the
    // o-th column; lanes past `here` hold 0.
    template <class V, class F>
    __device__ __forceinline__ void fetch_outliers(const V* row, u32 column, u32 here, float* to, F f) const {
        constexpr u32 AT_ONCE = 8;
#pragma unroll 1
        for (u32 o = 0; o < here; o += AT_ONCE) {
            // All loads are issued before the first use.
            V found[AT_ONCE];
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; ++j) found[j] = row[__shfl_sync(EVERY_LANE, column, o + j)];
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; ++j)
                if (o + j < here) to[(o + j) * BOTH] = f(found[j]);
        }
    }

    // Whether this thread's four columns can be accessed as one vector in every row.
    template <class V>
    __device__ __forceinline__ bool is_whole(const V* p, u32 stride, u32 n) const {
        bool is_aligned = (reinterpret_cast<u64>(p) & (sizeof(V) * 4 - 1)) == 0 && stride % 4 == 0;
        return is_aligned && n + 4 <= a.weight.out_features;
    }

    // Loads the residual of ROWS rows from m on, four columns from n on.
    __device__ __forceinline__ void load_residual(u32 m, u32 n, bool is_whole, float (&residual)[ROWS][4]) const {
        const float* from = a.epilogue.residual + (size_t)m * a.epilogue.residual_stride + n;
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i, from += a.epilogue.residual_stride) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) residual[i][j] = 0.0f;
            if (m + i >= a.rows) continue;
            if (is_whole) {
                load4(from, residual[i]);
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; ++j)
                    if (n + j < a.weight.out_features) residual[i][j] = from[j];
            }
        }
    }

    __device__ __forceinline__ void write(u32 m, u32 n, bool is_whole, const float (&value)[ROWS][4]) const {
        T* out = static_cast<T*>(a.epilogue.out) + (size_t)m * a.epilogue.out_stride + n;
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i, out += a.epilogue.out_stride) {
            if (m + i >= a.rows) break;
            if (is_whole) {
                store4(out, value[i]);
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; ++j)
                    if (n + j < a.weight.out_features) out[j] = from_float<T>(value[i][j]);
            }
        }
    }

    // Turns the sums of a part into outputs: the int8 part, the bias, the outliers in the order of
    // their columns, the activation function, the residual.
    __device__ __forceinline__ void finish_rows(u32 part) const {
        const Epilogue& e = a.epilogue;
        u32 c = threadIdx.x % QUADS * 4, n = first_n + c, first_row = threadIdx.x / QUADS * ROWS;
        u32 part_m = first_m + part * HEIGHT, rows = part_m < a.rows ? a.rows - part_m : 0;
        if (rows > HEIGHT) rows = HEIGHT;
        bool has_residual = e.residual != nullptr, is_activated = first_n < e.activated && e.activation != IDENTITY;
        bool whole_residual = is_whole(e.residual, e.residual_stride, n);
        bool whole_out = is_whole(static_cast<const T*>(e.out), e.out_stride, n);
        // The residual of the next rows is loaded while these are finished, unless sums of later
        // parts occupy the registers for it.
        constexpr bool IS_EARLY = PARTS == 1;
        float residual[ROWS][4];
        if (IS_EARLY && has_residual) load_residual(part_m + first_row, n, whole_residual, residual);
        __syncthreads();

        float absmax[4], bias[4];
        load4(factors + TILE_M + c, absmax);
        load4(offsets + c, bias);
        float* values = reinterpret_cast<float*>(sums);
        auto write_rows = [&](u32 r, float (&value)[ROWS][4]) {
            if (has_residual) {
                if (!IS_EARLY) load_residual(part_m + r, n, whole_residual, residual);
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) value[i][j] = __fmaf_rn(value[i][j], e.residual_scale, residual[i][j]);
                if (IS_EARLY && r + STRIDE < rows) load_residual(part_m + r + STRIDE, n, whole_residual, residual);
            }
            write(part_m + r, n, whole_out, value);
        };
        u32 first = 0;
        do {
            u32 here = count - first < OUTLIERS_AT_ONCE ? count - first : OUTLIERS_AT_ONCE;
            // The first columns are already loaded, unless the previous part replaced them by
            // others.
            if (first != 0 || (part != 0 && count > OUTLIERS_AT_ONCE)) {
                __syncthreads();
                load_outliers(first);
                __syncthreads();
            }
            bool is_done = count - first <= OUTLIERS_AT_ONCE && !is_activated;
#pragma unroll 1
            for (u32 r = first_row; r < rows; r += STRIDE) {
                float value[ROWS][4], x[ROWS];
                load4(factors + part * HEIGHT + r, x);
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i) {
                    Words4 found = load_words(sums + (r + i) * PITCH + c);
#pragma unroll
                    for (u32 j = 0; j < 4; ++j)
                        value[i][j] = first != 0 ? __uint_as_float(found.word[j])
                                                 : dequantize((i32)found.word[j], x[i], absmax[j], bias[j]);
                }
#pragma unroll 2
                for (u32 o = 0; o < here; ++o) {
                    float left[ROWS], right[4];
                    load4(outliers + o * BOTH + part * HEIGHT + r, left);
                    load4(outliers + o * BOTH + TILE_M + c, right);
#pragma unroll
                    for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                        for (u32 j = 0; j < 4; ++j) value[i][j] = __fmaf_rn(left[i], right[j], value[i][j]);
                }
                if (is_done) {
                    write_rows(r, value);
                    continue;
                }
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i) store4(values + (r + i) * PITCH + c, value[i]);
            }
            first += OUTLIERS_AT_ONCE;
        } while (first < count);
        if (!is_activated) return;

        // No barrier needed: from here on a thread reads only what it wrote itself.
        with_activation(e.activation, [&](auto function) {
#pragma unroll 1
            for (u32 i = 0; i < HEIGHT / STRIDE * ROWS; ++i) {
                u32 r = first_row + i / ROWS * STRIDE + i % ROWS;
                if (r >= rows || n >= e.activated) break;
                float value[4];
                load4(values + r * PITCH + c, value);
#pragma unroll
                for (u32 j = 0; j < 4; ++j) value[j] = n + j < e.activated ? function.of(value[j]) : value[j];
                store4(values + r * PITCH + c, value);
            }
        });
#pragma unroll 1
        for (u32 r = first_row; r < rows; r += STRIDE) {
            float value[ROWS][4];
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i) load4(values + (r + i) * PITCH + c, value[i]);
            write_rows(r, value);
        }
    }
};
