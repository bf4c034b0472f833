// The emulated device: see emulation.h. All kernels are in this translation unit, so that the linker
// drops none of them.
#include "emulation.h"

#include <stdlib.h>

#include <map>
#include <string>
#include <vector>

#include "../kernels/kernels.cu"

namespace emulation {

__thread Thread* self;
__thread unsigned char prefetched;
__thread bool copies_at_once;
__thread Dim3 block_index, block_size, grid_size;

namespace {

// Switches stacks. Only the callee-saved registers are saved; to the compiler it is an ordinary call.
extern "C" void llm_int8_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl llm_int8_switch
.type llm_int8_switch, @function
llm_int8_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size llm_int8_switch, . - llm_int8_switch
)");
constexpr size_t SAVED_WORDS = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl llm_int8_switch
.type llm_int8_switch, %function
llm_int8_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size llm_int8_switch, . - llm_int8_switch
)");
#else
#error "the emulated device knows x86-64 and aarch64"
#endif

constexpr size_t STACK_BYTES = 64 << 10;

struct Fiber {
    Thread thread;
    void* stack_pointer;
    bool is_done;
    // The barrier it waits at.
    enum { NONE, AT_WARP, AT_BLOCK } waits;
};

struct Entry {
    Kernel kernel;
    uint32_t args_bytes;
};

std::map<std::string, Entry>& kernels() {
    static std::map<std::string, Entry> all;
    return all;
}

// The state of a CPU thread that runs kernels.
struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> stacks, shared;
    std::vector<uint32_t> alive_in_warp, waiting_in_warp;
    uint32_t alive = 0, waiting = 0;
    void* scheduler = nullptr;
    Fiber* current = nullptr;
    Kernel kernel = nullptr;
    const void* args = nullptr;
    const char* failure = nullptr;
};
__thread Machine* machine;

void prepare_machine() {
    thread_local Machine own;
    machine = &own;
}

void yield() { llm_int8_switch(&machine->current->stack_pointer, machine->scheduler); }

void release_warp(uint32_t warp) {
    if (machine->waiting_in_warp[warp] == 0 || machine->waiting_in_warp[warp] < machine->alive_in_warp[warp]) return;
    machine->waiting_in_warp[warp] = 0;
    for (uint32_t lane = 0; lane < LANES; ++lane) {
        Fiber& fiber = machine->fibers[warp * LANES + lane];
        if (fiber.waits == Fiber::AT_WARP) fiber.waits = Fiber::NONE;
    }
}

void release_block() {
    if (machine->waiting == 0 || machine->waiting < machine->alive) return;
    machine->waiting = 0;
    for (Fiber& fiber : machine->fibers)
        if (fiber.waits == Fiber::AT_BLOCK) fiber.waits = Fiber::NONE;
}

uint32_t warp_of_current() { return uint32_t(machine->current - machine->fibers.data()) / LANES; }

void fiber_main() {
    machine->kernel(machine->args);
    uint32_t warp = warp_of_current();
    machine->current->is_done = true;
    machine->alive -= 1;
    machine->alive_in_warp[warp] -= 1;
    release_warp(warp);
    release_block();
    yield();
    abort();
}

void prepare_stack(Fiber& fiber, unsigned char* stack) {
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + STACK_BYTES) & ~uintptr_t(15);
    void** words = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
    // At the entry of a function, the return address is 8 bytes off a multiple of 16.
    *--words = nullptr;
    *--words = reinterpret_cast<void*>(fiber_main);
    for (size_t i = 0; i < SAVED_WORDS; ++i) *--words = nullptr;
#else
    words -= 20;
    memset(words, 0, 160);
    words[11] = reinterpret_cast<void*>(fiber_main);
#endif
    fiber.stack_pointer = words;
}

uint32_t next_random(uint64_t& state) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return uint32_t(state >> 33);
}

void shuffle(std::vector<uint32_t>& order, uint64_t& state) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random(state) % i]);
}

void run_block(std::vector<uint32_t>& order, uint64_t& random, bool is_shuffled) {
    uint32_t threads = uint32_t(machine->fibers.size());
    machine->alive = threads;
    machine->waiting = 0;
    for (uint32_t t = 0; t < threads; ++t) {
        Fiber& fiber = machine->fibers[t];
        fiber.thread.index = {t, 0, 0};
        fiber.thread.lane = t % LANES;
        fiber.thread.warp = &machine->warps[t / LANES];
        fiber.thread.copy_count = fiber.thread.group = 0;
        fiber.thread.wgmma_count = fiber.thread.wgmma_group = 0;
        fiber.is_done = false;
        fiber.waits = Fiber::NONE;
        prepare_stack(fiber, &machine->stacks[t * STACK_BYTES]);
    }
    for (uint32_t warp = 0; warp < machine->warps.size(); ++warp) {
        machine->alive_in_warp[warp] = LANES;
        machine->waiting_in_warp[warp] = 0;
    }
    memset(machine->shared.data(), 0xff, machine->shared.size());
    while (machine->alive > 0 && machine->failure == nullptr) {
        if (is_shuffled) shuffle(order, random);
        bool has_run = false;
        for (uint32_t t : order) {
            Fiber& fiber = machine->fibers[t];
            if (fiber.is_done || fiber.waits != Fiber::NONE) continue;
            has_run = true;
            machine->current = &fiber;
            self = &fiber.thread;
            llm_int8_switch(&machine->scheduler, fiber.stack_pointer);
            if (machine->failure != nullptr) break;
        }
        if (!has_run) fail("threads wait at different barriers");
    }
}

}  // namespace

Registration::Registration(const char* name, Kernel kernel, uint32_t args_bytes) {
    kernels()[name] = {kernel, args_bytes};
}

void fail(const char* message) {
    if (machine->failure == nullptr) machine->failure = message;
}

unsigned char* dynamic_shared() {
    uintptr_t start = reinterpret_cast<uintptr_t>(machine->shared.data());
    return reinterpret_cast<unsigned char*>((start + 127) & ~uintptr_t(127));
}

void sync_warp() {
    uint32_t warp = warp_of_current();
    machine->current->waits = Fiber::AT_WARP;
    machine->waiting_in_warp[warp] += 1;
    release_warp(warp);
    if (machine->current->waits != Fiber::NONE) yield();
}

void sync_block() {
    machine->current->waits = Fiber::AT_BLOCK;
    machine->waiting += 1;
    release_block();
    if (machine->current->waits != Fiber::NONE) yield();
}

}  // namespace emulation

Words4 load_words(const void* p) {
    emulation::check_aligned(p);
    Words4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

Words4 load_streaming(const void* p) { return load_words(p); }

void store_words(void* p, Words4 v) {
    emulation::check_aligned(p);
    memcpy(p, &v, sizeof v);
}

// A lane's operands of an mma, which all lanes of its warp read.
struct MmaOperands {
    uint32_t a[4], b[2];
};

static void publish_operands(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MmaOperands mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    memcpy(emulation::self->warp->published[emulation::self->lane], &mine, sizeof mine);
    emulation::sync_warp();
}

void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    publish_operands(a, b);
    uint32_t g = emulation::self->lane / 4, t = emulation::self->lane % 4;
    auto byte = [](uint32_t word, uint32_t k) { return int32_t(int8_t(word >> (8 * (k % 4)))); };
    for (uint32_t i = 0; i < 4; ++i) {
        uint32_t row = g + (i / 2) * 8, column = 2 * t + i % 2;
        for (uint32_t lane = 0; lane < 4; ++lane) {
            MmaOperands left = emulation::published_by<MmaOperands>(row % 8 * 4 + lane);
            MmaOperands right = emulation::published_by<MmaOperands>(column * 4 + lane);
            for (uint32_t k = 0; k < 8; ++k)
                d[i] += byte(left.a[row / 8 + 2 * (k / 4)], k) * byte(right.b[k / 4], k);
        }
    }
    emulation::sync_warp();
}

// `value` converts a 16-bit float to f32.
template <class Value>
static void mma_16_bits(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Value value) {
    publish_operands(a, b);
    uint32_t g = emulation::self->lane / 4, t = emulation::self->lane % 4;
    for (uint32_t i = 0; i < 4; ++i) {
        uint32_t row = g + (i / 2) * 8, column = 2 * t + i % 2;
        float sum = 0.0f;
        for (uint32_t k = 0; k < 16; ++k) {
            // k is in lane k % 8 / 2 of the row or column, in word k / 8 of b; a has such words for
            // rows g and g + 8.
            uint32_t lane = k % 8 / 2, shift = k % 2 * 16;
            MmaOperands left = emulation::published_by<MmaOperands>(row % 8 * 4 + lane);
            MmaOperands right = emulation::published_by<MmaOperands>(column * 4 + lane);
            sum += value(left.a[row / 8 + 2 * (k / 8)] >> shift) * value(right.b[k / 8] >> shift);
        }
        d[i] += sum;
    }
    emulation::sync_warp();
}

void mma_floats(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], half) {
    mma_16_bits(d, a, b, [](uint32_t bits) { return __half2float(half{uint16_t(bits)}); });
}

void mma_floats(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
    mma_16_bits(d, a, b, [](uint32_t bits) { return __bfloat162float(bf16{uint16_t(bits)}); });
}

void load_matrices(uint32_t (&words)[4], const void* row) {
    emulation::check_aligned(row);
    memcpy(emulation::self->warp->published[emulation::self->lane], &row, sizeof row);
    emulation::sync_warp();
    uint32_t g = emulation::self->lane / 4, t = emulation::self->lane % 4;
    for (uint32_t i = 0; i < 4; ++i)
        memcpy(&words[i], emulation::published_by<const unsigned char*>(8 * i + g) + 4 * t, 4);
    emulation::sync_warp();
}

void load_transposed(uint32_t (&words)[4], const void* row) {
    emulation::check_aligned(row);
    memcpy(emulation::self->warp->published[emulation::self->lane], &row, sizeof row);
    emulation::sync_warp();
    uint32_t g = emulation::self->lane / 4, t = emulation::self->lane % 4;
    for (uint32_t i = 0; i < 4; ++i) {
        uint16_t values[2];
        for (uint32_t r = 0; r < 2; ++r)
            memcpy(&values[r], emulation::published_by<const unsigned char*>(8 * i + 2 * t + r) + 2 * g, 2);
        words[i] = values[0] | uint32_t(values[1]) << 16;
    }
    emulation::sync_warp();
}

static void copy_now(const emulation::AsyncCopy& copy) {
    if (copy.valid) {
        memcpy(copy.shared, copy.global, 16);
    } else {
        memset(copy.shared, 0, 16);
    }
}

void copy_async(void* shared, const void* global, bool valid) {
    emulation::check_aligned(shared);
    if (valid) emulation::check_aligned(global);
    emulation::Thread& thread = *emulation::self;
    if (emulation::copies_at_once) return copy_now({shared, global, valid, 0});
    if (thread.copy_count == emulation::MAX_COPIES) return emulation::fail("too many copies in flight");
    thread.copies[thread.copy_count++] = {shared, global, valid, thread.group};
}

void commit_copies() { emulation::self->group += 1; }

void wait_for_copies_but(uint32_t pending) {
    emulation::Thread& thread = *emulation::self;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < thread.copy_count; ++i) {
        emulation::AsyncCopy copy = thread.copies[i];
        if (copy.group + pending >= thread.group) {
            thread.copies[kept++] = copy;
        } else {
            copy_now(copy);
        }
    }
    thread.copy_count = kept;
}

unsigned char* align_tiles(unsigned char* shared) {
    return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
}

void wgmma_s8(int32_t (&d)[64], const void* a, const void* b, uint32_t step) {
    emulation::Thread& thread = *emulation::self;
    if ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 1024 != 0)
        return emulation::fail("a tile is not aligned to 1024 bytes");
    if (thread.wgmma_count == emulation::MAX_WGMMAS) return emulation::fail("too many wgmma in flight");
    auto bytes = [](const void* tile) { return static_cast<const unsigned char*>(tile); };
    thread.wgmmas[thread.wgmma_count++] = {d, bytes(a), bytes(b), step, thread.wgmma_group};
}

void commit_wgmma() { emulation::self->wgmma_group += 1; }

// Computes a thread's part of a wgmma from swizzled tiles: bits 4 to 6 of an address are XORed with
// its bits 7 to 9.
static void multiply_tiles(const emulation::AsyncWgmma& wgmma) {
    uint32_t warp = emulation::self->index.x / 32 % 4, g = emulation::self->lane / 4, t = emulation::self->lane % 4;
    auto codes = [&](const unsigned char* tile, uint32_t row, uint32_t half) {
        uintptr_t address = reinterpret_cast<uintptr_t>(tile) + row * 128 + wgmma.step * 32 + half * 16;
        return reinterpret_cast<const int8_t*>(address ^ (address >> 7 & 7) << 4);
    };
    for (uint32_t i = 0; i < 64; ++i) {
        uint32_t row = warp * 16 + g + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
        int32_t sum = 0;
        for (uint32_t half = 0; half < 2; ++half) {
            const int8_t *x = codes(wgmma.a, row, half), *w = codes(wgmma.b, column, half);
            for (uint32_t k = 0; k < 16; ++k) sum += int32_t(x[k]) * int32_t(w[k]);
        }
        wgmma.sums[i] += sum;
    }
}

void wait_for_wgmma_but(uint32_t pending) {
    emulation::Thread& thread = *emulation::self;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < thread.wgmma_count; ++i) {
        emulation::AsyncWgmma wgmma = thread.wgmmas[i];
        if (wgmma.group + pending >= thread.wgmma_group) {
            thread.wgmmas[kept++] = wgmma;
        } else {
            multiply_tiles(wgmma);
        }
    }
    thread.wgmma_count = kept;
}

// Runs a kernel. With `order` 0, blocks and threads run by number; other values seed a shuffle of
// both, and even ones let asynchronous copies complete at once. Returns null or an error message, a
// string literal.
extern "C" const char* llm_int8_emulate(const char* name, const void* args, uint32_t args_bytes, const uint32_t* grid,
                                        uint32_t threads, uint32_t shared_bytes, uint64_t order) {
    using namespace emulation;
    auto found = kernels().find(name);
    if (found == kernels().end()) return "there is no such kernel";
    if (found->second.args_bytes != args_bytes) return "the argument struct has another size in C++";
    if (threads == 0 || threads > 1024 || threads % LANES != 0) return "a block must have 1 to 32 whole warps";
    prepare_machine();
    machine->kernel = found->second.kernel;
    machine->args = args;
    machine->failure = nullptr;
    machine->fibers.resize(threads);
    machine->warps.resize(threads / LANES);
    machine->alive_in_warp.resize(threads / LANES);
    machine->waiting_in_warp.resize(threads / LANES);
    if (machine->stacks.size() < threads * STACK_BYTES) machine->stacks.resize(threads * STACK_BYTES);
    machine->shared.resize(shared_bytes + 256);
    block_size = {threads, 1, 1};
    grid_size = {grid[0], grid[1], grid[2]};
    std::vector<uint32_t> thread_order(threads), block_order(size_t(grid[0]) * grid[1] * grid[2]);
    for (uint32_t i = 0; i < threads; ++i) thread_order[i] = i;
    for (uint32_t i = 0; i < block_order.size(); ++i) block_order[i] = i;
    copies_at_once = order != 0 && order % 2 == 0;
    uint64_t random = order;
    if (order != 0) shuffle(block_order, random);
    for (uint32_t block : block_order) {
        block_index = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        run_block(thread_order, random, order != 0);
        if (machine->failure != nullptr) break;
    }
    return machine->failure;
}
