#!/usr/bin/env bash
# Compiles the kernels with nvcc for every compute capability that the program is built for and prints a table of each
# kernel's registers and static shared memory. Fails if a kernel does not compile, or spills more than a few registers.
# Needs nvcc on PATH (scripts/cuda_toolchain.sh fetches one).
#
#   scripts/cuda_report.sh [CAPABILITY…]   default: those of crates/cuda/build.rs
set -euo pipefail
cd "$(dirname "$0")/.."
capabilities=("$@")
if [ ${#capabilities[@]} -eq 0 ]; then
    IFS=, read -ra capabilities <<< "$(sed -n 's/^const CAPABILITIES: &str = "\(.*\)";$/\1/p' crates/cuda/build.rs)"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

compile() {
    # As in build.rs: 9.0 is compiled as 90a, with the instructions that only Hopper has.
    local target=$1
    [ "$1" != 90 ] || target=90a
    nvcc -std=c++17 -O3 -cubin -arch="sm_$target" -Xptxas -v crates/cuda/kernels/kernels.cu -o "$folder/$1.cubin" \
        > "$folder/$1.txt" 2>&1 || { echo "sm_$1 does not compile:"; cat "$folder/$1.txt"; return 1; } >&2
}
export -f compile
export folder
printf '%s\n' "${capabilities[@]}" | xargs -P "$(nproc)" -I{} bash -c 'compile {}'
python3 - "$folder" "${capabilities[@]}" <<'PY'
import re, sys

folder, capabilities = sys.argv[1], sys.argv[2:]
kernels, spills = {}, []
# Bytes a thread: `quantize_f32` spills one register, on 8.9 nine, once a row.
TOLERATED = 40

pattern = r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?"

for capability in capabilities:
    with open(f"{folder}/{capability}.txt") as file:
        report = file.read()
    for part in report.split("ptxas info    : Compiling")[1:]:
        name, stores, loads, registers, shared = re.search(pattern, "Compiling" + part, re.S).groups()
        kernels.setdefault(name, {})[capability] = (int(registers), int(shared or 0))
        if max(int(stores), int(loads)) > TOLERATED:
            spills.append(f"{name} spills {stores} bytes on sm_{capability}")

print("| kernel | static shared bytes | " + " | ".join(f"sm_{capability}" for capability in capabilities) + " |")
print("|---|" + "---|" * (len(capabilities) + 1))
for name in sorted(kernels):
    found = kernels[name]
    shared = max(value[1] for value in found.values())
    print(f"| `{name}` | {shared} | " + " | ".join(str(found[capability][0]) for capability in capabilities) + " |")

if spills:
    sys.exit("\n".join(spills))
PY
