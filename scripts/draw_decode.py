#!/usr/bin/env python3
"""Draws a bar chart of the speeds that scripts/bench_peers.py --json wrote: decode-light.svg, decode-dark.svg.

    python3 scripts/draw_decode.py benches/results/DATE-MACHINE/gpt2-large.json docs [--columns "decode,batch 8,prefill 512"]

Each column has a scale of its own. Programs are in the order of the first column, the fastest first; a program that has
no such figure is left out, one that lacks another has a dash there.
"""

import argparse
import html
import json
import pathlib
import statistics

# The rows of the results, and their names in the chart.
BARS = {
    "llm-int8": "llm-int8",
    "llm-int8, head in 8 bit too": "llm-int8, int8 head",
    "llama.cpp": "llama.cpp Q8_0",
    "ctranslate2": "CTranslate2 int8",
    "openvino": "OpenVINO int8",
    "transformers-f32": "transformers f32",
    "bitsandbytes": "bitsandbytes int8",
}
COLUMNS = {
    "decode": "decode",
    "batch 8": "decode, 8 sequences",
    "batch 32": "decode, 32 sequences",
    "prefill 128": "prompt of 128",
    "prefill 512": "prompt of 512",
}
DRAWN = ("decode", "batch 8", "batch 32")
COLORS = {
    "light": {"text": "#1f2328", "quiet": "#59636e", "ours": "#0969da", "theirs": "#afb8c1"},
    "dark": {"text": "#f0f6fc", "quiet": "#9198a1", "ours": "#4493f8", "theirs": "#4b535d"},
}
WIDTH, LABELS, NUMBERS, BAR, GAP, TOP, BOTTOM = 760, 160, 60, 22, 10, 60, 26
FONT = 'font-family="-apple-system,Segoe UI,Helvetica,Arial,sans-serif"'


def text(x, y, content, color, **attributes):
    rest = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{color}"{rest}>{html.escape(content)}</text>'


def rate_text(rate):
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


def draw(medians, title, note, colors):
    """The chart as SVG text. `medians` maps a column to the figures of rows, in tokens/s."""
    first, *_ = medians.values()
    rows = sorted(first, key=first.get, reverse=True)
    height, span = TOP + len(rows) * (BAR + GAP) + BOTTOM, (WIDTH - LABELS) / len(medians)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT} font-size="14">',
        text(0, 16, title, colors["text"], font_weight=600),
    ]
    middles = {row: TOP + i * (BAR + GAP) + BAR / 2 + 5 for i, row in enumerate(rows)}
    weights = {row: 600 if row.startswith("llm-int8") else 400 for row in rows}
    for row in rows:
        lines.append(text(LABELS - 8, middles[row], BARS[row], colors["text"], font_weight=weights[row], text_anchor="end"))
    for i, (column, rates) in enumerate(medians.items()):
        left, scale = LABELS + i * span, (span - NUMBERS) / max(rates.values())
        lines.append(text(left, TOP - 12, COLUMNS[column], colors["quiet"]))
        for row in rows:
            if row not in rates:
                lines.append(text(left, middles[row], "–", colors["quiet"]))
                continue
            length, color = rates[row] * scale, colors["ours" if weights[row] == 600 else "theirs"]
            shape = f'y="{middles[row] - BAR / 2 - 5:.0f}" width="{length:.1f}" height="{BAR}" rx="3"'
            number = text(left + length + 6, middles[row], rate_text(rates[row]), colors["text"], font_weight=weights[row])
            lines += [f'<rect x="{left:.0f}" {shape} fill="{color}"/>', number]
    lines += [text(0, height - 6, note, colors["quiet"], font_size=12), "</svg>"]
    return "\n".join(lines) + "\n"


def columns(found, names):
    """The medians of these columns over the rounds; of rows that have them in every round."""
    rounds = {row: found["results"].get(row) for row in BARS if row not in found["reasons"]}
    medians = {}
    for name in names:
        rows = {row: of for row, of in rounds.items() if of and all(name in one for one in of)}
        if rows:
            medians[name] = {row: statistics.median(one[name] for one in of) for row, of in rows.items()}
    return medians


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, help="the file that bench_peers.py --json wrote")
    parser.add_argument("folder", type=pathlib.Path, help="where the charts go")
    names = f"of {', '.join(COLUMNS)}; those that no program has are left out; default: %(default)s"
    parser.add_argument("--columns", default=",".join(DRAWN), metavar="LIST", help=names)
    args = parser.parse_args()
    if wrong := set(args.columns.split(",")) - set(COLUMNS):
        parser.error(f"unknown columns: {', '.join(sorted(wrong))}")

    found = json.loads(args.results.read_text())
    medians = columns(found, args.columns.split(","))
    if not medians:
        parser.error(f"{args.results} has none of the columns {args.columns}")
    title = f"{found['model']}, tokens/s (more is better)"
    count = max(map(len, found["results"].values()))
    note = f"{found['cpu']}, {found['threads']} threads, {found['date']}, commit {found['commit']}; medians of {count} rounds"
    for theme, colors in COLORS.items():
        path = args.folder / f"decode-{theme}.svg"
        path.write_text(draw(medians, title, note, colors))
        print(path)


if __name__ == "__main__":
    main()
