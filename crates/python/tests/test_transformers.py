"""transformers and bitsandbytes load what `save_pretrained` writes. They run in the Python that JUDGE_PYTHON names, or
in this one if they are installed here."""

import os
import subprocess
import sys

import llm_int8
import pytest

CODE = """
import sys, torch, json
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", local_files_only=True)
ids = torch.tensor([json.loads(sys.argv[2])])
with torch.no_grad():
    logits = model(ids).logits.float()
print(json.dumps({
    "print": str(model), "parameters": [[n, str(p.dtype), list(p.shape)] for n, p in model.named_parameters()],
    "footprint": model.get_memory_footprint(), "logits": logits.flatten().tolist(),
    "text": AutoTokenizer.from_pretrained(folder, local_files_only=True).decode(ids[0])}))
"""


def judge():
    python = os.environ.get("JUDGE_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import transformers, bitsandbytes, accelerate"], capture_output=True)
    return python if found.returncode == 0 else None


def test_transformers_and_bitsandbytes_load_what_was_saved(tmp_path):
    import json

    import numpy as np

    python = judge()
    if python is None:
        pytest.skip("transformers, bitsandbytes and accelerate are not installed (JUDGE_PYTHON)")
    model = llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", progress=False)
    model.save_pretrained(tmp_path / "out")
    ids = model.tokenizer.encode("And it came to pass in those days")
    run = subprocess.run([python, "-c", CODE, str(tmp_path / "out"), json.dumps(ids)], capture_output=True, text=True,
                         env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = json.loads(run.stdout.splitlines()[-1])
    assert theirs["print"] == str(model)
    assert theirs["parameters"] == [[n, p.dtype, list(p.shape)] for n, p in model.named_parameters()]
    assert theirs["footprint"] == model.get_memory_footprint()
    ours = model.logits(ids).ravel()
    expected = np.array(theirs["logits"], np.float32)
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 0.01
    assert theirs["text"] == model.tokenizer.decode(ids)
