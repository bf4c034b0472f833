#!/usr/bin/env python3
"""Draws a bar chart of decoding speeds from the output of scripts/bench_peers.py --json: decode-light.svg, decode-dark.svg.

    python3 scripts/draw_decode.py benches/results/DATE-MACHINE/gpt2-large.json docs
"""

import html
import json
import pathlib
import statistics
import sys

# The rows of the results, and their names in the chart.
BARS = {
    "llm-int8": "llm-int8",
    "llama.cpp": "llama.cpp Q8_0",
    "ctranslate2": "CTranslate2 int8",
    "transformers-f32": "transformers f32",
    "bitsandbytes": "bitsandbytes int8",
}
COLORS = {
    "light": {"text": "#1f2328", "quiet": "#59636e", "ours": "#0969da", "theirs": "#afb8c1"},
    "dark": {"text": "#f0f6fc", "quiet": "#9198a1", "ours": "#4493f8", "theirs": "#4b535d"},
}
WIDTH, LABELS, NUMBERS, BAR, GAP, TOP, BOTTOM = 760, 150, 60, 22, 10, 34, 26
FONT = 'font-family="-apple-system,Segoe UI,Helvetica,Arial,sans-serif"'


def draw(medians, title, note, colors):
    """The chart as SVG text, the fastest first."""
    height = TOP + len(medians) * (BAR + GAP) + BOTTOM
    scale = (WIDTH - LABELS - NUMBERS) / max(medians.values())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT} font-size="14">',
        f'<text x="0" y="16" font-weight="600" fill="{colors["text"]}">{html.escape(title)}</text>',
    ]
    for i, (name, rate) in enumerate(sorted(medians.items(), key=lambda pair: -pair[1])):
        y, is_ours = TOP + i * (BAR + GAP), name == "llm-int8"
        color, weight = (colors["ours"], "600") if is_ours else (colors["theirs"], "400")
        middle = y + BAR / 2 + 5
        lines += [
            f'<text x="{LABELS - 8}" y="{middle}" text-anchor="end" font-weight="{weight}" fill="{colors["text"]}">'
            f"{html.escape(BARS[name])}</text>",
            f'<rect x="{LABELS}" y="{y}" width="{rate * scale:.1f}" height="{BAR}" rx="3" fill="{color}"/>',
            f'<text x="{LABELS + rate * scale + 6:.1f}" y="{middle}" font-weight="{weight}" fill="{colors["text"]}">'
            f"{rate:.1f}</text>",
        ]
    lines += [
        f'<text x="0" y="{height - 6}" font-size="12" fill="{colors["quiet"]}">{html.escape(note)}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = json.loads(pathlib.Path(sys.argv[1]).read_text())
    rounds = {name: found["results"].get(name) for name in BARS}
    medians = {name: statistics.median(one["decode"] for one in of) for name, of in rounds.items() if of}
    title = f"Decoding {found['model']}, tokens/s (more is better)"
    count = len(found["results"]["llm-int8"])
    note = f"{found['cpu']}, {found['threads']} threads, {found['date']}, commit {found['commit']}; medians of {count} rounds"
    for theme, colors in COLORS.items():
        path = pathlib.Path(sys.argv[2]) / f"decode-{theme}.svg"
        path.write_text(draw(medians, title, note, colors))
        print(path)


if __name__ == "__main__":
    main()
