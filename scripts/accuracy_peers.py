#!/usr/bin/env python3
"""Compares the accuracy of llm-int8 and its peers in 8 bit on the CPU, each from its own logits; prints a Markdown table.

    cargo build --release
    python3.11 scripts/accuracy_peers.py [--model tiny-gpt2] [--text FILE] [--json FILE]

The model is SmolLM2-135M from a PyPI package, dequantised to float16, or the built-in tiny-gpt2. The text is cut into
windows of 512 tokens; the first token of a window is not scored. Distributions of the next token are compared with
those of transformers in float32, those of llm-int8 with its own float, whose perplexity must equal transformers':

- KL: mean Kullback-Leibler divergence, in nats, ± its standard error, as if tokens were independent;
- agreement: how often the most likely token is the same;
- bytes: weights and scales as the program holds them;
- seconds: the passes over the text. Programs run once and one after the other: on a shared machine only a rough idea.

Peers and their formats of the model are made once, in --scratch, beside those of bench_peers.py: 6 GB and a download,
most of it torch. --python and --node-modules use existing installations.
"""

import argparse
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import bench_peers
from bench_peers import SCRIPTS, call, line, once

REPOSITORY = SCRIPTS.parent
# The text that each model is measured on. tiny-gpt2 was trained on Shakespeare.
TEXTS = {"smollm2": "tests/golden/smollm2/text.txt", "tiny-gpt2": "LICENSE-APACHE"}
BASE, BITSANDBYTES = "transformers, f32", "bitsandbytes"
# Rows of peers and their choice of --peers.
PEERS = {
    BITSANDBYTES: "bitsandbytes",
    "CTranslate2 int8": "ctranslate2",
    "OpenVINO int8": "openvino",
    "OpenVINO int8, computed in f32": "openvino",
    "OpenVINO int8, computed in f32, head in f32": "openvino",
    "llama.cpp Q8_0": "llama.cpp",
    "llama.cpp Q8_0, head in f16": "llama.cpp",
}
OURS = ["float", "bitsandbytes", "better", "best"]
TOLERANCE = 1e-4  # of the perplexity of our float beside transformers'


class Workshop(bench_peers.Workshop):
    """The peers, their formats of the model, and the commands that compare them."""

    @functools.cached_property
    def source(self):
        if self.args.model != "tiny-gpt2":
            return super().source

        def copy(partial):
            partial.mkdir()
            for name in ("config.json", "model.safetensors"):
                shutil.copy(REPOSITORY / "models/tiny-gpt2" / name, partial)

        return self.form("", copy)

    @property
    def ours(self):
        """The model by the name that llm-int8 loads it by, with its tokenizer."""
        return "tiny-gpt2" if self.args.model == "tiny-gpt2" else self.package

    def compare(self, name, *arguments, python=None):
        return [python or self.python, SCRIPTS / "accuracy_peers_steps.py", name, *arguments]

    def command(self, name, work):
        """Makes what a row needs. Returns the command that prints its figures."""
        threads, source = str(self.args.threads), self.source
        is_float_head = "head in" in name
        if name == BASE:
            return self.compare("base", work, source, threads)
        if name == BITSANDBYTES:
            return self.compare("bitsandbytes", work, source, threads)
        if PEERS[name] == "ctranslate2":
            folder = self.form("-ctranslate2", lambda path: call(*self.step("make_ctranslate2", source, path)))
            return self.compare("ctranslate2", work, folder, threads)

        if PEERS[name] == "openvino":
            make = self.compare("make_openvino", source, python=self.openvino)

            def convert(partial):
                partial.mkdir()
                call(*make, partial, "float" if is_float_head else "int8")

            folder = self.form("-openvino-f32-head" if is_float_head else "-openvino", convert)
            precision = "f32" if "f32" in name else "default"
            return self.compare("run_openvino", work, folder, threads, precision, python=self.openvino)

        origin = self.package if self.args.model == "smollm2" else source
        head, suffix = ("F16", "-q8_0-f16-head.gguf") if is_float_head else ("Q8_0", "-q8_0.gguf")
        file = self.form(suffix, lambda path: call(*self.step("make_gguf", origin, path, head)))
        library = self.node_modules / "node-llama-cpp/dist/index.js"
        runner = ["node", SCRIPTS / "accuracy_peers_llama.mjs", library, file, threads]
        return self.compare("llama", work, file, *runner)


def write_ids(args, workshop, work):
    """Cuts the text into the tokens that all programs get."""
    command = [args.binary, "tokenize", "--ids", workshop.ours, "-"]
    done = subprocess.run(list(map(str, command)), input=args.text.read_bytes(), capture_output=True)
    if done.returncode:
        raise bench_peers.Failure(done.returncode, done.stderr.decode())
    ids = json.loads(done.stdout)
    (work / "ids.json").write_text(json.dumps({"ids": ids, "window": args.window}))
    return len(ids)


def figures(command):
    """The last line that a command prints, which is a JSON object."""
    return json.loads(call(*command).splitlines()[-1])


def ours(args, workshop):
    """Rows of llm-int8."""
    command = [args.binary, "eval", workshop.ours, "--compare", "--json", "--text", args.text]
    found = json.loads(call(*command, "--window", args.window, "--threads", args.threads))
    if found["baseline"] != "float":
        raise ValueError(f"llm-int8 compared with {found['baseline']}, not with float")
    rules = {rule["name"]: rule for rule in found["rules"]}
    how = call(args.binary, "--version") + ", compared with its own float"
    keys = ("bytes", "perplexity", "kl", "kl_standard_error", "agreement", "seconds")
    return [{"name": f"llm-int8, {name}", "how": how} | {key: rules[name][key] for key in keys} for name in OURS]


def measure(args):
    """The number of tokens, the rows, and the reason for each peer that failed."""
    workshop, rows, reasons = Workshop(args), [], {}
    work = workshop.scratch / f"accuracy-{args.model}"
    work.mkdir(exist_ok=True)
    tokens = write_ids(args, workshop, work)
    try:
        rows.append({"name": BASE} | figures(workshop.command(BASE, work)))
        for name in [name for name, peer in PEERS.items() if peer in args.peers]:
            try:
                rows.append({"name": name} | figures(workshop.command(name, work)))
            except Exception as error:  # a peer that fails must not stop the others
                reasons[name] = str(error) if isinstance(error, bench_peers.Failure) else repr(error)
                print(f"{name}: {reasons[name]}", file=sys.stderr)
    finally:
        (work / "base.f32").unlink(missing_ok=True)

    rows += ours(args, workshop)
    return tokens, rows, reasons


def table(rows, reasons):
    reference = next((row["kl"] for row in rows if row["name"] == BITSANDBYTES), None)
    line("program", "KL", "of bitsandbytes'", "agreement", "perplexity", "MB", "seconds", "how")
    line(*["---"] * 8)
    for row in rows:
        kl = f"{row['kl']:.6f} ± {row['kl_standard_error']:.6f}"
        ratio = f"{row['kl'] / reference:.3f}" if reference else "–"
        agreement = f"{100 * row['agreement']:.2f} %"
        sizes = f"{row['bytes'] / 1e6:.1f}", f"{row['seconds']:.1f}"
        line(row["name"], kl, ratio, agreement, f"{row['perplexity']:.4f}", *sizes, row["how"])
    for name, reason in reasons.items():
        line(name, "failed: " + reason.replace("|", "/"), *[""] * 6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=pathlib.Path, default="/tmp/llm-int8-peers", metavar="DIR")
    parser.add_argument("--binary", type=pathlib.Path, default=REPOSITORY / "target/release/llm-int8")
    parser.add_argument("--model", choices=TEXTS, default="smollm2")
    parser.add_argument("--text", type=pathlib.Path, metavar="FILE", help="default: a text of the repository")
    parser.add_argument("--window", type=int, default=512, metavar="N")
    peers = ",".join(dict.fromkeys(PEERS.values()))
    parser.add_argument("--peers", default=peers, metavar="LIST", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has the packages")
    parser.add_argument("--node-modules", type=pathlib.Path, metavar="DIR", help="a folder that has node-llama-cpp")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(isa=None)
    args = parser.parse_args()
    args.text = args.text or REPOSITORY / TEXTS[args.model]
    args.peers = args.peers.split(",")
    if wrong := set(args.peers) - set(PEERS.values()):
        parser.error(f"unknown peers: {', '.join(sorted(wrong))}")

    tokens, rows, reasons = measure(args)
    facts = bench_peers.facts(args)
    machine = f"{facts['cpu']}, {facts['threads']} threads"
    text = args.text.resolve()
    text = str(text.relative_to(REPOSITORY) if text.is_relative_to(REPOSITORY) else text.name)
    found = {"date": facts["date"], "machine": machine, "commit": facts["commit"], "model": args.model, "text": text}
    found |= {"tokens": tokens, "window": args.window, "rows": rows, "failed": reasons}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    table(rows, reasons)
    print(f"\n{args.model}, {text}: {tokens} tokens in windows of {args.window}; {machine}, {found['date']}.")
    print("The machine may be shared and nothing is repeated: seconds only show the order of magnitude.")

    theirs, own = (next(row for row in rows if row["name"] == name)["perplexity"] for name in (BASE, "llm-int8, float"))
    if abs(own / theirs - 1) > TOLERANCE:
        sys.exit(f"the perplexity of our float is {own:.6f}, transformers' {theirs:.6f}: they are not the same model")


if __name__ == "__main__":
    main()
