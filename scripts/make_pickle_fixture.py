#!/usr/bin/env python3
"""Converts a safetensors file to the `pytorch_model.bin` that torch.save would write (zip format), without torch.

    python3 scripts/make_pickle_fixture.py tests/golden/models/gpt2/model.safetensors OUT.bin

Made `tests/golden/models/gpt2_bin`. Standard library only.
"""

import collections
import io
import json
import pickle
import struct
import sys
import types
import zipfile

STORAGES = {"F16": "HalfStorage", "BF16": "BFloat16Storage", "F32": "FloatStorage"}
SIZES = {"F16": 2, "BF16": 2, "F32": 4}


def fake(module, name):
    """A class that pickles as `module.name`, although torch is not there."""
    made = type(name, (), {"__module__": module, "__qualname__": name})
    parent = None

    for depth in range(1, module.count(".") + 2):
        path = ".".join(module.split(".")[:depth])
        sys.modules.setdefault(path, types.ModuleType(path))
        parent = sys.modules[path]

    setattr(parent, name, made)
    return made


class Tensor:
    def __init__(self, key, dtype, shape, rebuild, storage):
        self.key, self.dtype, self.shape, self.rebuild, self.storage = key, dtype, shape, rebuild, storage


class Storage:
    def __init__(self, kind, key, elements):
        self.kind, self.key, self.elements = kind, key, elements


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            return ("storage", thing.kind, thing.key, "cpu", thing.elements)
        return None

    def reducer_override(self, thing):
        if isinstance(thing, Tensor):
            strides, step = [], 1
            for dim in reversed(thing.shape):
                strides.insert(0, step)
                step *= dim
            arguments = (thing.storage, 0, tuple(thing.shape), tuple(strides), False, collections.OrderedDict())
            return thing.rebuild, arguments
        return NotImplemented


def main():
    source, target = sys.argv[1:3]
    data = open(source, "rb").read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)

    def rebuild(*_):
        raise NotImplementedError

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", "_rebuild_tensor_v2", "_rebuild_tensor_v2"
    fake("torch._utils", "placeholder")
    sys.modules["torch._utils"]._rebuild_tensor_v2 = rebuild
    kinds = {dtype: fake("torch", name) for dtype, name in STORAGES.items()}
    state, blobs = collections.OrderedDict(), []

    for number, (name, info) in enumerate(header.items()):
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        blobs.append(data[begin:end])
        storage = Storage(kinds[info["dtype"]], str(number), (end - begin) // SIZES[info["dtype"]])
        state[name] = Tensor(str(number), info["dtype"], info["shape"], rebuild, storage)

    out = io.BytesIO()
    Pickler(out, protocol=2).dump(state)

    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        stamp = (1980, 1, 1, 0, 0, 0)
        archive.writestr(zipfile.ZipInfo("archive/data.pkl", stamp), out.getvalue())
        archive.writestr(zipfile.ZipInfo("archive/byteorder", stamp), b"little")
        for number, blob in enumerate(blobs):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{number}", stamp), blob)
        archive.writestr(zipfile.ZipInfo("archive/version", stamp), b"3\n")


if __name__ == "__main__":
    main()
