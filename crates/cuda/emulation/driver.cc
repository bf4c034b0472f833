// A libcuda.so.1 whose GPU is the emulated device, so that src/driver/cuda.rs, which speaks to the driver, can be run
// without a GPU: scripts/test_cuda_driver.sh builds it and runs the tests over it. It knows the functions
// that are called, does each at once, and is as strict as the emulated device: while a stream is captured nothing
// may be allocated, freed, copied from or to the host, or waited for.
//
// The signatures are those of the CUDA driver API 12.
#include <stdlib.h>
#include <string.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation.cc"

namespace {

typedef int Result;
constexpr Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
                 NOT_FOUND = 500, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900;
constexpr size_t MEMORY = size_t(2) << 30;
// Bytes behind each allocation that nobody may write.
constexpr size_t GUARD = 256;

struct Allocation {
    size_t bytes;
};
struct Function {
    std::string name;
    int shared_bytes;
};
struct Graph {
    std::vector<std::function<Result()>> steps;
};
struct Stream {
    std::shared_ptr<Graph> captured;
};

// Kernels may run on several host threads, but memory and streams are one thread's at a time.
std::recursive_mutex lock;
std::map<uintptr_t, Allocation> allocations;
std::map<std::string, std::unique_ptr<Function>> functions;
size_t used = 0;
thread_local void* context = nullptr;
// Captures of this thread (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).
thread_local int captures = 0;
int the_context, the_module;

Result do_or_record(Stream* stream, std::function<Result()> step) {
    if (context == nullptr) return INVALID_CONTEXT;
    if (stream->captured == nullptr) return step();
    stream->captured->steps.push_back(step);
    return SUCCESS;
}

bool is_within(uintptr_t address, size_t bytes) {
    auto found = allocations.upper_bound(address);
    if (found == allocations.begin()) return false;
    --found;
    return address + bytes <= found->first + found->second.bytes;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

API cuInit(unsigned) { return SUCCESS; }
API cuGetErrorName(Result, const char** text) {
    *text = "EMULATED_DRIVER_ERROR";
    return SUCCESS;
}
API cuGetErrorString(Result, const char** text) {
    *text = "the emulated driver refused it";
    return SUCCESS;
}
API cuDeviceGetCount(int* count) {
    *count = 1;
    return SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int length, int) {
    strncpy(name, "the CPU behind an emulated driver", length);
    return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    // Multiprocessors; the capability, 9.0; shared memory a block may ask for; memory pools.
    *value = attribute == 16 ? 4 : attribute == 75 ? 9 : attribute == 97 ? 99 << 10 : 0;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void** out, int) {
    *out = &the_context;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(void** out) {
    *out = context;
    return SUCCESS;
}
API cuCtxSetCurrent(void* wanted) {
    context = wanted;
    return SUCCESS;
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
    LOCKED;
    *free = MEMORY - used;
    *total = MEMORY;
    return SUCCESS;
}

API cuMemAlloc_v2(uintptr_t* address, size_t bytes) {
    LOCKED;
    if (context == nullptr) return INVALID_CONTEXT;
    if (captures > 0) return CAPTURE_UNSUPPORTED;
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes > MEMORY) return OUT_OF_MEMORY;
    size_t rounded = (bytes + 2 * GUARD - 1) & ~(GUARD - 1);
    unsigned char* memory = static_cast<unsigned char*>(aligned_alloc(GUARD, rounded + GUARD));
    memset(memory, 0xff, bytes);
    memset(memory + bytes, 0xa5, rounded + GUARD - bytes);
    *address = reinterpret_cast<uintptr_t>(memory);
    allocations[*address] = {bytes};
    used += bytes;
    return SUCCESS;
}
API cuMemFree_v2(uintptr_t address) {
    LOCKED;
    if (captures > 0) return CAPTURE_UNSUPPORTED;
    auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    unsigned char* memory = reinterpret_cast<unsigned char*>(address);
    bool is_intact = true;
    for (size_t i = 0; i < GUARD; ++i) is_intact &= memory[found->second.bytes + i] == 0xa5;
    used -= found->second.bytes;
    allocations.erase(found);
    free(memory);
    return is_intact ? SUCCESS : LAUNCH_FAILED;
}
API cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    *memory = malloc(bytes);
    return SUCCESS;
}
API cuMemFreeHost(void* memory) {
    free(memory);
    return SUCCESS;
}

API cuStreamCreate(Stream** stream, unsigned) {
    *stream = new Stream;
    return SUCCESS;
}
API cuStreamDestroy_v2(Stream* stream) {
    delete stream;
    return SUCCESS;
}
API cuStreamSynchronize(Stream* stream) {
    LOCKED;
    return stream->captured == nullptr ? SUCCESS : CAPTURE_UNSUPPORTED;
}
API cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, Stream* stream) {
    LOCKED;
    if (context == nullptr) return INVALID_CONTEXT;
    if (stream->captured != nullptr) return CAPTURE_UNSUPPORTED;
    if (bytes > 0 && !is_within(to, bytes)) return INVALID_VALUE;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, Stream* stream) {
    LOCKED;
    if (context == nullptr) return INVALID_CONTEXT;
    if (stream->captured != nullptr) return CAPTURE_UNSUPPORTED;
    if (bytes > 0 && !is_within(from, bytes)) return INVALID_VALUE;
    memcpy(to, reinterpret_cast<void*>(from), bytes);
    return SUCCESS;
}
API cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, Stream* stream) {
    LOCKED;
    return do_or_record(stream, [=] {
        if (bytes > 0 && !(is_within(to, bytes) && is_within(from, bytes))) return INVALID_VALUE;
        memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
        return SUCCESS;
    });
}
API cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, Stream* stream) {
    LOCKED;
    return do_or_record(stream, [=] {
        if (bytes > 0 && !is_within(to, bytes)) return INVALID_VALUE;
        memset(reinterpret_cast<void*>(to), value, bytes);
        return SUCCESS;
    });
}

API cuEventCreate(void** event, unsigned) {
    *event = new int;
    return SUCCESS;
}
API cuEventDestroy_v2(void* event) {
    delete static_cast<int*>(event);
    return SUCCESS;
}
API cuEventRecord(void*, Stream*) { return SUCCESS; }
API cuEventSynchronize(void*) { return SUCCESS; }

API cuModuleLoadData(void** module, const void*) {
    *module = &the_module;
    return SUCCESS;
}
API cuModuleUnload(void*) { return SUCCESS; }
API cuModuleGetFunction(Function** function, void*, const char* name) {
    LOCKED;
    if (emulation::kernels().count(name) == 0) return NOT_FOUND;
    std::unique_ptr<Function>& known = functions[name];
    if (known == nullptr) known.reset(new Function{name, 48 << 10});
    *function = known.get();
    return SUCCESS;
}
API cuFuncSetAttribute(Function* function, int attribute, int value) {
    LOCKED;
    // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    if (attribute != 8 || value > 99 << 10) return INVALID_VALUE;
    function->shared_bytes = value;
    return SUCCESS;
}
struct LaunchAttribute {
    int id;
    char padding[4];
    union {
        char bytes[64];
        int starts_early;
    } value;
};
struct LaunchConfig {
    unsigned x, y, z, threads, threads_y, threads_z, shared_bytes;
    Stream* stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};
API cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** parameters, void**) {
    // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION; kernels are run one after the other all the same.
    for (unsigned i = 0; i < config->attribute_count; ++i)
        if (config->attributes[i].id != 6 || config->attributes[i].value.starts_early != 1) return INVALID_VALUE;
    std::array<uint32_t, 3> grid = {config->x, config->y, config->z};
    uint32_t threads = config->threads, shared_bytes = config->shared_bytes;
    LOCKED;
    if (config->threads_y != 1 || config->threads_z != 1) return INVALID_VALUE;
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) return INVALID_VALUE;
    if (int(shared_bytes) > function->shared_bytes) return INVALID_VALUE;
    // The kernel's one struct is taken at the call, as the driver does.
    uint32_t bytes = emulation::kernels()[function->name].args_bytes;
    std::vector<uint64_t> args((bytes + 7) / 8);
    memcpy(args.data(), parameters[0], bytes);
    std::string name = function->name;
    return do_or_record(config->stream, [=] {
        const char* message = llm_int8_emulate(name.c_str(), args.data(), bytes, grid.data(), threads, shared_bytes, 0);
        return message == nullptr ? SUCCESS : LAUNCH_FAILED;
    });
}

API cuStreamBeginCapture_v2(Stream* stream, int) {
    LOCKED;
    if (stream->captured != nullptr) return INVALID_VALUE;
    stream->captured = std::make_shared<Graph>();
    captures += 1;
    return SUCCESS;
}
API cuStreamEndCapture(Stream* stream, Graph** graph) {
    LOCKED;
    if (stream->captured == nullptr) return INVALID_VALUE;
    *graph = new Graph(*stream->captured);
    stream->captured = nullptr;
    captures -= 1;
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    *executable = new Graph(*graph);
    return SUCCESS;
}
API cuGraphUpload(Graph*, Stream*) { return SUCCESS; }
API cuGraphLaunch(Graph* graph, Stream*) {
    LOCKED;
    for (auto& step : graph->steps)
        if (Result result = step()) return result;
    return SUCCESS;
}
API cuGraphExecDestroy(Graph* graph) {
    delete graph;
    return SUCCESS;
}
API cuGraphDestroy(Graph* graph) {
    delete graph;
    return SUCCESS;
}
