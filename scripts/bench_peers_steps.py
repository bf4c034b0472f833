"""The part of bench_peers.py that runs in the peers' Python: conversions of the model, and measurements.

    python bench_peers_steps.py NAME ARGUMENT...
"""

import json
import os
import pathlib
import sys
import tempfile
import time

PROMPTS, CONTEXT, DECODED = (128, 512), 128, 64


def token_ids(count):
    return [(i * 7919) % 5000 + 10 for i in range(count)]


def seconds(work, *arguments):
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def report(version, isa, load, prefills, decode):
    """Prints a peer's results. Each function of `prefills` prefills a number of tokens into an empty cache; the best counts."""
    rates = {}
    for count in PROMPTS:
        for prefill in prefills:
            prefill(count)
            rates[count] = max(rates.get(count, 0), count / seconds(prefill, count))
    print(json.dumps({"version": version, "isa": isa, "load": load, "prefill": rates, "decode": decode()}))


def run_ctranslate2(folder, threads):
    import ctranslate2

    started = time.perf_counter()
    model = ctranslate2.Generator(folder, compute_type="int8", inter_threads=1, intra_threads=int(threads))
    load = time.perf_counter() - started

    def prompt(count):
        return [[f"t{i}" for i in token_ids(count)]]

    def generate(count, new=1):
        # No end token: a random model might stop early.
        options = {"max_length": new, "sampling_topk": 1, "end_token": [], "include_prompt_in_result": False}
        if len(model.generate_batch(prompt(count), **options)[0].sequences_ids[0]) != new:
            raise RuntimeError("the generation ended early")

    def decode():
        first = seconds(generate, CONTEXT)
        return DECODED / (seconds(generate, CONTEXT, DECODED + 1) - first)

    # generate_batch runs the last token of a prompt in a step of its own; forward_batch computes the logits of every
    # token.
    prefills = [generate, lambda count: model.forward_batch(prompt(count))]
    report(ctranslate2.__version__, os.environ.get("CT2_FORCE_CPU_ISA", "its default"), load, prefills, decode)


def run_transformers(folder, threads, kind):
    import torch
    import transformers

    torch.set_num_threads(int(threads))
    options, decoded = {"dtype": torch.float32}, DECODED
    version = f"{transformers.__version__}, torch {torch.__version__}"

    if kind == "bitsandbytes":
        import bitsandbytes

        options = {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
        decoded, version = 8, f"{bitsandbytes.__version__}, transformers {version}"

    started = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options).eval()
    load = time.perf_counter() - started

    def step(ids, past=None):
        output = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1:].argmax(-1), output.past_key_values

    def decode():
        token, past = step(torch.tensor([token_ids(CONTEXT)]))
        started = time.perf_counter()
        for _ in range(decoded):
            token, past = step(token, past)
        return decoded / (time.perf_counter() - started)

    with torch.inference_mode():
        prefills = [lambda count: step(torch.tensor([token_ids(count)]))]
        report(version, torch.backends.cpu.get_cpu_capability(), load, prefills, decode)


def make_folder(gguf_file, output):
    """Converts a GGUF file to a checkpoint folder in float16."""
    import torch
    import transformers

    folder, name = os.path.split(gguf_file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float16)
    model.save_pretrained(output)


def make_ctranslate2(folder, output):
    """Converts a checkpoint for CTranslate2. It requires a tokenizer: one of made-up words t0, t1, … is put beside links
    to the checkpoint's files."""
    import ctranslate2.converters
    import tokenizers
    import transformers

    end = "<|endoftext|>"
    size = json.loads(pathlib.Path(folder, "config.json").read_text())["vocab_size"]
    words = {f"t{i}": i for i in range(size - 1)} | {end: size - 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=end))

    with tempfile.TemporaryDirectory() as linked:
        for file in pathlib.Path(folder).resolve().iterdir():
            os.symlink(file, os.path.join(linked, file.name))
        special = {"unk_token": end, "bos_token": end, "eos_token": end}
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(linked)
        ctranslate2.converters.TransformersConverter(linked).convert(output, quantization="int8")


def gpt2_tensors(folder):
    """(GGUF name, values) of each tensor of a GPT-2 checkpoint; Conv1D weights are transposed to [out, in], masks skipped."""
    import gguf
    import safetensors

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 48)
    with safetensors.safe_open(os.path.join(folder, "model.safetensors"), "numpy") as file:
        for key in file.keys():
            if name := names.get_name("transformer." + key, (".weight", ".bias")):
                values = file.get_tensor(key)
                yield name, values.T if ".c_" in key else values
                if key == "wte.weight":
                    yield "output.weight", values


def gpt2_metadata(writer, folder):
    config = json.loads(pathlib.Path(folder, "config.json").read_text())
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])

    # llama.cpp requires a tokenizer: made-up words.
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(config["eos_token_id"])


def copy_metadata(writer, reader):
    import gguf

    for field in reader.fields.values():
        if field.name not in ("general.architecture", "general.file_type") and not field.name.startswith("GGUF."):
            kind, inner = field.types[0], field.types[-1]
            inner = inner if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)


def make_gguf(source, output, head="Q8_0"):
    """Writes a GPT-2 folder or another GGUF file as a GGUF file in Q8_0; vectors and position embeddings stay F32, token
    embeddings and head get the type `head`."""
    import gguf
    import numpy

    if os.path.isdir(source):
        writer, tensors = gguf.GGUFWriter(output, "gpt2"), gpt2_tensors(source)
        gpt2_metadata(writer, source)
    else:
        reader = gguf.GGUFReader(source)
        writer = gguf.GGUFWriter(output, reader.get_field("general.architecture").contents())
        copy_metadata(writer, reader)
        tensors = ((tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors)

    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for name, values in tensors:
        whole = values.ndim < 2 or name == "position_embd.weight"
        kind = head if name in ("token_embd.weight", "output.weight") else "F32" if whole else "Q8_0"
        kind = gguf.GGMLQuantizationType[kind]
        values = numpy.ascontiguousarray(values, numpy.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


STEPS = {f.__name__: f for f in (run_ctranslate2, run_transformers, make_folder, make_ctranslate2, make_gguf)}


if __name__ == "__main__":
    STEPS[sys.argv[1]](*sys.argv[2:])
