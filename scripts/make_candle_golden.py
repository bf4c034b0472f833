#!/usr/bin/env python3
"""Makes tests/golden/candle: a tiny random BERT and a tiny random T5 encoder, and what transformers and bitsandbytes compute with
them. A folder holds config.json, model.safetensors (f16, with some norm weights enlarged so that there are outlier columns),
expected.safetensors (input_ids and the last hidden state, float and in 8 bit, both in f32) and facts.json (the modules that
load_in_8bit made Linear8bitLt); BERT's also a tokenizer.json. Runs on the CPU; needs torch 2.8, transformers 4.57, bitsandbytes 0.50,
accelerate.

    python3 scripts/make_candle_golden.py tests/golden/candle
"""
import json
import os
import string
import sys

import bitsandbytes
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast, BitsAndBytesConfig, T5Config, T5EncoderModel

WORDS = """an and are at ball bird book boat by cat child city cold dog eats fast fish flies food for girl goes green happy has home
house in is it large man market moon of on over park plays rain reads red river runs sea she sings sleeps small star street sun swims
the to train tree under walks warm water we white wind with woman""".split()
LETTERS = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *LETTERS, *WORDS]
MODELS = {
    "bert": (BertModel, BertConfig(vocab_size=len(VOCABULARY), hidden_size=44, num_hidden_layers=2, num_attention_heads=4,
                                   intermediate_size=92, max_position_embeddings=40, initializer_range=0.2)),
    "t5": (T5EncoderModel, T5Config(vocab_size=120, d_model=44, d_kv=13, d_ff=92, num_layers=2, num_heads=3,
                                    relative_attention_num_buckets=8, relative_attention_max_distance=20,
                                    feed_forward_proj="gated-gelu", initializer_factor=1.0)),
}


def make(name, folder):
    model_class, config = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(config).eval()
    for key, parameter in model.named_parameters():
        with torch.no_grad():
            if "norm" in key.lower():
                parameter.add_(torch.randn_like(parameter) * 0.1)
                if key.endswith("weight"):
                    parameter[torch.randperm(len(parameter))[:3]] *= 8
            elif key.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.05)

    model.half().save_pretrained(folder)
    ids = torch.randint(5, config.vocab_size, (2, 24))

    def load(**options):
        return model_class.from_pretrained(folder, device_map="cpu", dtype=torch.float32, **options).eval()

    with torch.no_grad():
        exact = load()(ids).last_hidden_state
        eight = load(quantization_config=BitsAndBytesConfig(load_in_8bit=True))
        in_int8 = eight(ids).last_hidden_state
    expected = {"input_ids": ids, "hidden_f32": exact, "hidden_int8_f32": in_int8}
    save_file({key: value.contiguous() for key, value in expected.items()}, f"{folder}/expected.safetensors")

    int8 = [key for key, module in eight.named_modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt)]
    facts = {"int8": int8, "int8_f32_vs_f32": ((in_int8 - exact).norm() / exact.norm()).item()}
    with open(f"{folder}/facts.json", "w") as file:
        json.dump(facts, file, indent=1)
    print(name, facts)


def save_tokenizer(folder):
    vocabulary = f"{folder}/vocab.txt"
    with open(vocabulary, "w") as file:
        file.writelines(f"{token}\n" for token in VOCABULARY)
    BertTokenizerFast(vocabulary).backend_tokenizer.save(f"{folder}/tokenizer.json")
    os.unlink(vocabulary)


def main():
    out = sys.argv[1]
    for name in MODELS:
        os.makedirs(f"{out}/{name}", exist_ok=True)
        make(name, f"{out}/{name}")
    save_tokenizer(f"{out}/bert")


if __name__ == "__main__":
    main()
