//! Printing the results as text and as JSON.

use super::{Input, Quantized};
use llm_int8_affine::{AffineError, ErrorStatistics, QParams};
use serde_json::{Value, json};
use std::fmt::Write;

/// A table of the schemes, then the values with their codes side by side, or for many values the
/// tensors as torch prints them.
pub(super) fn text(input: &Input, results: &[Quantized]) -> Result<String, AffineError> {
    let x = input.tensor()?;
    let (min, max) = x.min_max()?;
    let name = input.name.as_ref().map_or(String::new(), |name| {
        format!("{name}, shape {:?}: ", input.shape)
    });
    let mut out = format!(
        "{name}{} numbers from {min} to {max}\n\n",
        input.values.len()
    );
    push(
        &mut out,
        format_args!(
            "{:<22}{:>14} {:>10}  {:>10} {:>10} {:>10} {:>9}",
            "scheme", "scale", "zero_point", "max error", "mean error", "RMS error", "SNR (dB)"
        ),
    );

    for result in results {
        let ErrorStatistics {
            max,
            mean,
            rms,
            signal_to_noise,
        } = result.tensor.errors(x);
        let (scale, zero_point) = qparams(result.tensor.qparams());
        push(
            &mut out,
            format_args!(
                "{:<22}{scale:>14} {zero_point:>10}  {:>10} {:>10} {:>10} {:>9}",
                result.name(),
                significant(max),
                significant(mean),
                significant(rms),
                if signal_to_noise.is_finite() {
                    format!("{signal_to_noise:.1}")
                } else {
                    "no error".into()
                },
            ),
        );
    }

    out.push('\n');
    if input.is_small() {
        side_by_side(&mut out, input, results);
    } else {
        results.iter().for_each(|result| {
            push(
                &mut out,
                format_args!("{}:\n{}\n", result.name(), result.tensor),
            )
        });
    }

    Ok(out)
}

fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}

/// Scale and zero point; for several channels the range from the smallest to the largest.
fn qparams(qparams: &QParams) -> (String, String) {
    let (scales, zeros): (Vec<f64>, Vec<i32>) = qparams.channels().unzip();
    let (least, most) = scales
        .iter()
        .fold((f64::INFINITY, 0f64), |(a, b), &x| (a.min(x), b.max(x)));
    let low = zeros.iter().min().copied().unwrap_or(0);
    let high = zeros.iter().max().copied().unwrap_or(0);

    let scale = match least == most {
        true if (1e-3..1e4).contains(&least) => format!("{least:.9}"),
        true => format!("{least:.7e}"),
        false => format!("{least:.1e}…{most:.1e}"),
    };
    (
        scale,
        if low == high {
            low.to_string()
        } else {
            format!("{low}…{high}")
        },
    )
}

/// A number with three significant digits.
fn significant(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }

    if (1e-4..1e5).contains(&x) {
        let places = (2 - x.log10().floor() as i32).max(0) as usize;
        format!("{x:.places$}")
    } else {
        format!("{x:.2e}")
    }
}

fn side_by_side(out: &mut String, input: &Input, results: &[Quantized]) {
    let mut heading = format!("{:>12}", "");
    let mut columns = format!("{:>12}", "value");
    for result in results {
        heading.push_str(&format!("  {:^32}", result.name()));
        columns.push_str(&format!(
            "  {:>6} {:>12} {:>12}",
            "code", "recovered", "error"
        ));
    }

    push(out, format_args!("{}", heading.trim_end()));
    push(out, format_args!("{columns}"));
    let recovered: Vec<Vec<f32>> = results
        .iter()
        .map(|result| result.tensor.dequantize())
        .collect();
    for (i, &x) in input.values.iter().enumerate() {
        let mut line = format!("{x:>12}");
        for (result, recovered) in results.iter().zip(&recovered) {
            let code = result.tensor.int_repr()[i];
            let y = recovered[i];
            line.push_str(&format!(
                "  {code:>6} {:>12} {:>12}",
                short(y),
                short(x - y)
            ));
        }

        push(out, format_args!("{line}"));
    }
}

/// A number with six decimals, without trailing zeros; in scientific notation if it is very small
/// or large.
fn short(x: f32) -> String {
    if x == 0.0 {
        return "0".into();
    }

    if !(1e-4..1e6).contains(&x.abs()) {
        return format!("{x:.4e}");
    }

    let text = format!("{x:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// One JSON object. `scale` and `zero_point` of a scheme are numbers, or lists if it is per
/// channel.
pub(super) fn json(input: &Input, results: &[Quantized]) -> Result<String, AffineError> {
    let x = input.tensor()?;
    let result = |result: &Quantized| {
        let errors = result.tensor.errors(x);
        let (scale, zero_point, axis) = match result.tensor.qparams() {
            QParams::PerTensor { scale, zero_point } => {
                (json!(scale), json!(zero_point), Value::Null)
            }
            QParams::PerChannel {
                scales,
                zero_points,
                axis,
            } => (json!(scales), json!(zero_points), json!(axis)),
        };

        json!({
            "scheme": result.name(),
            "dtype": result.tensor.dtype().to_string().trim_start_matches("torch."),
            "scale": scale,
            "zero_point": zero_point,
            "axis": axis,
            "codes": result.tensor.int_repr(),
            "dequantized": result.tensor.dequantize(),
            "errors": {
                "max": errors.max,
                "mean": errors.mean,
                "rms": errors.rms,
                // JSON has no infinity.
                "signal_to_noise_db": errors.signal_to_noise.is_finite().then_some(errors.signal_to_noise),
            },
        })
    };
    let results: Vec<Value> = results.iter().map(result).collect();
    let object = json!({ "tensor": input.name, "shape": input.shape, "values": input.values, "results": results });

    Ok(format!("{object}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_significant_digits() {
        assert_eq!(
            [significant(0.0), significant(0.01234), significant(123.4)],
            ["0", "0.0123", "123"]
        );
        assert_eq!(
            [significant(3e-7), significant(2.5e9)],
            ["3.00e-7", "2.50e9"]
        );
        assert_eq!(
            [short(3.0117648), short(-4.0), short(1.5e-7)],
            ["3.011765", "-4", "1.5000e-7"]
        );
    }
}
