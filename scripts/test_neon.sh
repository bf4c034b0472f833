#!/usr/bin/env bash
# Lints and tests crates/kernels for AArch64 on an x86-64 Debian 12: cross-compiled, run under qemu, on a CPU with every
# extension and on one without `sdot` (Cortex-A72).
#
#     scripts/test_neon.sh [FILTER]       # FILTER: the tests whose names contain it
#
# rustc (1.96 or later, with AArch64's std), clippy, gcc and qemu come from Debian's packages. They are unpacked into
# target/neon, or the folder NEON_TOOLS, and not installed: 260 MB to download, 1.4 GB on disk. cargo is the one on PATH.
# Without Debian's archive, or on another system, it says that it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "skipped: $*"; exit 0; }

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target/neon}"
tools="$(realpath -m "${NEON_TOOLS:-$PWD/target/neon/tools}")"
usr="$tools/usr"
host="$usr/lib/x86_64-linux-gnu"
arm="$usr/aarch64-linux-gnu"

packages() {
    echo rustc-web rust-web-clippy libstd-rust-web-dev
    # Their names end in a version.
    local std llvm
    std="$(apt-cache depends libstd-rust-web-dev | sed -n 's/.*Depends: \(libstd-rust-web-[0-9.]*\)$/\1/p')"
    llvm="$(apt-cache depends "$std" | sed -n 's/.*Depends: \(libllvm[0-9]*\)$/\1/p')"
    echo "$std" "$llvm" libedit2 libz3-4 libisl23 libmpc3 libmpfr6
    echo qemu-user-static binutils-aarch64-linux-gnu cpp-12-aarch64-linux-gnu gcc-12-aarch64-linux-gnu
    echo libc6-arm64-cross libc6-dev-arm64-cross linux-libc-dev-arm64-cross libgcc-s1-arm64-cross libgcc-12-dev-arm64-cross
}

fetch() {
    local scratch="$tools.partial.$$" url
    mkdir -p "$scratch/packages" "$scratch/root"
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    # shellcheck disable=SC2046
    (cd "$scratch/packages" && apt-get download -qq $(packages)) || return
    # apt knows this machine's architecture alone; the same version for AArch64 lies beside it.
    url="$(apt-get download --print-uris libstd-rust-web-dev | cut -d "'" -f 2)"
    curl --fail --silent --show-error --location -o "$scratch/packages/std-arm64.deb" "${url/_amd64.deb/_arm64.deb}" || return
    for package in "$scratch"/packages/*.deb; do dpkg -x "$package" "$scratch/root" || return; done
    mkdir -p "$(dirname "$tools")"
    mv -T "$scratch/root" "$tools"
}

[ "$(uname -sm)" = "Linux x86_64" ] || skip "this is not an x86-64 Linux"
for tool in cargo apt-get apt-cache dpkg curl; do command -v $tool > /dev/null || skip "$tool is missing"; done
if [ ! -d "$tools" ]; then
    apt-cache show rustc-web > /dev/null 2>&1 || apt-get update > /dev/null 2>&1 || true
    fetch || skip "Debian's packages could not be fetched"
fi

# The tools find their libraries beside them. gcc's linker takes libc's absolute paths as relative to the folder.
wrap() {
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %s "$@"\n' "$host" "$2" > "$tools/$1"
    chmod +x "$tools/$1"
}
for tool in rustc rustdoc clippy-driver; do wrap $tool "$usr/bin/$tool"; done
wrap gcc "$usr/bin/aarch64-linux-gnu-gcc-12 -B$arm/lib -B$usr/bin/aarch64-linux-gnu- -isystem $arm/include -L$arm/lib -Wl,--sysroot=$tools"

export RUSTC="$tools/rustc" RUSTDOC="$tools/rustdoc" CC_aarch64_unknown_linux_gnu="$tools/gcc"
export CARGO_BUILD_TARGET=aarch64-unknown-linux-gnu CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER="$tools/gcc"
run=(--locked --release -p llm-int8-kernels)

RUSTC_WORKSPACE_WRAPPER="$tools/clippy-driver" CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__ \
    cargo check "${run[@]}" --all-targets
for cpu in max cortex-a72; do
    echo "== -cpu $cpu"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$usr/bin/qemu-aarch64-static -L $arm -cpu $cpu"
    cargo test "${run[@]}" -- "$@"
done
