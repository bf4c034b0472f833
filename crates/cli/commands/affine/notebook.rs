//! The example notebook that many users know, with its three tensors, in its order.

use llm_int8_affine::module::{Linear, Model, QConfig};
use llm_int8_affine::print::{Printed, python_float};
use llm_int8_affine::{
    AffineError, MinMaxObserver, Observer, QParams, QScheme, QuantizedDtype, QuantizedTensor,
    TensorRef, custom,
};
use std::fmt::Write;

/// The fourth value of each tensor `[3, -5.5, 0, _, -6, 2.5]`.
const LARGEST: [f32; 3] = [6.0, 4.0, 8.0];

pub(super) fn text() -> Result<String, AffineError> {
    let mut out = String::new();
    for largest in LARGEST {
        let values = [3.0, -5.5, 0.0, largest, -6.0, 2.5];
        say(
            &mut out,
            format_args!("# The tensor {}\n", Printed::floats(&values, &[6])),
        );
        let x = TensorRef::new(&values, &[6])?;
        by_torch(&mut out, x, QScheme::PerTensorAffine)?;
        by_hand(
            &mut out,
            x,
            "asymmetric: scale = (max - min) / 255, zero_point = round(-128 - min / scale)",
            custom::asymmetric(x)?,
        );

        by_torch(&mut out, x, QScheme::PerTensorSymmetric)?;
        by_hand(
            &mut out,
            x,
            "symmetric: scale = absmax / 127.5, zero_point = 0",
            custom::symmetric(x)?,
        );

        for (name, qconfig) in [
            (
                "get_default_qconfig('fbgemm'): weights symmetric per output",
                QConfig::fbgemm(),
            ),
            ("custom qconfig, asymmetric", QConfig::asymmetric()),
            ("custom qconfig, symmetric", QConfig::symmetric()),
        ] {
            converted(&mut out, &values, name, &qconfig)?;
        }
    }

    out.push_str(CONCLUSION);
    Ok(out)
}

const CONCLUSION: &str = "\
# Conclusion

With 6 and -6 both schemes choose the same grid: the range is symmetric, so the scale is 0.0471 and the zero
point 0. With 4 the asymmetric scheme fits the codes to -6..4 (scale 0.0392, zero point 25) and loses less;
the symmetric one keeps -6..6 and never uses the codes above 85. With 8 it is the other way round: scale 0.0549
against 0.0627. Zero is represented exactly in every scheme. Symmetric weights cost a little precision and make
the matmul cheaper: without a zero point there is nothing to subtract.
";

fn say(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{line}");
}

fn by_torch(out: &mut String, x: TensorRef<'_>, scheme: QScheme) -> Result<(), AffineError> {
    let mut observer = MinMaxObserver::new(QuantizedDtype::Qint8, scheme)?;
    observer.observe(x)?;
    let q = QuantizedTensor::quantize(x, QuantizedDtype::Qint8, &observer.qparams()?)?;
    say(
        out,
        format_args!(
            "## PyTorch: MinMaxObserver(dtype=torch.qint8, qscheme={scheme})\n\n{observer}"
        ),
    );

    show_qparams(out, q.qparams());
    say(out, format_args!("{q}"));
    say(
        out,
        format_args!(
            "int_repr():   {}",
            Printed::integers(q.int_repr(), q.shape(), Some("torch.int8"))
        ),
    );

    say(
        out,
        format_args!(
            "dequantize(): {}",
            Printed::floats(&q.dequantize(), q.shape())
        ),
    );

    show_errors(out, x, &q.dequantize());
    Ok(())
}

fn by_hand(out: &mut String, x: TensorRef<'_>, formula: &str, qparams: QParams) {
    say(out, format_args!("## By hand, {formula}\n"));
    show_qparams(out, &qparams);
    for (scale, zero_point) in qparams.channels() {
        let codes = custom::codes(x.values(), scale as f32, zero_point);
        let back = custom::recovered(&codes, scale as f32, zero_point);
        say(
            out,
            format_args!(
                "codes:        {}",
                Printed::integers(&codes, x.shape(), None)
            ),
        );

        say(
            out,
            format_args!("back:         {}", Printed::floats(&back, x.shape())),
        );
        show_errors(out, x, &back);
    }
}

fn show_qparams(out: &mut String, qparams: &QParams) {
    for (scale, zero_point) in qparams.channels() {
        say(
            out,
            format_args!("scale {}, zero_point {zero_point}", python_float(scale)),
        );
    }
}

fn show_errors(out: &mut String, x: TensorRef<'_>, back: &[f32]) {
    let errors: Vec<f32> = x.values().iter().zip(back).map(|(x, y)| x - y).collect();
    say(
        out,
        format_args!("error:        {}\n", Printed::floats(&errors, x.shape())),
    );
}

fn converted(
    out: &mut String,
    values: &[f32; 6],
    name: &str,
    qconfig: &QConfig,
) -> Result<(), AffineError> {
    say(
        out,
        format_args!("## Linear(6, 1) with the tensor as its weight, {name}\n"),
    );
    let prepared = Model::new("M", Linear::new(values.to_vec(), 6, 1, None)?).prepare(qconfig)?;
    say(out, format_args!("prepare:\n{prepared}\n"));
    let model = prepared.convert()?;
    say(out, format_args!("convert:\n{model}\n"));
    let weight = model.linear().weight();
    say(out, format_args!("weight():\n{weight}"));
    show_qparams(out, weight.qparams());
    let codes = Printed::integers(weight.int_repr(), weight.shape(), Some("torch.int8"));
    say(out, format_args!("int_repr(): {codes}\n"));

    Ok(())
}
