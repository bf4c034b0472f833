"""Int8Linear, quantize_rowwise and affine quantisation against golden values of bitsandbytes and torch."""

import json

import llm_int8
import numpy as np
import pytest
from llm_int8 import affine

CASES = ["at_threshold", "decode", "many_outliers", "no_outlier", "odd", "outlier", "threshold0", "tiny", "zero_row"]


@pytest.mark.parametrize("case", CASES)
def test_layers_compute_as_bitsandbytes(golden, load_tensors, case):
    tensors = load_tensors(golden / "llm_int8_matmul.safetensors")
    get = {key.removeprefix(case + "."): value for key, value in tensors.items() if key.startswith(case + ".")}
    codes, absmax = llm_int8.quantize_rowwise(get["weight"])
    assert codes.dtype == np.int8 and (codes == get["weight_int8"]).all() and (absmax == get["weight_absmax"]).all()
    layer = llm_int8.Int8Linear(get["weight"], get.get("bias"), threshold=0.0 if case == "threshold0" else 6.0)
    assert (layer.codes == codes).all() and (layer.absmax == absmax).all()
    y = layer(get["a"])
    assert y.dtype == np.float16 and y.shape == get["out_exact"].shape
    scale = np.abs(get["out_exact"]).max()
    assert np.abs(y.astype(np.float32) - get["out_exact"]).max() <= 0.002 * scale
    exact = layer(get["a"].astype(np.float32))
    assert exact.dtype == np.float32
    np.testing.assert_allclose(exact, get["out_exact"], rtol=1e-4, atol=1e-4 * scale)


def test_layers_keep_dtype_shape_and_rows():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    layer = llm_int8.Int8Linear(weight, bias, outliers="row")
    x = rng.normal(size=(2, 3, 8)).astype(np.float32)
    x[0, 0, 1] = 20.0
    y = layer(x)
    assert y.shape == (2, 3, 5)
    assert (y[0, 0] == layer(x[0, 0])).all(), "rows do not depend on the batch"
    assert np.abs(y - (x @ weight.T + bias)).max() < 0.1
    assert (layer(x[:, :, ::-1]) == layer(x[:, :, ::-1].copy())).all(), "strides"
    assert repr(layer) == "Int8Linear(in_features=8, out_features=5, bias=True)"
    exact = llm_int8.Int8Linear(weight, bias, outliers="row", threshold=1e-3, original_outlier_weights=True)
    np.testing.assert_allclose(exact(x), x @ weight.T + bias, atol=2e-3)


def test_bfloat16_is_itself_or_an_error():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = np.eye(4, dtype=np.float32)
    layer = llm_int8.Int8Linear(weight.astype(ml_dtypes.bfloat16))
    y = layer(np.ones((1, 4), ml_dtypes.bfloat16))
    assert y.dtype == ml_dtypes.bfloat16 and (y.astype(np.float32) == 1).all()


@pytest.mark.parametrize("weight, error, says", [
    (np.ones((2, 2)), TypeError, "float64; float32, float16 or bfloat16"),
    (np.ones((2, 2), np.int8), TypeError, "int8"),
    (np.ones(2, np.float32), ValueError, r"must be \[out, in\]"),
    (np.full((2, 2), np.nan, np.float32), ValueError, "NaN|finite"),
    (np.full((2, 2), 1e6, np.float32), ValueError, "f16|65"),
])
def test_wrong_weights_are_refused(weight, error, says):
    with pytest.raises(error, match=says):
        llm_int8.quantize_rowwise(weight)


def test_torch_tensors_come_back_as_tensors():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 4)
    layer = llm_int8.Int8Linear.from_torch(linear)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(3, 16).to(dtype)
        y = layer(x)
        assert y.dtype == dtype and (y.float() - linear(x.float())).abs().max() < 0.1
    codes, absmax = llm_int8.quantize_rowwise(linear.weight)
    assert codes.dtype == torch.int8 and torch.equal(absmax, linear.weight.detach().half().abs().amax(1).float())


def observer_of(case):
    kind = case.get("observer") or ("PerChannelMinMaxObserver" if "axis" in case else "MinMaxObserver")
    return getattr(affine, kind)(
        dtype=case["dtype"], qscheme=case["scheme"], reduce_range=case.get("reduce_range", False),
        # The constant with which the golden values were made.
        averaging_constant=0.125, ch_axis=case.get("axis", 1))


def test_tensors_are_quantised_as_by_torch(golden):
    cases = json.loads((golden / "torch_affine.json").read_text())["tensors"]
    assert len(cases) > 30
    for case in cases:
        x = np.array(case["values"], np.float32)
        scale, zero_point = observer_of(case)(x).calculate_qparams()
        assert np.array_equal(np.float32(scale), np.float32(case["scale"])), case["kind"]
        if np.ndim(case["zero_point"]) == 0:
            q = affine.quantize_per_tensor(x, scale, zero_point, case["dtype"])
            assert (q.q_scale(), q.q_zero_point()) == (scale, case["zero_point"])
        else:
            q = affine.quantize_per_channel(x, scale, zero_point, case["axis"], case["dtype"])
            assert list(q.q_per_channel_zero_points()) == case["zero_point"]
        assert q.int_repr().tolist() == case["int_repr"]
        assert q.int_repr().dtype == (np.int8 if case["dtype"] == "qint8" else np.uint8)
        assert np.array_equal(q.dequantize(), np.float32(case["dequantized"]))


def test_observers_follow_torchs_batch_by_batch(golden):
    file = json.loads((golden / "torch_affine_more.json").read_text())
    checked = set()
    for case in file["observers"]:
        observer = observer_of(case)
        batches = file["batches"][case["kind"]]
        for batch, after in zip(batches, case["after"]):
            x = np.array(batch, np.float32).reshape(8, 33)
            scale, zero_point = observer(x).calculate_qparams()
            assert np.array_equal(np.float32(np.atleast_1d(scale)), np.float32(after["scale"])), case["observer"]
            assert np.atleast_1d(zero_point).tolist() == after["zero_point"], case["observer"]
        assert repr(observer) == case["text"], case["observer"]
        checked.add(case["observer"])
    assert len(checked) == 4


def test_the_notebooks_three_tensors(golden):
    for case in json.loads((golden / "torch_affine_notebook.json").read_text()):
        x = case["values"]
        for scheme in ("per_tensor_affine", "per_tensor_symmetric"):
            expected = case["torch." + scheme]
            scale, zero_point = affine.MinMaxObserver(dtype="qint8", qscheme=scheme)(x).calculate_qparams()
            q = affine.quantize_per_tensor(x, scale, zero_point)
            assert (scale, zero_point) == (expected["scale"], expected["zp"])
            assert q.int_repr().tolist() == expected["int_repr"]
            assert np.array_equal(q.dequantize(), np.float32(expected["dequant"]))
        q = affine.quantize_per_channel([x], case["fbgemm"]["scale"], case["fbgemm"]["zp"], 0)
        assert repr(q) == case["fbgemm"]["repr"] and q.int_repr().tolist() == case["fbgemm"]["int_repr"]


def test_textbook_and_errors():
    x = [3.0, -5.5, 0.0, 4.0, -6.0, 2.5]
    scale, zero_point = affine.asymmetric(x)
    assert (np.float32(scale), zero_point) == (np.float32(10 / 255), 25)
    assert affine.symmetric(x)[1] == 0
    errors = affine.quantize_per_tensor(x, scale, zero_point).errors(x)
    assert round(errors["signal_to_noise"], 1) == 52.3 and errors["max"] < 0.0197
    for call, says in [
        (lambda: affine.quantize_per_tensor([float("nan")], 1.0, 0), "value 0 is NaN"),
        (lambda: affine.quantize_per_tensor(x, 0.0, 0), "scale 0"),
        (lambda: affine.quantize_per_tensor(x, 1.0, 300), "zero point"),
        (lambda: affine.quantize_per_channel(x, [1.0], [0], 3), "axis 3"),
        (lambda: affine.MinMaxObserver(dtype="int4"), "dtype is int4"),
        (lambda: affine.MinMaxObserver(qscheme="per_channel_affine"), "does not support"),
        (lambda: affine.MinMaxObserver(quant_min=0), "or neither"),
    ]:
        with pytest.raises(ValueError, match=says):
            call()
