// Measures, in seconds, the limits that decide how LLM.int8() kernels for Hopper are built; on one H100 or H200.
//
// - graph_gap: time per kernel of a chain of dependent, nearly empty kernels, in a CUDA graph or launched one by one,
//   without and with programmatic dependent launch ("overlap"). A gain of 0.6 us makes overlap the default.
// - grid_barrier, cluster_barrier: one barrier across all SMs, or across a cluster of blocks. At 1.3 us or less across
//   all SMs, one persistent kernel per token pays off; above 2 us, clusters and fused kernels do.
// - read_bandwidth, ring_bandwidth, copy_bandwidth: the ceiling of weight streaming, with 16-byte loads, with bulk copies
//   into a ring in shared memory, and by a device-to-device copy (bytes read plus bytes written). GB = 10^9 bytes.
// - latency: one dependent load that hits L2, and one that goes to device memory.
// - launch_sync: host round trips, which a token pays if the host waits for it.
// - mma_sync_s8, wgmma_s8: int8 peaks of both tensor core paths, two operations per multiply-add. At a ratio of 1.4,
//   large matmuls need wgmma. wgmma_check compares one tile with the host.
//
// Build:  nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a gpu_probe.cu -o gpu_probe
// Run:    ./gpu_probe [NAME...]     all probes, or those named, in the order of the list before main
//
// Prints JSON objects, one per line, to stdout as results come, then a table to stderr. Times are medians;
// spread_percent spans the 10th to the 90th percentile. A probe that fails prints its error and the next one runs,
// unless the CUDA context is lost. No probe starts after 9 seconds; a watchdog ends the process after 11. Exit status:
// 0 success, 1 a probe failed or was skipped, 2 usage error, 3 no CUDA device, 4 watchdog.
#include "gpu_probe_kernels.cuh"

#include <cuda_runtime.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

constexpr u32 BUDGET_SECONDS = 9, WATCHDOG_SECONDS = 11;

// ---- Launches and results -------------------------------------------------------------------------------
static cudaDeviceProp device;
static cudaStream_t stream;
static cudaEvent_t before, after;
static u32* memory;  // device memory: up to 2 GiB, never more than half of what is free
static size_t memory_bytes;
static u32* scratch;  // device memory, zeroed before each measurement
constexpr size_t SCRATCH_BYTES = 16 << 20;
static Ticks* ticks;  // at the end of scratch
static u32* pinned;   // host memory
static std::vector<std::string> table;
static int failures = 0;

static const auto program_start = std::chrono::steady_clock::now();
static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - program_start).count();
}

static u32 sms() { return static_cast<u32>(device.multiProcessorCount); }
// So much dynamic shared memory that only one block fits on an SM.
static size_t alone() { return device.sharedMemPerMultiprocessor / 2; }

static void require(bool condition, const std::string& message) {
    if (!condition) throw std::runtime_error(message);
}
static void require_hopper() { require(device.major >= 9, "needs capability 9.0"); }
static void check(cudaError_t status, const char* call) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}
#define CHECK(call) check(call, #call)

template <class T>
static std::vector<T> read(const T* from, size_t count) {
    std::vector<T> values(count);
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}

struct Shape {
    u32 blocks, threads = THREADS;
    size_t shared = 0;
    u32 cluster = 1;
    bool overlap = false, cooperative = false;
};

template <class... Parameters, class... Arguments>
static void launch(const Shape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
    int shared = static_cast<int>(shape.shared);
    if (shared > 0) CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    cudaLaunchAttribute attributes[3] = {};
    u32 count = 0;
    auto attribute = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
        attributes[count].id = id;
        return attributes[count++].val;
    };
    constexpr cudaLaunchAttributeID OVERLAP = cudaLaunchAttributeProgrammaticStreamSerialization;
    if (shape.overlap) attribute(OVERLAP).programmaticStreamSerializationAllowed = 1;
    if (shape.cooperative) attribute(cudaLaunchAttributeCooperative).cooperative = 1;
    if (shape.cluster > 1) attribute(cudaLaunchAttributeClusterDimension).clusterDim = {shape.cluster, 1, 1};
    cudaLaunchConfig_t config = {shape.blocks, shape.threads, shape.shared, stream, attributes, count};
    CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// One result: parameters, then values. Printed as JSON, and kept for the table.
struct Line {
    std::string json, row;
    double spread_percent = -1;
    explicit Line(const std::string& probe) : json("{\"probe\":\"" + probe + "\""), row(probe) {}
    Line& put(const std::string& key, const std::string& text, const char* quote) {
        json += ",\"" + key + "\":" + quote + text + quote;
        row += "  " + key + " " + text;
        return *this;
    }
    Line& add(const char* key, bool value) { return put(key, value ? "true" : "false", ""); }
    Line& add(const char* key, std::string text) {
        for (char& c : text) c = c == '"' || c == '\\' || c < ' ' ? '\'' : c;
        return put(key, text, "\"");
    }
    Line& add(const char* key, const char* text) { return add(key, std::string(text)); }
    template <class Number>
    Line& add(const char* key, Number value) {
        char digits[32];
        snprintf(digits, sizeof digits, std::is_integral_v<Number> ? "%.0f" : "%.5g", static_cast<double>(value));
        return put(key, digits, "");
    }
    void print() {
        if (spread_percent >= 0) add("spread_percent", spread_percent);
        printf("%s}\n", json.c_str());
        fflush(stdout);
        table.push_back(row);
    }
};

static int finish() {
    for (const std::string& row : table) fprintf(stderr, "%s\n", row.c_str());
    fprintf(stderr, "%.1f s, %d failed\n", seconds(), failures);
    return failures == 0 ? 0 : 1;
}

// Runs one measurement and prints its line, with the error if it fails. Ends the program if the context is lost.
static void measure(Line line, const std::function<void(Line&)>& body) {
    line.row.resize(std::max<size_t>(line.row.size(), 54), ' ');
    try {
        require(seconds() < BUDGET_SECONDS, "skipped: out of time");
        CHECK(cudaMemset(scratch, 0, SCRATCH_BYTES));
        CHECK(cudaDeviceSynchronize());
        body(line);
        CHECK(cudaDeviceSynchronize());
        return line.print();
    } catch (const std::exception& error) {
        ++failures;
        line.add("error", error.what()).print();
    }
    cudaGraph_t graph;
    cudaStreamEndCapture(stream, &graph);  // in case it failed while capturing
    cudaGetLastError();
    cudaError_t status = cudaDeviceSynchronize();
    if (status == cudaSuccess) return;
    Line("stopped").add("error", std::string("the CUDA context is lost: ") + cudaGetErrorString(status)).print();
    exit(finish());
}

static double median(Line& line, std::vector<double> times) {
    std::sort(times.begin(), times.end());
    auto quantile = [&](double part) { return times[size_t(part * (times.size() - 1) + 0.5)]; };
    line.spread_percent = (quantile(0.9) - quantile(0.1)) / quantile(0.5) * 100;
    return quantile(0.5);
}

// Median microseconds of a run on the device. Each timed run is queued behind an untimed one, so that the device does
// not wait for the host after the first event. Stops early when time is up.
static double device_time(Line& line, int warm_ups, int runs, const std::function<void()>& run) {
    std::vector<double> times;
    for (int i = -warm_ups; i < runs && (times.empty() || seconds() < BUDGET_SECONDS); ++i) {
        float milliseconds = 0;
        run();
        CHECK(cudaEventRecord(before, stream));
        run();
        CHECK(cudaEventRecord(after, stream));
        CHECK(cudaEventSynchronize(after));
        CHECK(cudaEventElapsedTime(&milliseconds, before, after));
        if (i >= 0) times.push_back(milliseconds * 1e3);
    }
    return median(line, times);
}

// ---- Probes ---------------------------------------------------------------------------------------------
static void probe_facts() {
    measure(Line("facts"), [](Line& line) {
        auto add = [&](const char* key, cudaDeviceAttr attribute) {
            int value = 0;
            CHECK(cudaDeviceGetAttribute(&value, attribute, 0));
            line.add(key, value);
        };
        int driver = 0, runtime = 0;
        CHECK(cudaDriverGetVersion(&driver));
        CHECK(cudaRuntimeGetVersion(&runtime));
        line.add("device", std::string(device.name)).add("capability", device.major * 10 + device.minor);
        line.add("driver", driver).add("runtime", runtime).add("sms", sms()).add("l2_bytes", device.l2CacheSize);
        add("clock_khz", cudaDevAttrClockRate);
        add("memory_clock_khz", cudaDevAttrMemoryClockRate);
        add("pageable_memory_access", cudaDevAttrPageableMemoryAccess);
        add("pageable_memory_access_uses_host_page_tables", cudaDevAttrPageableMemoryAccessUsesHostPageTables);
        add("cooperative_launch", cudaDevAttrCooperativeLaunch);
        line.add("shared_bytes_opt_in", device.sharedMemPerBlockOptin).add("probe_bytes", memory_bytes);
    });
}

static void measure_chain(Line& line, bool use_graph, u32 blocks, bool overlap) {
    constexpr u32 KERNELS = 200;  // even: the last one writes what the first one reads
    if (overlap) require_hopper();
    u32 *words = scratch, *others = scratch + blocks * THREADS, chains = 0;
    Shape shape{blocks};
    shape.overlap = overlap;
    auto launch_chain = [&] {
        for (u32 i = 0; i < KERNELS / 2; ++i) {
            launch(shape, chain_step, words, others);
            launch(shape, chain_step, others, words);
        }
        ++chains;
    };
    launch_chain();  // loads the kernel, which must not happen during capture
    CHECK(cudaStreamSynchronize(stream));
    cudaGraphExec_t executable = nullptr;
    if (use_graph) {
        cudaGraph_t graph = nullptr;
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        launch_chain();
        CHECK(cudaStreamEndCapture(stream, &graph));
        CHECK(cudaGraphInstantiate(&executable, graph, 0));
        CHECK(cudaGraphDestroy(graph));
    }
    chains = 1;
    auto run = [&] {
        if (!use_graph) return launch_chain();
        CHECK(cudaGraphLaunch(executable, stream));
        ++chains;
    };
    line.add("microseconds", device_time(line, 10, 50, run) / KERNELS);
    u32 wrong = 0;
    for (u32 word : read(words, blocks * THREADS)) wrong += word != chains * KERNELS;
    require(wrong == 0, std::to_string(wrong) + " counts were wrong");
    line.add("ok", true);
    if (use_graph) CHECK(cudaGraphExecDestroy(executable));
}

static void probe_graph_gap() {
    for (bool graph : {true, false})
        for (u32 blocks : {1u, 300u})
            for (bool overlap : {false, true}) {
                measure(Line("graph_gap").add("graph", graph).add("blocks", blocks).add("overlap", overlap),
                        [=](Line& line) { measure_chain(line, graph, blocks, overlap); });
            }
}

static void probe_launch_sync() {
    constexpr size_t BYTES = 12;
    static u32 pageable[BYTES / 4];
    auto copy_to = [](u32* host) { CHECK(cudaMemcpyAsync(host, scratch, BYTES, cudaMemcpyDeviceToHost, stream)); };
    const std::pair<const char*, std::function<void()>> round_trips[] = {
        {"empty kernel", [] { launch({1, 32}, empty_kernel); }},
        {"copy 12 B to pageable", [=] { copy_to(pageable); }},
        {"copy 12 B to pinned", [=] { copy_to(pinned); }},
        {"kernel stores 12 B to pinned", [] { launch({1, BYTES / 4}, store_words, pinned); }},
    };
    for (const auto& round_trip : round_trips) {
        measure(Line("launch_sync").add("what", round_trip.first), [&](Line& line) {
            std::vector<double> times;
            for (int i = -50; i < 500; ++i) {
                double start = seconds();
                round_trip.second();
                CHECK(cudaStreamSynchronize(stream));
                if (i >= 0) times.push_back((seconds() - start) * 1e6);
            }
            line.add("microseconds", median(line, times));
        });
    }
}

static void measure_grid_barrier(const char* kind, void (*kernel)(u32, bool, BarrierState*, u32*), bool exchange) {
    measure(Line("grid_barrier").add("kind", kind).add("exchange", exchange), [=](Line& line) {
        constexpr u32 ROUNDS = 2000;
        require(device.cooperativeLaunch != 0, "needs cooperative launch");
        BarrierState* state = reinterpret_cast<BarrierState*>(scratch);
        Shape shape{sms(), THREADS, alone()};
        shape.cooperative = true;
        auto run = [&] { launch(shape, kernel, ROUNDS, exchange, state, scratch + 1024); };
        auto check_result = [&] {
            BarrierState result = read(state, 1)[0];
            require(result.timed_out == 0, "timed out");
            require(result.wrong == 0, std::to_string(result.wrong) + " values were wrong");
        };
        run();  // checked first, so that a broken barrier times out only once
        check_result();
        line.add("microseconds", device_time(line, 1, 9, run) / ROUNDS).add("blocks", sms());
        check_result();
        line.add("ok", true);
    });
}

static void probe_grid_barrier() {
    for (bool exchange : {true, false}) measure_grid_barrier("atomic", grid_rounds<false>, exchange);
    for (bool exchange : {true, false}) measure_grid_barrier("cooperative_groups", grid_rounds<true>, exchange);
}

static void probe_cluster_barrier() {
    for (u32 size : {4u, 8u})
        for (bool exchange : {true, false}) {
            measure(Line("cluster_barrier").add("size", size).add("exchange", exchange), [=](Line& line) {
                constexpr u32 ROUNDS = 4000;
                require_hopper();
                Shape shape{sms() / size * size};
                shape.cluster = size;
                auto kernel = exchange ? cluster_rounds<true> : cluster_rounds<false>;
                auto run = [&] { launch(shape, kernel, ROUNDS, scratch); };
                line.add("microseconds", device_time(line, 2, 9, run) / ROUNDS).add("blocks", shape.blocks);
                u32 wrong = read(scratch, 1)[0];
                require(wrong == 0, std::to_string(wrong) + " values were wrong");
                line.add("ok", true);
            });
        }
}

// Checks, then times a kernel that XORs all words of `memory` into scratch[0].
static void measure_reads(Line& line, const std::function<void()>& run) {
    launch({sms() * 8}, fill_random, memory, memory_bytes / 4, scratch);
    u32 expected = read(scratch, 1)[0];
    CHECK(cudaMemsetAsync(scratch, 0, 4, stream));
    run();
    require(read(scratch, 1)[0] == expected, "wrong XOR: not every byte was read once");
    line.add("gb_per_s", memory_bytes / device_time(line, 1, 9, run) * 1e-3);
}

static void probe_read_bandwidth() {
    const decltype(&read_words<1>) kernels[] = {read_words<1>, read_words<4>, read_words<8>};
    const u32 loads[] = {1, 4, 8};
    for (u32 i = 0; i < 3; ++i)
        for (u32 blocks_per_sm : {1u, 2u, 4u, 8u}) {
            if (loads[i] * blocks_per_sm > 32) continue;  // too many registers
            Line line("read_bandwidth");
            measure(line.add("loads", loads[i]).add("blocks_per_sm", blocks_per_sm), [&](Line& line) {
                size_t tiles = memory_bytes / (loads[i] * THREADS * sizeof(uint4));
                const uint4* data = reinterpret_cast<const uint4*>(memory);
                measure_reads(line, [&] { launch({sms() * blocks_per_sm}, kernels[i], data, tiles, scratch); });
            });
        }
}

static void probe_ring_bandwidth() {
    for (u32 stages : {3u, 4u, 8u, MAX_STAGES}) {
        measure(Line("ring_bandwidth").add("stages", stages).add("stage_bytes", CHUNK), [=](Line& line) {
            require_hopper();
            const u8* data = reinterpret_cast<const u8*>(memory);
            u32* late = scratch + 32;
            Shape shape{sms(), THREADS, std::max<size_t>(stages * CHUNK, alone())};
            measure_reads(line, [=] { launch(shape, read_ring, data, memory_bytes / CHUNK, stages, scratch, late); });
            require(read(late, 1)[0] == 0, "a bulk copy timed out");
        });
    }
}

static void probe_copy_bandwidth() {
    measure(Line("copy_bandwidth"), [](Line& line) {
        launch({sms() * 8}, fill_random, memory, memory_bytes / 4, scratch);
        size_t half = memory_bytes / 2;
        double time = device_time(line, 2, 9, [=] {
            CHECK(cudaMemcpyAsync(memory + half / 4, memory, half, cudaMemcpyDeviceToDevice, stream));
        });
        line.add("gb_per_s", 2 * half / time * 1e-3);
    });
}

// L2: a chain through 8 MiB, read once beforehand. Device memory: a chain through 512 MiB, evicted from L2 by writing
// as much elsewhere; the time includes TLB misses.
static void probe_latency() {
    for (bool in_l2 : {true, false}) {
        measure(Line("latency").add("of", in_l2 ? "l2" : "dram"), [=](Line& line) {
            u32 lines = in_l2 ? 1 << 16 : 1 << 22, steps = 20000;
            size_t bytes = size_t(lines) * LINE_WORDS * 4;
            require(memory_bytes >= 2 * bytes, "too little device memory");
            auto run = [=](u32 count) { launch({1, 1}, chase, memory, count, scratch, ticks); };
            launch({lines / THREADS}, fill_chain, memory, lines);
            if (in_l2) run(lines);
            if (!in_l2) CHECK(cudaMemsetAsync(memory + bytes / 4, 1, bytes, stream));
            line.add("nanoseconds", device_time(line, 1, 7, [=] { run(steps); }) * 1e3 / steps);
            line.add("cycles", double(read(ticks, 1)[0].cycles) / steps);
        });
    }
}

// Times a tensor core kernel that performs `operations` operations on each SM.
static void measure_rate(Line& line, double operations, const std::function<void()>& run) {
    double time = device_time(line, 2, 40, run);
    Ticks last = read(ticks, 1)[0];
    require(last.cycles > 0 && last.nanoseconds > 0, "not available: compiled without it");
    line.add("tops", operations * sms() / time * 1e-6).add("operations_per_clock_per_sm", operations / last.cycles);
    line.add("sm_mhz", last.cycles * 1e3 / last.nanoseconds).add("kernel_microseconds", time);
}

static void measure_mma(const Line& line, u32 warps) {
    measure(line, [=](Line& line) {
        u32 rounds = 131072 / warps;
        measure_rate(line, 2.0 * 16 * 8 * 32 * TILES * warps * rounds,
                     [=] { launch({sms(), warps * 32, alone()}, mma_rounds, rounds, scratch, ticks); });
    });
}

static void probe_mma_sync_s8() {
    for (u32 warps : {4u, 8u, 16u}) measure_mma(Line("mma_sync_s8").add("warps_per_sm", warps), warps);
}

// How many sums differ from `times` * A * B^T.
static u32 wrong_sums(const std::vector<i32>& sums, i32 times) {
    auto byte = [](u32 row, u32 k) { return static_cast<int8_t>(operand_word(row, k / 4) >> (k % 4 * 8)); };
    u32 wrong = 0;
    for (u32 i = 0; i < sums.size(); ++i) {
        i32 sum = 0;
        for (u32 k = 0; k < TILE_K; ++k) sum += byte(i / WG_COLUMNS, k) * byte(A_ROWS + i % WG_COLUMNS, k);
        wrong += sums[i] != sum * times;
    }
    return wrong;
}

template <u32 WARPGROUPS>
static void measure_wgmma() {
    auto run = [](u32 blocks, u32 rounds, i32* tile) {
        Shape shape{blocks, 128 * WARPGROUPS, std::max<size_t>(WGMMA_SHARED, alone())};
        launch(shape, wgmma_rounds<WARPGROUPS>, rounds, scratch, tile, ticks);
    };
    measure(Line("wgmma_check").add("warpgroups", WARPGROUPS), [=](Line& line) {
        constexpr u32 ROUNDS = 3, SUMS = WARPGROUPS * WG_ROWS * WG_COLUMNS;
        i32* tile = reinterpret_cast<i32*>(scratch) + (1 << 20);
        run(1, ROUNDS, tile);
        require(read(ticks, 1)[0].cycles > 0, "not available: compiled without wgmma, which needs sm_90a");
        u32 wrong = wrong_sums(read(tile, SUMS), ROUNDS);
        line.add("ok", wrong == 0).add("wrong", wrong).add("of", SUMS);
        failures += wrong != 0;
    });
    measure(Line("wgmma_s8").add("warpgroups", WARPGROUPS), [=](Line& line) {
        constexpr u32 ROUNDS = 8000 / WARPGROUPS;
        double operations = 2.0 * WARPGROUPS * WG_ROWS * WG_COLUMNS * TILE_K * ROUNDS;
        measure_rate(line, operations, [=] { run(sms(), ROUNDS, nullptr); });
    });
}

// The probes most likely to lose the CUDA context come last.
static const std::pair<std::string, void (*)()> probes[] = {
    {"graph_gap", probe_graph_gap},           {"launch_sync", probe_launch_sync},
    {"grid_barrier", probe_grid_barrier},     {"cluster_barrier", probe_cluster_barrier},
    {"mma_sync_s8", probe_mma_sync_s8},       {"read_bandwidth", probe_read_bandwidth},
    {"copy_bandwidth", probe_copy_bandwidth}, {"latency", probe_latency},
    {"ring_bandwidth", probe_ring_bandwidth}, {"wgmma_s8", [] { measure_wgmma<1>(), measure_wgmma<2>(); }},
};

static void time_is_up(int) {
    static const char message[] = "{\"probe\":\"stopped\",\"error\":\"watchdog: the GPU did not answer in time\"}\n";
    _exit(write(STDOUT_FILENO, message, sizeof message - 1) < 0 ? 5 : 4);
}

static void prepare() {
    size_t free = 0, total = 0;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&before));
    CHECK(cudaEventCreate(&after));
    CHECK(cudaMalloc(&scratch, SCRATCH_BYTES));
    ticks = reinterpret_cast<Ticks*>(scratch + SCRATCH_BYTES / 4) - 1;
    CHECK(cudaMallocHost(&pinned, 4096));
    CHECK(cudaMemGetInfo(&free, &total));
    memory_bytes = std::min(size_t(2) << 30, free / 2 >> 20 << 20);
    CHECK(cudaMalloc(&memory, memory_bytes));
}

int main(int count, char** arguments) {
    char** end = arguments + count;
    auto chosen = [=](const auto& probe) { return count == 1 || std::find(arguments + 1, end, probe.first) != end; };
    if (std::none_of(std::begin(probes), std::end(probes), chosen)) {
        return fprintf(stderr, "no such probe: the list is in the source, before main\n"), 2;
    }
    signal(SIGALRM, time_is_up);
    alarm(WATCHDOG_SECONDS);

    cudaError_t status = cudaSetDevice(0);
    if (status == cudaSuccess) status = cudaGetDeviceProperties(&device, 0);
    if (status != cudaSuccess) {
        fprintf(stderr, "no CUDA device: %s (%s)\n", cudaGetErrorString(status), cudaGetErrorName(status));
        return 3;
    }
    try {
        prepare();
        probe_facts();
        measure_mma(Line("warm_up"), 8);  // raises the clocks from idle
        for (const auto& probe : probes) {
            if (chosen(probe)) probe.second();
        }
    } catch (const std::exception& error) {
        ++failures;
        Line("stopped").add("error", error.what()).print();
    }
    return finish();
}
