#!/usr/bin/env python3
"""Makes tests/golden/gguf: the golden models as GGUF files, as llama.cpp's converter writes them (names from the gguf
package; rows of Llama's queries and keys permuted; 1 added to Gemma's norm weights), and a SentencePiece BPE tokenizer
trained here, with the ids that SentencePiece itself gives. Needs torch, safetensors, gguf 0.19, sentencepiece.

    python3 scripts/make_gguf_golden.py tests/golden
"""
import json
import os
import sys
import tempfile

import gguf
import numpy as np
import sentencepiece
from safetensors.torch import load_file

FAMILIES = {"llama": "llama", "llama3_rope": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3",
            "gemma2": "gemma2", "starcoder2": "starcoder2", "gpt2": "gpt2"}


def permute(weights, heads):
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def arch_of(name):
    return next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)


def write_model(golden, family, arch):
    folder = os.path.join(golden, "models", family)
    config = json.load(open(os.path.join(folder, "config.json")))
    value = lambda *keys: next((config[key] for key in keys if config.get(key) is not None), None)
    writer = gguf.GGUFWriter(os.path.join(golden, "gguf", family + ".gguf"), arch)
    layers, heads = value("num_hidden_layers", "n_layer"), value("num_attention_heads", "n_head")
    hidden, kv_heads = value("hidden_size", "n_embd"), value("num_key_value_heads") or heads
    writer.add_block_count(layers)
    writer.add_context_length(value("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(value("intermediate_size", "n_inner") or 4 * hidden)
    writer.add_head_count(heads)
    if arch != "gpt2":
        writer.add_head_count_kv(kv_heads)
        writer.add_rope_freq_base(value("rope_theta"))

    if value("rms_norm_eps"):
        writer.add_layer_norm_rms_eps(value("rms_norm_eps"))
    else:
        writer.add_layer_norm_eps(value("norm_epsilon", "layer_norm_epsilon"))

    if value("head_dim"):
        writer.add_key_length(value("head_dim"))
        writer.add_value_length(value("head_dim"))

    if arch == "phi3":
        writer.add_rope_dimension_count(hidden // heads)
    if value("sliding_window"):
        writer.add_sliding_window(value("sliding_window"))
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(value("attn_logit_softcapping"))
        writer.add_final_logit_softcapping(value("final_logit_softcapping"))

    writer.add_vocab_size(value("vocab_size"))
    for add, key in ((writer.add_bos_token_id, "bos_token_id"), (writer.add_eos_token_id, "eos_token_id")):
        if value(key) is not None:
            add(value(key))

    names = gguf.get_tensor_name_map(arch_of(arch), layers)
    for key, tensor in load_file(os.path.join(folder, "model.safetensors")).items():
        data = tensor.numpy()
        if arch == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            data = permute(data, heads if "q_proj" in key else kv_heads)
        if arch == "gpt2" and data.ndim == 2 and ".h." in key:
            data = data.T.copy()
        if arch == "gemma2" and key.endswith("norm.weight"):
            data = (data.astype(np.float32) + 1)
        new = names.get_name(key, try_suffixes=(".weight", ".bias"))

        # llama.cpp stores vectors in f32.
        writer.add_tensor(new, data.astype(np.float32) if data.ndim == 1 else data)

    scaling = config.get("rope_scaling")
    if scaling and scaling["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, hidden // heads))
    finish(writer)


def llama3_factors(config, dims):
    """`LlamaModel.generate_extra_tensors` of convert_hf_to_gguf.py."""
    scaling, factors = config["rope_scaling"], []
    old = scaling["original_max_position_embeddings"]
    low, high = old / scaling["low_freq_factor"], old / scaling["high_freq_factor"]

    for i in range(0, dims, 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (i / dims)
        if wavelength < high:
            factors.append(1)
        elif wavelength > low:
            factors.append(scaling["factor"])
        else:
            smooth = (old / wavelength - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))

    return np.array(factors, dtype=np.float32)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TEXTS = ["And it came to pass, that the king said unto him", "  two  spaces, \n a line", "naïve 漢字 🙂 2026!", ""]


def write_sentencepiece(golden):
    with tempfile.TemporaryDirectory() as scratch:
        corpus = os.path.join(golden, "smollm2", "text.txt")
        prefix = os.path.join(scratch, "spm")
        sentencepiece.SentencePieceTrainer.train(
            input=corpus, model_prefix=prefix, vocab_size=600, model_type="bpe", byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
        spm = sentencepiece.SentencePieceProcessor(prefix + ".model")

    writer = gguf.GGUFWriter(os.path.join(golden, "gguf", "sentencepiece.gguf"), "llama")
    kind = lambda i: (gguf.TokenType.UNKNOWN if spm.IsUnknown(i) else gguf.TokenType.CONTROL if spm.IsControl(i)
                      else gguf.TokenType.BYTE if spm.IsByte(i) else gguf.TokenType.NORMAL)
    count = spm.GetPieceSize()
    writer.add_tokenizer_model("llama")
    writer.add_token_list([spm.IdToPiece(i) for i in range(count)])
    writer.add_token_scores([spm.GetScore(i) for i in range(count)])
    writer.add_token_types([kind(i) for i in range(count)])
    writer.add_bos_token_id(spm.bos_id())
    writer.add_eos_token_id(spm.eos_id())
    writer.add_unk_token_id(spm.unk_id())
    finish(writer)
    expected = [{"text": text, "ids": [spm.bos_id()] + spm.EncodeAsIds(text)} for text in TEXTS]
    with open(os.path.join(golden, "gguf", "sentencepiece.json"), "w") as file:
        json.dump(expected, file, indent=1)


def main():
    golden = sys.argv[1]
    os.makedirs(os.path.join(golden, "gguf"), exist_ok=True)
    for family, arch in FAMILIES.items():
        write_model(golden, family, arch)
    write_sentencepiece(golden)


if __name__ == "__main__":
    main()
