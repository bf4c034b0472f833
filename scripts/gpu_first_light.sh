#!/usr/bin/env bash
# For a few minutes on a machine with a GPU: checks that the results are correct, runs sanitizers, measures speed, and
# profiles kernels. The machine needs no Rust, no network and no checkout.
#
#   first_light.sh OUT [SECONDS]    takes at most SECONDS (default 390)
#
# It runs in the folder made by `scripts/gpu_tests.sh pack`, which holds:
#   tests.tar.xz          bin: the program and the test executables cuda_kernels, device_tests and cpu_kernels;
#                         project: the files that tests read
#   reference.safetensors logits of the random gpt2-large, computed on a CPU; reference_tiny.safetensors: of a tiny model
#   bench_gpu.py, gpu_report.py, make_random_gpt2.py, gpu_probe.cu, gpu_probe_kernels.cuh, manifest.txt; optionally bnb,
#   with bitsandbytes
#
# Each step has a time limit, a log and a line in the final table. A step that fails, crashes or hangs does not affect
# the results of the others; only `facts` and `smoke` end the script early. OUT is updated after each step:
#   results.json          the steps, and key numbers beside their predictions
#   bench.json, bench.md  all timings
#   logs.tar.gz           one log for each step, long ones shortened
#   steps.tsv, summary.txt
#
# A step is skipped, with a reason, where a tool or a file that it needs is missing. Exit status: 0 every step passed
# or was skipped, 1 ended early, 2 usage error, 3 a step failed, 143 stopped by a signal.
#
# LLM_INT8_REHEARSAL=1: a rehearsal with an emulated GPU (a libcuda.so.1 on LD_LIBRARY_PATH). It is very slow, so sizes
# are small, limits are longer, and torch runs on the CPU. LLM_INT8_STEP_SECONDS=N: caps each step at N seconds.
#
# FIRST_LIGHT_ONLY="STEP ...": runs only these steps, and `unpack`.
#
# It never changes the GPU's settings: no clocks, power limits, modes or resets.
set -u
ulimit -c 0

# Tests of cuda_kernels that run under the sanitizers.
SANITIZED="linear::matmuls_match_the_reference_in_f32 linear::large_tiles_match_the_reference
    attention::row_by_row_with_shared_positions attention::tile_by_tile
    linear::one_row_may_have_any_number_of_outliers
    linear::norms_and_gates_precede_matmuls_and_epilogues_follow"
# The kernels to profile when decoding (184 launches a token for gpt2-large) and for a prompt of 1024 tokens, and the
# sections that ncu collects in both.
TOKEN_KERNELS='gemv|attend_new|embed|norm_rows|dense_one|select'
PROMPT_KERNELS='wgmma|gemm128|attend_many'
SECTIONS="--section SpeedOfLight --section WarpStateStats --section Occupancy --section LaunchStats"

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -ge 1 ] && [ $# -le 2 ] || usage
LIMIT=${2:-390}
case $LIMIT in *[!0-9]* | '') usage ;; esac

HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 2
rm -f "$OUT"/{results.json,bench.json,bench.md,logs.tar.gz,steps.tsv,summary.txt}

SCRATCH=$(mktemp -d) || exit 2
LOGS=$SCRATCH/logs
mkdir -p "$LOGS" "$SCRATCH/notes" "$SCRATCH/prepared"
: > "$SCRATCH/steps.tsv"

PATH=$PATH:/usr/local/cuda/bin
PYTHON=$(python3 -c 'import sys; print(sys.executable)') || { echo "python3 is needed" >&2; exit 2; }
BIN=$SCRATCH/bin
MODEL=$SCRATCH/gpt2-large
REHEARSAL=${LLM_INT8_REHEARSAL:-}
TINY=${REHEARSAL:+--tiny}
RESERVE=6 # seconds kept for killing what still runs and for the final table
LEAST=8   # a step starts only if this many seconds are left
SLOWER=${REHEARSAL:+6}

export HERE OUT SCRATCH LOGS PATH PYTHON BIN MODEL REHEARSAL TINY SLOWER SANITIZED SECTIONS
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export LLM_INT8_TEST_DEVICE=cuda LLM_INT8_TEST_ROOT=$SCRATCH/project LLM_INT8_TEST_PROGRAM=$BIN/llm-int8

preparing=""
current=""

# Steps

left() {
    echo $((LIMIT - RESERVE - SECONDS))
}

# limit_of SECONDS: a step's time limit, adjusted by the environment.
limit_of() {
    local seconds=$(($1 * ${SLOWER:-1})) most=${LLM_INT8_STEP_SECONDS:-}
    [ -n "$most" ] && [ "$seconds" -gt "$most" ] && seconds=$most
    echo "$seconds"
}

# Kills the processes that a step left behind, or all steps if none is named. FIRST_LIGHT_STEP in their environment
# marks them.
sweep() { # [STEP]
    local file pid
    for file in $(grep -lzs "^FIRST_LIGHT_STEP=$SCRATCH/${1:+$1$}" /proc/[0-9]*/environ); do
        pid=${file#/proc/}
        kill -KILL "${pid%/environ}" 2> /dev/null
    done
}

# Runs a step's command, which may be one of the functions below. Exit status 77 means skipped, for the reason in the
# step's note.
limited() { # STEP SECONDS COMMAND...
    FIRST_LIGHT_STEP=$SCRATCH/$1 STEP_SECONDS=$2 STEP_LOG=$LOGS/$1.log STEP_NOTE=$SCRATCH/notes/$1 \
        exec timeout -k 3 "$2" bash -c '"$@"' first_light "${@:3}" > "$LOGS/$1.log" 2>&1 < /dev/null
}

# record STEP RESULT SECONDS LIMIT: adds a line to the table.
record() {
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >> "$SCRATCH/steps.tsv"
    printf '== %s: %s, %s s of %s\n' "$1" "$2" "$3" "$4"
    case $2 in
        skipped*) return ;;
        ok*) ;;
        *) tail -n 6 "$LOGS/$1.log" 2> /dev/null | cut -c 1-200 | sed 's/^/   | /' ;;
    esac
    save
}

# ended STEP STATUS SECONDS LIMIT: records a step's result; succeeds if it passed or was skipped.
ended() {
    local note="" result cannot why
    [ -s "$SCRATCH/notes/$1" ] && note=$(tr -s '\t\n' ' ' < "$SCRATCH/notes/$1" | head -c 600)
    if [ "$2" -eq 124 ] || { [ "$2" -eq 137 ] && [ "$3" -ge "$4" ]; }; then
        result="timed out"
    elif [ "$2" -eq 77 ]; then
        result=skipped
    elif [ "$2" -eq 75 ]; then
        result=incomplete
    elif [ "$2" -gt 128 ]; then
        result="failed: signal $(kill -l "$2" 2> /dev/null || echo $(($2 - 128)))"
    elif [ "$2" -ne 0 ]; then
        result="failed: exit status $2"
    else
        result=ok
    fi

    # Profilers and sanitizers do not work on every machine; that is not the program's failure.
    cannot='Device not supported|Failed to initialize the profiler|ERR_NVGPUCTRPERM'
    case $1:$result in profile-*:failed* | memcheck:failed* | racecheck:failed*)
        why=$(grep -hE -m 1 "$cannot" "$LOGS/$1".* | head -n 1 | cut -c 1-200)
        [ -z "$why" ] || result=skipped note=$why ;;
    esac

    record "$1" "$result${note:+: ${note% }}" "$3" "$4"
    case $result in ok | skipped) ;; *) return 1 ;; esac
}

skip() { # STEP WHY
    record "$1" "skipped: $2" 0 0
}

is_selected() { # STEP
    case " ${FIRST_LIGHT_ONLY:-$1} unpack " in *" $1 "*) ;; *) return 1 ;; esac
}

step() { # STEP SECONDS COMMAND...
    local name=$1 seconds room status started
    is_selected "$name" || return 0

    seconds=$(limit_of "$2")
    room=$(left)
    if [ "$room" -lt "$LEAST" ]; then
        skip "$name" "$room s are left"
        return 1
    fi
    [ "$seconds" -gt "$room" ] && seconds=$room

    started=$SECONDS
    current=$name
    current_since=$SECONDS
    limited "$name" "$seconds" "${@:3}" &
    current_pid=$!
    wait "$current_pid"
    status=$?
    current=

    sweep "$name"
    ended "$name" "$status" $((SECONDS - started)) "$seconds"
}

# Background steps: `prepare` starts one, `collect` waits for it and records its result.
prepare() { # STEP SECONDS COMMAND...
    local name=$1 seconds
    is_selected "$name" || return 0
    preparing="$preparing $name"

    seconds=$(limit_of "$2")
    [ "$seconds" -gt "$(left)" ] && seconds=$(left)
    (
        began=$SECONDS
        (limited "$name" "$seconds" "${@:3}")
        echo "$? $((SECONDS - began)) $seconds" > "$SCRATCH/prepared/$name.new"
        mv "$SCRATCH/prepared/$name.new" "$SCRATCH/prepared/$name"
    ) &
}

collect() { # STEP SECONDS
    local end status seconds limit
    is_selected "$1" || return 0
    preparing=${preparing/ $1/}

    end=$((SECONDS + $(limit_of "$2")))
    [ $((end - SECONDS)) -gt "$(left)" ] && end=$((SECONDS + $(left)))
    while [ ! -e "$SCRATCH/prepared/$1" ] && [ "$SECONDS" -lt "$end" ]; do sleep 0.2; done

    if [ -e "$SCRATCH/prepared/$1" ]; then
        read -r status seconds limit < "$SCRATCH/prepared/$1"
        ended "$1" "$status" "$seconds" "$limit"
    else
        sweep "$1"
        record "$1" "timed out: not ready when it was needed" "$SECONDS" "$SECONDS"
        return 1
    fi
}

# Results

save() { # [print]
    cp "$SCRATCH/steps.tsv" "$OUT/steps.tsv.new" && mv "$OUT/steps.tsv.new" "$OUT/steps.tsv"
    timeout -k 1 20 "$PYTHON" -I "$HERE/gpu_report.py" "$@" || { [ $# -eq 0 ] || cat "$SCRATCH/steps.tsv"; }
}

finish() { # STATUS
    trap '' TERM INT HUP
    for name in $preparing; do
        if [ -e "$SCRATCH/prepared/$name" ]; then collect "$name" 0; else skip "$name" "not ready at the end"; fi
    done

    # shellcheck disable=SC2046
    kill -KILL $(jobs -p) 2> /dev/null
    sweep
    save print
    rm -rf "$SCRATCH" "$OUT"/*.new "$OUT"/*.partial
    exit "$1"
}

stopped() {
    trap '' TERM INT HUP
    if [ -n "$current" ]; then
        # On SIGTERM bench_gpu.py writes the results it has.
        kill -TERM "$current_pid" 2> /dev/null
        for _ in 1 2 3 4 5 6 7 8; do kill -0 "$current_pid" 2> /dev/null && sleep 0.25; done
        record "$current" "stopped by a signal" $((SECONDS - current_since)) 0
    fi
    finish 143
}
trap stopped TERM INT HUP

# What steps run

skip_step() { # WHY: ends the step as skipped
    echo "$1" > "$STEP_NOTE"
    echo "skipped: $1"
    exit 77
}

unpack() {
    "$PYTHON" -c 'if True:
        import sys, tarfile
        with tarfile.open(sys.argv[1]) as archive:
            archive.extractall(sys.argv[2], **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))' \
        "$HERE/tests.tar.xz" "$SCRATCH"
}

card() {
    command -v nvidia-smi || return 0
    timeout -k 1 5 nvidia-smi
    local fields=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw
    timeout -k 1 5 nvidia-smi --format=csv --query-gpu=$fields
}

# Attributes of the GPU, including those that decide whether copies from pageable memory are asynchronous.
attributes() {
    "$PYTHON" - << 'PYTHON'
import ctypes
cuda, device, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
print("cuInit", cuda.cuInit(0), "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), 0))
for number, name in {
    13: "clock, kHz", 16: "multiprocessors", 36: "memory clock, kHz", 37: "memory bus, bits", 38: "L2, bytes",
    75: "capability, major", 76: "capability, minor", 88: "reads pageable memory", 89: "concurrent managed memory",
    95: "cooperative launch", 97: "shared memory of a block, opt-in", 100: "uses the host's page tables",
}.items():
    status = cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    print(f"{name}: {value.value if status == 0 else f'error {status}'}")
PYTHON
}

facts() {
    cat "$HERE/manifest.txt"
    date -u
    uname -a
    nproc
    grep -m 1 'model name' /proc/cpuinfo
    grep -m 1 '^flags' /proc/cpuinfo | tr ' ' '\n' | grep -E '^(avx|amx|fma)' | tr '\n' ' '
    head -n 2 /proc/meminfo
    echo "LD_LIBRARY_PATH: ${LD_LIBRARY_PATH:-}"
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep libcuda
    "$BIN/llm-int8" --version &&
        "$BIN/llm-int8" run tiny-gpt2 --prompt "In the beginning" --device cuda -n 8
    local status=$?
    attributes
    card
    return $status
}

# Versions of the tools that later steps use.
tools() {
    local tool
    for tool in nvcc ncu compute-sanitizer; do
        echo "== $tool: $(command -v "$tool" || echo missing)"
        timeout -k 1 10 "$tool" --version
    done
    return 0
}

# Runs the tests in one process, then each that did not pass in a process of its own: an illegal access fails all later
# tests of its process, and a hanging test may keep others from starting.
tests() { # EXECUTABLE [ARGUMENT]...
    local program=$BIN/$1 status name room first passed=0 failed="" rest=0
    shift
    [ -x "$program" ] || skip_step "not packed"
    timeout -k 1 5 "$program" --list --format terse "$@" | sed -n 's/: test$//p' > "$STEP_NOTE.all"
    [ -s "$STEP_NOTE.all" ] || skip_step "there is no test for: $*"

    first=$((STEP_SECONDS * 2 / 3))
    timeout -k 2 $((first > 0 ? first : 1)) "$program" "$@"
    status=$?
    [ "$status" -eq 0 ] && return 0

    sed -nE 's/^test (.*) \.\.\. (ok|ignored).*/\1/p' "$STEP_LOG" | sed 's/ - should panic$//' > "$STEP_NOTE.passed"
    grep -vxF -f "$STEP_NOTE.passed" "$STEP_NOTE.all" > "$STEP_NOTE.again"

    while read -r name; do
        room=$((STEP_SECONDS - SECONDS - 1))
        if [ "$room" -lt 1 ]; then
            rest=$((rest + 1))
            continue
        fi
        echo "== alone: $name"
        if timeout -k 1 $((room < 10 ? room : 10)) "$program" --exact "$name" --nocapture < /dev/null; then
            passed=$((passed + 1))
        else
            failed="$failed $name ($?)"
        fi
    done < "$STEP_NOTE.again"

    echo "alone: $passed pass; fail:${failed:- none}; not run again: $rest" | tee "$STEP_NOTE"
    return "$status"
}

gpt2_large() {
    export LLM_INT8_GPT2_LARGE=$MODEL LLM_INT8_GPT2_LARGE_REFERENCE=$HERE/reference.safetensors
    if [ -n "$REHEARSAL" ]; then
        LLM_INT8_GPT2_LARGE=$LLM_INT8_TEST_ROOT/tests/golden/models/gpt2
        LLM_INT8_GPT2_LARGE_REFERENCE=$HERE/reference_tiny.safetensors
    fi
    [ -e "$LLM_INT8_GPT2_LARGE_REFERENCE" ] || skip_step "no reference is packed"
    [ -e "$LLM_INT8_GPT2_LARGE/config.json" ] || skip_step "there is no model"
    tests device_tests gpt2_large::
}

on_model() { # COMMAND...
    [ -e "$MODEL/config.json" ] || skip_step "there is no model"
    "$@"
}

bench() { # SECONDS-OF-A-ROW ARGUMENT...: bench_gpu.py
    local most
    most=$(limit_of "$1")
    shift
    # exec: bench_gpu.py gets the signals of this step and still writes the results it has.
    # shellcheck disable=SC2086
    exec "$PYTHON" "$HERE/bench_gpu.py" --binary "$BIN/llm-int8" --model "$MODEL" --json "$OUT/bench.json" --resume \
        --markdown "$OUT/bench.md" --limit "$most" --budget $((STEP_SECONDS - 2)) $TINY "$@"
}

# Benchmarks of peers: on the GPU; in a rehearsal on the CPU, without the emulated driver.
peers() { # SECONDS-OF-A-ROW ARGUMENT...
    if [ -n "$REHEARSAL" ]; then
        unset LD_LIBRARY_PATH
        export CUDA_VISIBLE_DEVICES=""
        bench "$@" --device cpu
    else
        bench "$@"
    fi
}

import_torch() {
    [ -z "$REHEARSAL" ] || unset LD_LIBRARY_PATH
    "$PYTHON" -c 'import importlib.util as u; exit(u.find_spec("torch") is None)' || skip_step "torch is not installed"
    "$PYTHON" -c 'import importlib, torch
print("torch", torch.__version__, "CUDA", torch.version.cuda)
print("torch sees a GPU:", torch.cuda.is_available(), flush=True)
for name in ["numpy", "transformers", "accelerate"]:
    try:
        print(name, importlib.import_module(name).__version__)
    except ImportError as error:
        print(error)'
}

make_model() {
    "$PYTHON" -c 'import importlib.util as u; exit(u.find_spec("numpy") is None)' || skip_step "numpy is not installed"
    "$PYTHON" "$HERE/bench_gpu.py" --step make-model \
        "{\"folder\": \"$MODEL\", \"device\": \"cuda:0\", \"tiny\": $([ -n "$REHEARSAL" ] && echo true || echo false)}"
}

make_probe() {
    [ -e "$HERE/gpu_probe.cu" ] || skip_step "not packed"
    command -v nvcc || skip_step "nvcc is missing"
    local what=(-o "$SCRATCH/probe")
    [ -z "$REHEARSAL" ] || what=(-c -o "$SCRATCH/probe.o")
    nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a "$HERE/gpu_probe.cu" "${what[@]}"
}

probe() {
    [ -z "$REHEARSAL" ] || skip_step "a rehearsal, it needs a real GPU"
    [ -x "$SCRATCH/probe" ] || skip_step "it was not compiled"
    "$SCRATCH/probe"
}

cpu_kernels() {
    [ -x "$BIN/cpu_kernels" ] || skip_step "not packed"
    nice -n 15 "$BIN/cpu_kernels"
}

profile() { # FILE TOKEN-IDS ARGUMENT-OF-NCU...
    [ -z "$REHEARSAL" ] || skip_step "a rehearsal, it needs a real GPU"
    command -v ncu || skip_step "ncu is missing"
    local file=$1 ids=$2
    shift 2
    # shellcheck disable=SC2086
    ncu --clock-control none --cache-control none --csv --log-file "$LOGS/$file" $SECTIONS "$@" \
        "$BIN/llm-int8" run "$MODEL" --device cuda --no-cuda-graph --token-ids "$ids" -n 4 --ignore-eos --print-ids -q
}

# Why warps stall, by instruction. Of the instructions without samples every 20th is kept.
stalls() { # NAME TOKEN-IDS ARGUMENT-OF-NCU...
    local name=$1
    shift
    profile "$name.csv" "$@" --section SourceCounters --page source || return
    "$PYTHON" - "$LOGS/$name.csv" << 'PYTHON' > "$LOGS/$name.txt"
import csv, sys
for kernel in open(sys.argv[1]).read().split('"Kernel Name",')[1:]:
    lines = kernel.splitlines()
    print("==", lines[0])
    for i, row in enumerate(csv.DictReader(lines[1:])):
        samples = int(row["# Samples"] or 0)
        if samples or i % 20 == 0:
            why = {name[6:]: int(n) for name, n in row.items() if name and name.startswith("stall_") and n and n != "0"
                   and "Not" not in name}
            print(i, samples, row["Instructions Executed"], row["Source"].strip(), why)
PYTHON
    rm "$LOGS/$name.csv"
}

sanitize() { # TOOL
    [ -z "$REHEARSAL" ] || skip_step "a rehearsal, it needs a real GPU"
    command -v compute-sanitizer || skip_step "compute-sanitizer is missing"
    local found
    # shellcheck disable=SC2086
    found=$("$BIN/cuda_kernels" --list --format terse --exact $SANITIZED | grep -c ': test$')
    [ "$found" -gt 0 ] || skip_step "there is no test of these names"

    echo "$found of $(wc -w <<< "$SANITIZED") tests" | tee "$STEP_NOTE"
    # shellcheck disable=SC2086
    compute-sanitizer --tool "$1" --error-exitcode 9 "$BIN/cuda_kernels" --exact $SANITIZED --test-threads 1
}

bitsandbytes() {
    [ ! -d "$HERE/bnb" ] || export PYTHONPATH=$HERE/bnb${PYTHONPATH:+:$PYTHONPATH}
    "$PYTHON" -c 'import importlib.util as u; exit(u.find_spec("bitsandbytes") is None)' ||
        skip_step "bitsandbytes is not installed"
    peers "$@"
}

export -f limit_of skip_step unpack card attributes facts tools tests gpt2_large on_model bench peers import_torch
export -f make_model make_probe probe cpu_kernels profile stalls sanitize bitsandbytes

# Everything

cat "$HERE/manifest.txt" 2> /dev/null
[ -z "$REHEARSAL" ] || echo "A REHEARSAL: small sizes, limits times $SLOWER; no number means anything"

prepare make-model 150 make_model
prepare make-probe 90 make_probe
prepare import-torch 60 import_torch
prepare tools 40 tools
step unpack 60 unpack
prepare cpu-kernels 120 cpu_kernels

step facts 25 facts || finish 1
step smoke 30 tests cuda_kernels golden:: device:: || finish 1
step kernels 60 tests cuda_kernels
step models 60 tests device_tests device --skip gpt2_large
step memcheck 25 sanitize memcheck
step racecheck 25 sanitize racecheck
collect make-model 60
step gpt2-large 45 gpt2_large

# Nothing else may run during the timings: wait for the background steps.
collect tools 10
collect make-probe 30
collect import-torch 30
collect cpu-kernels 30
step ours 45 on_model bench 20 --only ours,ours-no-graph,ours-no-overlap --runs 3
step linear-ours 40 bench 38 --only linear-ours --runs 3
few=(--rows 1,8,64)
[ -z "$REHEARSAL" ] || few=()
step linear-ours-no-overlap 25 bench 25 --only linear-ours-no-overlap --runs 3 "${few[@]}"
step probe 15 probe

torch=yes
if ! grep -q '^torch sees a GPU' "$LOGS/import-torch.log"; then
    torch="torch cannot be imported"
elif [ -z "$REHEARSAL" ] && ! grep -q '^torch sees a GPU: True' "$LOGS/import-torch.log"; then
    torch="torch sees no GPU"
fi
with_torch() { # STEP SECONDS COMMAND...
    if [ "$torch" = yes ]; then step "$@"; else skip "$1" "$torch"; fi
}
# The slowest to start goes first, while there is time.
with_torch torch-compiled 90 on_model peers 80 --only torch-compiled --runs 2 --batches 1
few=(--batches 1 --prompts 512 --shapes 5120x1280,4096x4096 --rows 1,512)
[ -z "$REHEARSAL" ] || few=()
with_torch bitsandbytes 60 on_model bitsandbytes 40 --only bitsandbytes,linear-bitsandbytes --runs 2 "${few[@]}"
rows=copy,linear-torch,torch
[ -e "$MODEL/config.json" ] || rows=${rows/,torch/}
with_torch peers 70 peers 40 --only $rows --runs 2
with_torch torch-int8 30 peers 25 --only linear-torch-int8 --runs 2

# The launches at the end of the second token and at the beginning of the third.
step profile-decode 30 on_model profile profile-decode.csv 5 --kernel-name "regex:$TOKEN_KERNELS" \
    --launch-skip 358 --launch-count 18
step stalls-decode 30 on_model stalls stalls-decode 5 --kernel-name "regex:$TOKEN_KERNELS" --launch-skip 205 \
    --launch-count 5
step profile-prompt 30 on_model profile profile-prompt.csv "$(seq -s , 1 1024)" --kernel-name "regex:$PROMPT_KERNELS" \
    --launch-skip 5 --launch-count 5
step card-after 10 card

status=0
cut -f 2 "$SCRATCH/steps.tsv" | grep -qvE '^(ok|skipped)' && status=3
finish "$status"
