#!/usr/bin/env bash
# Builds the Python wheel and tests it in a clean virtual environment: pytest, type stubs, docs/notebook.ipynb, Ray.
#
#     scripts/test_python.sh [--no-ray] [PYTEST ARGUMENT…]
#
# Everything lies in target/python, also torch, transformers and bitsandbytes, which load what the wheel has saved, unless
# JUDGE_PYTHON names a Python that has them. Where PyPI does not answer, steps are skipped with a message.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
folder=$root/target/python
with_ray=yes
if [ "${1:-}" = --no-ray ]; then with_ray=no; shift; fi

command -v python3 > /dev/null || { echo "skipped: python3 is not installed"; exit 0; }
if ! python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
    echo "skipped: the wheel needs Python 3.10 or later with the module venv"
    exit 0
fi

pip=(-m pip install --quiet --disable-pip-version-check --timeout 20 --retries 1)
mkdir -p "$folder"
[ -x "$folder/build/bin/python" ] || python3 -m venv "$folder/build"
if ! timeout 300 "$folder/build/bin/python" "${pip[@]}" maturin==1.16.0; then
    echo "skipped: PyPI does not answer, and maturin is not installed"
    exit 0
fi

# In the workspace's target folder, whose compiled dependencies have the same versions (cargo copies none of them).
rm -rf "$folder/wheels"
(cd crates/python && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}" "$folder/build/bin/maturin" build --release --locked \
    --interpreter "$folder/build/bin/python" --compatibility linux --out "$folder/wheels")

rm -rf "$folder/clean"
python3 -m venv "$folder/clean"
python=$folder/clean/bin/python
if ! timeout 600 "$python" "${pip[@]}" "$folder"/wheels/*.whl ml_dtypes tqdm pytest mypy matplotlib nbclient ipykernel; then
    echo "skipped: PyPI does not answer; the wheel was built and not tested"
    exit 0
fi

# What loads the saved checkpoints again. Not in the clean environment, which has neither torch nor transformers.
if [ -z "${JUDGE_PYTHON:-}" ]; then
    python3 -m venv "$folder/judge"
    judge=(torch==2.8.0 transformers==4.57.1 accelerate==1.15.0 bitsandbytes==0.50.2 numpy)
    if timeout 400 "$folder/judge/bin/python" "${pip[@]}" "${judge[@]}"; then
        export JUDGE_PYTHON=$folder/judge/bin/python
    else
        echo "skipped: PyPI does not answer; transformers and bitsandbytes load nothing"
    fi
fi

# Not in crates/python, whose folder python/ has the name of the package and no native half.
cd "$folder"
export OMP_NUM_THREADS=2
"$python" -m pytest -q -p no:cacheprovider --rootdir "$root/crates/python" "$root/crates/python/tests" \
    --ignore "$root/crates/python/tests/test_ray.py" "$@"
"$python" -m mypy.stubtest llm_int8 --concise --mypy-config-file "$root/crates/python/tests/mypy.ini"
MPLBACKEND=module://matplotlib_inline.backend_inline "$python" "$root/scripts/run_notebook.py"

if [ "$with_ray" = no ]; then exit 0; fi
if timeout 600 "$python" "${pip[@]}" "ray[data]==2.60.0"; then
    RAY_DISABLE_IMPORT_WARNING=1 RAY_USAGE_STATS_ENABLED=0 timeout 900 \
        "$python" -m pytest -q -p no:cacheprovider --rootdir "$root/crates/python" "$root/crates/python/tests/test_ray.py" "$@"
else
    echo "skipped: the package registry does not answer, and Ray is not installed"
fi
