#!/usr/bin/env bash
# Fuzzes the parsers and the kernels with libFuzzer on stable Rust: fuzz.sh TARGET SECONDS [OPTION OF LIBFUZZER…].
# TARGET is one of fuzz/src/bin, or `all`. Needs a C++ compiler, and crates.io for the first build.
# New inputs go to fuzz/target/corpus/TARGET; `fuzz.sh TARGET minimise` puts short ones that reach most into fuzz/corpus/TARGET.
# What crashes, hangs or takes too much memory is kept in fuzz/artifacts; then the exit code is 1.
set -euo pipefail
cd "$(dirname "$0")/.."

all=()
for file in fuzz/src/bin/*.rs; do all+=("$(basename "$file" .rs)"); done
usage() { echo "usage: scripts/fuzz.sh TARGET|all SECONDS|minimise [OPTION…]; targets: ${all[*]}"; exit 2; }
[ $# -ge 2 ] || usage
target=$1 seconds=$2
shift 2
case " all ${all[*]} " in *" $target "*) ;; *) usage ;; esac
[[ $seconds =~ ^([0-9]+|minimise)$ ]] || usage
if [ "$target" = all ]; then targets=("${all[@]}"); else targets=("$target"); fi

# libFuzzer counts edges with LLVM's own pass. The flags differ from those of all other builds, so the folder does, too.
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$PWD/fuzz/target CARGO_INCREMENTAL=0
coverage=(-sanitizer-coverage-level=4 -sanitizer-coverage-inline-8bit-counters -sanitizer-coverage-pc-table
    -sanitizer-coverage-trace-compares)
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module ${coverage[*]/#/-Cllvm-args=}" \
    cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$host"
binaries=$CARGO_TARGET_DIR/$host/release

# Inputs become files, which are best kept in memory.
if [ -d /dev/shm ]; then TMPDIR=$(mktemp -d -p /dev/shm); else TMPDIR=$(mktemp -d); fi
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
# One thread: more would only make the results depend on the machine.
export RAYON_NUM_THREADS=1
mkdir -p fuzz/artifacts

# Of all inputs of a target, the 64 shortest among those that together reach every edge.
minimise() {
    local chosen=$TMPDIR/chosen
    mkdir -p "$chosen"
    "$binaries/$1" -set_cover_merge=1 -use_counters=0 -max_len=512 "$chosen" "fuzz/corpus/$1" "fuzz/target/corpus/$1" > "fuzz/target/$1.log" 2>&1
    rm -f "fuzz/corpus/$1"/*
    find "$chosen" -type f -size -2 -printf '%s %p\n' | sort -n | head -n 64 | while read -r _ file; do
        cp "$file" "fuzz/corpus/$1/$(basename "$file" | cut -c 1-16)"
    done
    rm -r "$chosen"
}

failed=()
for name in "${targets[@]}"; do
    new=fuzz/target/corpus/$name
    log=fuzz/target/$name.log
    mkdir -p "$new" "fuzz/corpus/$name"
    if [ "$seconds" = minimise ]; then
        minimise "$name"
        continue
    fi

    options=(-max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1
        -artifact_prefix="fuzz/artifacts/$name-")
    dictionary=fuzz/dictionaries/$name.dict
    if [ -f "$dictionary" ]; then options+=(-dict="$dictionary"); fi
    echo "$name: $seconds seconds"
    # An allocation that no machine has is refused at once, and so reported with its input.
    if ! (ulimit -c 0 -v 33554432; exec "$binaries/$name" "${options[@]}" "$@" "$new" "fuzz/corpus/$name") > "$log" 2>&1; then
        failed+=("$name")
        grep -aE 'panicked|it took|it allocated|ERROR|Test unit written' "$log" | tail -n 12 || true
        echo "$name failed; its output is in $log"
    fi
    grep -aE '^#[0-9]+' "$log" | tail -n 1 || true
done

[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
