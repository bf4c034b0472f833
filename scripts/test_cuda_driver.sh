#!/usr/bin/env bash
# Tests the CUDA host code without a GPU: builds a libcuda.so.1 whose GPU is the emulated device
# (crates/cuda/emulation/driver.cc) and runs the device tests on it, with the feature `cuda` and a stand-in for nvcc.
# crates/cuda/README.md says what that covers. Needs Rust and g++ (or another compiler as CXX).
#
#   scripts/test_cuda_driver.sh             build and test
#   scripts/test_cuda_driver.sh --stand-in  print the path of the stand-in for nvcc, for type-checking:
#                                           NVCC=$(scripts/test_cuda_driver.sh --stand-in) cargo clippy --features cuda
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$PWD/target/cuda-driver"
mkdir -p "$folder"

# The stand-in writes an empty file where nvcc would write the compiled kernels.
cat > "$folder/nvcc.new" <<'SH'
#!/bin/sh
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then : > "$2"; fi
    shift
done
SH
chmod +x "$folder/nvcc.new"
if cmp -s "$folder/nvcc.new" "$folder/nvcc"; then rm "$folder/nvcc.new"; else mv "$folder/nvcc.new" "$folder/nvcc"; fi
if [ "${1:-}" = --stand-in ]; then
    echo "$folder/nvcc"
    exit
fi

"${CXX:-c++}" -std=c++17 -O2 -shared -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing \
    -Wno-unknown-pragmas -DLLM_INT8_EMULATION -Icrates/cuda/emulation -Wl,-soname,libcuda.so.1 \
    crates/cuda/emulation/driver.cc -o "$folder/libcuda.so.1"
export NVCC="$folder/nvcc"
# Do not leave a program without kernels where others expect the real one.
trap 'rm -f target/release/llm-int8' EXIT
cargo test --release --workspace --features cuda --no-run
export LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
target/release/llm-int8 run tiny-gpt2 --prompt "In the beginning" --max-new-tokens 2 --device cuda 2>&1 \
    | grep -q "cuda:0 (the CPU behind an emulated driver)" || { echo "the program does not use the emulated driver" >&2; exit 1; }
export LLM_INT8_TEST_DEVICE=cuda
cargo test --release --workspace --features cuda --lib driver::
cargo test --release --workspace --features cuda --test kernels
cargo test --release --workspace --features cuda --test tests device
