"""What callers say about loading, in transformers' words and our own, as plain values for the native half."""

import re


class BitsAndBytesConfig:
    """transformers' `BitsAndBytesConfig`, as far as it is about 8 bit. transformers' own class and a dict do as well."""

    def __init__(self, load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=None):
        self.load_in_8bit = load_in_8bit
        self.llm_int8_threshold = llm_int8_threshold
        self.llm_int8_skip_modules = llm_int8_skip_modules

    def to_dict(self):
        return dict(vars(self), quant_method="bitsandbytes")

    def __repr__(self):
        return f"BitsAndBytesConfig({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


# Settings of transformers' BitsAndBytesConfig that mean something else than what is done here, if they are true.
_UNSUPPORTED = ("load_in_4bit", "llm_int8_has_fp16_weight")


def _quantization(config):
    """The dict of a `quantization_config`, whatever it is."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        if not hasattr(config, "to_dict"):
            raise TypeError(f"quantization_config is {type(config).__name__}; a dict or a BitsAndBytesConfig is needed")
        config = config.to_dict()
    method = config.get("quant_method", "bitsandbytes")
    if str(getattr(method, "value", method)) not in ("bitsandbytes", "llm_int8"):
        raise ValueError(f"quant_method is {method}; only bitsandbytes' 8 bit is supported")
    for key in _UNSUPPORTED:
        if config.get(key) or config.get("_" + key):
            raise ValueError(f"{key} is set in quantization_config; only load_in_8bit is supported")
    return config


def _threshold(value):
    """A threshold, and one in units of the root mean square of a row: 6.0, "6", "4rms"."""
    if value is None:
        return None, None
    text = str(value).strip()
    is_rms = text.endswith("rms")
    try:
        number = float(text.removesuffix("rms"))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError(f"threshold is {value!r}; expected a number from 0 up, as in 6.0 or '4rms'")
    return (None, number) if is_rms else (number, None)


def _bytes(value, what):
    """A number of bytes: 1024, "20GiB", "20GB"."""
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(value))
    if not match:
        raise ValueError(f"{what} is {value!r}; expected a number of bytes, as in 20000000000, '20GB' or '20GiB'")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))


def _devices(device_map, device):
    """Names of devices, and whether blocks are spread over several."""
    if device is not None:
        return ([device] if isinstance(device, str) else [str(one) for one in device]), device_map == "auto"
    if device_map is None or device_map == "auto":
        return ["auto"], False
    if isinstance(device_map, dict):
        places = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()}
        if len(places) > 1:
            raise ValueError("device_map is a dict with several devices; 'auto' spreads whole blocks by itself")
        return sorted(places), False
    return [f"cuda:{device_map}" if isinstance(device_map, int) else str(device_map)], False


def name_of(name, revision):
    """The name of a model at a revision."""
    name = str(name)
    return name if revision is None or "@" in name else f"{name}@{revision}"


def options_of(
    *, quantization_config=None, load_in_8bit=None, threshold=None, llm_int8_threshold=None,
    llm_int8_skip_modules=None, skip_modules=None, device_map=None, device=None, max_memory=None, torch_dtype=None,
    dtype=None, token=None, cache_dir=None, local_files_only=False, outliers=None, outlier_weights="dequantized",
    accuracy=None, quantize_head=False, strict=False, adapter=None, num_threads=None, trust_remote_code=False,
    low_cpu_mem_usage=None, use_safetensors=None, cache_dtype=None,
):
    """The options as the native half takes them. See `AutoModelForCausalLM.from_pretrained`."""
    del trust_remote_code, low_cpu_mem_usage, use_safetensors  # no code of a model runs, memory is always low
    given = _quantization(quantization_config)
    if load_in_8bit is None:
        load_in_8bit = given.get("load_in_8bit", True)
    # transformers' default says nothing: a saved 8-bit model may say more.
    of_config = given.get("llm_int8_threshold")
    for one in (threshold, llm_int8_threshold, None if of_config == 6.0 else of_config):
        if one is not None:
            threshold = one
            break
    if accuracy is not None and (threshold is not None or outliers is not None):
        raise ValueError("accuracy is a preset of threshold and outliers; give it or them")
    threshold, rms = _threshold(threshold)
    skipped = [*(given.get("llm_int8_skip_modules") or ()), *(llm_int8_skip_modules or ()), *(skip_modules or ())]
    devices, spreads = _devices(device_map, device)
    limits = {} if max_memory is None else dict(max_memory)
    limits = [(None if key == "cpu" else int(key), _bytes(value, "max_memory")) for key, value in limits.items()]
    if limits and devices == ["auto"]:
        spreads = True
    dtype = dtype if dtype is not None else torch_dtype

    return {
        "int8": bool(load_in_8bit),
        "threshold": threshold,
        "rms": rms,
        "outliers": outliers,
        "outlier_weights": outlier_weights,
        "accuracy": accuracy,
        "skip_modules": list(dict.fromkeys(skipped)),
        "quantize_head": quantize_head,
        "dtype": "float16" if dtype is None else str(dtype).removeprefix("torch."),
        "cache_dtype": None if cache_dtype is None else str(cache_dtype).removeprefix("torch."),
        "strict": strict,
        "devices": devices,
        "device_map": spreads,
        "max_memory": limits,
        "adapter": None if adapter is None else str(adapter),
        "token": None if token in (None, True) else ((token or None),),
        "cache_dir": cache_dir,
        "offline": bool(local_files_only),
        "num_threads": num_threads,
    }
