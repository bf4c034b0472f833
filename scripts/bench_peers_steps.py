"""The part of bench_peers.py that runs in the peers' Python: conversions of the model, and measurements.

    python bench_peers_steps.py NAME ARGUMENT...

A measurement is of one sequence (load, prompts, decoding) or, if `batches` follow, only of sequences decoded together.
"""

import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import time

PROMPTS, CONTEXT = (128, 512), 128
DECODED = 64  # new tokens of each sequence; the first, which is the prompt's, does not count


def token_ids(count):
    return [(i * 7919) % 5000 + 10 for i in range(count)]


def seconds(work, *arguments):
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def report(version, isa, load, prefills, decode, batches):
    """Prints a peer's results. Each function of `prefills` prefills a number of tokens into an empty cache; the best
    counts. decode(n) gives the tokens/s of n sequences together, for `batches` the better of two runs."""
    found = {"version": version, "isa": isa, "load": load}
    if batches:
        found["batches"] = {size: max(decode(size) for _ in range(2)) for size in map(int, batches)}
    else:
        rates = found["prefill"] = {}
        for count in PROMPTS:
            for prefill in prefills:
                prefill(count)
                rates[count] = max(rates.get(count, 0), count / seconds(prefill, count))
        found["decode"] = decode(1)
    print(json.dumps(found))


def run_ctranslate2(folder, threads, *batches):
    import ctranslate2

    started = time.perf_counter()
    model = ctranslate2.Generator(folder, compute_type="int8", inter_threads=1, intra_threads=int(threads))
    load = time.perf_counter() - started

    def prompt(count):
        return [f"t{i}" for i in token_ids(count)]

    def generate(count, new=1, size=1, callback=None):
        # No end token: a random model might stop early.
        options = {"max_length": new, "sampling_topk": 1, "end_token": [], "include_prompt_in_result": False}
        results = model.generate_batch([prompt(count)] * size, callback=callback, **options)
        if any(len(result.sequences_ids[0]) != new for result in results):
            raise RuntimeError("the generation ended early")

    def decode(size):
        ends = []  # of each token
        generate(CONTEXT, DECODED, size, lambda _: ends.append(time.perf_counter()))
        if len(ends) != DECODED * size:
            raise RuntimeError(f"{len(ends)} tokens were reported instead of {DECODED * size}")
        return (len(ends) - size) / (ends[-1] - ends[size - 1])

    # generate_batch runs the last token of a prompt in a step of its own; forward_batch computes the logits of every
    # token.
    prefills = [generate, lambda count: model.forward_batch([prompt(count)])]
    isa = os.environ.get("CT2_FORCE_CPU_ISA", "its default")
    report(ctranslate2.__version__, isa, load, prefills, decode, batches)


def run_openvino(folder, threads, *batches):
    import numpy
    import openvino

    # LATENCY is what optimum-intel asks for.
    options = {"INFERENCE_NUM_THREADS": int(threads), "PERFORMANCE_HINT": "LATENCY"}
    started = time.perf_counter()
    model = openvino.Core().compile_model(pathlib.Path(folder, "openvino_model.xml"), "CPU", options)
    request = model.create_infer_request()
    load = time.perf_counter() - started
    names = {name for value in model.inputs for name in value.get_names()}

    def step(ids, past):
        """Runs ids [sequences, tokens] after `past` others; returns the most likely tokens [sequences, 1]."""
        size, count = ids.shape
        inputs = {
            "input_ids": ids,
            "attention_mask": numpy.ones((size, past + count), numpy.int64),
            "position_ids": numpy.tile(numpy.arange(past, past + count), (size, 1)),
            "beam_idx": numpy.arange(size, dtype=numpy.int32),
        }
        inputs = {name: value for name, value in inputs.items() if name in names}
        logits = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return logits[:, -1].argmax(-1)[:, None]

    def start(count, size=1):
        request.reset_state()
        return step(numpy.tile(token_ids(count), (size, 1)), 0)

    def decode(size):
        token = start(CONTEXT, size)
        started = time.perf_counter()
        for past in range(CONTEXT, CONTEXT + DECODED - 1):
            token = step(token, past)
        return (DECODED - 1) * size / (time.perf_counter() - started)

    version = ", ".join([openvino.__version__.split("-")[0], *map(version_of, ("optimum-intel", "nncf"))])
    dtype, cache = (model.get_property(key).to_string() for key in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION"))
    report(version, f"computes in {dtype}, cache {cache}", load, [start], decode, batches)


def version_of(package):
    return f"{package} {importlib.metadata.version(package)}"


def run_transformers(folder, threads, kind, *batches):
    import torch
    import transformers

    torch.set_num_threads(int(threads))
    options, new = {"dtype": torch.float32}, DECODED
    version = f"{transformers.__version__}, torch {torch.__version__}"

    if kind == "bitsandbytes":
        import bitsandbytes

        options = {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
        new, version = 9, f"{bitsandbytes.__version__}, transformers {version}"

    started = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options).eval()
    load = time.perf_counter() - started

    def step(ids, past=None):
        output = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1:].argmax(-1), output.past_key_values

    def decode(size):
        token, past = step(torch.tensor([token_ids(CONTEXT)]))
        if size > 1:  # copies, because prompts take long
            token = token.repeat(size, 1)
            past.batch_repeat_interleave(size)
        started = time.perf_counter()
        for _ in range(new - 1):
            token, past = step(token, past)
        return (new - 1) * size / (time.perf_counter() - started)

    with torch.inference_mode():
        prefills = [lambda count: step(torch.tensor([token_ids(count)]))]
        report(version, torch.backends.cpu.get_cpu_capability(), load, prefills, decode, batches)


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


def make_openvino(folder, output):
    """Exports a checkpoint for OpenVINO through optimum-intel: key-value caches as state, INT8_ASYM weights by nncf. The
    head is limited to the last token of a prompt, as OpenVINO GenAI limits it when it loads an export."""
    import numpy
    import openvino
    from optimum.intel import OVModelForCausalLM

    exported = OVModelForCausalLM.from_pretrained(folder, export=True, load_in_8bit=True, compile=False)
    head = exported.model.output("logits").get_node().input_value(0).get_node()
    if head.get_type_name() != "MatMul":
        raise ValueError(f"the logits come from a {head.get_type_name()}, not from a MatMul")
    end = numpy.iinfo(numpy.int64).max
    last = openvino.opset13.slice(head.input_value(0), *(numpy.array([value]) for value in (-1, end, 1, 1)))
    head.input(0).replace_source_output(last.output(0))
    exported.model.validate_nodes_and_infer_types()
    exported.save_pretrained(output)


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


STEPS = (run_ctranslate2, run_openvino, run_transformers, make_folder, make_ctranslate2, make_openvino, make_gguf)


if __name__ == "__main__":
    {step.__name__: step for step in STEPS}[sys.argv[1]](*sys.argv[2:])
