#!/usr/bin/env python3
"""The report of gpu_first_light.sh, which calls this after each step: writes results.json and logs.tar.gz to OUT. With
the argument `print` it also writes summary.txt and prints it."""

import io, json, os, pathlib, sys, tarfile

out, scratch = pathlib.Path(os.environ["OUT"]), pathlib.Path(os.environ["SCRATCH"])
LOG = 512 << 10  # bytes kept of a log
HEAD = 128 << 10  # how many of them come from its beginning; the rest is its end
CHECKS, SANITIZERS = ["smoke", "kernels", "models", "gpt2-large"], ["memcheck", "racecheck"]
# The key numbers: row, list and entry in bench.json, key, title, and the prediction made before any run.
NUMBERS = [
    ("copy", None, {}, "bytes_per_second", "copy on the card, GB/s", "3000 on an H100, 4300 on an H200"),
    *[
        (row, "decode", {"batch": batch}, "tokens_per_second", f"decode, batch {batch}, {row}, tokens/s", predicted)
        for row, batch, predicted in [
            ("ours", 1, "1250 to 1700"), ("ours-no-overlap", 1, "1000 to 1330"), ("ours-no-graph", 1, "800 to 1100"),
            ("torch", 1, ""), ("torch-compiled", 1, ""), ("bitsandbytes", 1, ""),
            ("ours", 8, "4500"), ("ours-no-overlap", 8, ""), ("torch", 8, ""),
            ("ours", 32, "15000"), ("ours-no-overlap", 32, ""), ("torch", 32, ""),
        ]
    ],
    *[
        (row, "prefill", {"tokens": tokens}, "tokens_per_second", f"prompt of {tokens}, {row}, tokens/s", predicted)
        for row, tokens, predicted in [
            ("ours", 128, "47000"), ("torch", 128, "14000 to 18000"), ("ours", 512, "98000"), ("torch", 512, ""),
            ("ours", 1024, "90000"), ("torch", 1024, ""),
        ]
    ],
    *[
        (f"linear-{row}", "linear", {"out_features": n, "in_features": k, "rows": m, "outlier_columns": outliers},
         "microseconds", f"layer {n} x {k}, {m} rows, {outliers or 0} outliers, {row}, us", predicted)
        for n, k, m, row, outliers, predicted in [
            (4096, 4096, 1, "ours", 0, "8 to 9"), (4096, 4096, 1, "ours-no-overlap", 0, ""),
            (4096, 4096, 1, "torch", None, ""), (4096, 4096, 512, "ours", 0, "34 to 45"),
            (4096, 4096, 512, "ours", 5, ""), (4096, 4096, 512, "torch", None, "24 to 31"),
            (4096, 4096, 512, "torch-int8", None, ""), (4096, 4096, 512, "bitsandbytes", 0, ""),
            (4096, 4096, 4096, "ours", 0, "170 to 230"), (4096, 4096, 4096, "torch", None, "170 to 190"),
            (4096, 4096, 4096, "torch-int8", None, ""),
        ]
    ],
]


def steps():
    lines = (scratch / "steps.tsv").read_text().splitlines()
    return [dict(zip(["step", "result", "seconds", "limit"], line.split("\t"))) for line in lines]


def bench():
    try:
        return json.loads((out / "bench.json").read_text())
    except (OSError, ValueError):
        return {"results": {}, "reasons": {}}


def numbers(results):
    for row, kind, sizes, key, title, predicted in NUMBERS:
        report = results.get(row, {})
        for entry in report.get(kind, []) if kind else [report]:
            if key in entry and all(entry.get(what) == value for what, value in sizes.items()):
                value = entry[key] / 1e9 if key == "bytes_per_second" else entry[key]
                yield {"name": title, "value": value, "predicted": predicted}


def verdict(steps):
    is_bad = lambda result: not result.startswith(("ok", "skipped", "stopped"))
    found = {step["step"]: step["result"] for step in steps}
    bad = [name for name in CHECKS if is_bad(found.get(name, "ok"))]
    bad += [name for name in SANITIZERS if found.get(name, "ok").startswith("failed")]
    unchecked = [name for name in CHECKS if found.get(name, "skipped").startswith(("skipped", "stopped"))]
    if bad:
        return f"correctness failed ({', '.join(bad)}): numbers are not to be published"
    return f"correct, but not checked: {', '.join(unchecked)}" if unchecked else "correct"


def write(name, data):
    partial = out / f"{name}.new"
    partial.write_bytes(data)
    partial.rename(out / name)


def logs():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted((scratch / "logs").iterdir()):
            with open(path, "rb") as file:
                text, size = file.read(HEAD), path.stat().st_size
                if size > LOG:
                    file.seek(size - (LOG - HEAD))
                    text += b"\n... shortened ...\n"
                text += file.read(LOG - HEAD)

            member = tarfile.TarInfo(path.name)
            member.size, member.mtime = len(text), int(path.stat().st_mtime)
            archive.addfile(member, io.BytesIO(text))

    return packed.getvalue()


def manifest():
    try:
        return (pathlib.Path(os.environ["HERE"]) / "manifest.txt").read_text()
    except OSError:
        return ""


def table(report, reasons):
    width = max([len(step["step"]) for step in report["steps"]], default=0)
    lines = [report["verdict"], *(["A REHEARSAL: the GPU is emulated, no number means anything"] * report["rehearsal"])]
    lines += ["", f"{'step':<{width}}  seconds  result"]
    for step in report["steps"]:
        lines.append(f"{step['step']:<{width}}  {step['seconds']:>7}  {step['result'][:300]}")
    lines += [f"row {name}: {reason[:200]}" for name, reason in reasons.items()]

    if report["numbers"]:
        width = max(len(number["name"]) for number in report["numbers"])
        lines += ["", f"{'number':<{width}}  {'measured':>10}  predicted"]
        for number in report["numbers"]:
            digits = 0 if number["value"] >= 100 else 2
            lines.append(f"{number['name']:<{width}}  {number['value']:>10.{digits}f}  {number['predicted']}".rstrip())

    return "\n".join(lines) + "\n"


measured = bench()
report = {"manifest": manifest(), "card": measured.get("card"), "rehearsal": bool(os.environ["REHEARSAL"])}
report |= {"steps": steps(), "numbers": list(numbers(measured["results"]))}
report["verdict"] = verdict(report["steps"])
write("results.json", (json.dumps(report, indent=1) + "\n").encode())
write("logs.tar.gz", logs())
if sys.argv[1:] == ["print"]:
    text = table(report, measured["reasons"])
    write("summary.txt", text.encode())
    print("\n" + text, end="")
