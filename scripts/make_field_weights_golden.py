#!/usr/bin/env python3
"""Makes tests/golden/field: how transformers, torch and bitsandbytes read the irregular weight files found in practice.

    python3 scripts/make_field_weights_golden.py tests/golden/field

Runs on the CPU; needs torch 2.8, transformers 4.57, bitsandbytes 0.50, accelerate. It writes
  llama/            a tiny checkpoint, F32
  weights.json      for each variant of that checkpoint in `cases` (tests/field_*.rs make the same variants): logits
                    after IDS, the layers that are int8, and absmax and codes of one of them
  llama_int8_bin/   the same in 8 bit, as bitsandbytes before 0.43.1 and older transformers saved it
  pickles/*.bin     torch.save in every format, and tensors.safetensors with the values of their tensors
"""
import argparse
import collections
import copy
import io
import json
import pathlib
import shutil
import sys
import tempfile
import zipfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

IDS = [5, 9, 33, 17, 60, 2, 7]
UP = "model.layers.0.mlp.up_proj"
NORM = "model.norm.weight"


def base(folder):
    torch.manual_seed(14)
    config = LlamaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32, num_key_value_heads=1, max_position_embeddings=64,
                         initializer_range=0.3, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if name.endswith("norm.weight"):
            value[3] = 6.0  # outlier columns

    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    keys = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
    keys.update(architectures=["LlamaForCausalLM"], dtype="float32")
    (folder / "config.json").write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")

    return keys, state


def written(config, state, index=None, save=None):
    """Writes a model folder; `index` is (shards, weight_map) for a sharded one."""
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config))

    if save:
        save(state, folder / "pytorch_model.bin")
    elif index:
        shards, weight_map = index
        for name, shard in shards.items():
            save_file(shard, folder / name, metadata={"format": "pt"})
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return folder


def judged(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    found = {}
    with torch.no_grad():
        found["logits"] = [round(x, 7) for x in model(torch.tensor([IDS])).logits[0, -1].float().tolist()]
    int8 = {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear8bitLt"}
    found["int8_layers"] = sorted(int8)

    if UP in int8:
        module = int8[UP]
        absmax = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        found["absmax"] = absmax.float().tolist()
        found["codes"] = module.weight.data.flatten().tolist()

    shutil.rmtree(folder)
    return found


def shards(state):
    """Two shards with the tensors alternating by name, and their weight_map."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts, weight_map = {name: {} for name in names}, {}
    for i, name in enumerate(sorted(state)):
        parts[names[i % 2]][name], weight_map[name] = state[name], names[i % 2]
    return names, parts, weight_map


def cases(config, state, out_folder):
    f32 = dict(dtype=torch.float32)
    in8 = lambda **more: dict(config, quantization_config=dict(load_in_8bit=True, **more))
    out = {}
    out["plain"] = judged(written(config, state), **f32)
    extra = dict(state)
    extra["v_head.summary.weight"] = torch.ones(1, 16)
    extra["score.weight"] = torch.ones(3, 16)
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    extra["model.layers.0.self_attn.rotary_emb.cos_cached"] = torch.ones(1, 1, 8, 8)
    extra["model.layers.1.self_attn.q_proj.bias"] = torch.ones(16)
    out["extra"] = judged(written(config, extra), **f32)
    out["fewer_layers"] = judged(written(dict(config, num_hidden_layers=1), state), **f32)

    # Which copy of a tensor is used.
    names, parts, weight_map = shards(state)
    where, other = weight_map[NORM], [n for n in names if n != weight_map[NORM]][0]
    moved = copy.copy(weight_map)
    moved[NORM] = other
    out["index_names_another_shard"] = judged(written(config, None, (parts, moved)), **f32)
    out["index_lists_nothing"] = judged(written(config, None, (parts, dict(weight_map, ghost=names[0]))), **f32)

    # A quantization_config over float weights.
    out["int8"] = judged(written(in8(), state), **f32)
    out["int8_gptq_too"] = judged(written(in8(quant_method="gptq", bits=4), state), **f32)
    out["int8_threshold"] = judged(written(in8(llm_int8_threshold=0.5), state), **f32)
    out["int8_skip"] = judged(written(in8(llm_int8_skip_modules=["mlp", "nothing"]), state), **f32)
    out["int8_skip_nothing"] = judged(written(in8(llm_int8_skip_modules=[]), state), **f32)
    out["int8_skip_paths"] = judged(written(in8(llm_int8_skip_modules=["lm_head", "ers.1", "q_proj"]), state), **f32)
    out["int8_fp16_weight"] = judged(written(in8(llm_int8_has_fp16_weight=True), state), **f32)
    out["int8_bfloat16"] = judged(written(in8(), state), dtype=torch.bfloat16)
    wide = {name: value.double() * (1 + 1e-9) for name, value in state.items()}
    out["int8_float64"] = judged(written(in8(), wide), dtype=torch.float16)
    unknown = dict(config, quantization_config=dict(quant_method="exl2", bits=4))
    out["unknown_method"] = judged(written(unknown, state), **f32)
    both = dict(config, quantization_config=dict(quant_method="bitsandbytes", load_in_8bit=False, load_in_4bit=False))
    out["no_flag"] = judged(written(both, state), **f32)

    # A file where some layers are int8 and one is float without being on the skip list.
    folder = written(in8(), state)
    model = AutoModelForCausalLM.from_pretrained(folder, **f32)
    saved = pathlib.Path(tempfile.mkdtemp())
    model.save_pretrained(saved)
    mixed = load_file(saved / "model.safetensors")
    old = {name: "row" if name.endswith("weight_format") else value for name, value in mixed.items()}
    in_bin = out_folder / "llama_int8_bin"
    in_bin.mkdir(exist_ok=True)
    torch.save(old, in_bin / "pytorch_model.bin")
    shutil.copy(saved / "config.json", in_bin / "config.json")
    mixed[UP + ".weight"] = state[UP + ".weight"]
    del mixed[UP + ".SCB"], mixed[UP + ".weight_format"]
    out["int8_mixed"] = judged(written(json.loads((saved / "config.json").read_text()), mixed), **f32)

    # Rounding of F64.
    values = torch.tensor([1 + 2**-11 + 2**-40, 1 + 2**-8 + 2**-40, 1 + 3 * 2**-11 - 2**-40, 1e-8, 65519.99, -0.1],
                          dtype=torch.float64)
    out["float64"] = {"values": values.tolist(), "float16": values.half().float().tolist(),
                      "bfloat16": values.bfloat16().float().tolist(), "float32": values.float().tolist()}
    return out


def tensors():
    torch.manual_seed(20)
    square = torch.randn(6, 5)
    long = torch.arange(24.0).reshape(2, 3, 4)
    shared = torch.randn(4, 4)

    return {
        "plain": square,
        "transposed": square.t(),
        "rows_cut": square[2:5],
        "columns_cut": square[:, 1:4],
        "every_second": square[::2, ::2],
        "permuted": long.permute(2, 0, 1),
        "expanded": torch.tensor([1.0, 2.0, 3.0]).expand(4, 3),
        "expanded_scalar": torch.tensor(7.0).expand(2, 2),
        "shared": shared,
        "shared_again": shared,
        "shared_part": shared[1],
        "one": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "one_row_strided": torch.randn(8, 3)[:, :1].t(),
        "f64": torch.randn(3, dtype=torch.float64),
        "f16": torch.randn(3).half(),
        "bf16": torch.randn(3, 2).bfloat16().t(),
        "i64": torch.tensor([1, -2]),
        "i32": torch.tensor([1, -2], dtype=torch.int32),
        "i16": torch.tensor([1, -2], dtype=torch.int16),
        "i8": torch.tensor([[1, -2], [3, 4]], dtype=torch.int8),
        "u8": torch.tensor([1, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "grad": torch.randn(2, requires_grad=True).detach().requires_grad_(),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "u16": torch.tensor([1, 2], dtype=torch.uint16),
        "c64": torch.randn(2, dtype=torch.complex64),
    }


def others():
    """Values that are not tensors, or tensors of kinds that are not read."""
    marked = torch.nn.Parameter(torch.randn(2))
    marked.partition_dim = 0
    complex_ = torch.randn(3, dtype=torch.complex64)

    return {
        "c128": torch.randn(2, dtype=torch.complex128),
        "quantized": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "negative": complex_.conj().imag,
        "step": 5,
        "ratio": 0.5,
        "large": 1 << 80,
        "text": "row",
        "none": None,
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "list": [1, [2, (3,)], {"a": {4}}],
        "bytes": b"abc",
        "nested": {"inner": torch.ones(2)},
    }


def rewritten(source, target, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), change(name, old.read(name)), compression)


def pickles(folder):
    folder.mkdir(parents=True, exist_ok=True)
    state = tensors()
    values = {name: value.detach().contiguous().clone() for name, value in state.items() if name not in ("u16", "c64")}
    save_file(values, folder / "tensors.safetensors")
    ordered = collections.OrderedDict(state)
    ordered._metadata = collections.OrderedDict({"": {"version": 1}})
    for protocol in (2, 4):
        torch.save(ordered, folder / f"protocol_{protocol}.bin", pickle_protocol=protocol)
    old = {name: value for name, value in state.items() if name not in ("f8", "u16")}
    torch.save(old, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    marked = torch.nn.Parameter(torch.arange(3.0))
    marked.partition_dim = 0
    torch.save({"plain": state["plain"], "marked": marked, **others()}, folder / "others.bin")
    small = {"a": torch.ones(2, 3).t()}
    torch.save({"epoch": 3, "state_dict": small}, folder / "nested.bin")
    torch.save({"a": torch.ones(2), "args": argparse.Namespace(lr=1)}, folder / "namespace.bin")
    torch.save([torch.ones(2)], folder / "list.bin")
    torch.save({"step": 1}, folder / "no_tensors.bin")
    plain = folder / "protocol_2.bin"
    torch.save(small, folder / "small.bin")
    big = lambda name, data: b"big" if name.endswith("byteorder") else data
    rewritten(folder / "small.bin", folder / "big_endian.bin", big)
    rewritten(folder / "small.bin", folder / "compressed.bin", compression=zipfile.ZIP_DEFLATED)

    class Double(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    torch.jit.save(torch.jit.script(Double()), folder / "script.bin")
    # torch itself must read them back.
    for file in [plain, folder / "legacy.bin"]:
        again = torch.load(file, weights_only=True)
        assert all(torch.equal(again[name].float(), values[name].float()) for name in values if name in again)


def main():
    out = pathlib.Path(sys.argv[1])
    pickles(out / "pickles")
    config, state = base(out / "llama")
    text = json.dumps(cases(config, state, out), indent=None, separators=(",", ":"))
    (out / "weights.json").write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
