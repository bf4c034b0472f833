#!/usr/bin/env python3
"""Makes tests/golden/lora: a LoRA layer of PEFT over bitsandbytes' int8 layer, its output and its gradients.
Needs torch 2.8, transformers 4.57.1, bitsandbytes 0.50.2, peft 0.21.2; CPU only.

    python3 scripts/make_lora_golden.py tests/golden/lora

Two linear layers with a GELU between them, both int8, both with an adapter that is not at its beginning (B is random). The file
holds the float weights, the adapter under PEFT's names, an input, the output, and the gradients of the input and of the adapter for
the loss sum(output * direction). adapter_config.json is what PEFT saves.
"""

import pathlib
import sys

import bitsandbytes
import peft
import torch
from safetensors.torch import load_file, save_file

INPUTS, MIDDLE, OUTPUTS, RANK, ALPHA = 24, 40, 12, 4, 6


class Model(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.up, self.down = linear(INPUTS, MIDDLE), linear(MIDDLE, OUTPUTS)

    def forward(self, x):
        return self.down(torch.nn.functional.gelu(self.up(x)))


def int8(inputs, outputs):
    return bitsandbytes.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=6.0)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)

    float_model = Model(torch.nn.Linear)
    model = Model(int8)
    for name, layer in model.named_children():
        source = getattr(float_model, name)
        weight = bitsandbytes.nn.Int8Params(source.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        layer.weight = weight.to("cpu")  # quantises
        layer.bias.data.copy_(source.bias.data)
        assert layer.weight.dtype == torch.int8 and layer.weight.SCB is not None

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["up", "down"], lora_dropout=0.0)
    tuned = peft.get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)

    x = torch.randn(2, 5, INPUTS, requires_grad=True)
    direction = torch.randn(2, 5, OUTPUTS)
    output = tuned(x)
    (output * direction).sum().backward()

    tuned.save_pretrained(folder)
    tensors = {f"float.{name}": value.contiguous() for name, value in float_model.state_dict().items()}
    tensors |= load_file(folder / "adapter_model.safetensors")
    tensors |= {"x": x.detach(), "direction": direction, "output": output.detach().float(), "gradient.x": x.grad}
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            tensors[f"gradient.{name.replace('.default', '')}"] = parameter.grad
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")
    for name in ("README.md", "adapter_model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    for name, value in sorted(tensors.items()):
        print(name, value.dtype, tuple(value.shape))


if __name__ == "__main__":
    main()
