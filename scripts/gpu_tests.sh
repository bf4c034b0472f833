#!/usr/bin/env bash
# Packs the tests and benchmarks into a folder, for a machine that has a GPU but no Rust, network or checkout:
#
#   scripts/gpu_tests.sh pack [FOLDER]      default: target/gpu-tests
#
# On that machine, in the folder: ./first_light.sh OUT [SECONDS] (see scripts/gpu_first_light.sh).
#
# The kernels are compiled for capability 9.0 (override with LLM_INT8_CUDA_CAPABILITIES), with line information for
# profilers and sanitizers. nvcc comes from PATH or from scripts/cuda_toolchain.sh. Takes about 4 minutes if the project
# is already built. The first run also computes the reference logits of a random gpt2-large and keeps them in
# target/gpu-reference: another 2 minutes and 1.6 GB in a temporary folder. That needs Python with numpy; PYTHON names an
# interpreter other than python3. If LLM_INT8_BITSANDBYTES names a wheel of bitsandbytes, it is packed too.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ "${1:-}" = pack ] && [ $# -le 2 ] || usage
folder=$(realpath -m "${2:-target/gpu-tests}")

command -v nvcc > /dev/null || eval "$(scripts/cuda_toolchain.sh)"
export LLM_INT8_CUDA_CAPABILITIES=${LLM_INT8_CUDA_CAPABILITIES:-90}
export NVCC_APPEND_FLAGS=${NVCC_APPEND_FLAGS:--lineinfo}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The test executables, which know the emulated device beside real GPUs. cargo prints compiler errors to stderr.
cargo test --release --workspace --features cuda --no-run --message-format json-render-diagnostics > "$scratch/build.json"
rm -rf "$folder"
mkdir -p "$scratch/bin" "$folder"
python3 - "$scratch" << 'PYTHON'
import json, shutil, sys

scratch, found = sys.argv[1], set()
names = {("crates/cuda", "kernels"): "cuda_kernels", ("crates/kernels", "kernels"): "cpu_kernels"}
names |= {("", "tests"): "device_tests"}

for line in open(f"{scratch}/build.json"):
    message = json.loads(line)
    target, executable = message.get("target", {}), message.get("executable")
    if not executable or "bin" in target["kind"] and message["profile"]["test"]:
        continue

    if "bin" in target["kind"] and target["name"] == "llm-int8":
        name = "llm-int8"
    else:
        matches = [key for key in names if key[1] == target["name"] and f"{key[0]}/tests/" in target["src_path"]]
        name = names[max(matches, key=lambda key: len(key[0]))] if matches else None
    if name:
        shutil.copy(executable, f"{scratch}/bin/{name}")
        found.add(name)

lacking = {"llm-int8", *names.values()} - found
if lacking:
    sys.exit(f"cargo built no {', '.join(sorted(lacking))}")
PYTHON
strip "$scratch"/bin/*

# One archive, with a dictionary larger than all of it: the large executables contain the same libraries. Python makes it,
# as xz may be missing.
mkdir -p "$scratch/project/tests"
cp -r --parents tests/golden/{models,bnb_checkpoints,generation,llm_int8_matmul.safetensors} "$scratch/project"
python3 - "$folder/tests.tar.xz" "$scratch" << 'PYTHON'
import lzma, sys, tarfile
archive, folder = sys.argv[1:]
window = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 128 << 20}]
with lzma.open(archive, "w", filters=window) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
    for name in ["bin", "project"]:
        tar.add(f"{folder}/{name}", name)
PYTHON

# reference MODEL FILE: writes the CPU's logits of a model to FILE.
reference() {
    LLM_INT8_GPT2_LARGE=$1 LLM_INT8_GPT2_LARGE_WRITE=$2 LLM_INT8_TEST_DEVICE=emulated "$scratch/bin/device_tests" \
        --exact gpt2_large::device_logits_match_the_cpu > "$scratch/log" 2>&1 \
        || { cat "$scratch/log" >&2; return 1; }
}
reference "$PWD/tests/golden/models/gpt2" "$folder/reference_tiny.safetensors"

# The reference depends on these two files.
key=$(cat scripts/make_random_gpt2.py tests/gpt2_large.rs | sha256sum | cut -c 1-16)
kept=target/gpu-reference/$key.safetensors
if [ ! -e "$kept" ]; then
    rm -rf target/gpu-reference
    mkdir -p target/gpu-reference
    "${PYTHON:-python3}" scripts/bench_gpu.py --step make-model \
        "{\"folder\": \"$scratch/gpt2-large\", \"device\": \"cuda:0\", \"tiny\": false}" > "$scratch/log" 2>&1 \
        || { cat "$scratch/log" >&2; exit 1; }
    reference "$scratch/gpt2-large" "$PWD/$kept.new"
    mv "$kept.new" "$kept"
fi
cp "$kept" "$folder/reference.safetensors"

cp scripts/gpu_first_light.sh "$folder/first_light.sh"
cp scripts/{gpu_report.py,bench_gpu.py,make_random_gpt2.py,gpu_probe.cu,gpu_probe_kernels.cuh} "$folder"

if [ -n "${LLM_INT8_BITSANDBYTES:-}" ]; then
    # Only the library for CUDA 13.0, to save space.
    python3 - "$LLM_INT8_BITSANDBYTES" "$folder/bnb" << 'PYTHON'
import sys, zipfile
wheel, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as packed:
    for name in packed.namelist():
        if not name.endswith((".so", ".dll")) or name.endswith("libbitsandbytes_cuda130.so"):
            packed.extract(name, folder)
PYTHON
fi

{
    echo "llm-int8 $(git describe --always --dirty 2> /dev/null || echo 'of an unknown commit'), packed $(date -u +%FT%RZ)"
    echo "capabilities $LLM_INT8_CUDA_CAPABILITIES, $(nvcc --version | tail -n 1), flags $NVCC_APPEND_FLAGS"
    (cd "$folder" && du -sb -- *)
} > "$folder/manifest.txt"

bytes=$(du -sb "$folder" | cut -f 1)
du -sh "$folder"/*
if [ "$bytes" -gt $((60 << 20)) ]; then
    echo "$folder holds $bytes bytes, more than the limit of 60 MiB" >&2
    exit 1
fi
checkout=$(git ls-files -z 2> /dev/null | xargs -0 du -cb -- 2> /dev/null | tail -n 1 | cut -f 1)
echo "$folder holds $((bytes >> 20)) MiB, the checkout $((${checkout:-0} >> 20)) MiB; there: ./first_light.sh OUT"
