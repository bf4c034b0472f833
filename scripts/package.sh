#!/usr/bin/env bash
# Packages every crate as crates.io would get it and checks that each builds from its package alone, in the order of their
# dependencies. Publishes nothing. `--list` only shows the files and their sizes.
#
#     scripts/package.sh [--list]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --list ]; then
    cargo package --workspace --allow-dirty --no-verify --quiet
else
    cargo package --workspace --allow-dirty
fi
# crates.io takes packages of up to 10 MiB.
for package in target/package/*.crate; do
    size=$(wc -c < "$package")
    printf '%10d %s\n' "$size" "$(basename "$package")"
    [ "$size" -le 10485760 ] || { echo "$package is larger than crates.io takes" >&2; exit 1; }
done
