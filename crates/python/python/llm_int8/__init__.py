"""Hugging Face language models in 8 bit: LLM.int8() as bitsandbytes computes it, on CPUs and without torch.

    import llm_int8
    model = llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2")
    print(model)
    print(model.generate("In the beginning", max_new_tokens=20).text)

`affine` is PyTorch's INT8 affine quantisation, `ray` runs jobs over many machines.
"""

from . import affine
from ._auto import AutoModelForCausalLM, inspect
from ._linear import Int8Linear, quantize_rowwise
from ._native import (
    Generated,
    Model,
    ModelPlan,
    Parameter,
    Server,
    Stream,
    Tokenizer,
    __version__,
    get_num_threads,
    set_num_threads,
)
from ._options import BitsAndBytesConfig
from ._serve import serve

__all__ = [
    "AutoModelForCausalLM",
    "BitsAndBytesConfig",
    "Generated",
    "Int8Linear",
    "Model",
    "ModelPlan",
    "Parameter",
    "Server",
    "Stream",
    "Tokenizer",
    "__version__",
    "affine",
    "get_num_threads",
    "inspect",
    "quantize_rowwise",
    "serve",
    "set_num_threads",
]
