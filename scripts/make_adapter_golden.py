#!/usr/bin/env python3
"""Makes tests/golden/adapters: LoRA adapters of PEFT for two of the tiny models of tests/golden/models, and what
transformers, bitsandbytes and PEFT compute with them. Runs on the CPU; needs torch 2.8, transformers 4.57,
bitsandbytes 0.50, peft 0.21.

    python3 scripts/make_adapter_golden.py tests/golden/models tests/golden/adapters

A folder holds what PEFT saves (adapter_config.json, adapter_model.safetensors; for gpt2 also adapter_model.bin, the same
tensors as older versions of PEFT save them) and expected.safetensors: the ids of a batch
of two prompts, the logits of both and greedy ids of each, from float32 layers and from int8 layers. `gpt2` adapts every layer
of its blocks, which are Conv1D, and its matrices are stored as bfloat16. `llama` adapts every layer of its blocks and the
head, with a rank and an alpha of their own for some, and rank-stabilised scales. The matrices are random, not trained, and
large enough that the adapter changes what is generated.
"""
import pathlib
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

PROMPT, NEW = 12, 12
ADAPTERS = {
    "gpt2": LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True,
                       lora_dropout=0.1, task_type="CAUSAL_LM"),
    "llama": LoraConfig(r=3, lora_alpha=4, use_rslora=True, task_type="CAUSAL_LM",
                        target_modules=r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)|lm_head",
                        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
                        alpha_pattern={"^model.layers.0.self_attn.k_proj": 12, "lm_head": 1.5}),
}
STORED = {"gpt2": torch.bfloat16, "llama": torch.float32}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32, **options).eval()


def save_adapter(name, base, folder):
    """Draws an adapter and saves it as PEFT does, its matrices in the dtype of STORED."""
    torch.manual_seed(sum(map(ord, name)))
    model = get_peft_model(load(base), ADAPTERS[name])
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder, save_embedding_layers=False)

    file = folder / "adapter_model.safetensors"
    tensors = {key: value.to(STORED[name]) for key, value in load_file(file).items()}
    save_file(tensors, file)
    if name == "gpt2":
        torch.save(tensors, folder / "adapter_model.bin")
    (folder / "README.md").unlink()


def make(name, base, folder):
    save_adapter(name, base, folder)
    ids = load_file(base / "expected.safetensors")["input_ids"][:, :PROMPT]
    expected = {"input_ids": ids}
    for kind, options in [("f32", {}), ("int8", {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)})]:
        model = PeftModel.from_pretrained(load(base, **options), folder).eval()
        with torch.no_grad():
            expected[f"logits_{kind}"] = model(input_ids=ids).logits
            # One prompt at a time: the outliers of a batch are those of all of its rows.
            expected[f"greedy_{kind}"] = torch.cat([
                model.generate(input_ids=row[None], max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
                for row in ids])

    with torch.no_grad():
        plain = load(base)(ids).logits
    error = lambda a, b: ((a - b).norm() / b.norm()).item()
    print(name, "int8 from f32:", error(expected["logits_int8"], expected["logits_f32"]),
          "without the adapter:", error(plain, expected["logits_f32"]),
          "greedy ids of both agree:", torch.equal(expected["greedy_f32"], expected["greedy_int8"]))
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")


def main():
    models, out = map(pathlib.Path, sys.argv[1:])
    for name in ADAPTERS:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        make(name, models / name, folder)


if __name__ == "__main__":
    main()
