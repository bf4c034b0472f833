from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from ._native import Model, ModelPlan, _Progress

class AutoModelForCausalLM:
    def __init__(self) -> None: ...
    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | PathLike[str], *, revision: str | None = None,
        progress: bool | _Progress | None = None,
        # transformers' words
        quantization_config: Any = ..., load_in_8bit: bool | None = ..., llm_int8_threshold: float | None = ...,
        llm_int8_skip_modules: Sequence[str] | None = ..., device_map: str | int | Mapping[str, Any] | None = ...,
        max_memory: Mapping[int | str, int | str] | None = ..., dtype: Any = ..., torch_dtype: Any = ...,
        token: str | bool | None = ..., cache_dir: str | PathLike[str] | None = ..., local_files_only: bool = ...,
        trust_remote_code: bool = ..., low_cpu_mem_usage: bool | None = ..., use_safetensors: bool | None = ...,
        # our own
        threshold: float | str | None = ..., outliers: str | None = ..., outlier_weights: str = ...,
        accuracy: str | None = ..., skip_modules: Sequence[str] | None = ..., quantize_head: bool = ...,
        strict: bool = ..., adapter: str | PathLike[str] | None = ..., num_threads: int | None = ...,
        device: str | Sequence[str] | None = ..., cache_dtype: Any = ...,
    ) -> Model: ...

def inspect(
    pretrained_model_name_or_path: str | PathLike[str], *, revision: str | None = None,
    progress: bool | _Progress | None = None, **options: Any,
) -> ModelPlan: ...
