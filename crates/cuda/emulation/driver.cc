// A libcuda.so.1 whose GPU is the emulated device, to test src/driver/cuda.rs, which calls the driver, without a GPU.
// scripts/test_cuda_driver.sh builds it and runs the tests over it. It implements only the functions that are called.
//
// Like the real driver it is asynchronous: work on a stream is queued, and runs when the host waits for the stream or an
// event, or frees memory. A copy from the host reads its source only then, so a slot of page-locked memory that is
// refilled too early gives wrong values. Copies from pageable memory are refused: the real driver may or may not stage
// them.
//
// While a stream is captured, it refuses what the real driver refuses in the mode THREAD_LOCAL (allocating, freeing,
// waiting) and invalidates the capture: ending it returns an error and no graph.
//
// With LLM_INT8_EMULATES_CANDLE it also does what candle relies on (scripts/test_candle_cuda.sh): copies from pageable
// memory are staged before the call returns, and those to it have ended by then.
//
// The signatures are those of the CUDA driver API 12.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "emulation.cc"

namespace {

typedef int Result;
constexpr Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
                 NOT_FOUND = 500, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901;
constexpr size_t MEMORY = size_t(2) << 30;
// Bytes past the end of each allocation that must not be written.
constexpr size_t GUARD = 256;

struct Allocation {
    size_t bytes;
};
struct Function {
    std::string name;
    int shared_bytes;
};
typedef std::function<Result()> Step;
struct Graph {
    std::shared_ptr<std::vector<Step>> steps;
};
struct Stream {
    std::deque<Step> queue;
    // Numbers of all steps queued and run so far.
    uint64_t queued = 0, run = 0;
    // While the stream is captured: its steps, and whether a call was refused.
    std::shared_ptr<std::vector<Step>> captured;
    bool is_invalid = false;
};
// A position in a stream.
struct Event {
    Stream* stream;
    uint64_t place;
};

// Host threads may call concurrently; the lock protects memory and streams.
std::recursive_mutex lock;
std::map<uintptr_t, Allocation> allocations;
std::map<uintptr_t, size_t> page_locked;
std::map<std::string, std::unique_ptr<Function>> functions;
std::set<Stream*> streams;
// Memory freed in the order of a stream. It holds NaN and is never allocated again, so that late uses show.
std::vector<unsigned char*> freed;
size_t used = 0;
// The first error of a step, which every later call returns.
Result failed = SUCCESS;
thread_local void* context = nullptr;
// The stream that this thread captures (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).
thread_local Stream* capturing = nullptr;
int the_context, the_module;
#ifdef LLM_INT8_EMULATES_CANDLE
constexpr bool EMULATES_CANDLE = true;
#else
constexpr bool EMULATES_CANDLE = false;
#endif

// The stream of a handle: null and 1 are the default stream of the process, 2 is that of the calling thread.
Stream* stream_of(Stream* handle) {
    static Stream* legacy = nullptr;
    thread_local Stream* own = nullptr;
    uintptr_t number = reinterpret_cast<uintptr_t>(handle);
    if (number > 2) return handle;
    Stream*& found = number == 2 ? own : legacy;
    // A thread's stream stays when the thread ends: its work may not have run yet.
    if (found == nullptr) streams.insert(found = new Stream);
    return found;
}

Result enqueue(Stream* stream, Step step) {
    if (context == nullptr) return INVALID_CONTEXT;
    if (stream->captured != nullptr) {
        stream->captured->push_back(step);
        return SUCCESS;
    }
    if (failed != SUCCESS) return failed;
    stream->queue.push_back(step);
    stream->queued += 1;
    return SUCCESS;
}

// Runs the steps that were queued before a position in the stream.
Result wait_for(Stream* stream, uint64_t place) {
    while (stream->run < place && !stream->queue.empty()) {
        Step step = stream->queue.front();
        stream->queue.pop_front();
        stream->run += 1;
        Result result = step();
        if (failed == SUCCESS) failed = result;
    }
    return failed;
}

Result wait_for_all() {
    for (Stream* stream : streams) wait_for(stream, stream->queued);
    return failed;
}

// Whether a call is forbidden because this thread is capturing; if so, invalidates the capture.
bool is_forbidden() {
    if (capturing == nullptr) return false;
    capturing->is_invalid = true;
    return true;
}

bool is_page_locked(const void* from, size_t bytes) {
    auto found = page_locked.upper_bound(reinterpret_cast<uintptr_t>(from));
    if (found == page_locked.begin()) return false;
    --found;
    return reinterpret_cast<uintptr_t>(from) + bytes <= found->first + found->second;
}

bool is_within(uintptr_t address, size_t bytes) {
    auto found = allocations.upper_bound(address);
    if (found == allocations.begin()) return false;
    --found;
    return address + bytes <= found->first + found->second.bytes;
}

Result allocate(uintptr_t* address, size_t bytes) {
    if (failed != SUCCESS) return failed;
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

// Takes an allocation off the books. Writing past its end is an error.
Result release(uintptr_t address) {
    auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    unsigned char* memory = reinterpret_cast<unsigned char*>(address);
    bool is_intact = true;
    for (size_t i = 0; i < GUARD; ++i) is_intact &= memory[found->second.bytes + i] == 0xa5;
    used -= found->second.bytes;
    allocations.erase(found);
    return is_intact ? SUCCESS : LAUNCH_FAILED;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

API cuInit(unsigned) { return SUCCESS; }
API cuGetErrorName(Result result, const char** text) {
    *text = result == CAPTURE_UNSUPPORTED   ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
            : result == CAPTURE_INVALIDATED ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
            : result == LAUNCH_FAILED       ? "CUDA_ERROR_LAUNCH_FAILED"
            : result == OUT_OF_MEMORY       ? "CUDA_ERROR_OUT_OF_MEMORY"
                                            : "EMULATED_DRIVER_ERROR";
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
    // 16: multiprocessors. 75: major compute capability. 97: shared memory a block may opt in to. 115: whether memory can
    // be allocated in the order of a stream. All else is 0.
    *value = attribute == 16 ? 4 : attribute == 75 ? 9 : attribute == 97 ? 227 << 10 : attribute == 115 ? 1 : 0;
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
API cuCtxSetCurrent(void* requested) {
    context = requested;
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
    if (is_forbidden()) return CAPTURE_UNSUPPORTED;
    return allocate(address, bytes);
}
API cuMemAllocAsync(uintptr_t* address, size_t bytes, Stream*) {
    LOCKED;
    if (context == nullptr) return INVALID_CONTEXT;
    // A graph could allocate; nothing here records one that does.
    if (is_forbidden()) return CAPTURE_UNSUPPORTED;
    return allocate(address, bytes);
}
API cuMemFree_v2(uintptr_t address) {
    LOCKED;
    if (is_forbidden()) return CAPTURE_UNSUPPORTED;
    Result finished = wait_for_all();
    Result released = release(address);
    if (released == INVALID_VALUE) return INVALID_VALUE;
    free(reinterpret_cast<void*>(address));
    return released == SUCCESS ? finished : released;
}
API cuMemFreeAsync(uintptr_t address, Stream* handle) {
    LOCKED;
    if (allocations.count(address) == 0) return INVALID_VALUE;
    return enqueue(stream_of(handle), [=] {
        size_t bytes = allocations[address].bytes;
        Result released = release(address);
        unsigned char* memory = reinterpret_cast<unsigned char*>(address);
        memset(memory, 0xff, bytes);
        freed.push_back(memory);
        return released;
    });
}
API cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    LOCKED;
    if (is_forbidden()) return CAPTURE_UNSUPPORTED;
    *memory = malloc(bytes);
    page_locked[reinterpret_cast<uintptr_t>(*memory)] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void* memory) {
    LOCKED;
    if (is_forbidden()) return CAPTURE_UNSUPPORTED;
    Result finished = wait_for_all();
    page_locked.erase(reinterpret_cast<uintptr_t>(memory));
    free(memory);
    return finished;
}

API cuStreamCreate(Stream** stream, unsigned) {
    LOCKED;
    if (is_forbidden()) return CAPTURE_UNSUPPORTED;
    *stream = new Stream;
    streams.insert(*stream);
    return SUCCESS;
}
API cuStreamDestroy_v2(Stream* stream) {
    LOCKED;
    // Not deleted, as events may point to it.
    Result finished = wait_for(stream, stream->queued);
    streams.erase(stream);
    return finished;
}
API cuStreamSynchronize(Stream* handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (stream->captured != nullptr) {
        stream->is_invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    return wait_for(stream, stream->queued);
}
API cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, Stream* handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (bytes > 0 && !is_within(to, bytes)) return INVALID_VALUE;
    if (bytes > 0 && !is_page_locked(from, bytes)) {
        if (!EMULATES_CANDLE) return INVALID_VALUE;
        const char* first = static_cast<const char*>(from);
        std::vector<char> staged(first, first + bytes);
        return enqueue(stream, [=] {
            if (!is_within(to, bytes)) return INVALID_VALUE;
            memcpy(reinterpret_cast<void*>(to), staged.data(), bytes);
            return SUCCESS;
        });
    }
    return enqueue(stream, [=] {
        if (bytes > 0 && !is_within(to, bytes)) return INVALID_VALUE;
        memcpy(reinterpret_cast<void*>(to), from, bytes);
        return SUCCESS;
    });
}
API cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, Stream* handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (bytes > 0 && !is_within(from, bytes)) return INVALID_VALUE;
    if (stream->captured != nullptr && !is_page_locked(to, bytes)) {
        stream->is_invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    Result queued = enqueue(stream, [=] {
        memcpy(to, reinterpret_cast<void*>(from), bytes);
        return SUCCESS;
    });
    bool waits = EMULATES_CANDLE && queued == SUCCESS && stream->captured == nullptr && !is_page_locked(to, bytes);
    return waits ? wait_for(stream, stream->queued) : queued;
}
API cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, Stream* stream) {
    LOCKED;
    return enqueue(stream_of(stream), [=] {
        if (bytes > 0 && !(is_within(to, bytes) && is_within(from, bytes))) return INVALID_VALUE;
        memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
        return SUCCESS;
    });
}
API cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, Stream* stream) {
    LOCKED;
    return enqueue(stream_of(stream), [=] {
        if (bytes > 0 && !is_within(to, bytes)) return INVALID_VALUE;
        memset(reinterpret_cast<void*>(to), value, bytes);
        return SUCCESS;
    });
}

API cuEventCreate(Event** event, unsigned) {
    *event = new Event{nullptr, 0};
    return SUCCESS;
}
API cuEventDestroy_v2(Event* event) {
    delete event;
    return SUCCESS;
}
API cuEventRecord(Event* event, Stream* handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    // An event recorded in a capture becomes a node of the graph, which the host cannot wait for.
    if (stream->captured != nullptr) return SUCCESS;
    *event = {stream, stream->queued};
    return failed;
}
API cuStreamWaitEvent(Stream* handle, Event* event, unsigned) {
    LOCKED;
    if (event->stream == nullptr) return SUCCESS;
    Stream* stream = stream_of(handle);
    // Waiting for an event in a capture would join it to another stream.
    if (stream->captured != nullptr) return INVALID_VALUE;
    return enqueue(stream, [recorded = *event] { return wait_for(recorded.stream, recorded.place); });
}
API cuStreamIsCapturing(Stream* handle, int* status) {
    LOCKED;
    *status = stream_of(handle)->captured != nullptr;
    return SUCCESS;
}
API cuCtxSynchronize() {
    LOCKED;
    if (context == nullptr) return INVALID_CONTEXT;
    return is_forbidden() ? CAPTURE_UNSUPPORTED : wait_for_all();
}
API cuEventSynchronize(Event* event) {
    LOCKED;
    if (event->stream == nullptr) return SUCCESS;
    return wait_for(event->stream, event->place);
}

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
    // CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent
    if (attribute == 9) return value >= -1 && value <= 100 ? SUCCESS : INVALID_VALUE;
    // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    if (attribute != 8 || value > 227 << 10) return INVALID_VALUE;
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
    // Accepts CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, but kernels do not overlap.
    for (unsigned i = 0; i < config->attribute_count; ++i)
        if (config->attributes[i].id != 6 || config->attributes[i].value.starts_early != 1) return INVALID_VALUE;
    std::array<uint32_t, 3> grid = {config->x, config->y, config->z};
    uint32_t threads = config->threads, shared_bytes = config->shared_bytes;
    LOCKED;
    if (config->threads_y != 1 || config->threads_z != 1) return INVALID_VALUE;
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) return INVALID_VALUE;
    if (int(shared_bytes) > function->shared_bytes) return INVALID_VALUE;
    // The argument struct is copied during the call, as the driver does.
    uint32_t bytes = emulation::kernels()[function->name].args_bytes;
    std::vector<uint64_t> args((bytes + 7) / 8);
    memcpy(args.data(), parameters[0], bytes);
    std::string name = function->name;
    return enqueue(stream_of(config->stream), [=] {
        const char* message = llm_int8_emulate(name.c_str(), args.data(), bytes, grid.data(), threads, shared_bytes, 0);
        if (message != nullptr) fprintf(stderr, "emulated driver: %s: %s\n", name.c_str(), message);
        return message == nullptr ? SUCCESS : LAUNCH_FAILED;
    });
}

API cuStreamBeginCapture_v2(Stream* handle, int mode) {
    LOCKED;
    Stream* stream = stream_of(handle);
    // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    if (mode != 1 || stream->captured != nullptr || capturing != nullptr) return INVALID_VALUE;
    stream->captured = std::make_shared<std::vector<Step>>();
    stream->is_invalid = false;
    capturing = stream;
    return SUCCESS;
}
API cuStreamEndCapture(Stream* handle, Graph** graph) {
    LOCKED;
    Stream* stream = stream_of(handle);
    *graph = nullptr;
    if (stream->captured == nullptr || capturing != stream) return INVALID_VALUE;
    std::shared_ptr<std::vector<Step>> steps = stream->captured;
    stream->captured = nullptr;
    capturing = nullptr;
    if (stream->is_invalid) return CAPTURE_INVALIDATED;
    *graph = new Graph{steps};
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    *executable = new Graph(*graph);
    return SUCCESS;
}
API cuGraphUpload(Graph*, Stream*) { return SUCCESS; }
API cuGraphLaunch(Graph* graph, Stream* stream) {
    LOCKED;
    // The launch shares ownership of the steps, in case the graph is destroyed before they run.
    return enqueue(stream_of(stream), [steps = graph->steps] {
        for (const Step& step : *steps)
            if (Result result = step()) return result;
        return SUCCESS;
    });
}
API cuGraphExecDestroy(Graph* graph) {
    delete graph;
    return SUCCESS;
}
API cuGraphDestroy(Graph* graph) {
    delete graph;
    return SUCCESS;
}
