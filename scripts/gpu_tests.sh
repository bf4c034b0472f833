#!/usr/bin/env bash
# Takes the tests to a machine that has a GPU but no Rust.
#
#   scripts/gpu_tests.sh pack          here, with nvcc on PATH: builds the program and the tests of devices with the feature
#                                      `cuda`, and puts them into target/gpu-tests (stripped and compressed, 36 MB)
#   scripts/gpu_tests.sh run [FOLDER]  there, in the same checkout: kernels, then models and the program, then
#                                      compute-sanitizer where there is one; logs into FOLDER (default: target/gpu-tests)
#
# After that: python3 scripts/bench_gpu.py --binary target/gpu-tests/llm-int8
set -euo pipefail
cd "$(dirname "$0")/.."
folder=target/gpu-tests

pack() {
    mkdir -p "$folder"
    cargo test --release --workspace --features cuda --no-run --message-format json 2>/dev/null | python3 -c '
import json, shutil, sys
wanted = {("crates/cuda", "kernels"): "kernels", ("", "tests"): "tests"}
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        name = message["target"]["name"]
        for (folder, target), file in wanted.items():
            if name == target and folder in message["package_id"]:
                shutil.copy(message["executable"], f"target/gpu-tests/{file}")
'
    # The program that the tests run: with emulated devices beside the GPUs.
    cp target/release/llm-int8 "$folder/llm-int8"
    # Where tests look for golden files and the program: paths of this machine are part of them.
    pwd > "$folder/checkout"
    for file in llm-int8 kernels tests; do
        strip "$folder/$file"
        xz --force -3 "$folder/$file"
    done
    du -h "$folder"/*
}

run() {
    logs=${1:-$folder}
    mkdir -p "$logs"
    for file in llm-int8 kernels tests; do
        if [ -e "$folder/$file.xz" ]; then
            python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' \
                "$folder/$file.xz" "$folder/$file"
            chmod +x "$folder/$file"
        fi
    done
    checkout=$(cat "$folder/checkout")
    if [ ! -e "$checkout" ]; then
        mkdir -p "$(dirname "$checkout")"
        ln -s "$PWD" "$checkout"
    fi
    mkdir -p target/release
    # A hard link of cargo would be written through.
    rm -f target/release/llm-int8
    cp "$folder/llm-int8" target/release/llm-int8
    failed=0
    step() {
        local log="$logs/$1.log"
        shift
        printf '== %s\n' "$*"
        "$@" > "$log" 2>&1 || failed=1
        grep -E '^test result|panicked|ERROR SUMMARY' "$log" || tail -n 3 "$log"
    }
    step program "$folder/llm-int8" run tiny-gpt2 --prompt "In the beginning" --device cuda
    step kernels "$folder/kernels"
    step tests "$folder/tests" device
    if command -v compute-sanitizer > /dev/null; then
        for tool in memcheck racecheck; do
            step "$tool" compute-sanitizer --tool "$tool" "$folder/kernels" --test-threads 1
        done
    fi
    exit "$failed"
}

case "${1:-}" in
    pack) pack ;;
    run) run "${2:-}" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
