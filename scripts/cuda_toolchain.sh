#!/usr/bin/env bash
# Assembles a minimal CUDA 13.0 toolkit (nvcc, ptxas, fatbinary, headers) from NVIDIA's packages on PyPI, to compile the
# kernels of crates/cuda without a full toolkit and without root. Prints the shell line that puts nvcc on PATH.
#
#     scripts/cuda_toolchain.sh [FOLDER]        # default: target/cuda-toolkit
#     eval "$(scripts/cuda_toolchain.sh)"       # the same, and sets this shell's PATH
#
# Downloads 105 MB, takes 280 MB on disk, on x86-64 or aarch64 Linux. Needs Python 3 with pip or venv; nvcc itself needs
# g++. The packages are under NVIDIA's licence. Its code needs driver 580 or later. No driver is included, and no library
# but the CUDA runtime.
set -euo pipefail
folder="$(realpath -m "${1:-$(cd "$(dirname "$0")/.." && pwd)/target/cuda-toolkit}")"
release=V13.0.88

is_made() {
    [[ "$("$1/bin/nvcc" --version 2>/dev/null)" == *"$release"* ]]
}

if ! is_made "$folder"; then
    if [ -n "$(ls -A "$folder" 2>/dev/null)" ]; then
        echo "$folder holds something other than CUDA $release: remove it or give another folder" >&2
        exit 1
    fi
    command -v python3 >/dev/null || { echo "python3 is needed to fetch from PyPI" >&2; exit 1; }
    scratch="$folder.partial.$$"
    mkdir -p "$scratch"
    trap 'rm -rf "$scratch"' EXIT
    python=python3
    if ! python3 -m pip --version >/dev/null 2>&1; then
        python3 -m venv "$scratch/venv" >&2 || { echo "python3 has neither pip nor venv: install one" >&2; exit 1; }
        python="$scratch/venv/bin/python"
    fi
    # Each package's wheels for x86-64 and aarch64. cccl is here because cuda_fp16.h includes one of its headers.
    cat >"$scratch/packages" <<'PACKAGES'
nvidia-cuda-nvcc==13.0.88 \
    --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03 \
    --hash=sha256:c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f
nvidia-nvvm==13.0.88 \
    --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0 \
    --hash=sha256:c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1
nvidia-cuda-crt==13.0.88 \
    --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4 \
    --hash=sha256:ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003
nvidia-cuda-runtime==13.0.96 \
    --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548 \
    --hash=sha256:ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55
nvidia-cuda-cccl==13.0.85 \
    --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649 \
    --hash=sha256:6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c
PACKAGES
    # --target leaves the Python installation alone, so Debian's externally managed one allows it too.
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --no-compile \
        --require-hashes --requirement "$scratch/packages" --target "$scratch/site" >&2
    tree="$scratch/site/nvidia/cu13"
    ln -s lib "$tree/lib64"
    is_made "$tree" || { echo "the nvcc of the packages does not run here" >&2; exit 1; }
    mv -T "$tree" "$folder"
fi
command -v g++ >/dev/null || echo "nvcc will need g++, which is not on PATH" >&2
printf 'export PATH=%q:$PATH\n' "$folder/bin"
