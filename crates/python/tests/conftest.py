"""Shared by the tests of the wheel. They run on an installed wheel, offline, with the repository's golden files."""

import json
import os
import pathlib
import struct

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"

os.environ.setdefault("OMP_NUM_THREADS", "2")


def safetensors(path):
    """The tensors of a safetensors file that numpy has dtypes for."""
    kinds = {"F32": "<f4", "F16": "<f2", "I8": "i1", "I32": "<i4", "I64": "<i8"}
    data = pathlib.Path(path).read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] in kinds:
            tensors[name] = np.frombuffer(data[start:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return tensors


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def load_tensors():
    return safetensors


@pytest.fixture(scope="session")
def tiny():
    import llm_int8

    return llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", outliers="row", progress=False)
