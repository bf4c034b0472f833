"""Loading models, and looking at them without loading."""

import warnings

from . import _native
from ._options import name_of, options_of
from ._progress import Bars


class AutoModelForCausalLM:
    """Loads models: `AutoModelForCausalLM.from_pretrained("gpt2-large")`."""

    def __init__(self):
        raise OSError("AutoModelForCausalLM is not made but loaded: AutoModelForCausalLM.from_pretrained(name)")

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, *, revision=None, progress=None, **options):
        """Loads a model in 8 bit: the built-in "tiny-gpt2", a folder, a .gguf file, or a model of the hub.

        In transformers' words: `quantization_config` (a dict or a `BitsAndBytesConfig`, transformers' too),
        `load_in_8bit` (default True here), `llm_int8_threshold`, `llm_int8_skip_modules`, `device_map` ("auto",
        "cpu", "cuda:0"), `max_memory`, `dtype` or `torch_dtype` (of what is not int8: "float16", "bfloat16",
        "float32", "auto"), `revision`, `token`, `cache_dir`, `local_files_only`.

        And our own:
          threshold: activations of at least this magnitude stay float; "4rms" is in units of the root mean square
            of their row; 0 quantises everything.
          outliers: "batch" (as bitsandbytes) or "row", which makes results independent of their batch.
          outlier_weights: "dequantized" (as bitsandbytes) or "original" (as the paper).
          accuracy: a preset instead: "bitsandbytes", "better", "best".
          skip_modules: modules that stay float, by name or path, besides those that transformers keeps.
          cache_dtype: of keys and values: "float16", "bfloat16", "float32" or "int8", which takes about half the
            memory; by default `dtype`.
          quantize_head: also the head and the token table; such a model cannot be saved.
          strict: refuse checkpoints with tensors that the model does not use.
          adapter: a LoRA adapter of PEFT, a folder or a repository.
          num_threads: CPU threads of this process, set once; by default OMP_NUM_THREADS, else one per core.
          progress: False hides progress bars, which need tqdm; a function is called as
            `progress(what, advance, total)` with bytes of a file or modules.

        Raises ValueError for options and names, OSError for files and the network, KeyboardInterrupt on ctrl-C.
        """
        options = options_of(**options)
        name = name_of(pretrained_model_name_or_path, revision)
        with Bars.of(progress) as bars:
            model = _native.load_model(name, options, bars)
        for warning in model.warnings:
            warnings.warn(warning, stacklevel=2)
        return model


def inspect(pretrained_model_name_or_path, *, revision=None, progress=None, **options):
    """What loading a model would give: its tree, parameters and footprint. Only `config.json` and the headers of the
    weight files are read, or downloaded. The options are those of `AutoModelForCausalLM.from_pretrained`."""
    options = options_of(**options)
    name = name_of(pretrained_model_name_or_path, revision)
    with Bars.of(progress) as bars:
        return _native.describe_model(name, options, bars)
