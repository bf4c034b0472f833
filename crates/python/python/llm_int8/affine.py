"""PyTorch's INT8 affine quantisation (`torch.ao.quantization`, eager mode, engine fbgemm), to the bit:
`value = (code - zero_point) * scale`.

    x = [3.0, -5.5, 0.0, 4.0, -6.0, 2.5]
    observer = MinMaxObserver(dtype="qint8", qscheme="per_tensor_affine")
    scale, zero_point = observer(x).calculate_qparams()
    q = quantize_per_tensor(x, scale, zero_point, "qint8")
    print(q.int_repr(), q.dequantize(), q.errors(x))

Tensors are float32 arrays of numpy or torch, or lists of numbers. dtypes are "qint8" and "quint8", or torch's; schemes
are "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric", or torch's.
"""

from . import _native
from ._native import QuantizedTensor

__all__ = [
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "QuantizedTensor",
    "asymmetric",
    "quantize_per_channel",
    "quantize_per_tensor",
    "symmetric",
]


def _name(word):
    return str(word).removeprefix("torch.")


class _Observer:
    """What the observers share. `averaging_constant` and `ch_axis` concern one of them each."""

    _qscheme = "per_tensor_affine"

    def __init__(self, *, dtype="quint8", qscheme=None, reduce_range=False, quant_min=None, quant_max=None,
                 eps=1.1920928955078125e-07, averaging_constant=0.01, ch_axis=0):
        if (quant_min is None) != (quant_max is None):
            raise ValueError("give quant_min and quant_max, or neither")
        self._native = _native.Observer(
            type(self).__name__, dtype=_name(dtype), qscheme=_name(qscheme or self._qscheme), reduce_range=reduce_range,
            quant_range=None if quant_min is None else (quant_min, quant_max), eps=eps,
            averaging_constant=averaging_constant, ch_axis=ch_axis)

    def observe(self, x):
        """Takes a tensor into account. Returns the observer."""
        self._native.observe(x)
        return self

    __call__ = observe

    def calculate_qparams(self):
        """Scale and zero point for what was seen: two numbers, or two arrays with one for each channel."""
        return self._native.calculate_qparams()

    def __repr__(self):
        return str(self._native)


class MinMaxObserver(_Observer):
    """The range of all values seen."""


class MovingAverageMinMaxObserver(_Observer):
    """After the first tensor, the range moves by `averaging_constant` of the way to that of each tensor."""


class PerChannelMinMaxObserver(_Observer):
    """The range of all values seen, for each slice along `ch_axis`."""

    _qscheme = "per_channel_affine"


class HistogramObserver(_Observer):
    """A histogram of 2048 bins; extreme values are clipped where that lowers the error."""


def quantize_per_tensor(x, scale, zero_point, dtype="qint8"):
    """`torch.quantize_per_tensor`: codes `clamp(round(x * (1 / scale)) + zero_point)`, halves to even."""
    return _native.quantize_per_tensor(x, float(scale), int(zero_point), _name(dtype))


def quantize_per_channel(x, scales, zero_points, axis, dtype="qint8"):
    """`torch.quantize_per_channel`: a scale and a zero point for each slice along `axis`."""
    scales, zero_points = [float(one) for one in scales], [int(one) for one in zero_points]
    return _native.quantize_per_channel(x, scales, zero_points, axis, _name(dtype))


def asymmetric(x):
    """Scale and zero point by the textbook, for codes from -128 to 127: `scale = (max - min) / 255`, `zero_point =
    round(-128 - min / scale)`."""
    return _native.textbook(x, False)


def symmetric(x):
    """Scale and zero point by the textbook: `scale = absmax / 127.5`, `zero_point = 0`."""
    return _native.textbook(x, True)
