#!/usr/bin/env python3
"""Writes tests/golden/torch_affine_more.json: results of torch's observers, quantized tensors and dynamic Linear on data
that the other two affine goldens do not cover. Needs torch 2.8.

    python3 scripts/make_affine_golden.py tests/golden/torch_affine_more.json
"""
import json
import sys

import torch
from torch import nn
from torch.ao import quantization as Q

torch.manual_seed(2026)
torch.set_num_threads(1)
torch.backends.quantized.engine = "fbgemm"
DTYPES = {"qint8": torch.qint8, "quint8": torch.quint8}
SCHEMES = {name: getattr(torch, name) for name in
           ["per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"]}


def numbers(x):
    return x.tolist() if isinstance(x, torch.Tensor) else x


def batches(kind, count):
    for i in range(count):
        x = torch.randn(8, 33)
        if kind == "shifted":
            x = x * 0.3 + i
        elif kind == "outlier":
            x[0, 0] = 40.0 * (i + 1)
        elif kind == "positive":
            x = x.abs() * 3
        elif kind == "constant":
            x = torch.full((8, 33), 2.5)

        yield x


KINDS = ("normal", "shifted", "outlier", "positive", "constant")


def observer_cases(data):
    makers = {
        "MinMaxObserver": (Q.MinMaxObserver, {}, "per_tensor"),
        "MovingAverageMinMaxObserver": (Q.MovingAverageMinMaxObserver, {"averaging_constant": 0.125}, "per_tensor"),
        "PerChannelMinMaxObserver": (Q.PerChannelMinMaxObserver, {"ch_axis": 1}, "per_channel"),
        "HistogramObserver": (Q.HistogramObserver, {}, "per_tensor"),
    }

    for name, (maker, extra, kind_of_scheme) in makers.items():
        for dtype in DTYPES:
            for scheme in (s for s in SCHEMES if s.startswith(kind_of_scheme)):
                for reduce_range in (False, True):
                    if reduce_range and dtype == "quint8" and scheme.endswith("symmetric"):
                        continue
                    for kind in KINDS:
                        observer = maker(dtype=DTYPES[dtype], qscheme=SCHEMES[scheme],
                                         reduce_range=reduce_range, **extra)
                        after = []
                        for x in data[kind]:
                            observer(x)
                            scale, zero_point = observer.calculate_qparams()
                            after.append({"scale": numbers(scale), "zero_point": numbers(zero_point)})

                        yield {"observer": name, "dtype": dtype, "scheme": scheme, "reduce_range": reduce_range,
                               "kind": kind, "after": after, "text": f"{name}({observer.extra_repr()})"}


def big_histogram():
    """More values than bins, so that the histogram observer's search has a choice."""
    for seed in range(3):
        torch.manual_seed(seed)
        observer = Q.HistogramObserver(reduce_range=True)
        data = [torch.randn(5000) * (1 + i) for i in range(2)]
        for x in data:
            observer(x)
        scale, zero_point = observer.calculate_qparams()
        yield {"batches": [x.tolist() for x in data], "scale": scale.item(), "zero_point": zero_point.item()}


def dynamic_cases():
    for shape in ((6, 1), (16, 5), (40, 24)):
        for bias in (False, True):
            model = nn.Sequential(nn.Linear(*shape, bias=bias))
            quantized = Q.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

            for spread in (1.0, 100.0, 1e-6):
                x = torch.randn(7, shape[0]) * spread
                weight = quantized[0].weight()
                yield {"in_features": shape[0], "out_features": shape[1], "weight": model[0].weight.tolist(),
                       "bias": model[0].bias.tolist() if bias else None, "input": x.tolist(),
                       "weight_codes": weight.int_repr().tolist(), "weight_scale": weight.q_scale(),
                       "output": quantized(x).tolist(), "text": str(quantized[0])}


def printed_cases():
    shapes = [(6,), (1, 6), (3, 40), (2, 3, 4), (1200,), (60, 40)]
    for shape in shapes:
        for spread in (1.0, 1e-6, 5000.0):
            x = torch.randn(shape) * spread
            observer = Q.MinMaxObserver(dtype=torch.qint8)
            observer(x)
            scale, zero_point = observer.calculate_qparams()
            q = torch.quantize_per_tensor(x, scale.item(), zero_point.item(), torch.qint8)
            yield {"shape": shape, "values": x.flatten().tolist(), "float": str(x), "quantized": str(q),
                   "codes": str(q.int_repr())}


def prepared_cases():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant, self.linear, self.dequant = Q.QuantStub(), nn.Linear(4, 3), Q.DeQuantStub()

        def forward(self, x):
            return self.dequant(self.linear(self.quant(x)))

    for name, qconfig in (("default", Q.default_qconfig), ("fbgemm", Q.get_default_qconfig("fbgemm"))):
        model = M().eval()
        model.qconfig = qconfig
        float_text, prepared = str(model), Q.prepare(model)
        before = str(prepared)
        x = torch.randn(20, 4)
        prepared(x)
        converted = Q.convert(prepared)
        yield {"qconfig": name, "weight": model.linear.weight.tolist(), "bias": model.linear.bias.tolist(),
               "input": x.tolist(), "float": float_text, "prepared": before, "converted": str(converted),
               "output": converted(x).tolist()}


def main():
    data = {kind: list(batches(kind, 3)) for kind in KINDS}
    golden = {"source": f"torch {torch.__version__}, torch.ao.quantization, engine {torch.backends.quantized.engine}",
              "batches": {kind: [x.flatten().tolist() for x in data[kind]] for kind in KINDS},
              "observers": list(observer_cases(data)), "histograms": list(big_histogram()),
              "dynamic": list(dynamic_cases()), "printed": list(printed_cases()),
              "prepared": list(prepared_cases())}
    with open(sys.argv[1], "w") as file:
        json.dump(golden, file)


if __name__ == "__main__":
    main()
