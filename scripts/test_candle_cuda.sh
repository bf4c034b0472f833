#!/usr/bin/env bash
# Tests int8 layers on candle's CUDA device (feature `candle-cuda` of crates/nn) without a GPU: candle itself is compiled
# with its feature `cuda`, by a stand-in for nvcc, and linked against one library that stands in for all of CUDA's:
# libcuda whose GPU is the emulated device (crates/cuda/emulation/driver.cc), and the little of cuBLAS and cuRAND that is
# needed (candle.cc). Every other function of these libraries ends the program with its name. None of candle's own
# kernels can run. Needs Rust and g++ (or another compiler as CXX); takes CPU time of some minutes the first time, in
# target/candle-cuda.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v "${CXX:-c++}" >/dev/null; then
    echo "skipped: there is no C++ compiler"
    exit
fi

export CARGO_TARGET_DIR="$PWD/target/candle-cuda"
home="$CARGO_TARGET_DIR/cuda"
mkdir -p "$home/bin" "$home/lib64"

# Replaces a file only by another one: cargo compiles again what depends on it.
put() {
    cat > "$1.new"
    if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

# Writes empty files where nvcc would write compiled kernels. The static library holds candle's launchers
# (candle-kernels/src/ffi.rs), which end the program.
put "$home/bin/nvcc" <<'SH'
#!/bin/sh
kind= folder= out= source=
while [ $# -gt 0 ]; do
    case "$1" in
        --version) printf 'a stand-in\nfor\nnvcc\nCuda compilation tools, release 13.0, V13.0.88\n'; exit ;;
        --list-gpu-code) echo sm_90; exit ;;
        --ptx | --lib) kind=$1 ;;
        --output-directory) folder=$2; shift ;;
        -o) out=$2; shift ;;
        *.cu) source=$1 ;;
    esac
    shift
done
case "$kind" in
    --ptx) name=${source##*/}; : > "$folder/${name%.cu}.ptx" ;;
    --lib)
        {
            printf '#include <stdio.h>\n#include <stdlib.h>\n'
            printf 'static void stop(const char* name) { fprintf(stderr, "no kernel: %%s\\n", name); abort(); }\n'
            sed -n 's/^ *pub fn \([a-z0-9_]*\)(.*/void \1(void) { stop("\1"); }/p' src/ffi.rs
        } > "$out.c"
        cc -c -fPIC "$out.c" -o "$out.o" && rm -f "$out" && ar rcs "$out" "$out.o" ;;
    *) : > "$out" ;;
esac
SH
chmod +x "$home/bin/nvcc"

# cudarc's sources tell the names of the functions.
host="$(rustc -vV | sed -n 's/^host: //p')"
cudarc="$(cargo metadata --format-version 1 --locked --all-features --filter-platform "$host" \
    | grep -o '"manifest_path":"[^"]*/cudarc-[^"/]*/Cargo.toml"' | head -n 1 | cut -d '"' -f 4)"
if [ -z "$cudarc" ]; then echo "cudarc's sources were not found" >&2; exit 1; fi
emulation=crates/cuda/emulation
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    printf 'static void stop(const char* name) { fprintf(stderr, "not emulated: %%s\\n", name); abort(); }\n'
    for library in driver cublas cublaslt curand nvrtc; do
        grep -ohE 'pub unsafe fn (cu|nvrtc)[A-Za-z0-9_]+' "${cudarc%/*}/src/$library/sys/mod.rs"
    done | sed 's/.* //' | sort -u \
        | grep -vxF "$(grep -ohE '^API [A-Za-z0-9_]+' "$emulation/driver.cc" "$emulation/candle.cc" | cut -d ' ' -f 2)" \
        | sed 's/.*/void &(void) { stop("&"); }/'
} | put "$home/rest.c"

library="$home/lib64/libcuda.so.1"
if [ -n "$(find "$emulation" crates/cuda/kernels "$home/rest.c" -newer "$library" 2>&1)" ]; then
    cc -c -fPIC "$home/rest.c" -o "$home/rest.o"
    "${CXX:-c++}" -std=c++17 -O2 -shared -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing \
        -Wno-unknown-pragmas -DLLM_INT8_EMULATION -DLLM_INT8_EMULATES_CANDLE -I"$emulation" -Wl,-soname,libcuda.so.1 \
        "$emulation/driver.cc" "$emulation/candle.cc" "$home/rest.o" -o "$library"
fi
ln -sf libcuda.so.1 "$home/lib64/libcuda.so"
for name in cublas cublasLt curand nvrtc cudart; do echo "INPUT(libcuda.so)" | put "$home/lib64/lib$name.so"; done

unset NVCC CUDARC_CUDA_VERSION
export PATH="$home/bin:$PATH" CUDA_HOME="$home" CUDA_PATH="$home" CUDA_COMPUTE_CAP=90
export LD_LIBRARY_PATH="$home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The profile dev compiles fastest; the kernels are in the library.
export CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_STRIP=true CARGO_INCREMENTAL=0
run=(--locked -p llm-int8-nn --features candle-cuda)
cargo clippy "${run[@]}" --all-targets -- -D warnings
cargo clippy --locked -p llm-int8-cuda --features linked -- -D warnings
cargo test "${run[@]}" --lib cuda
cargo test "${run[@]}" --test candle_cuda
