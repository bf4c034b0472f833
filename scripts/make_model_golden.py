#!/usr/bin/env python3
"""Makes tests/golden/models: tiny random checkpoints and the results of transformers and bitsandbytes on them. A folder
holds config.json, model.safetensors (f16, with some norm weights enlarged so that there are outlier columns),
expected.safetensors, print.txt, parameters.txt and facts.json. Runs on the CPU; needs torch 2.8, transformers 4.57,
bitsandbytes 0.50, accelerate.

    python3 scripts/make_model_golden.py OUT [NAME...]
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.stablelm.modeling_stablelm import StableLmPreTrainedModel

SMALL = dict(vocab_size=256, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
             max_position_embeddings=128, bos_token_id=1, eos_token_id=2)
FALCON = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LONG = dict(type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5], long_factor=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
MODELS = {
    "gpt_neo": dict(model_type="gpt_neo", vocab_size=256, hidden_size=48, num_layers=2, num_heads=4,
                    intermediate_size=96, max_position_embeddings=64, window_size=8,
                    attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=2),
    "gptj": dict(model_type="gptj", vocab_size=256, n_embd=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=8,
                 bos_token_id=1, eos_token_id=2),
    "mpt": dict(model_type="mpt", vocab_size=256, d_model=48, n_layers=2, n_heads=6, max_seq_len=64,
                expansion_ratio=2, bos_token_id=1, eos_token_id=2,
                attn_config=dict(attn_type="multihead_attention", clip_qkv=4.0, alibi=True)),
    "olmo2": dict(SMALL, model_type="olmo2", num_key_value_heads=2, pad_token_id=0),
    "granite": dict(SMALL, model_type="granite", num_key_value_heads=2, embedding_multiplier=6.0,
                    logits_scaling=4.0, residual_multiplier=0.5, attention_multiplier=0.2),
    "smollm3": dict(SMALL, model_type="smollm3", num_key_value_heads=2, no_rope_layers=[1, 0], pad_token_id=0,
                    use_sliding_window=False),
    "stablelm": dict(SMALL, model_type="stablelm", num_key_value_heads=2, partial_rotary_factor=0.5,
                     use_qkv_bias=True),
    "stablelm_parallel": dict(SMALL, model_type="stablelm", num_key_value_heads=4, use_parallel_residual=True,
                              partial_rotary_factor=0.5),
    "stablelm_head_norms": dict(SMALL, model_type="stablelm", num_key_value_heads=2, qk_layernorm=True,
                                use_parallel_residual=True, partial_rotary_factor=0.5),
    "gemma3_text": dict(SMALL, model_type="gemma3_text", num_key_value_heads=2, head_dim=16, sliding_window=8,
                        layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=16,
                        rope_scaling=dict(rope_type="linear", factor=8.0), pad_token_id=0),
    "glm": dict(SMALL, model_type="glm", num_key_value_heads=2, head_dim=16, pad_token_id=0),
    "phi_tied": dict(SMALL, model_type="phi", num_key_value_heads=2, tie_word_embeddings=True, qk_layernorm=True,
                     resid_pdrop=0.1),
    "falcon_multi_query": dict(FALCON, model_type="falcon", multi_query=True, parallel_attn=True, bias=False,
                               new_decoder_architecture=False, alibi=False),
    "falcon_alibi": dict(FALCON, model_type="falcon", multi_query=False, parallel_attn=False, bias=True,
                         new_decoder_architecture=False, alibi=True),
    "llama_linear_rope": dict(SMALL, model_type="llama", num_key_value_heads=2, attention_bias=True, mlp_bias=True,
                              rope_scaling=dict(rope_type="linear", factor=2.0)),
    "llama_dynamic_rope": dict(SMALL, model_type="llama", num_key_value_heads=2, max_position_embeddings=16,
                               rope_scaling=dict(rope_type="dynamic", factor=4.0)),
    "llama_yarn_rope": dict(SMALL, model_type="llama", num_key_value_heads=2, rope_scaling=YARN),
    "phi3_longrope": dict(SMALL, model_type="phi3", num_key_value_heads=2, pad_token_id=0, rope_scaling=LONG,
                          original_max_position_embeddings=16, sliding_window=8),
    "gpt_neox_sequential": dict(SMALL, model_type="gpt_neox", use_parallel_residual=False, rotary_pct=1.0),
    "opt_post_norm": dict(model_type="opt", vocab_size=256, hidden_size=48, num_hidden_layers=2,
                          num_attention_heads=4, ffn_dim=96, max_position_embeddings=64, word_embed_proj_dim=32,
                          do_layer_norm_before=False, pad_token_id=1, bos_token_id=2, eos_token_id=2),
    "gpt_bigcode_multi_head": dict(model_type="gpt_bigcode", vocab_size=256, n_embd=48, n_layer=2, n_head=4,
                                   n_positions=64, multi_query=False, bos_token_id=1, eos_token_id=2),
    "qwen2_window": dict(SMALL, model_type="qwen2", num_key_value_heads=2, use_sliding_window=True,
                         sliding_window=8, max_window_layers=1),
    "bloom_seven_heads": dict(model_type="bloom", vocab_size=256, hidden_size=42, n_layer=2, n_head=7,
                              bos_token_id=1, eos_token_id=2),
}


def patch_stablelm():
    """Works around a bug of transformers 4.57: initialising a StableLM with qk_layernorm fails on norms without bias."""
    original = StableLmPreTrainedModel._init_weights

    def patched(self, module):
        if isinstance(module, torch.nn.LayerNorm) and module.bias is None:
            module.weight.data.fill_(1.0)
        else:
            original(self, module)

    StableLmPreTrainedModel._init_weights = patched


def make(name, folder):
    torch.manual_seed(sum(map(ord, name)))
    values = dict(MODELS[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    for key, parameter in model.named_parameters():
        if "norm" in key or ".ln_" in key:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.1)
                if key.endswith("weight") and parameter.dim() == 1 and len(parameter) > 16:
                    parameter[torch.randperm(len(parameter))[:3]] *= 8
        elif key.endswith("bias"):
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.05)

    model.half().save_pretrained(folder)
    ids = torch.randint(3, 256, (2, 24))
    expected = {"input_ids": ids}

    def load(**options):
        return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options).eval()

    def greedy(model):
        with torch.no_grad():
            out = model.generate(ids[:1], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        return out

    with torch.no_grad():
        exact = load(dtype=torch.float32)
        expected["logits_f32"] = exact(ids).logits
        expected["greedy_f32"] = greedy(exact)
        eight = BitsAndBytesConfig(load_in_8bit=True)
        expected["logits_int8_f32"] = load(dtype=torch.float32, quantization_config=eight)(ids).logits
        model = load(dtype=torch.float16, quantization_config=eight)
        in_f16 = model(ids).logits.float()

    error = lambda a, b: ((a - b).norm() / b.norm()).item()
    facts = {"memory_footprint_int8": model.get_memory_footprint(),
             "rel_err": {"int8_f32_vs_f32": error(expected["logits_int8_f32"], expected["logits_f32"]),
                         "int8_f16_vs_int8_f32": error(in_f16, expected["logits_int8_f32"])}}
    save_file({k: v.contiguous() for k, v in expected.items()}, f"{folder}/expected.safetensors")
    with open(f"{folder}/print.txt", "w") as file:
        print(model, file=file)
    with open(f"{folder}/parameters.txt", "w") as file:
        for key, parameter in model.named_parameters():
            print(key, parameter.dtype, tuple(parameter.shape), file=file)

    with open(f"{folder}/facts.json", "w") as file:
        json.dump(facts, file, indent=1)
    print(name, facts)


def main():
    patch_stablelm()
    out, names = sys.argv[1], sys.argv[2:] or list(MODELS)
    for name in names:
        os.makedirs(f"{out}/{name}", exist_ok=True)
        make(name, f"{out}/{name}")


if __name__ == "__main__":
    main()
