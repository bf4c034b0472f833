"""A single int8 layer, and row-wise quantisation, on numpy arrays and torch tensors."""

from . import _native
from ._arrays import is_tensor, like


class Int8Linear:
    """`y = x @ W.T + b` with int8 weights, as bitsandbytes' `Linear8bitLt` computes it at inference.

    `weight` `[out, in]` and `bias` `[out]` are numpy arrays or torch tensors on the CPU in float32, float16 or
    bfloat16. The weight is quantised here, the bias stays. Called with `x` `[..., in]`, it gives `[..., out]` in the
    same dtype, as a tensor if `x` is one (without gradients).

    outliers: "batch" takes a column with a magnitude of at least `threshold` out of all rows, "row" out of its row
    only, "rms" measures in units of the root mean square of each row. `original_outlier_weights` multiplies outliers
    with the float weight, which then stays in memory.
    """

    def __init__(self, weight, bias=None, *, threshold=6.0, outliers="batch", original_outlier_weights=False):
        self._native = _native.Int8Linear(
            weight, bias, threshold=threshold, outliers=outliers, original_outlier_weights=original_outlier_weights)

    @classmethod
    def from_torch(cls, linear, **options):
        """The int8 layer of a `torch.nn.Linear`."""
        return cls(linear.weight, linear.bias, **options)

    def __call__(self, x):
        return like(self._native(x), x)

    @property
    def codes(self):
        """int8 `[out, in]`, read-only and without a copy."""
        return self._native.codes

    @property
    def absmax(self):
        """float32 `[out]`: the largest magnitude of each row."""
        return self._native.absmax

    @property
    def in_features(self):
        return self._native.in_features

    @property
    def out_features(self):
        return self._native.out_features

    def __repr__(self):
        return repr(self._native).replace("Linear8bitLt", "Int8Linear", 1)


def quantize_rowwise(weight):
    """Quantises a weight `[out, in]` row by row, as bitsandbytes does: through float16, `codes = round(127 * w /
    absmax)` with halves to even. Returns `codes`, int8 `[out, in]`, and `absmax`, float32 `[out]`, as tensors if the
    weight is one. Raises ValueError for values that float16 cannot hold."""
    codes, absmax = _native.quantize_rowwise(weight)
    return (like(codes, weight), like(absmax, weight)) if is_tensor(weight) else (codes, absmax)
