// Wrappers of PTX instructions that CUDA C++ does not expose, with the operand layouts of the PTX
// ISA 9.0. emulation/emulation.h defines them for the emulated device.
#pragma once
#include "common.cuh"

struct alignas(16) Words4 {
    u32 word[4];
};

#ifndef LLM_INT8_EMULATION

// Loads 16 bytes through the read-only path, not to be kept in L1: weights.
DEVICE Words4 load_streaming(const void* p) {
    Words4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(p));
    return v;
}

// Loads 16 bytes of global or shared memory.
DEVICE Words4 load_words(const void* p) {
    uint4 v = *reinterpret_cast<const uint4*>(p);
    return {{v.x, v.y, v.z, v.w}};
}

DEVICE void store_words(void* p, Words4 v) {
    *reinterpret_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

// *p += x, atomically among all blocks; nothing is returned, so the thread does not wait.
DEVICE void add_apart(i32* p, i32 x) { asm volatile("red.global.add.s32 [%0], %1;" ::"l"(p), "r"(x) : "memory"); }

// d += a · b over 32 codes: a is 16 × 32, row-major; b is 32 × 8, column-major; d is 16 × 8. Lane
// 4g + t holds: a[0], a[1]: rows g, g + 8, bytes 4t … 4t + 3; a[2], a[3]: the bytes 16 later; b[0],
// b[1]: column g, bytes 4t … 4t + 3 and those 16 later; d[0], d[1]: row g, columns 2t, 2t + 1;
// d[2], d[3]: row g + 8.
DEVICE void mma_s8(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // Turing: the same in four instructions of 8 × 8 × 16.
#define PART(d0, d1, a0, b0)                                                                        \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
                 : "+r"(d0), "+r"(d1)                                                              \
                 : "r"(a0), "r"(b0))
    PART(d[0], d[1], a[0], b[0]);
    PART(d[0], d[1], a[2], b[1]);
    PART(d[2], d[3], a[1], b[0]);
    PART(d[2], d[3], a[3], b[1]);
#undef PART
#endif
}

// d += a · b over 16 values with f32 sums: a is 16 × 16, row-major; b is 16 × 8, column-major; d is
// 16 × 8. Lane 4g + t holds, two values in each word: a[0], a[1]: rows g, g + 8, columns 2t, 2t +
// 1; a[2], a[3]: the columns 8 later; b[0], b[1]: column g, rows 2t, 2t + 1 and those 8 later; d as
// in mma_s8. Capability 8.0 and later.
DEVICE void mma_floats(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], half) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
DEVICE void mma_floats(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Loads four matrices of 8 rows of 16 bytes from shared memory. Lane l passes the address of row
// l % 8 of matrix l / 8; lane 4g + t gets in word i the bytes 4t … 4t + 3 of row g of matrix i.
DEVICE void load_matrices(u32 (&words)[4], const void* row) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// The same, but transposes each matrix of 8 × 8 16-bit values: word i gets rows 2t, 2t + 1 of
// column g of matrix i.
DEVICE void load_transposed(u32 (&words)[4], const void* row) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// 2^x within two units in the last place; 0 if that is below the smallest normal number.
DEVICE float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Rounds two values to 16 bits and packs them into a word, `low` in its lower half.
DEVICE u32 pack_floats(float low, float high, half) {
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<u32*>(&pair);
}
DEVICE u32 pack_floats(float low, float high, bf16) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<u32*>(&pair);
}

// Starts an asynchronous copy of 16 bytes from global to shared memory; writes zeros if not
// `valid`. Synchronous before capability 8.0.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
    u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
#else
    uint4 v = make_uint4(0, 0, 0, 0);
    if (valid) v = *reinterpret_cast<const uint4*>(global);
    *reinterpret_cast<uint4*>(shared) = v;
#endif
}

// Closes a group of copies: those started since the last group.
DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `PENDING` groups of this thread are still in flight.
template <int PENDING>
DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// wgmma, for Hopper only (capability 9.0). It reads both operands from shared memory, where a tile
// has rows of 128 codes and is aligned to 1024 bytes, which is 8 rows. The 16-byte chunk c of row r
// is stored at chunk c ^ (r % 8): the 128-byte swizzle.

// Aligns dynamic shared memory to 1024 bytes; the launch requested 1024 more than the kernel uses.
DEVICE unsigned char* align_tiles(unsigned char* shared) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
    return shared + (1024 - address % 1024) % 1024;
}

// Makes this thread's writes to shared memory, including copies that it has waited for, visible to
// the wgmma of all warpgroups after the next barrier.
DEVICE void show_to_tensor_cores() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Orders earlier accesses to the registers of sums before the wgmma_s8 of a group.
DEVICE void begin_wgmma() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// The matrix descriptor of the PTX ISA: start address; offset along K (unused with a swizzle); 1024
// bytes from 8 rows to the next 8; the 128-byte swizzle.
DEVICE u64 tile_descriptor(const void* tile) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(tile));
    return u64((address & 0x3ffff) >> 4) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}
#endif

// A warpgroup starts d += a · bᵀ over 32 codes, from 32 · step on, of 64 rows of tile a and 128
// rows of tile b. In lane 4g + t of warp w, d[4j + 2h + e] belongs to row 16w + g + 8h of a and row
// 8j + 2t + e of b.
DEVICE void wgmma_s8(i32 (&d)[64], const void* a, const void* b, u32 step) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WORDS4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define WORDS16(i) WORDS4(i), WORDS4(i + 4), WORDS4(i + 8), WORDS4(i + 12)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
        "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
        "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
        "}, %64, %65, 1;"
        : WORDS16(0), WORDS16(16), WORDS16(32), WORDS16(48)
        : "l"(tile_descriptor(a) + step * 2), "l"(tile_descriptor(b) + step * 2));
#undef WORDS16
#undef WORDS4
#endif
}

// Closes a group of wgmma_s8.
DEVICE void commit_wgmma() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most `PENDING` groups of this warpgroup are still in flight.
template <int PENDING>
DEVICE void wait_for_wgmma() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}

// Called after waiting for all groups: keeps the compiler from moving reads of d before the wait.
DEVICE void use_sums(i32 (&d)[64]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#pragma unroll
    for (u32 i = 0; i < 64; ++i) asm volatile("" : "+r"(d[i])::"memory");
#endif
}

#endif
