#!/usr/bin/env python3
"""Kills, full disks, closed pipes, rival writers and a lying hub, against the program; counts what came of them.

    python3 scripts/torture.py --binary target/release/llm-int8 --rounds 50

The rules, checked after every fault: the program ends, without a panic; what it left is never taken for whole (another
command either gives the right answer or says what is wrong); a rerun is right byte for byte; a signal that can be
caught leaves no temporary file. Models are random ones and the hub is a server on 127.0.0.1, both made here; nothing
else is reached. Seeded, though when a kill lands also depends on the machine. Exit code 1 if a rule was broken.

Needs a Unix and only the standard library. As root it mounts a small tmpfs for full disks, else it only limits the size
of files; with a C compiler it also forbids links. What cannot be done is counted as skipped.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile

sys.dont_write_bytecode = True
from torture_bench import CATCHABLE, Bench, Counts, Run, content, sha256, without_links  # noqa: E402
from torture_hub import Hub, lies_of_a_file, lies_of_a_mirror, lies_of_the_listing  # noqa: E402

TOKEN = "hf_secret"
IDS = ["--token-ids", "1,2,3", "-n", "4", "--print-ids", "-q"]


def quantize(bench):
    """kill -9 while a model is quantised."""
    row, source = "kill -9 of quantize", bench.big()
    expected, seconds = bench.reference(source)
    for _ in range(bench.rounds):
        kill_quantize(bench, row, source, expected, bench.rng.uniform(0, 1.05 * seconds), signal.SIGKILL)


def kill_quantize(bench, row, source, expected, moment, number):
    target = bench.folder / "out"
    run = Run(bench, ["quantize", source, "-o", target])
    killed = run.kill_after(moment, number)
    code, _, _ = run.end(bench, row)
    bench.counts.add(row, "killed" if killed else "ended before")
    if target.exists() and content(target) != expected:
        bench.counts.fault(row, "the target holds something else than the model")
    if number != signal.SIGKILL and code not in (0, 1, -number):
        bench.counts.fault(row, f"exit code {code} after signal {number}")
    stale = [path for path in bench.folder.glob(".out.*") if number == signal.SIGKILL]
    shutil.rmtree(target, ignore_errors=True)
    # A leftover of yesterday is swept by the rerun, one of now is not touched.
    is_old = bench.rng.random() < 0.5
    for path in stale if is_old else []:
        for each in [*path.rglob("*"), path]:
            os.utime(each, (0, 0))
    code, _, err = bench.run(row, ["quantize", source, "-o", target])
    if code != 0 or content(target) != expected:
        bench.counts.fault(row, f"the rerun is wrong: {code} {err}")
    if any(path.exists() == is_old for path in stale):
        bench.counts.fault(row, "a leftover was swept too early or not at all")
    bench.leftovers(bench.folder, row, may_stay=number == signal.SIGKILL)
    shutil.rmtree(target)


def environment(hub, home, **more):
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    return variables | {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2", **more}


def check_cache(bench, row, hub, home):
    """No file of the cache under its final name may hold other bytes than the right ones."""
    for path in home.rglob("blobs/*") if hub.is_vouched else []:
        if len(path.name) == 64 and sha256(path) != path.name:
            bench.counts.fault(row, f"the blob {path.name} has other content")
    for path in home.rglob("snapshots/*/*"):
        if path.is_file() and not path.name.endswith(".partial") and path.read_bytes() != hub.files.get(path.name):
            bench.counts.fault(row, f"{path.name} of the snapshot has {path.stat().st_size} wrong bytes")
    if any(path.name.startswith("evil") for path in bench.folder.rglob("evil*")):
        bench.counts.fault(row, "something was written where the hub said")


def is_whole(home, hub):
    names = {path.name for path in home.rglob("snapshots/*/*") if path.exists()}
    return names >= set(hub.files)


def check_offline(bench, row, hub, home, arguments, expected):
    """A cache that was disturbed gives the right answer or an error."""
    code, out, _ = bench.run(row, arguments, env=environment(hub, home, HF_HUB_OFFLINE="1"))
    if code == 0 and (not is_whole(home, hub) or out != expected):
        bench.counts.fault(row, "what was left in the cache is taken for whole")
    bench.counts.add(row, "left: right" if code == 0 else "left: refused")


def check_pull(bench, row, hub, home, **more):
    """A pull that must be right."""
    code, out, err = bench.run(row, ["pull", "org/model"], env=environment(hub, home, **more))
    snapshot = pathlib.Path(out.strip() or "missing")
    if code != 0 or {name: (snapshot / name).read_bytes() for name in hub.files} != hub.files:
        bench.counts.fault(row, f"the pull is wrong: {code} {err[-300:]}")
    check_cache(bench, row, hub, home)


def kill_hub_command(bench, row, arguments, number):
    """Kills a command that fills a cold cache."""
    hub, home = Hub(bench.big(), pace=0.0002), bench.folder / "home"
    expected = bench.run(row, ["run", bench.big(), *IDS])[1]
    clean = Run(bench, arguments, env=environment(hub, home))
    clean.end(bench, row)
    for _ in range(bench.rounds):
        shutil.rmtree(home)
        run = Run(bench, arguments, env=environment(hub, home))
        killed = run.kill_after(bench.rng.uniform(0, 1.05 * clean.seconds), number)
        run.end(bench, row)
        bench.counts.add(row, "killed" if killed else "ended before")
        home.mkdir(exist_ok=True)
        check_cache(bench, row, hub, home)
        check_offline(bench, row, hub, home, ["run", "org/model", *IDS], expected)
        check_pull(bench, row, hub, home)
        check_offline(bench, row, hub, home, ["run", "org/model", *IDS], expected)
    hub.close()


def pull(bench):
    """kill -9 while a model is downloaded."""
    kill_hub_command(bench, "kill -9 of pull", ["pull", "org/model"], signal.SIGKILL)


def run(bench):
    """kill -9 while a model is downloaded and run."""
    kill_hub_command(bench, "kill -9 of run, cold cache", ["run", "org/model", *IDS], signal.SIGKILL)


def signals(bench):
    """Signals that can be caught, while a folder, a file or a copy of a blob is written."""
    source = bench.big()
    expected, seconds = bench.reference(source)
    names = {number: signal.Signals(number).name for number in CATCHABLE}
    for i in range(bench.rounds):
        number = CATCHABLE[i % len(CATCHABLE)]
        moment = bench.rng.uniform(0.2, 1.0) * seconds
        kill_quantize(bench, f"{names[number]} of quantize", source, expected, moment, number)

    links = without_links(bench.folder)
    hub, home, row = Hub(source), bench.folder / "home", "signals while a blob is copied"
    if links is None:
        return bench.counts.add(row, "skipped: no C compiler")
    clean = Run(bench, ["pull", "org/model"], env=environment(hub, home, **links))
    clean.end(bench, row)
    for i in range(bench.rounds):
        shutil.rmtree(home)
        run = Run(bench, ["pull", "org/model"], env=environment(hub, home, **links))
        killed = run.kill_after(bench.rng.uniform(0.2, 1.0) * clean.seconds, CATCHABLE[i % len(CATCHABLE)])
        run.end(bench, row)
        bench.counts.add(row, "killed" if killed else "ended before")
        home.mkdir(exist_ok=True)
        for path in home.rglob(".*.partial"):
            bench.counts.fault(row, f"{path.name} was left behind")
        check_cache(bench, row, hub, home)
        check_pull(bench, row, hub, home, **links)


def limit_file_size(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def disks(bench):
    """Disks that are full after a random number of bytes."""
    source = bench.model("middle", 2, 192, 6000)
    expected, _ = bench.reference(source)
    needed = sum(path.stat().st_size for path in (bench.folder / "middle-int8").iterdir())
    for _ in range(bench.rounds):
        target = bench.folder / "out"
        size = bench.rng.randrange(int(1.1 * needed))
        quantize_full(bench, "quantize, limited file size", source, target, expected, limit_file_size(size), lambda: None)
        replace_full(bench, "logits --out, limited file size", size)

    tmpfs = bench.tmpfs("1m")
    if tmpfs is None:
        return bench.counts.add("full disks", "skipped: mount is not permitted")
    for _ in range(bench.rounds):
        bench.resize(tmpfs, max(4096, bench.rng.randrange(int(1.1 * needed))))
        more = lambda: bench.resize(tmpfs, "1g")  # noqa: E731
        quantize_full(bench, "quantize, full disk", source, tmpfs / "out", expected, None, more)
    bench.unmount(tmpfs)
    links = without_links(bench.folder)
    for row, variables, copies in [("pull, full disk", {}, 1), ("pull, full disk without links", links, 2)]:
        if variables is None:
            bench.counts.add(row, "skipped: no C compiler")
            continue
        for _ in range(bench.rounds):
            pull_full(bench, row, source, variables, copies)


def quantize_full(bench, row, source, target, expected, limit, make_room):
    code, _, err = bench.run(row, ["quantize", source, "-o", target], preexec=limit)
    bench.counts.add(row, "fitted" if code == 0 else "failed")
    if code == 0 and content(target) != expected:
        bench.counts.fault(row, "wrong bytes and exit code 0")
    if code != 0 and not any(text in err for text in ["disk is full", "No space left", "File too large"]):
        bench.counts.fault(row, f"the message names another cause: {code} {err}")
    if code != 0 and target.exists():
        bench.counts.fault(row, f"a target was left behind: {sorted(content(target))}")
    bench.leftovers(target.parent, row, may_stay=False)
    shutil.rmtree(target, ignore_errors=True)
    make_room()
    code, _, err = bench.run(row, ["quantize", source, "-o", target])
    if code != 0 or content(target) != expected:
        bench.counts.fault(row, f"the rerun is wrong: {code} {err}")
    shutil.rmtree(target)


def replace_full(bench, row, size):
    """A file that is replaced stays as it was if the new one does not fit."""
    arguments = ["logits", bench.small(), "--token-ids", "1,2,3,4", "--out"]
    whole, target = bench.folder / "whole.safetensors", bench.folder / "logits.safetensors"
    if not whole.exists():
        bench.run(row, [*arguments, whole])
    target.write_text("old")
    size %= int(1.1 * whole.stat().st_size)
    code, _, _ = bench.run(row, [*arguments, target], preexec=limit_file_size(size))
    bench.counts.add(row, "fitted" if code == 0 else "failed")
    if target.read_bytes() != (whole.read_bytes() if code == 0 else b"old"):
        bench.counts.fault(row, f"exit code {code} and the target is wrong")
    bench.leftovers(bench.folder, row, may_stay=False)


def pull_full(bench, row, source, variables, copies):
    hub = Hub(source)
    needed = copies * sum(map(len, hub.files.values()))
    home = bench.tmpfs(max(4096, bench.rng.randrange(int(1.2 * needed))))
    code, _, err = bench.run(row, ["pull", "org/model"], env=environment(hub, home, **variables))
    bench.counts.add(row, "fitted" if code == 0 else "failed")
    if code != 0 and not any(text in err for text in ["disk is full", "No space left", "full"]):
        bench.counts.fault(row, f"the message names another cause: {code} {err}")
    check_cache(bench, row, hub, home)
    for path in home.rglob(".*.partial"):
        bench.counts.fault(row, f"{path.name} was left behind")
    bench.resize(home, "1g")
    check_pull(bench, row, hub, home, **variables)
    bench.unmount(home)
    hub.close()


def pipes(bench):
    """Standard output that is closed at once, after some bytes, or full; standard error and input that are closed."""
    model = bench.small()
    commands = [
        ["run", model, "--token-ids", "1,2", "-n", "40", "--print-ids"],
        ["run", "tiny-gpt2", "--prompt", "In the beginning", "-n", "30"],
        ["inspect", model, "--params"],
        ["inspect", "tiny-gpt2", "--plan"],
        ["tokenize", "tiny-gpt2", "In the beginning"],
        ["verify", model],
        ["inspect", "tiny-gpt2", "--quantize-head"],
        ["completions", "bash"],
        ["affine", "1", "2", "3.5"],
        ["--help"],
    ]
    for i in range(bench.rounds):
        command = commands[i % len(commands)]
        for fd, name in enumerate(["input", "output", "error"]):
            code, _, _ = closed(bench, "closed standard " + name, command, fd)
        row, take = "reader that goes after some bytes", bench.rng.choice([0, 1, bench.rng.randrange(2000)])
        process = Run(bench, command)
        process.process.stdout.read(take)
        process.process.stdout.close()
        process.process.stdout = None
        code, _, err = process.end(bench, row)
        bench.counts.add(row, f"exit code {code}")
        if code not in (0, 2):
            bench.counts.fault(row, f"`{process.text}` ended with {code}: {err[-200:]}")
        row = "standard output on a full disk"
        with open("/dev/full", "wb") as full:
            code, _, _ = bench.run(row, command, stdout=full)
        bench.counts.add(row, f"exit code {code}")
        if code == 0:
            bench.counts.fault(row, f"`{command}` says that all is well")


def closed(bench, row, command, fd):
    run = Run(bench, command, preexec=lambda: os.close(fd))
    try:
        out, err = run.process.communicate(timeout=60)
    except Exception as error:
        run.process.kill()
        bench.counts.fault(row, f"`{run.text}`: {error}")
        return run.process.wait(), b"", b""
    bench.counts.add(row, f"exit code {run.process.returncode}")
    if run.process.returncode not in (0, 1, 2) or b"panicked" in err:
        bench.counts.fault(row, f"`{run.text}` ended with {run.process.returncode}: {err[-300:]}")
    return run.process.returncode, out, err


def writers(bench):
    """Several processes with one target or one cache at once."""
    source = bench.model("middle", 2, 192, 6000)
    expected, _ = bench.reference(source)
    links = without_links(bench.folder)
    for _ in range(bench.rounds):
        count = bench.rng.randint(2, 4)
        row, target = "quantize to one folder", bench.folder / "out"
        ends = together(bench, row, count, ["quantize", source, "-o", target])
        good = sum(code == 0 for code, _, _ in ends)
        if good != 1 or content(target) != expected:
            bench.counts.fault(row, f"{good} of {count} say that they wrote the model: {[err for _, _, err in ends]}")
        bench.leftovers(bench.folder, row, may_stay=False)
        shutil.rmtree(target)

        row, target = "logits to one file", bench.folder / "logits"
        ends = together(bench, row, count, ["logits", source, "--token-ids", "1,2,3", "--out", target])
        if any(code != 0 for code, _, _ in ends):
            bench.counts.fault(row, f"{[err for _, _, err in ends]}")
        bench.counts.add(row, f"{len({sha256(target)})} content")
        bench.leftovers(bench.folder, row, may_stay=False)

        for row, variables in [("pull into one cache", {}), ("pull into one cache, no links", links)]:
            if variables is None:
                bench.counts.add(row, "skipped: no C compiler")
                continue
            pull_together(bench, row, source, count, variables)


def together(bench, row, count, arguments, env=None, kill_one=None):
    runs = [Run(bench, arguments, env=env) for _ in range(count)]
    if kill_one is not None:
        runs[0].kill_after(kill_one, signal.SIGKILL)
    ends = [run.end(bench, row) for run in runs]
    for code, _, _ in ends:
        bench.counts.add(row, f"exit code {code}")
    return ends


def pull_together(bench, row, source, count, variables):
    """All succeed, also if one is killed; a file is downloaded once if none is."""
    hub, home = Hub(source, pace=0.001), bench.folder / "home"
    kill_one = bench.rng.choice([None, bench.rng.uniform(0, 0.1)])
    ends = together(bench, row, count, ["pull", "org/model"], environment(hub, home, **variables), kill_one)
    if any(code != 0 for code, _, _ in ends[kill_one is not None :]):
        bench.counts.fault(row, f"{[(code, err[-200:]) for code, _, err in ends]}")
    bodies = sum(method == "GET" and path.endswith("/model.safetensors") for method, path, _ in hub.log)
    if kill_one is None and bodies != 1:
        bench.counts.fault(row, f"the weights were requested {bodies} times")
    check_pull(bench, row, hub, home, **variables)
    hub.close()
    shutil.rmtree(home)


def lies(bench):
    """A hub that lies: four lies a round, each in turn with a new seed."""
    source, hidden = bench.small(), 1 << 30
    other = Hub(source)
    queue = []
    for i in range(4 * bench.rounds):
        if not queue:
            name = "config.json" if bench.rng.random() < 0.2 else "model.safetensors"
            size = (source / name).stat().st_size
            queue = [(name, True, lie) for lie in lies_of_a_file(bench.rng, name, size, other.url)]
            queue += [(name, False, lie) for lie in lies_of_a_mirror(bench.rng)]
            queue += [("listing", True, lie) for lie in lies_of_the_listing(bench.rng)]
            bench.rng.shuffle(queue)
        name, is_vouched, (kind, told) = queue.pop()
        hub, home = Hub(source), bench.folder / "home"
        hub.is_vouched, hub.lies = is_vouched, {name: told}
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (hidden, hidden))  # noqa: E731
        run = Run(bench, ["pull", "org/model"], env=environment(hub, home), preexec=limit)
        code, out, err = run.end(bench, kind)
        bench.counts.add(kind, "right in the end" if code == 0 else "told")
        snapshot = pathlib.Path(out.strip() or "missing")
        if code == 0 and any((snapshot / name).read_bytes() != data for name, data in hub.files.items()):
            bench.counts.fault(kind, "wrong bytes and exit code 0")
        if TOKEN in out + err:
            bench.counts.fault(kind, "the token was printed")
        home.mkdir(exist_ok=True)
        check_cache(bench, kind, hub, home)
        check_offline(bench, kind, hub, home, ["inspect", "org/model"], bench.run(kind, ["inspect", source])[1])
        hub.lies = {}
        check_pull(bench, kind, hub, home)
        hub.close()
        shutil.rmtree(home)
    if any("authorization" in headers for _, _, headers in other.log):
        bench.counts.fault("redirect to another host", "the token went along")
    other.close()


SCENARIOS = [quantize, pull, run, signals, disks, pipes, writers, lies]


def main():
    names = [scenario.__name__ for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/llm-int8"))
    parser.add_argument("--rounds", type=int, default=50, help="of each kind [50]")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,…", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the counts and faults here, too")
    args = parser.parse_args()
    if unknown := set(args.only or []) - set(names):
        parser.error(f"no such scenario: {', '.join(unknown)}")
    if not args.binary.is_file():
        parser.error(f"{args.binary} is not the program")

    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="llm-int8-torture-") as scratch:
        for scenario in SCENARIOS:
            if args.only and scenario.__name__ not in args.only:
                continue
            folder = pathlib.Path(scratch) / scenario.__name__
            folder.mkdir()
            rng = random.Random(f"{args.seed} {scenario.__name__}")
            bench = Bench(args.binary.resolve(), folder, rng, counts, args.rounds)
            try:
                scenario(bench)
            finally:
                bench.close()

    print(counts.table())
    if args.json:
        args.json.write_text(json.dumps(counts.as_json(vars(args)), indent=2) + "\n")
    sys.exit(1 if counts.faults else 0)


if __name__ == "__main__":
    main()
