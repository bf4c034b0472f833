// The kernels of gpu_probe.cu; see there for their purpose.
#pragma once
#include <cooperative_groups.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;

#define DEVICE [[maybe_unused]] static __device__ __forceinline__

constexpr u32 THREADS = 256;

// ---- Helpers

// Random bits for an index. All data comes from here, because zeros draw less power and so run
// faster.
static __host__ __device__ __forceinline__ u32 hash(u32 x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// Time on one SM, in clock cycles and in nanoseconds; their ratio is the clock rate under load.
struct Ticks {
    u64 cycles, nanoseconds;
};

DEVICE Ticks now() {
    Ticks t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t.cycles)::"memory");
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t.nanoseconds)::"memory");
    return t;
}

DEVICE void report_ticks(Ticks start, Ticks* ticks) {
    Ticks end = now();
    if (blockIdx.x == 0 && threadIdx.x == 0) *ticks = {end.cycles - start.cycles, end.nanoseconds - start.nanoseconds};
}

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

DEVICE u32 xor_of(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

// XORs a value of every thread of the grid into *sum. Whole warps must call it.
DEVICE void add_xor(u32* sum, u32 value) {
    for (u32 offset = 16; offset > 0; offset /= 2) value ^= __shfl_xor_sync(~0u, value, offset);
    if (threadIdx.x % 32 == 0) atomicXor(sum, value);
}

__global__ void empty_kernel() {}

__global__ void store_words(u32* host) { host[threadIdx.x] = threadIdx.x; }

__global__ void fill_random(u32* words, size_t count, u32* sum) {
    u32 all = 0;
    for (size_t i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
        words[i] = hash(static_cast<u32>(i) ^ 0x1234567u);
        all ^= words[i];
    }
    add_xor(sum, all);
}

// ---- Kernel chain and barriers

// Each word becomes one more than a word that another block of the previous kernel wrote, so a
// kernel that reads too early, or reads a stale line of L1, shows up as a wrong count.
__global__ void __launch_bounds__(THREADS) chain_step(const u32* in, u32* out) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    u32 count = gridDim.x * THREADS, i = blockIdx.x * THREADS + threadIdx.x, other = i + count / 2 + 33;
    out[i] = in[other < count ? other : other - count] + 1;
}

struct BarrierState {
    alignas(128) u32 count;
    alignas(128) u32 wrong;
    u32 timed_out;
};

// A sense-reversing barrier: the top bit of the count is the sense. One block adds
// 2^31 - (blocks - 1) and the others 1, so the last arrival flips it and the low bits return to
// zero. The block barrier before the release makes it cover everything that the block has written.
// After a timeout (`broken`) the thread no longer waits.
DEVICE void atomic_barrier(BarrierState* state, bool& broken) {
    constexpr u32 SENSE = 1u << 31, MAX_POLLS = 1 << 21;  // 1 to 2 seconds
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 old, add = blockIdx.x == 0 ? SENSE - (gridDim.x - 1) : 1;
        asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;"
                     : "=r"(old)
                     : "l"(&state->count), "r"(add)
                     : "memory");
        u32 seen = old;
        for (u32 polls = 0; !broken && ((seen ^ old) & SENSE) == 0; ++polls) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(&state->count) : "memory");
            broken = polls == MAX_POLLS;
        }
        if (broken) state->timed_out = 1;
    }
    __syncthreads();
}

// With `exchange`, each round also passes a value between blocks through memory and checks it; each
// block reads from the others in turn. Two slots per block: one is written again only after the
// next barrier, which its reader reaches after reading.
template <bool COOPERATIVE_GROUPS>
__global__ void __launch_bounds__(THREADS) grid_rounds(u32 rounds, bool exchange, BarrierState* state, u32* slots) {
    u32 blocks = gridDim.x, other = blockIdx.x, wrong = 0;
    bool broken = false;
    for (u32 round = 0; round < rounds; ++round) {
        u32* slot = slots + round % 2 * blocks;
        other = other + 1 == blocks ? 0 : other + 1;
        if (exchange && threadIdx.x == 32) slot[blockIdx.x] = hash(round * blocks + blockIdx.x);
        if (COOPERATIVE_GROUPS) {
            cooperative_groups::this_grid().sync();
        } else {
            atomic_barrier(state, broken);
        }
        if (exchange && threadIdx.x == 64) wrong += slot[other] != hash(round * blocks + other);
    }
    if (wrong != 0) atomicAdd(&state->wrong, wrong);
}

// As grid_rounds, within each cluster and through its distributed shared memory. Without exchange
// the arrival is relaxed: the fence of a release is part of what an exchange costs.
template <bool EXCHANGE>
__global__ void __launch_bounds__(THREADS) cluster_rounds(u32 rounds, u32* wrong_total) {
#if __CUDA_ARCH__ >= 900
    __shared__ u32 slots[2];
    u32 rank, size, other, wrong = 0;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    other = rank;
    for (u32 round = 0; round <= rounds; ++round) {
        u32 slot = shared_address(&slots[round % 2]), value = hash(round * size + rank);
        other = other + 1 == size ? 0 : other + 1;
        if (!EXCHANGE) {
            asm volatile("barrier.cluster.arrive.relaxed.aligned;");
            asm volatile("barrier.cluster.wait.aligned;");
            continue;
        }
        if (threadIdx.x == 32) asm volatile("st.shared.u32 [%0], %1;" ::"r"(slot), "r"(value) : "memory");
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        // The last round only keeps shared memory alive until every block has read.
        if (threadIdx.x == 64 && round < rounds) {
            asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(slot) : "r"(slot), "r"(other));
            asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(slot) : "memory");
            wrong += value != hash(round * size + other);
        }
    }
    if (wrong != 0) atomicAdd(wrong_total, wrong);
#endif
}

// ---- Memory

// Each block walks over tiles of LOADS * 4 KiB; LOADS is the number of 16-byte loads that a thread
// has in flight. Without the bound of 4 blocks, ptxas saves registers by waiting for the first
// loads before it issues the last.
template <u32 LOADS>
__global__ void __launch_bounds__(THREADS, 4) read_words(const uint4* data, size_t tiles, u32* sum) {
    u32 all = 0;
#pragma unroll 1
    for (size_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint4* p = data + tile * (LOADS * THREADS) + threadIdx.x;
        uint4 v[LOADS];
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(v[i].x), "=r"(v[i].y), "=r"(v[i].z), "=r"(v[i].w)
                         : "l"(p + i * THREADS));
        }
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) all ^= xor_of(v[i]);
    }
    add_xor(sum, all);
}

constexpr u32 CHUNK = 16384, MAX_STAGES = 12;

#if __CUDA_ARCH__ >= 900
// One bulk copy of a chunk into shared memory, which completes on the mbarrier `full`.
DEVICE void start_copy(u32 shared, const u8* global, u32 full) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(CHUNK) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared), "l"(global), "r"(CHUNK), "r"(full)
                 : "memory");
}

DEVICE bool is_full(u32 full, u32 parity) {
    u32 done;
    asm volatile("{\n\t.reg .pred p;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                 "selp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(done)
                 : "r"(full), "r"(parity)
                 : "memory");
    return done != 0;
}
#endif

// One block per SM streams its chunks through `stages` buffers of shared memory.
__global__ void __launch_bounds__(THREADS) read_ring(const u8* data, size_t chunks, u32 stages, u32* sum, u32* late) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) u8 ring[];
    __shared__ u64 barriers[MAX_STAGES];
    bool leader = threadIdx.x == 0;
    u32 buffers = shared_address(ring), full = shared_address(barriers);
    if (leader) {
        for (u32 i = 0; i < stages; ++i) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + i * 8) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();

    size_t ahead = blockIdx.x;  // the next chunk to start
    for (u32 i = 0; i < stages && ahead < chunks; ++i, ahead += gridDim.x) {
        if (leader) start_copy(buffers + i * CHUNK, data + ahead * CHUNK, full + i * 8);
    }
    u32 all = 0, stage = 0, parity = 0;
    for (size_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x, ahead += gridDim.x) {
        long long start = clock64();
        while (!is_full(full + stage * 8, parity)) {
            if (clock64() - start < 2000000000) continue;
            *late = 1;
            return;
        }
        const uint4* words = reinterpret_cast<const uint4*>(ring + stage * CHUNK) + threadIdx.x;
#pragma unroll
        for (u32 i = 0; i < CHUNK / 16; i += THREADS) all ^= xor_of(words[i]);
        __syncthreads();
        if (leader && ahead < chunks) start_copy(buffers + stage * CHUNK, data + ahead * CHUNK, full + stage * 8);
        stage = stage + 1 == stages ? 0 : stage + 1;
        parity ^= stage == 0;
    }
    add_xor(sum, all);
#endif
}

// A pointer chain through all lines of 128 bytes, in the order of a full-period linear congruential
// generator; `lines` is a power of two.
constexpr u32 LINE_WORDS = 32;

__global__ void fill_chain(u32* words, u32 lines) {
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    words[size_t(i) * LINE_WORDS] = (i * 1664525u + 1013904223u) % lines * LINE_WORDS;
}

// Continues where the last call stopped, so that it never hits a line it has just loaded into L2.
__global__ void chase(const u32* words, u32 steps, u32* position, Ticks* ticks) {
    u32 p = *position;
    Ticks start = now();
    for (u32 i = 0; i < steps; ++i) asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(p) : "l"(words + p) : "memory");
    *position = p;
    report_ticks(start, ticks);
}

// ---- Tensor cores

// mma.sync on registers alone: eight independent accumulators per warp.
constexpr u32 TILES = 8;

__global__ void __launch_bounds__(512) mma_rounds(u32 rounds, u32* out, Ticks* ticks) {
#if __CUDA_ARCH__ >= 800
    u32 id = blockIdx.x * blockDim.x + threadIdx.x, a[4], b[TILES][2];
    i32 d[TILES][4] = {}, all = 0;
    for (u32 i = 0; i < 4; ++i) a[i] = hash(id * 32 + i);
    for (u32 i = 0; i < TILES * 2; ++i) b[i / 2][i % 2] = hash(id * 32 + 4 + i);
    Ticks start = now();
#pragma unroll 1
    for (u32 round = 0; round < rounds; ++round) {
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            asm volatile(
                "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
        }
    }
    for (u32 i = 0; i < TILES; ++i) all ^= d[i][0] ^ d[i][1] ^ d[i][2] ^ d[i][3];
    out[id] = all;
    report_ticks(start, ticks);
#endif
}

// wgmma tiles: A is 64 rows per warpgroup, B 256 rows, each row 128 bytes of K (four steps of 32),
// K-major with the 128-byte swizzle: the 16-byte piece c of row r lies at piece c ^ (r % 8), and 8
// rows fill 1024 bytes.
constexpr u32 TILE_K = 128, WG_ROWS = 64, WG_COLUMNS = 256, A_ROWS = 2 * WG_ROWS;
constexpr u32 WGMMA_SHARED = (A_ROWS + WG_COLUMNS) * TILE_K + 1024;  // with room to align

// Word `w` (4 bytes along K) of row `row` of A, or of row `row - A_ROWS` of B if that is past A.
static __host__ __device__ __forceinline__ u32 operand_word(u32 row, u32 w) { return hash(row * 32 + w + 0x5eed); }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// The matrix descriptor of the PTX ISA: start address, offset along K (unused with a swizzle), 1024
// bytes from one group of 8 rows to the next, 128-byte swizzle.
DEVICE u64 matrix_descriptor(u32 address) {
    return u64((address & 0x3ffff) >> 4) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

#define WORDS4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define WORDS16(i) WORDS4(i), WORDS4(i + 4), WORDS4(i + 8), WORDS4(i + 12)
#define WORDS64(i) WORDS16(i), WORDS16(i + 16), WORDS16(i + 32), WORDS16(i + 48)

// d += A * B^T over 32 bytes of K. Lane 4g + t of warp w: d[4j + 2h + e] is row 16w + g + 8h,
// column 8j + 2t + e.
DEVICE void wgmma_s8(i32 (&d)[128], u64 a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
        "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
        "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,"
        "%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,"
        "%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,"
        "%121,%122,%123,%124,%125,%126,%127}, %128, %129, 1;"
        : WORDS64(0), WORDS64(64)
        : "l"(a), "l"(b));
}
#endif

// Multiplies the same tile `rounds` times, with one group of four wgmma in flight while the next is
// issued. `tile`, if any, receives the sums as rows of WG_COLUMNS.
template <u32 WARPGROUPS>
__global__ void __launch_bounds__(128 * WARPGROUPS, 1) wgmma_rounds(u32 rounds, u32* out, i32* tile, Ticks* ticks) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ u8 unaligned[];
    u8* shared = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
    for (u32 i = threadIdx.x; i < (A_ROWS + WG_COLUMNS) * 32; i += blockDim.x) {
        u32 row = i / 32, w = i % 32, piece = w / 4 ^ row % 8;
        *reinterpret_cast<u32*>(shared + row * TILE_K + piece * 16 + w % 4 * 4) = operand_word(row, w);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    u64 a = matrix_descriptor(shared_address(shared) + threadIdx.x / 128 * WG_ROWS * TILE_K);
    u64 b = matrix_descriptor(shared_address(shared) + A_ROWS * TILE_K);
    i32 d[128] = {}, all = 0;
    Ticks start = now();
#pragma unroll 1
    for (u32 round = 0; round < rounds; ++round) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (u32 step = 0; step < TILE_K / 32; ++step) wgmma_s8(d, a + step * 32 / 16, b + step * 32 / 16);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (u32 i = 0; i < 128; ++i) asm volatile("" : "+r"(d[i])::"memory");  // no read of d moves above the wait
    report_ticks(start, ticks);

    u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < 128; ++i) {
        all ^= d[i];
        if (tile != nullptr) tile[(row + i % 4 / 2 * 8) * WG_COLUMNS + column + i / 4 * 8 + i % 2] = d[i];
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = all;
#endif
}
