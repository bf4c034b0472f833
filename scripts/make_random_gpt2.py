#!/usr/bin/env python3
"""Writes a random GPT-2 checkpoint of a published size, in the format of the Hugging Face Hub's files.

    python3 scripts/make_random_gpt2.py --size gpt2-large -o /tmp/gpt2-large-random

For speed and memory benchmarks where the real weights cannot be downloaded. Needs only numpy.

As in the Hub's files, keys have no `transformer.` prefix, Conv1D weights are [in_features, out_features], there is no
`lm_head.weight` (it is tied to `wte.weight`), and the causal masks are stored as `h.N.attn.bias`, in F32 whatever the
dtype of the rest. Weights and biases are N(0, 0.02). Layer norm weights are near 1, except for a few features, the same
in every layer, which are enlarged so that the linear layers after them see outlier columns. Tensors are written chunk
by chunk, so memory use stays at one chunk.
"""

import argparse
import json
import math
import pathlib
import shutil
import struct
import sys
import time

import numpy as np

VOCAB, POSITIONS = 50257, 1024
# size: (layers L, hidden C, heads H)
SIZES = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25)}
OUTLIER_FEATURES = 6  # of the C features of a layer norm
OUTLIER_GAIN = 10.0  # takes a normalised activation of 0.6 to the outlier threshold of 6.0
CHUNK = 1 << 24  # elements drawn at a time
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"]


def config(layers, hidden, heads, dtype):
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_head": heads,
        "n_inner": None,
        "n_layer": layers,
        "n_positions": POSITIONS,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.1,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "torch_dtype": {"F32": "float32", "F16": "float16"}[dtype],
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def shapes(layers, hidden):
    """(key, shape, kind) of every tensor. The kinds: normal, gain (a layer norm weight with enlarged features), plain gain,
    mask."""
    yield "wte.weight", [VOCAB, hidden], "normal"
    yield "wpe.weight", [POSITIONS, hidden], "normal"

    for layer in range(layers):
        for name, shape in [
            ("attn.c_attn", [hidden, 3 * hidden]),
            ("attn.c_proj", [hidden, hidden]),
            ("mlp.c_fc", [hidden, 4 * hidden]),
            ("mlp.c_proj", [4 * hidden, hidden]),
        ]:
            yield f"h.{layer}.{name}.weight", shape, "normal"
            yield f"h.{layer}.{name}.bias", shape[1:], "normal"

        for name in ["ln_1", "ln_2"]:
            yield f"h.{layer}.{name}.weight", [hidden], "gain"
            yield f"h.{layer}.{name}.bias", [hidden], "normal"

        yield f"h.{layer}.attn.bias", [1, 1, POSITIONS, POSITIONS], "mask"

    yield "ln_f.weight", [hidden], "plain gain"
    yield "ln_f.bias", [hidden], "normal"


def header(tensors):
    """The safetensors header: its length, then JSON padded with spaces to a multiple of 8 bytes."""
    entries, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, shape, _, dtype in tensors:
        end = offset + math.prod(shape) * dtype.itemsize
        name = {4: "F32", 2: "F16"}[dtype.itemsize]
        entries[key] = {"dtype": name, "shape": shape, "data_offsets": [offset, end]}
        offset = end

    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def chunks(rng, shape, kind, outliers):
    """The values of one tensor, f32, in chunks of at most CHUNK elements."""
    if kind == "mask":
        yield np.tri(POSITIONS, dtype=np.float32)
        return

    left = math.prod(shape)
    while left > 0:
        values = rng.standard_normal(min(left, CHUNK), dtype=np.float32)
        values *= np.float32(0.02)
        left -= values.size
        if kind.endswith("gain"):  # always a single chunk: C is far below CHUNK
            values += np.float32(1.0)
        if kind == "gain":
            values[outliers] *= np.float32(OUTLIER_GAIN)
        yield values


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="gpt2-large")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["F32", "F16"], default="F32")
    parser.add_argument("--tokenizer", type=pathlib.Path, metavar="DIR", help="copy the tokenizer files of this folder")
    args = parser.parse_args()
    started = time.monotonic()

    layers, hidden, heads = SIZES[args.size]
    single, stored = np.dtype("<f4"), np.dtype({"F32": "<f4", "F16": "<f2"}[args.dtype])
    tensors = [(k, s, kind, single if kind == "mask" else stored) for k, s, kind in shapes(layers, hidden)]

    # In the order that safetensors writes: wide dtypes first, then by name.
    tensors.sort(key=lambda tensor: (-tensor[3].itemsize, tensor[0]))

    rng = np.random.default_rng(args.seed)
    outliers = rng.choice(hidden, OUTLIER_FEATURES, replace=False)
    args.output.mkdir(parents=True, exist_ok=True)
    partial = args.output / "model.safetensors.partial"

    with open(partial, "wb", buffering=0) as file:
        head = header(tensors)
        file.write(head)
        for _, shape, kind, dtype in tensors:
            for values in chunks(rng, shape, kind, outliers):
                data = memoryview(values.astype(dtype, copy=False)).cast("B")
                while data:  # the kernel writes at most 2 GiB at a time, and may write less
                    data = data[file.write(data) :]

    path = partial.rename(args.output / "model.safetensors")

    text = json.dumps(config(layers, hidden, heads, args.dtype), indent=2) + "\n"
    (args.output / "config.json").write_text(text)
    generation = {"_from_model_config": True, "bos_token_id": 50256, "eos_token_id": 50256}
    (args.output / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    if args.tokenizer:
        found = [name for name in TOKENIZER_FILES if (args.tokenizer / name).is_file()]
        if not found:
            sys.exit(f"{args.tokenizer} holds no tokenizer file; one of {', '.join(TOKENIZER_FILES)} is needed")
        for name in found:
            shutil.copyfile(args.tokenizer / name, args.output / name)

    parameters = sum(math.prod(shape) for _, shape, kind, _ in tensors if kind != "mask")
    print(f"{path}: {parameters:,} parameters in {len(tensors)} tensors (masks included)")
    print(f"header {len(head):,} bytes, file {path.stat().st_size:,} bytes, {time.monotonic() - started:.1f} s")
    print(f"enlarged features of ln_1 and ln_2: {sorted(outliers.tolist())}")


if __name__ == "__main__":
    main()
