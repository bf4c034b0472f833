#!/usr/bin/env python3
"""Computes the tables of docs/scaling.md: decoding on several GPUs, in pipeline (layers in sequence) or tensor parallel.

    python3 scripts/scaling.py

Nothing is measured here. Bandwidths are from NVIDIA's datasheets; all-reduce times follow the table by which NCCL
chooses its protocols (src/graph/tuning.cc, June 2026); sizes are those of Llama 2 (7B, 13B, 70B) and Llama 3.1 (405B).
A block costs 10 us besides reading its weights (19 us were measured on an H100, see docs/gpu.md).
"""

import math

def llama(L, C, F, heads, kv_heads, V):
    return L, C, heads, kv_heads / heads, 2 * C * C + 2 * C * C * kv_heads // heads + 3 * C * F, V, 2

# blocks, hidden size C, heads, width of the keys / C, int8 weights of a block, vocabulary V, matrices of V × C (2: the
# embeddings and the head are not tied)
MODELS = {
    "gpt2-large": (36, 1280, 20, 1, 12 * 1280**2, 50257, 1),
    "7B": llama(32, 4096, 11008, 32, 32, 32000),
    "13B": llama(40, 5120, 13824, 40, 40, 32000),
    "70B": llama(80, 8192, 28672, 64, 8, 32000),
    "405B": llama(126, 16384, 53248, 128, 8, 128256),
}
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # of device memory, bytes/s
ROOM = {"H100": 83e9, "H200": 148e9}  # device memory for weights and caches, bytes
REACHED = 0.9  # of the bandwidth
BLOCK = 10e-6  # seconds of a block besides reading its weights
CONTEXT = 1024  # tokens of each sequence
OPERATIONS = 990e12  # per second
HOP = 20e-6  # latency of a transfer between GPUs, seconds
LINKS = {"NVLink 4": 450e9, "PCIe 5": 63e9, "PCIe 4": 31.5e9}  # bytes/s one way
# LL, LL128 and Simple: base latency and latency of a step in seconds, bus bandwidth in bytes/s
PROTOCOLS = [(6.6e-6, 0.6e-6, 141e9), (14e-6, 1.9e-6, 331e9), (8.4e-6, 3.4e-6, 360e9)]

def all_reduce(g, size):
    steps = 2 * (g - 1)
    return min(base + steps * (hop + size / g / bus) for base, hop, bus in PROTOCOLS)

def sizes(name, M):
    """Bytes that a decoding step for M sequences reads, and bytes that must fit in memory."""
    L, C, _, keys, block, V, tables = MODELS[name]
    cache = M * CONTEXT * 2 * L * C * keys * 2
    return L * block + 2 * V * C + cache, L * block + tables * 2 * V * C + cache

def compute(name, card, g, M):
    """Seconds to read 1/g of a model, or to compute with it if that takes longer."""
    L, C, _, _, block, V, _ = MODELS[name]
    return max(sizes(name, M)[0] / (REACHED * BANDWIDTH[card]), 2 * M * (L * block + V * C) / OPERATIONS) / g

def step(name, card, g, M, each=None, exchange=False):
    """Seconds of a tensor-parallel decoding step for M sequences; `each` is the cost of one all-reduce."""
    L, C = MODELS[name][:2]
    each = all_reduce(g, 4 * M * C) if each is None else each
    each += all_reduce(g, 4 * M) if exchange else 0
    return compute(name, card, g, M) + L * BLOCK + (2 * L * each if g > 1 else 0)

def text(value):
    return f"{value:.{max(0, min(2, 2 - math.floor(math.log10(value))))}f}"

def table(titles, rows):
    for cells in [titles, ["---"] * len(titles), *rows]:
        print("| " + " | ".join(map(str, cells)) + " |")
    print()

def possible(name, g):
    return MODELS[name][2] % g == 0  # a head cannot be split

def held(name):
    weights, whole = sizes(name, 0)[1], sizes(name, 1)[1]
    cards = [math.ceil(whole / room) for room in ROOM.values()]
    return [name, text(weights / 1e9), text((whole - weights) / 1e9), *cards]

def hops(name):
    size, alone = 4 * MODELS[name][1], step(name, "H100", 1, 1)
    moved = 7 * (HOP + size / LINKS["PCIe 4"])
    times = [text(1024 * size / rate * 1e3) for rate in LINKS.values()]
    return [name, size // 1024, f"{moved / (alone + moved):.1%}", *times]

def together(M, name="405B", card="H200", g=8):
    L = MODELS[name][0]
    at_once = M / (compute(name, card, 1, M) + L * BLOCK)
    groups = M / g / (compute(name, card, g, M / g) + L * BLOCK / g) if M >= g else at_once
    return [M, text(at_once), text(groups), text(M / step(name, card, g, M))]

def full(g, name="70B", card="H100"):
    """Throughput with as many sequences as fit in the memory of g GPUs."""
    weights, whole = sizes(name, 0)[1], sizes(name, 1)[1]
    M = int((g * ROOM[card] - weights) / (whole - weights))
    groups = together(M, name, card, g)[2] if g > 1 else ""
    return [g, M, groups, *[text(M / step(name, card, g, M) / n) for n in (1, g)]]

def parallel(card, name, g):
    L, C = MODELS[name][:2]
    cells, each = [name, g, text(compute(name, card, g, 1) * 1e3)], all_reduce(g, 4 * C)
    cells += ["", ""] if g == 1 else [text(each * 1e6), text(2 * L * each * 1e3)]
    for M in (1, 32):
        rate, alone = M / step(name, card, g, M), M / step(name, card, 1, M)
        cells += [text(rate) if sizes(name, M)[1] / g <= ROOM[card] else f"({text(rate)})", f"{rate / alone:.2f}"]
    return cells

def break_even(name):
    gain = lambda g: compute(name, "H100", 1, 1) * (1 - 1 / g) / (2 * MODELS[name][0])
    return [name, *[text(gain(g) * 1e6) if possible(name, g) else "–" for g in (2, 4, 8)]]

def given(name):
    alone = step(name, "H100", 1, 1)
    return [name, *[f"{alone / step(name, 'H100', g, 1, cost):.2f}" for g in (2, 4) for cost in (10e-6, 20e-6, 40e-6)]]

def exchanged(name):
    rate = lambda g, e: text(1 / step(name, "H100", g, 1, exchange=e))
    return [name, *[f"{rate(g, False)} → {rate(g, True)}" if possible(name, g) else "–" for g in (2, 4, 8)]]

table(["model", "GB of weights", "GB of a text", "cards, H100", "H200"], map(held, MODELS))
table(["model", "KiB a hop", "7 hops, of a token", *[f"1,024 tokens, {link}, ms" for link in LINKS]], map(hops, MODELS))
table(["texts", "in sequence, at once", "in sequence, 8 groups", "tensor parallel"], map(together, (1, 32, 256)))
for card in BANDWIDTH:
    titles = [f"{card}s", "cards", "reading, ms", "an all-reduce, µs", "all of them, ms"]
    titles += ["tokens/s, M = 1", "×", "tokens/s, M = 32", "×"]
    table(titles, [parallel(card, name, g) for name in MODELS for g in (1, 2, 4, 8) if possible(name, g)])
table(["µs", "2 cards", "4 cards", "8 cards"], map(break_even, MODELS))
table(["×", *[f"{g} cards, {cost} µs" for g in (2, 4) for cost in (10, 20, 40)]], map(given, MODELS))
table(["tokens/s", "2 cards", "4 cards", "8 cards"], map(exchanged, MODELS))
table(["H100s, 70B", "texts", "in sequence, g groups", "tensor parallel", "a card"], map(full, (1, 2, 4, 8)))
