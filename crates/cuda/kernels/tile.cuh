// From the sums of a tile to outputs.
//
// Idea: the sums leave the registers of the tensor cores' layout for shared memory, 64 rows of the tile at a time, in the
// place of the stages that the main loop no longer needs. From there a warp finishes whole rows: neighbouring lanes have
// neighbouring outputs, so that all reads and writes of device memory are coalesced, and what belongs to a column stays in
// a register. The loops are not unrolled over the tile: the code of an activation function must not be there once for
// every output of a thread, or the instruction cache does not hold it.
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
    static constexpr u32 BYTES = 4 * (HEIGHT * PITCH + OUTLIERS_AT_ONCE * (HEIGHT + TILE_N));

    const ProductArgs& a;
    u32 first_m, first_n;
    i32* sums;          // [HEIGHT, PITCH]
    float *y, *x, *w;   // in the place of sums; outliers [OUTLIERS_AT_ONCE, HEIGHT] and [OUTLIERS_AT_ONCE, TILE_N]

    __device__ __forceinline__ Tile(const ProductArgs& a, void* shared)
        : a(a),
          first_m(blockIdx.x * TILE_M),
          first_n(blockIdx.y * TILE_N),
          sums(static_cast<i32*>(shared)),
          y(static_cast<float*>(shared)),
          x(y + HEIGHT * PITCH),
          w(x + OUTLIERS_AT_ONCE * HEIGHT) {}

    // Finishes the tile. put(part) writes rows part · HEIGHT … of its sums to `sums`; all threads call it. No thread may
    // use shared memory for something else any more.
    template <class Put>
    __device__ __forceinline__ void finish_all(Put put) const {
        constexpr u32 PARTS = TILE_M / HEIGHT;
        bool is_joined = a.splits > 1;
        if (is_joined) {
#pragma unroll 1
            for (u32 part = 0; part < PARTS; ++part) {
                put(part);
                __syncthreads();
                add_sums(part);
                __syncthreads();
            }
            if (!is_last()) return;
        }
#pragma unroll 1
        for (u32 part = 0; part < PARTS; ++part) {
            if (is_joined) {
                take_sums(part);
            } else {
                put(part);
            }
            __syncthreads();
            dequantize_rows(part);
            activate_rows();
            write_rows(part);
            __syncthreads();
        }
    }

private:
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

    // Whether all other blocks of this tile have added their sums.
    __device__ __forceinline__ bool is_last() const {
        __shared__ bool last;
        // What this block added must be seen before it is counted.
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            u32* counter = &a.counters[blockIdx.x + gridDim.x * blockIdx.y];
            last = atomicAdd(counter, 1u) == a.splits - 1;
            if (last) *counter = 0;
        }
        __syncthreads();
        __threadfence();
        return last;
    }

    // Rows of a part that there are.
    __device__ __forceinline__ u32 rows_of(u32 part) const {
        u32 first = first_m + part * HEIGHT;
        return first >= a.rows ? 0 : a.rows - first < HEIGHT ? a.rows - first : HEIGHT;
    }

    // Sums become values: the int8 part, the bias, and the outliers in the order of their columns.
    __device__ __forceinline__ void dequantize_rows(u32 part) const {
        u32 m = first_m + part * HEIGHT, rows = rows_of(part), lane = lane_index();
        u32 n_end = a.weight.out_features, count = *a.count;
        float absmax[COLUMNS], bias[COLUMNS];
#pragma unroll
        for (u32 j = 0; j < COLUMNS; ++j) {
            u32 n = first_n + lane + j * WARP;
            absmax[j] = n < n_end ? a.weight.absmax[n] : 0.0f;
            bias[j] = n < n_end && a.epilogue.bias != nullptr ? a.epilogue.bias[n] : 0.0f;
        }
        u32 first = 0;
        do {
            u32 here = count - first < OUTLIERS_AT_ONCE ? count - first : OUTLIERS_AT_ONCE;
            if (here != 0) {
                load_outliers(m, rows, first, here);
                __syncthreads();
            }
#pragma unroll 1
            for (u32 r = warp_index() * ROWS; r < HEIGHT; r += WARPS * ROWS) {
                float value[ROWS][COLUMNS];
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i) {
                    float step = first == 0 && r + i < rows ? a.absmax[m + r + i] : 0.0f;
#pragma unroll
                    for (u32 j = 0; j < COLUMNS; ++j) {
                        u32 place = (r + i) * PITCH + lane + j * WARP;
                        value[i][j] = first == 0 ? dequantize(sums[place], step, absmax[j], bias[j]) : y[place];
                    }
                }
#pragma unroll 1
                for (u32 o = 0; o < here; ++o) {
                    float right[COLUMNS];
#pragma unroll
                    for (u32 j = 0; j < COLUMNS; ++j) right[j] = w[o * TILE_N + lane + j * WARP];
#pragma unroll
                    for (u32 i = 0; i < ROWS; ++i) {
                        float left = x[o * HEIGHT + r + i];
#pragma unroll
                        for (u32 j = 0; j < COLUMNS; ++j) value[i][j] = __fmaf_rn(left, right[j], value[i][j]);
                    }
                }
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                    for (u32 j = 0; j < COLUMNS; ++j) y[(r + i) * PITCH + lane + j * WARP] = value[i][j];
            }
            __syncthreads();
            first += OUTLIERS_AT_ONCE;
        } while (first < count);
    }

    // The values of `here` outlier columns in the part's rows, and the weights that belong to them.
    __device__ __forceinline__ void load_outliers(u32 m, u32 rows, u32 first, u32 here) const {
        u32 n_end = a.weight.out_features;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < (HEIGHT + TILE_N) * here; i += THREADS) {
            u32 row = i / here, o = i % here, column = a.columns[first + o], n = first_n + row - HEIGHT;
            if (row < HEIGHT) {
                x[o * HEIGHT + row] = row < rows ? outlier_value<T>(a, m + row, column) : 0.0f;
            } else if (n < n_end) {
                float code = (float)a.weight.codes[(size_t)n * a.weight.pitch + column];
                w[o * TILE_N + row - HEIGHT] = code * (a.weight.absmax[n] * CODE_STEP);
            } else {
                w[o * TILE_N + row - HEIGHT] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void activate_rows() const {
        const Epilogue& e = a.epilogue;
        if (first_n >= e.activated) return;
        u32 columns = e.activated - first_n;
        with_activation(e.activation, [&](auto function) {
            each_place<2>([&](u32 row, u32 column) {
                float& value = y[row * PITCH + column];
                if (column < columns) value = function.of(value);
            });
        });
        __syncthreads();
    }

    __device__ __forceinline__ void write_rows(u32 part) const {
        const Epilogue& e = a.epilogue;
        u32 m = first_m + part * HEIGHT, rows = rows_of(part), lane = lane_index(), n_end = a.weight.out_features;
#pragma unroll 1
        for (u32 r = warp_index() * ROWS; r < rows; r += WARPS * ROWS) {
            float value[ROWS][COLUMNS], residual[ROWS][COLUMNS];
            auto each = [&](auto f) {
#pragma unroll
                for (u32 i = 0; i < ROWS; ++i)
#pragma unroll
                    for (u32 j = 0; j < COLUMNS; ++j) {
                        u32 n = first_n + lane + j * WARP;
                        if (r + i < rows && n < n_end) f(i, j, n);
                    }
            };
            if (e.residual != nullptr)
                each([&](u32 i, u32 j, u32 n) { residual[i][j] = e.residual[(size_t)(m + r + i) * e.residual_stride + n]; });
            each([&](u32 i, u32 j, u32 n) {
                value[i][j] = y[(r + i) * PITCH + n - first_n];
                if (e.residual != nullptr) value[i][j] = __fmaf_rn(value[i][j], e.residual_scale, residual[i][j]);
                static_cast<T*>(e.out)[(size_t)(m + r + i) * e.out_stride + n] = from_float<T>(value[i][j]);
            });
        }
    }
};
