"""The part of accuracy_peers.py that runs in the peers' Python: conversions, and the comparison of distributions.

    python accuracy_peers_steps.py NAME ARGUMENT...

WORK is a folder with ids.json ({"ids": […], "window": N}). base() writes its logarithms of probabilities, f32
[positions, vocabulary], to base.f32 there. Each peer is compared with them one window at a time. A step prints one JSON
object.
"""

import json
import math
import pathlib
import subprocess
import sys
import time

import numpy

ROWS = 64  # rows of logits that are in f64 at a time
WEIGHTS = "model.xml"


def log_softmax(logits):
    """Logarithms of probabilities, f64, of finite logits [rows, vocabulary]."""
    values = numpy.asarray(logits, numpy.float64)
    if not numpy.isfinite(values).all():
        raise ValueError("the logits are not finite")
    values = values - values.max(-1, keepdims=True)
    return values - numpy.log(numpy.exp(values).sum(-1, keepdims=True))


class Comparison:
    """Sums up the divergence of distributions from those of the base, over a text."""

    def __init__(self, work):
        self.work = pathlib.Path(work)
        text = json.loads((self.work / "ids.json").read_text())
        ids, size = text["ids"], text["window"]
        cut = [ids[start : start + size] for start in range(0, len(ids), size)]
        self.windows = [window for window in cut if len(window) > 1]
        self.scored = sum(len(window) - 1 for window in self.windows)
        self.divergences, self.losses, self.agreeing, self.seconds = [], [], 0, 0.0

    def new_base(self, vocabulary):
        return numpy.memmap(self.work / "base.f32", numpy.float32, "w+", shape=(self.scored, vocabulary))

    def base(self):
        return numpy.memmap(self.work / "base.f32", numpy.float32, "r").reshape(self.scored, -1)

    def timed(self, pass_of, window):
        started = time.perf_counter()
        logits = pass_of(window)
        self.seconds += time.perf_counter() - started
        return logits

    def add(self, base, logits, following):
        """Compares rows of logits with rows of the base; `following` are the tokens that came next."""
        if logits.shape != base.shape:
            raise ValueError(f"logits have the shape {logits.shape}; the base has {base.shape}")
        for start in range(0, len(following), ROWS):
            rows, next_ids = slice(start, start + ROWS), following[start : start + ROWS]
            expected, found = numpy.asarray(base[rows], numpy.float64), log_softmax(logits[rows])
            self.divergences.extend((numpy.exp(expected) * (expected - found)).sum(-1))
            self.losses.extend(-found[numpy.arange(len(next_ids)), next_ids])
            self.agreeing += int((expected.argmax(-1) == found.argmax(-1)).sum())

    def run(self, pass_of):
        """Compares all windows. pass_of(ids) gives the logits [ids, vocabulary] of a window; the last row is not used."""
        pass_of(self.windows[0][:16])  # the first pass allocates and compiles
        base, position = self.base(), 0
        for window in self.windows:
            count = len(window) - 1
            logits = numpy.asarray(self.timed(pass_of, window))[:count]
            self.add(base[position : position + count], logits, window[1:])
            position += count

    def report(self, **facts):
        n, kl = self.scored, sum(self.divergences) / self.scored
        variance = max(0.0, sum(value * value for value in self.divergences) / n - kl * kl)
        figures = {"perplexity": math.exp(sum(self.losses) / n), "kl": kl, "kl_standard_error": math.sqrt(variance / n)}
        print(json.dumps(facts | figures | {"agreement": self.agreeing / n, "seconds": self.seconds}))


def transformers_model(folder, threads, **options):
    import torch
    import transformers

    torch.set_num_threads(int(threads))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32, **options).eval()

    def pass_of(window):
        with torch.inference_mode():
            return model(input_ids=torch.tensor([window]), use_cache=False).logits[0].numpy()

    return model, pass_of, f"transformers {transformers.__version__}, torch {torch.__version__}"


def base(work, folder, threads):
    """Writes the distributions that all others are compared with."""
    model, pass_of, version = transformers_model(folder, threads)
    comparison, position = Comparison(work), 0
    pass_of(comparison.windows[0][:16])
    for window in comparison.windows:
        logits, count = comparison.timed(pass_of, window), len(window) - 1
        if not position:
            logs = comparison.new_base(logits.shape[1])
        for start in range(0, count, ROWS):
            end = min(start + ROWS, count)
            logs[position + start : position + end] = log_softmax(logits[start:end])
        comparison.add(logs[position : position + count], logits[:count], window[1:])
        position += count

    logs.flush()
    bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    comparison.report(how=version, bytes=bytes_)


def bitsandbytes(work, folder, threads):
    import bitsandbytes
    import torch
    import transformers

    options = {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    model, pass_of, version = transformers_model(folder, threads, **options)
    bytes_ = 0
    for tensor in model.parameters():
        is_int8 = tensor.dtype == torch.int8
        bytes_ += tensor.numel() + 4 * tensor.SCB.numel() if is_int8 else 2 * tensor.numel()

    comparison = Comparison(work)
    comparison.run(pass_of)
    how = f"bitsandbytes {bitsandbytes.__version__}, {version}; the rest in f32, its bytes counted as f16, its usual dtype"
    comparison.report(how=how, bytes=bytes_)


def ctranslate2(work, folder, threads):
    import ctranslate2

    model = ctranslate2.Generator(folder, compute_type="int8", inter_threads=1, intra_threads=int(threads))
    comparison = Comparison(work)
    comparison.run(lambda window: numpy.array(model.forward_batch([window]))[0])
    how = f"CTranslate2 {ctranslate2.__version__}; embeddings and head in int8, too"
    comparison.report(how=how, bytes=pathlib.Path(folder, "model.bin").stat().st_size)


def make_openvino(folder, output, head):
    """Converts a checkpoint for OpenVINO with nncf's INT8_ASYM weights; head: "int8" or "float"."""
    import nncf
    import openvino
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            # torch.jit cannot trace the mask that transformers makes.
            count = input_ids.shape[1]
            mask = torch.full((count, count), torch.finfo(torch.float32).min).triu(1)[None, None]
            return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits

    example = torch.arange(1, 65)[None]
    converted = openvino.convert_model(Logits(), example_input=example, input=[("input_ids", [1, -1], openvino.Type.i64)])
    ignored = nncf.IgnoredScope(patterns=[".*lm_head.*", ".*(embed_tokens|wte).*"], validate=False)
    ignored = ignored if head == "float" else nncf.IgnoredScope()
    compressed = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=ignored)
    openvino.save_model(compressed, pathlib.Path(output, WEIGHTS), compress_to_fp16=True)


def run_openvino(work, folder, threads, precision):
    """precision: "default" for the device's own, which is bf16 where the CPU multiplies it, or "f32"."""
    import openvino

    core, file = openvino.Core(), pathlib.Path(folder, WEIGHTS)
    options = {"INFERENCE_NUM_THREADS": int(threads)}
    options |= {"INFERENCE_PRECISION_HINT": "f32"} if precision == "f32" else {}
    model = core.compile_model(file, "CPU", options)
    without = core.compile_model(file, "CPU", options | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})

    def pass_of(window, compiled=model):
        return compiled(numpy.array([window]))[0][0].copy()

    comparison = Comparison(work)
    # The property tells what was asked for, not what the kernels do.
    sample = comparison.windows[0][:64]
    quantizes = not numpy.array_equal(pass_of(sample), pass_of(sample, without))
    del without
    comparison.run(pass_of)

    group, dtype = model.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE"), model.get_property("INFERENCE_PRECISION_HINT")
    activations = f"activations quantised by {group}" if quantizes else "activations not quantised on this CPU"
    # A graph without a key-value cache, so that nothing is lost in one.
    how = f"OpenVINO {openvino.__version__.split('-')[0]}, INT8_ASYM; {activations}, the rest in {dtype.to_string()}"
    comparison.report(how=how, bytes=file.with_suffix(".bin").stat().st_size)


def llama(work, file, *command):
    """`command` runs accuracy_peers_llama.mjs, which writes the logits of one window after the other."""
    import gguf

    comparison = Comparison(work)
    base, position = comparison.base(), 0
    with subprocess.Popen([*command, work], stdout=subprocess.PIPE) as process:
        for window in comparison.windows:
            count = len(window) - 1
            size = 4 * count * base.shape[1]
            received = process.stdout.read(size)
            if len(received) != size:
                raise EOFError("node-llama-cpp ended early")
            logits = numpy.frombuffer(received, numpy.float32).reshape(count, -1)
            comparison.add(base[position : position + count], logits, window[1:])
            position += count
        facts = json.loads(process.stdout.read())

    comparison.seconds = facts["seconds"]
    bytes_ = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors)
    comparison.report(how=facts["how"], bytes=bytes_)


STEPS = {f.__name__: f for f in (base, bitsandbytes, ctranslate2, make_openvino, run_openvino, llama)}


if __name__ == "__main__":
    STEPS[sys.argv[1]](*sys.argv[2:])
