"""Arrays and tensors for the native half, which knows numpy alone."""

import sys

import numpy as np


def is_tensor(value):
    """Whether it is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _bfloat16():
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(
            "these values are bfloat16, which numpy knows with the package ml_dtypes only: pip install ml_dtypes, or "
            "convert them to float32"
        ) from None
    return ml_dtypes.bfloat16


def to_numpy(value):
    """A contiguous array of a tensor on the CPU, an array, or a list of numbers. Lists become float32."""
    if is_tensor(value):
        value = value.detach()
        if value.device.type != "cpu":
            raise ValueError(f"the tensor is on {value.device}; move it with .cpu()")
        if str(value.dtype) == "torch.bfloat16":
            torch = sys.modules["torch"]
            value = value.contiguous().view(torch.int16).numpy().view(_bfloat16())
        else:
            value = value.numpy()
    elif hasattr(value, "__array__"):
        value = np.asarray(value)
        if value.dtype.name == "bfloat16":
            _bfloat16()
    else:
        value = np.asarray(value, dtype=np.float32)
    return np.ascontiguousarray(value)


def like(array, model):
    """The array as a torch tensor if `model` is one. They share memory."""
    if not is_tensor(model):
        return array
    torch = sys.modules["torch"]
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
