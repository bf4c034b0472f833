"""What every scenario of torture.py needs: models, runs of the program with deadlines, and the counts."""

import hashlib
import json
import math
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import time

DEADLINE = 40  # seconds for any command, twice
CATCHABLE = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


class Counts:
    """Rows of the table: what was done, how often, with which outcome; and the rules that were broken."""

    def __init__(self):
        self.rows, self.faults = {}, []

    def add(self, row, outcome, times=1):
        outcomes = self.rows.setdefault(row, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + times

    def fault(self, row, text):
        self.add(row, "FAULTS")
        self.faults.append(f"{row}: {text}")
        print(f"FAULT {row}: {text}", flush=True)

    def table(self):
        lines = []
        for row, outcomes in self.rows.items():
            texts = [f"{count} {outcome}" for outcome, count in sorted(outcomes.items(), key=lambda item: -item[1])]
            lines.append(f"{row:44} {', '.join(texts)}")
        return "\n".join([*lines, f"{len(self.faults)} faults"])

    def as_json(self, args):
        return {"arguments": {k: str(v) for k, v in args.items()}, "rows": self.rows, "faults": self.faults}


def write_gpt2(folder, rng, layers, hidden, vocab, positions=64):
    """A random GPT-2 in f16 without a tokenizer. Its bytes repeat after a megabyte, which is quick to make."""
    shapes = {"wte.weight": [vocab, hidden], "wpe.weight": [positions, hidden]}
    for layer in range(layers):
        linears = {"attn.c_attn": [1, 3], "attn.c_proj": [1, 1], "mlp.c_fc": [1, 4], "mlp.c_proj": [4, 1]}
        for name, (rows, columns) in linears.items():
            shapes[f"h.{layer}.{name}.weight"] = [rows * hidden, columns * hidden]
            shapes[f"h.{layer}.{name}.bias"] = [columns * hidden]
        for name in ["ln_1", "ln_2"]:
            shapes |= {f"h.{layer}.{name}.weight": [hidden], f"h.{layer}.{name}.bias": [hidden]}
    shapes |= {"ln_f.weight": [hidden], "ln_f.bias": [hidden]}

    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)

    # f16 values of magnitude 1/16 to 1/8 with both signs: the high byte is 0x2c or 0xac.
    noise = bytearray(rng.randbytes(1 << 20))
    noise[1::2] = bytes(0x2C | byte & 0x80 for byte in noise[1::2])
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, end, len(noise)):
            file.write(noise[: end - start])
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": hidden, "n_head": 8}
    config |= {"n_layer": layers, "n_positions": positions, "vocab_size": vocab, "n_inner": None}
    config |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def content(folder):
    """The files of a folder and their SHA-256; links are followed."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(pid):
    """What a process and its threads wait for, where the system says it: a stopped one (T) is no hang."""
    states = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
        try:
            states.append(f"{(task / 'stat').read_text().split(') ')[1][0]} {(task / 'wchan').read_text()}")
        except OSError:
            pass  # It has ended meanwhile.
    return f"threads: {states}"


class Run:
    """A process of the program that may be killed."""

    def __init__(self, bench, arguments, *, env=None, preexec=None, stdin=subprocess.DEVNULL, stdout=None):
        stdout = subprocess.PIPE if stdout is None else stdout
        command = [str(bench.binary), *map(str, arguments)]
        variables = {"PATH": os.environ.get("PATH", ""), "HOME": str(bench.folder), **(env or {})}
        self.text, self.started = " ".join(map(str, arguments)), time.monotonic()
        self.process = subprocess.Popen(
            command, env=variables, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, preexec_fn=preexec
        )

    def kill_after(self, seconds, number):
        """Sends a signal at that moment. Whether the process still lived."""
        try:
            self.process.wait(max(0.0, self.started + seconds - time.monotonic()))
            return False
        except subprocess.TimeoutExpired:
            self.process.send_signal(number)
            return True

    def end(self, bench, row):
        """The exit code, standard output and standard error. A hang or a panic is a fault."""
        # Twice, because the first may pass while the whole machine stands still.
        for patience in [DEADLINE, DEADLINE]:
            try:
                out, err = self.process.communicate(timeout=patience)
                break
            except subprocess.TimeoutExpired:
                state = state_of(self.process.pid)
        else:
            self.process.kill()
            out, err = self.process.communicate()
            text = f"`{self.text}` did not end within {2 * DEADLINE} s; {state}: {err[-300:]!r}"
            bench.counts.fault(row, text)
        self.seconds = time.monotonic() - self.started
        code, err = self.process.returncode, err.decode(errors="replace")
        crashed = code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, 101)
        if crashed or "panicked" in err:
            bench.counts.fault(row, f"`{self.text}` crashed with {code}: {err[-500:]!r}")
        if code in (1, 2) and not err.strip():
            bench.counts.fault(row, f"`{self.text}` failed with {code} and did not say why")
        return code, (out or b"").decode(errors="replace"), err


class Bench:
    """The program, a scratch folder with models, a generator of random numbers, and the counts."""

    def __init__(self, binary, folder, rng, counts, rounds):
        self.binary, self.folder, self.rng, self.counts, self.rounds = binary, folder, rng, counts, rounds
        self.mounts = []

    def run(self, row, arguments, **options):
        return Run(self, arguments, **options).end(self, row)

    def model(self, name, layers, hidden, vocab):
        folder = self.folder / name
        if not folder.exists():
            write_gpt2(folder, random.Random(7), layers, hidden, vocab)
        return folder

    def small(self):
        """0.6 MB."""
        return self.model("small", 1, 64, 4000)

    def big(self):
        """64 MB, of which 44 are the embeddings; 54 MB in 8 bit."""
        return self.model("big", 5, 576, 38000)

    def reference(self, source):
        """What `quantize` writes if nothing disturbs it, and how long that takes."""
        target = self.folder / f"{source.name}-int8"
        if not target.exists():
            run = Run(self, ["quantize", source, "-o", target])
            code, _, err = run.end(self, "preparation")
            assert code == 0, err
            self.seconds = run.seconds
        return content(target), self.seconds

    def leftovers(self, folder, row, may_stay):
        """Removes temporary files and folders; each is a fault unless it may stay. Those must be no models."""
        found = [path for path in folder.iterdir() if path.name.startswith(".") and path.name.endswith(".partial")]
        for path in found:
            if not may_stay:
                self.counts.fault(row, f"{path.name} was left behind: {[p.name for p in path.rglob('*')]}")
            if path.is_dir():
                self.not_a_model(row, path)
                shutil.rmtree(path)
            else:
                path.unlink()
        return len(found)

    def not_a_model(self, row, folder):
        """A leftover that is loaded all the same must be an error, or be whole: killed just before its rename."""
        code, _, _ = self.run(row, ["inspect", folder])
        is_whole = content(folder) in [content(path) for path in self.folder.glob("*-int8")]
        if code == 0 and not is_whole:
            self.counts.fault(row, f"inspect takes the leftover {sorted(content(folder))} for a model")
        self.counts.add(row, "leftovers whole" if is_whole else "leftovers refused")

    def tmpfs(self, size):
        """A new tmpfs of this size, or None where mounting is not permitted."""
        folder = self.folder / f"tmpfs{len(self.mounts)}"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
            return None
        self.mounts.append(folder)
        return folder

    def resize(self, folder, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    def unmount(self, folder):
        subprocess.run(["umount", str(folder)], check=True)
        self.mounts.remove(folder)
        folder.rmdir()

    def close(self):
        for folder in list(self.mounts):
            self.unmount(folder)
        shutil.rmtree(self.folder)


NO_LINKS = """
#include <errno.h>
int symlink(const char *a, const char *b) { errno = EPERM; return -1; }
int symlinkat(const char *a, int f, const char *b) { errno = EPERM; return -1; }
int link(const char *a, const char *b) { errno = EPERM; return -1; }
int linkat(int f, const char *a, int g, const char *b, int h) { errno = EPERM; return -1; }
"""


def without_links(folder: pathlib.Path):
    """Environment variables under which no link can be made, as on FAT; None without a C compiler."""
    library, source = folder / "nolinks.so", folder / "nolinks.c"
    source.write_text(NO_LINKS)
    command = ["cc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)]
    if shutil.which("cc") is None or subprocess.run(command, capture_output=True).returncode != 0:
        return None
    return {"LD_PRELOAD": str(library)}
