//! Prints tensors as torch does (`torch/_tensor_str.py`) and floats as Python does.

use crate::{QParams, QuantizedTensor};
use std::fmt;

/// torch's default print options.
const LINE_WIDTH: usize = 80;
const PRECISION: usize = 4;
/// Tensors with more elements are summarised.
const SUMMARIZE_ABOVE: usize = 1000;
/// Items shown at both ends of each dimension of a summarised tensor.
const EDGE: usize = 3;
/// What a printed tensor starts with; later lines are indented by its length.
const PREFIX: &str = "tensor(";

/// A float as Python's `repr` writes it: `0.0470588244497776`, `1.1920928955078125e-07`, `1.0`,
/// `inf`.
///
/// ```
/// use llm_int8_affine::print::python_float;
/// assert_eq!(python_float(1.0), "1.0");
/// assert_eq!(python_float(f32::EPSILON.into()), "1.1920928955078125e-07");
/// assert_eq!(python_float(1e22), "1e+22");
/// ```
pub fn python_float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan".into()
        } else {
            x.to_string()
        };
    }

    let scientific = format!("{x:e}");
    let exponent: i32 = scientific
        .split_once('e')
        .and_then(|(_, e)| e.parse().ok())
        .unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        python_exponent(&scientific)
    } else {
        format!("{x:?}")
    }
}

/// `1e-7` → `1e-07`.
fn python_exponent(scientific: &str) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let (sign, digits) = exponent
        .strip_prefix('-')
        .map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// A tensor's values.
#[derive(Debug, Clone, Copy)]
enum Numbers<'a> {
    Floats(&'a [f64]),
    Integers(&'a [i32]),
}

/// A tensor as torch prints it: `tensor([...], suffix, suffix)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Printed {
    body: String,
    suffixes: Vec<String>,
}

impl Printed {
    /// A float32 tensor, row-major.
    ///
    /// ```
    /// use llm_int8_affine::print::Printed;
    /// assert_eq!(Printed::floats(&[1.0, -2.5], &[2]).to_string(), "tensor([ 1.0000, -2.5000])");
    /// assert_eq!(Printed::floats(&[1.0, 2.0], &[2, 1]).to_string(), "tensor([[1.],\n        [2.]])");
    /// ```
    pub fn floats(values: &[f32], shape: &[usize]) -> Self {
        let wide: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
        Self {
            body: body(Numbers::Floats(&wide), shape),
            suffixes: Vec::new(),
        }
    }

    /// A float64 tensor, row-major.
    pub fn doubles(values: &[f64], shape: &[usize]) -> Self {
        Self {
            body: body(Numbers::Floats(values), shape),
            suffixes: vec!["dtype=torch.float64".into()],
        }
    }

    /// An integer tensor, row-major. `dtype` is printed unless it is `None`, as for torch's int64.
    ///
    /// ```
    /// use llm_int8_affine::print::Printed;
    /// let printed = Printed::integers(&[64, -117], &[1, 2], Some("torch.int8"));
    /// assert_eq!(printed.to_string(), "tensor([[  64, -117]], dtype=torch.int8)");
    /// ```
    pub fn integers(values: &[i32], shape: &[usize], dtype: Option<&str>) -> Self {
        let suffixes = dtype
            .map(|dtype| format!("dtype={dtype}"))
            .into_iter()
            .collect();
        Self {
            body: body(Numbers::Integers(values), shape),
            suffixes,
        }
    }

    /// Appends suffixes, such as `size=(6,)`.
    pub fn with_suffixes(mut self, suffixes: impl IntoIterator<Item = String>) -> Self {
        self.suffixes.extend(suffixes);
        self
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{PREFIX}{}", self.body);
        let mut length = text.len() - text.rfind('\n').unwrap_or(0);

        // The length of the last line, plus 2, as in torch's `_add_suffixes`.
        length = if text.contains('\n') {
            length + 1
        } else {
            length + 2
        };
        for suffix in &self.suffixes {
            if length + suffix.len() + 2 > LINE_WIDTH {
                text.push_str(&format!(",\n{:indent$}{suffix}", "", indent = PREFIX.len()));
                length = PREFIX.len() + suffix.len();
            } else {
                text.push_str(&format!(", {suffix}"));
                length += suffix.len() + 2;
            }
        }

        write!(f, "{text})")
    }
}

impl fmt::Display for QuantizedTensor {
    /// As `print(q)` in torch.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut suffixes = vec![
            format!("size={}", python_tuple(self.shape())),
            format!("dtype={}", self.dtype()),
            format!("quantization_scheme={}", self.qparams().scheme()),
        ];

        match self.qparams() {
            QParams::PerTensor { scale, zero_point } => {
                suffixes.push(format!("scale={}", python_float(*scale)));
                suffixes.push(format!("zero_point={zero_point}"));
            }
            QParams::PerChannel {
                scales,
                zero_points,
                axis,
            } => {
                suffixes.push(format!(
                    "scale={}",
                    Printed::doubles(scales, &[scales.len()])
                ));
                let zeros = Printed::integers(zero_points, &[zero_points.len()], None);
                suffixes.push(format!("zero_point={zeros}"));
                suffixes.push(format!("axis={axis}"));
            }
        }

        write!(
            f,
            "{}",
            Printed::floats(&self.dequantize(), self.shape()).with_suffixes(suffixes)
        )
    }
}

/// `(6,)`, `(1, 6)`, `()`.
fn python_tuple(shape: &[usize]) -> String {
    match shape {
        [one] => format!("({one},)"),
        shape => format!(
            "({})",
            shape
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// The bracketed values.
fn body(numbers: Numbers<'_>, shape: &[usize]) -> String {
    let count: usize = shape.iter().product();
    if count == 0 {
        return "[]".into();
    }

    let layout = Layout {
        summarize: count > SUMMARIZE_ABOVE,
    };
    let mut shown = Vec::new();
    layout.shown(shape, 0, &mut shown);
    let format = match numbers {
        Numbers::Floats(values) => {
            Format::of(&shown.iter().map(|&i| values[i]).collect::<Vec<_>>())
        }
        Numbers::Integers(values) => {
            let width = shown
                .iter()
                .map(|&i| values[i].to_string().len())
                .max()
                .unwrap_or(1);
            Format {
                style: Style::Integer,
                width,
            }
        }
    };

    let text = |i: usize| match numbers {
        Numbers::Floats(values) => format.text(values[i]),
        Numbers::Integers(values) => format!("{:>width$}", values[i], width = format.width),
    };

    if shape.is_empty() {
        return text(0);
    }

    layout.text(shape, 0, PREFIX.len(), format.width, &text)
}

/// Decides which elements are shown, and breaks them into lines.
struct Layout {
    summarize: bool,
}

impl Layout {
    /// The indices shown along a dimension; `None` is the ellipsis.
    fn places(&self, size: usize) -> Vec<Option<usize>> {
        if self.summarize && size > 2 * EDGE {
            (0..EDGE)
                .map(Some)
                .chain([None])
                .chain((size - EDGE..size).map(Some))
                .collect()
        } else {
            (0..size).map(Some).collect()
        }
    }

    /// Collects the row-major indices of all elements shown; they decide the format.
    fn shown(&self, shape: &[usize], offset: usize, into: &mut Vec<usize>) {
        let Some((&size, rest)) = shape.split_first() else {
            return into.push(offset);
        };
        let stride: usize = rest.iter().product();

        for place in self.places(size).into_iter().flatten() {
            self.shown(rest, offset + place * stride, into);
        }
    }

    /// The text of the sub-tensor that starts at `offset`. `width` is that of a number.
    fn text(
        &self,
        shape: &[usize],
        offset: usize,
        indent: usize,
        width: usize,
        number: &impl Fn(usize) -> String,
    ) -> String {
        let Some((&size, rest)) = shape.split_first() else {
            return number(offset);
        };
        let places = self.places(size);
        let margin = " ".repeat(indent + 1);

        if rest.is_empty() {
            let per_line = ((LINE_WIDTH.saturating_sub(indent)) / (width + 2)).max(1);
            let numbers: Vec<String> = places
                .iter()
                .map(|place| place.map_or(" ...".into(), |i| number(offset + i)))
                .collect();
            let lines: Vec<String> = numbers
                .chunks(per_line)
                .map(|line| line.join(", "))
                .collect();
            return format!("[{}]", lines.join(&format!(",\n{margin}")));
        }

        let stride: usize = rest.iter().product();
        let part = |place: &Option<usize>| match place {
            Some(i) => self.text(rest, offset + i * stride, indent + 1, width, number),
            None => "...".into(),
        };

        let parts: Vec<String> = places.iter().map(part).collect();
        format!(
            "[{}]",
            parts.join(&format!(",{}{margin}", "\n".repeat(rest.len())))
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Style {
    Integer,
    /// Floats that are all integers: `3.`.
    Whole,
    Fixed,
    Scientific,
}

/// The format of all numbers of a tensor (torch's `_Formatter`).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Format {
    style: Style,
    width: usize,
}

impl Format {
    /// The format that torch chooses for these values.
    fn of(values: &[f64]) -> Self {
        let counted: Vec<f64> = values
            .iter()
            .copied()
            .filter(|x| x.is_finite() && *x != 0.0)
            .collect();
        let (min, max) = counted.iter().fold((f64::INFINITY, 0f64), |(min, max), x| {
            (min.min(x.abs()), max.max(x.abs()))
        });
        let whole = counted.iter().all(|x| x.fract() == 0.0);
        let wide =
            !counted.is_empty() && (max / min > 1000.0 || max > 1e8 || (!whole && min < 1e-4));
        let style = match (whole, wide) {
            (_, true) => Style::Scientific,
            (true, false) => Style::Whole,
            (false, false) => Style::Fixed,
        };

        let bare = Self { style, width: 0 };
        let width = counted
            .iter()
            .map(|&x| bare.text(x).len())
            .max()
            .unwrap_or(1);
        Self { style, width }
    }

    fn text(&self, x: f64) -> String {
        let text = match self.style {
            Style::Scientific => python_exponent(&format!("{x:.PRECISION$e}")),
            Style::Fixed => format!("{x:.PRECISION$}"),
            Style::Whole | Style::Integer => format!("{x:.0}."),
        };

        format!("{text:>width$}", width = self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_print_as_torch_does() {
        assert_eq!(
            Printed::floats(&[0.0, 0.0], &[2]).to_string(),
            "tensor([0., 0.])"
        );
        assert_eq!(Printed::floats(&[-0.0], &[1]).to_string(), "tensor([-0.])");
    }

    #[test]
    fn a_wide_range_prints_with_exponents() {
        let text = Printed::floats(&[1.0e-5, 1.0], &[2]).to_string();
        assert_eq!(text, "tensor([1.0000e-05, 1.0000e+00])");
    }

    #[test]
    fn more_than_a_thousand_elements_are_summarised() {
        let values: Vec<i32> = (0..1001).collect();
        let text = Printed::integers(&values, &[1001], None).to_string();
        assert_eq!(text, "tensor([   0,    1,    2,  ...,  998,  999, 1000])");
    }
}
