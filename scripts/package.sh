#!/usr/bin/env bash
# Packages every crate as for crates.io and checks that each builds from its package alone, in dependency order. Publishes
# nothing. `--list` skips the builds and only prints the packages and their sizes.
#
#     scripts/package.sh [--list]
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf target/package
if [ "${1:-}" = --list ]; then
    cargo package --workspace --exclude llm-int8-candle-models --allow-dirty --no-verify --quiet --offline
else
    cargo package --workspace --exclude llm-int8-candle-models --allow-dirty
fi
# crates.io accepts packages of up to 10 MiB.
for package in target/package/*.crate; do
    size=$(wc -c < "$package")
    printf '%10d %s\n' "$size" "$(basename "$package")"
    [ "$size" -le 10485760 ] || { echo "$package is larger than crates.io accepts" >&2; exit 1; }
done
