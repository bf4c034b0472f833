// From the sums of a tile to outputs.
//
// Idea: the sums leave the registers of the tensor cores' layout for shared memory, 64 rows of the tile at a time, in the
// place of the stages that the main loop no longer needs. From there a warp finishes whole rows: neighbouring lanes have
// neighbouring outputs, so that all reads and writes of device memory are coalesced. The loops are not unrolled over the
// tile: the code of an activation function must not be there once for every output of a thread, or the instruction cache
// does not hold it. absmax and biases are fetched before the main loop, a value or two a thread; outlier columns after it,
// once for the tile if there are up to 16.
//
// Few tiles with a long K: `splits` blocks (blockIdx.z) share the K of a tile. Each adds its sums to those of the tile in
// device memory, which is exact in any order; the last one finishes, and leaves sums and counter as zeros.
// Bytes: 4 · splits + 8 an output, all of it in L2.
#pragma once
#include "product.cuh"

constexpr u32 OUTLIERS_AT_ONCE = 16;

// Of the steps along K, the block's share: from `first` to before `end`.
struct StepRange {
    u32 first, end;

    __device__ __forceinline__ StepRange(u32 steps, u32 splits) {
        u32 share = (steps + splits - 1) / splits;
        first = blockIdx.z * share < steps ? blockIdx.z * share : steps;
        end = first + share < steps ? first + share : steps;
    }
};

// Copies a tile of codes into shared memory, in the background: ROWS rows of CHUNKS · 16 bytes, of which a thread copies
// the same chunk of every STRIDE-th row. STRIDE is a multiple of 8, with which the order of chunks in a row repeats.
template <u32 ROWS, u32 CHUNKS, u32 THREADS>
struct TileCopy {
    static constexpr u32 STRIDE = THREADS / CHUNKS, BYTES = ROWS * CHUNKS * 16;
    static_assert(STRIDE % 8 == 0 && ROWS % STRIDE == 0, "whole rounds of all threads");

    const i8* from;  // of this thread's first row
    u32 pitch, rows, column;
    u32 place;       // in the tile

    // swizzle(row, chunk): where in its row a chunk is put.
    template <class Swizzle>
    __device__ __forceinline__ TileCopy(const i8* codes, u32 pitch, u32 first, u32 end, Swizzle swizzle) : pitch(pitch) {
        u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        rows = first + row < end ? end - first - row : 0;
        column = chunk * 16;
        from = codes + (size_t)(first + row) * pitch + column;
        place = (row * CHUNKS + swizzle(row, chunk)) * 16;
    }

    // Starts copying the codes from k on; zeros where there are none.
    __device__ __forceinline__ void start(unsigned char* tile, u32 k) const {
        const i8* next = from + k;
#pragma unroll
        for (u32 i = 0; i < ROWS / STRIDE; ++i, next += STRIDE * (size_t)pitch)
            copy_async(tile + place + i * STRIDE * CHUNKS * 16, next, i * STRIDE < rows && k + column < pitch);
    }
};

template <class T, u32 TILE_M, u32 TILE_N, u32 THREADS>
struct Tile {
    static constexpr u32 HEIGHT = 64;
    // A lane's pairs of neighbouring sums, of rows g and columns 2t, lie in different banks.
    static constexpr u32 PITCH = TILE_N + 8;
    static constexpr u32 WARPS = THREADS / WARP, COLUMNS = TILE_N / WARP, ROWS = 8 / COLUMNS;
    static constexpr u32 BYTES = 4 * (HEIGHT * PITCH + (OUTLIERS_AT_ONCE + 1) * (TILE_M + TILE_N) + TILE_N + 1);
    static_assert(THREADS >= TILE_M + TILE_N, "a thread for each row and each column");

    const ProductArgs& a;
    u32 first_m, first_n, count;
    // Fetched before the main loop: absmax of a row of activations or of weights, and the bias.
    float factor, offset;
    // In shared memory, after it.
    i32* sums;        // [HEIGHT, PITCH], later values
    float* outliers;  // [OUTLIERS_AT_ONCE, TILE_M + TILE_N]: of activations, then of weights
    float* factors;   // [TILE_M + TILE_N]
    float* offsets;   // [TILE_N]
    u32* is_last;

    __device__ __forceinline__ Tile(const ProductArgs& a)
        : a(a), first_m(blockIdx.x * TILE_M), first_n(blockIdx.y * TILE_N), count(*a.count), factor(0.0f), offset(0.0f) {
        u32 m = first_m + threadIdx.x, n = first_n + threadIdx.x - TILE_M;
        if (threadIdx.x < TILE_M) {
            if (m < a.rows) factor = a.absmax[m];
        } else if (threadIdx.x < TILE_M + TILE_N && n < a.weight.out_features) {
            factor = a.weight.absmax[n];
            if (a.epilogue.bias != nullptr) offset = a.epilogue.bias[n];
        }
    }

    // Finishes the tile in BYTES of shared memory, which no thread may use for something else any more. put(part) gives rows
    // part · HEIGHT … of its sums to put_pair; all threads call it.
    template <class Put>
    __device__ __forceinline__ void finish(void* shared, Put put) {
        constexpr u32 PARTS = TILE_M / HEIGHT;
        sums = static_cast<i32*>(shared);
        outliers = static_cast<float*>(shared) + HEIGHT * PITCH;
        factors = outliers + OUTLIERS_AT_ONCE * (TILE_M + TILE_N);
        offsets = factors + TILE_M + TILE_N;
        is_last = reinterpret_cast<u32*>(offsets + TILE_N);
        bool is_joined = a.splits > 1;
        if (is_joined) {
#pragma unroll 1
            for (u32 part = 0; part < PARTS; ++part) {
                put(part);
                __syncthreads();
                add_sums(part);
                __syncthreads();
            }
            if (!all_have_added()) return;
        }
        load_outliers(0);
        if (threadIdx.x < TILE_M + TILE_N) factors[threadIdx.x] = factor;
        if (threadIdx.x >= TILE_M && threadIdx.x < TILE_M + TILE_N) offsets[threadIdx.x - TILE_M] = offset;
#pragma unroll 1
        for (u32 part = 0; part < PARTS; ++part) {
            if (is_joined) {
                take_sums(part);
            } else {
                put(part);
            }
            __syncthreads();
            finish_rows(part);
            __syncthreads();
        }
    }

    // Two sums of a row of a part, side by side.
    __device__ __forceinline__ void put_pair(u32 row, u32 column, i32 left, i32 right) const {
        struct alignas(8) Pair {
            i32 left, right;
        };
        *reinterpret_cast<Pair*>(&sums[row * PITCH + column]) = {left, right};
    }

private:
    // Rows of a part that there are.
    __device__ __forceinline__ u32 rows_of(u32 part) const {
        u32 first = first_m + part * HEIGHT;
        return first >= a.rows ? 0 : a.rows - first < HEIGHT ? a.rows - first : HEIGHT;
    }

    // The sums of a part in device memory, [HEIGHT, TILE_N].
    __device__ __forceinline__ i32* all_sums(u32 part) const {
        return a.sums + ((size_t)(blockIdx.x + gridDim.x * blockIdx.y) * TILE_M + part * HEIGHT) * TILE_N;
    }

    __device__ __forceinline__ void add_sums(u32 part) const {
        i32* all = all_sums(part);
        u32 rows = rows_of(part);
        each_place<4>([&](u32 row, u32 column) {
            if (row < rows) atomicAdd(&all[row * TILE_N + column], sums[row * PITCH + column]);
        });
    }

    // Whether this block is the last of its tile to have added its sums.
    __device__ __forceinline__ bool all_have_added() const {
        // What this block added must be seen before it is counted.
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            u32* counter = &a.counters[blockIdx.x + gridDim.x * blockIdx.y];
            *is_last = atomicAdd(counter, 1u) == a.splits - 1;
            if (*is_last != 0) *counter = 0;
        }
        __syncthreads();
        __threadfence();
        return *is_last != 0;
    }

    // Fetches what all blocks have added and leaves zeros: 16 bytes at a time, many of them under way together.
    __device__ __forceinline__ void take_sums(u32 part) const {
        constexpr u32 AT_ONCE = 512 / TILE_N, STRIDE = THREADS * 4;
        static_assert(HEIGHT * TILE_N % (AT_ONCE * STRIDE) == 0, "whole rounds of all threads");
        i32* all = all_sums(part) + threadIdx.x * 4;
        u32 count = rows_of(part) * TILE_N;
#pragma unroll 1
        for (u32 first = threadIdx.x * 4; first < count; first += AT_ONCE * STRIDE, all += AT_ONCE * STRIDE) {
            Words4 found[AT_ONCE];
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i)
                if (first + i * STRIDE < count) found[i] = load_words(all + i * STRIDE);
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i) {
                u32 place = first + i * STRIDE;
                if (place >= count) continue;
                store_words(all + i * STRIDE, {{0, 0, 0, 0}});
                store_words(sums + place / TILE_N * PITCH + place % TILE_N, found[i]);
            }
        }
    }

    // Calls f(row, column) for this thread's outputs of a part, neighbouring threads side by side.
    template <u32 UNROLLED, class F>
    static __device__ __forceinline__ void each_place(F f) {
        constexpr u32 STRIDE = THREADS / TILE_N;
        static_assert(THREADS % TILE_N == 0, "a thread stays in its column");
        u32 row = threadIdx.x / TILE_N, column = threadIdx.x % TILE_N;
#pragma unroll UNROLLED
        for (u32 i = 0; i < HEIGHT / STRIDE; ++i) f(row + i * STRIDE, column);
    }

    // Outlier columns from number `first` on: the values of a row in them, or the weights that belong to them, by each thread.
    __device__ __forceinline__ void load_outliers(u32 first) const {
        if (threadIdx.x >= TILE_M + TILE_N) return;
        u32 here = count - first < OUTLIERS_AT_ONCE ? count - first : OUTLIERS_AT_ONCE;
        u32 m = first_m + threadIdx.x, n = first_n + threadIdx.x - TILE_M;
        bool is_x = threadIdx.x < TILE_M, inside = is_x ? m < a.rows : n < a.weight.out_features;
#pragma unroll 4
        for (u32 o = 0; o < here; ++o) {
            u32 column = a.columns[first + o];
            float value = 0.0f;
            if (inside && is_x) value = outlier_value<T>(a, m, column);
            if (inside && !is_x) value = (float)a.weight.codes[(size_t)n * a.weight.pitch + column] * (factor * CODE_STEP);
            outliers[o * (TILE_M + TILE_N) + threadIdx.x] = value;
        }
    }

    // Sums of a part become outputs: the int8 part, the bias, the outliers in the order of their columns, the rest.
    __device__ __forceinline__ void finish_rows(u32 part) const {
        u32 lane = lane_index();
        bool is_activated = first_n < a.epilogue.activated;
        float* values = reinterpret_cast<float*>(sums);
        u32 first = 0;
        do {
            u32 here = count - first < OUTLIERS_AT_ONCE ? count - first : OUTLIERS_AT_ONCE;
            // The first ones are there, unless the part before needed that place for others.
            if (first != 0 || (part != 0 && count > OUTLIERS_AT_ONCE)) {
                __syncthreads();
                load_outliers(first);
                __syncthreads();
            }
            bool are_all = count - first <= OUTLIERS_AT_ONCE;
#pragma unroll 1
            for (u32 r = warp_index() * ROWS; r < HEIGHT; r += WARPS * ROWS) {
                float value[ROWS][COLUMNS];
#pragma unroll
                for (u32 j = 0; j < COLUMNS; ++j) {
                    u32 column = lane + j * WARP;
                    float absmax = factors[TILE_M + column], bias = offsets[column];
#pragma unroll
                    for (u32 i = 0; i < ROWS; ++i) {
                        u32 place = (r + i) * PITCH + column;
                        value[i][j] = first != 0 ? values[place]
                                                 : dequantize(sums[place], factors[part * HEIGHT + r + i], absmax, bias);
                    }
                }
#pragma unroll 1
                for (u32 o = 0; o < here; ++o) {
                    const float *x = outliers + o * (TILE_M + TILE_N) + part * HEIGHT + r, *w = x - part * HEIGHT - r + TILE_M;
#pragma unroll
                    for (u32 j = 0; j < COLUMNS; ++j) {
                        float right = w[lane + j * WARP];
#pragma unroll
                        for (u32 i = 0; i < ROWS; ++i) value[i][j] = __fmaf_rn(x[i], right, value[i][j]);
                    }
                }
                if (are_all && !is_activated) {
                    write_rows(part, r, value);
                    continue;
                }
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                    for (u32 j = 0; j < COLUMNS; ++j) values[(r + i) * PITCH + lane + j * WARP] = value[i][j];
            }
            first += OUTLIERS_AT_ONCE;
        } while (first < count);
        if (!is_activated) return;

        __syncthreads();
        u32 columns = a.epilogue.activated - first_n;
        with_activation(a.epilogue.activation, [&](auto function) {
            each_place<2>([&](u32 row, u32 column) {
                float& value = values[row * PITCH + column];
                if (column < columns) value = function.of(value);
            });
        });
        __syncthreads();
#pragma unroll 1
        for (u32 r = warp_index() * ROWS; r < HEIGHT; r += WARPS * ROWS) {
            float value[ROWS][COLUMNS];
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                for (u32 j = 0; j < COLUMNS; ++j) value[i][j] = values[(r + i) * PITCH + lane + j * WARP];
            write_rows(part, r, value);
        }
    }

    // Rows r … of a part, of which a lane has every 32nd column: the residual, and out.
    __device__ __forceinline__ void write_rows(u32 part, u32 r, float (&value)[ROWS][COLUMNS]) const {
        const Epilogue& e = a.epilogue;
        u32 m = first_m + part * HEIGHT + r, n = first_n + lane_index(), n_end = a.weight.out_features;
        if (e.residual != nullptr) {
            // All loads before the first use.
            float residual[ROWS][COLUMNS];
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                for (u32 j = 0; j < COLUMNS; ++j) {
                    bool inside = m + i < a.rows && n + j * WARP < n_end;
                    residual[i][j] = inside ? e.residual[(size_t)(m + i) * e.residual_stride + n + j * WARP] : 0.0f;
                }
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                for (u32 j = 0; j < COLUMNS; ++j)
                    value[i][j] = __fmaf_rn(value[i][j], e.residual_scale, residual[i][j]);
        }
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
            T* out = static_cast<T*>(e.out) + (size_t)(m + i) * e.out_stride + n;
#pragma unroll
            for (u32 j = 0; j < COLUMNS; ++j)
                if (m + i < a.rows && n + j * WARP < n_end) out[j * WARP] = from_float<T>(value[i][j]);
        }
    }
};
