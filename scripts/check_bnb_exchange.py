#!/usr/bin/env python3
"""Exchanges 8-bit checkpoints with transformers and bitsandbytes in both directions and reports how well they agree.
Needs torch 2.8, transformers 4.57, bitsandbytes 0.50, accelerate; runs on the CPU. LLM_INT8 names another program.

    python3 scripts/check_bnb_exchange.py [FAMILY...]

For each folder of tests/golden/models:
- `llm-int8 quantize` writes it in 8 bit, and transformers loads that; it must compute the logits of its own quantisation;
- those logits are compared with `llm-int8 logits`; the distance between two runs of bitsandbytes (the rest in f16 and in
  f32) is printed beside them as a yardstick;
- bitsandbytes saves, llm-int8 reads and writes again, and every tensor must be equal byte for byte.
"""
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("LLM_INT8", os.path.join(ROOT, "target/release/llm-int8"))
GOLDEN = os.path.join(ROOT, "tests/golden/models")


def program(*arguments):
    subprocess.run([PROGRAM, *arguments], check=True, stderr=subprocess.PIPE)


def tensors(folder):
    found = {}
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            found.update(load_file(os.path.join(folder, name)))
    return found


def differing(a, b):
    a, b = tensors(a), tensors(b)
    if a.keys() != b.keys():
        return sorted(a.keys() ^ b.keys())
    same = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and x.numpy().tobytes() == y.numpy().tobytes()
    return [name for name in a if not same(a[name], b[name])]


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def logits(folder, ids, dtype, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=dtype, **options).eval()
    with torch.no_grad():
        return model, model(ids).logits.float()


def check(family, scratch):
    source = os.path.join(GOLDEN, family)
    ids = load_file(os.path.join(source, "expected.safetensors"))["input_ids"][:1]
    ours, theirs, again = (os.path.join(scratch, name) for name in ("ours", "theirs", "again"))
    program("quantize", source, "-o", ours)
    eight = BitsAndBytesConfig(load_in_8bit=True)
    model, in_f16 = logits(source, ids, torch.float16, quantization_config=eight)
    _, in_f32 = logits(source, ids, torch.float32, quantization_config=eight)
    model.save_pretrained(theirs)
    _, read_by_them = logits(ours, ids, torch.float16)
    out = os.path.join(scratch, "logits.safetensors")
    program("logits", ours, "--token-ids", ",".join(map(str, ids[0].tolist())), "--out", out)
    by_us = load_file(out)["logits"]
    program("quantize", theirs, "-o", again)
    wrong = differing(ours, theirs) + differing(again, theirs)

    return torch.equal(read_by_them, in_f16), distance(by_us, read_by_them), distance(in_f16, in_f32), wrong


def main():
    families = sys.argv[1:] or sorted(os.listdir(GOLDEN))
    print("| checkpoint | ours in transformers = its own | ours and theirs | bitsandbytes f16 and f32 | differing tensors |")
    print("|---|---|---|---|---|")
    failed = False

    for family in families:
        if not os.path.exists(os.path.join(GOLDEN, family, "expected.safetensors")):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            equal, ours, yardstick, wrong = check(family, scratch)
        failed |= bool(wrong) or not equal
        print(f"| {family} | {equal} | {ours:.4f} | {yardstick:.4f} | {len(wrong)} |", flush=True)
        for name in wrong[:3]:
            print(f"  differs: {name}", file=sys.stderr)

    sys.exit(failed)


if __name__ == "__main__":
    main()
