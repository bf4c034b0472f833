//! Numbers for `affine`: one per argument, or pasted as Python, numpy and torch print them.

use super::UsageError;
use std::ffi::{OsStr, OsString};

/// Maximum nesting of brackets.
const DEEPEST: usize = 32;

const EXPECTED: &str =
    "write numbers as Python prints them: 3 -5.5 3e-05, [1.0, -2.5], tensor([1., 2.])";

/// The arguments of the program, with a space before negative numbers for `affine`: clap takes
/// `-5.5` for a number, but `-2e-05`, `-.5` and `-inf` for options.
pub(crate) fn with_negative_numbers(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.collect();
    if arguments.get(1).is_some_and(|command| command == "affine") {
        for argument in &mut arguments[2..] {
            if argument.to_str().is_some_and(is_negative) {
                *argument = [OsStr::new(" "), argument].into_iter().collect();
            }
        }
    }

    arguments
}

/// Whether an argument begins like a negative number.
fn is_negative(text: &str) -> bool {
    let Some(number) = text.strip_prefix('-') else {
        return false;
    };

    let number = number.to_ascii_lowercase();
    number.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || ["inf", "nan"].iter().any(|name| number.starts_with(name))
}

/// Numbers, and the shape that their brackets give them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) values: Vec<f32>,
    pub(crate) shape: Vec<usize>,
}

impl Numbers {
    /// Parses arguments. The boundary between two of them counts as a space.
    pub(crate) fn read(arguments: &[String]) -> Result<Self, UsageError> {
        let text = arguments.join(" ");
        let mut reader = Reader {
            text: &text,
            place: 0,
            values: Vec::new(),
        };

        let mut shapes = Vec::new();
        while let Some(shape) = reader.item(0).map_err(UsageError)? {
            shapes.push(shape);
        }

        if let Some(rest) = reader.peek() {
            return Err(UsageError(format!("`{rest}` closes nothing; {EXPECTED}")));
        }

        let shape = match &shapes[..] {
            // A single number is a tensor of shape [1].
            [scalar] if scalar.is_empty() => vec![1],
            [one] => one.clone(),
            _ => common(&shapes).map_err(UsageError)?,
        };

        Ok(Self {
            values: reader.values,
            shape,
        })
    }
}

/// The shape of a list whose items have these shapes, which must be equal.
fn common(shapes: &[Vec<usize>]) -> Result<Vec<usize>, String> {
    let first = shapes.first().cloned().unwrap_or_default();
    match shapes.iter().find(|shape| **shape != first) {
        Some(other) => {
            let text = |shape: &[usize]| match shape {
                [] => "a number".to_owned(),
                shape => format!("a list of shape {shape:?}"),
            };
            Err(format!(
                "a list contains {} beside {}; all items must have the same shape",
                text(&first),
                text(other)
            ))
        }
        None => Ok([&[shapes.len()], &first[..]].concat()),
    }
}

/// A recursive descent parser.
struct Reader<'a> {
    text: &'a str,
    place: usize,
    values: Vec<f32>,
}

impl<'a> Reader<'a> {
    /// Parses the next number, list or call and returns its shape; `None` before a closing bracket
    /// and at the end.
    fn item(&mut self, depth: usize) -> Result<Option<Vec<usize>>, String> {
        if depth > DEEPEST {
            return Err(format!("more than {DEEPEST} nested brackets"));
        }

        loop {
            let had_comma = self.separator()?;
            let word = match self.peek() {
                None | Some(')' | ']') => return Ok(None),
                Some(open @ ('[' | '(')) => return self.list(open, depth).map(Some),
                Some(_) => self.word(),
            };

            // A keyword argument after the numbers of a tensor, such as dtype=torch.float32.
            if word.contains('=') && depth > 0 && had_comma {
                self.skip_value();
                continue;
            }

            if self.peek() == Some('(') && is_call(word) {
                return self.call(depth).map(Some);
            }

            self.values.push(number(word)?);
            return Ok(Some(Vec::new()));
        }
    }

    /// Parses a list in brackets and returns its shape.
    fn list(&mut self, open: char, depth: usize) -> Result<Vec<usize>, String> {
        self.place += 1;
        let mut shapes = Vec::new();
        while let Some(shape) = self.item(depth + 1)? {
            shapes.push(shape);
        }

        let close = if open == '[' { ']' } else { ')' };
        if self.peek() != Some(close) {
            return Err(format!(
                "a `{open}` lacks its `{close}`; quote arguments with brackets or spaces"
            ));
        }

        self.place += 1;
        match shapes.is_empty() {
            true => Ok(vec![0]),
            false => common(&shapes),
        }
    }

    /// Parses the argument of `tensor(…)` and returns its shape.
    fn call(&mut self, depth: usize) -> Result<Vec<usize>, String> {
        let shape = self.list('(', depth)?;
        match shape.split_first() {
            Some((1, inner)) => Ok(inner.to_vec()),
            _ => Err(format!(
                "expected one list or number in parentheses; {EXPECTED}"
            )),
        }
    }

    /// Skips spaces and at most one comma; returns whether there was a comma.
    fn separator(&mut self) -> Result<bool, String> {
        self.skip_spaces();
        if self.peek() != Some(',') {
            return Ok(false);
        }

        self.place += 1;
        self.skip_spaces();
        match self.peek() {
            Some(',') => Err(format!("two commas with nothing between them; {EXPECTED}")),
            _ => Ok(true),
        }
    }

    fn skip_spaces(&mut self) {
        let rest = &self.text[self.place..];
        self.place += rest.len() - rest.trim_start().len();
    }

    fn peek(&self) -> Option<char> {
        self.text[self.place..].chars().next()
    }

    /// Everything up to the next space, comma or bracket.
    fn word(&mut self) -> &'a str {
        let rest = &self.text[self.place..];
        let ends = |c: char| c.is_whitespace() || [',', '[', ']', '(', ')'].contains(&c);
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.place += word.len();
        word
    }

    /// Skips the rest of a keyword argument, such as the tuple of `size=(6,)`.
    fn skip_value(&mut self) {
        let mut depth = 0usize;
        let rest = &self.text[self.place..];
        let ends = |c: char| {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' if depth > 0 => depth -= 1,
                ',' | ')' | ']' if depth == 0 => return true,
                _ => {}
            }

            false
        };
        self.place += rest.find(ends).unwrap_or(rest.len());
    }
}

/// Whether `word` is a name that Python prints before the parentheses of a tensor or number.
fn is_call(word: &str) -> bool {
    let name = ["torch.", "np.", "numpy."]
        .iter()
        .find_map(|module| word.strip_prefix(module))
        .unwrap_or(word);
    [
        "tensor", "array", "Tensor", "float16", "float32", "float64", "float", "int8", "int32",
        "int64",
    ]
    .contains(&name)
}

/// Parses a number like Python, and rounds it to float32 like `torch.tensor`: by way of float64.
fn number(word: &str) -> Result<f32, String> {
    if word.contains("...") || word.contains('…') {
        return Err(format!(
            "`{word}` leaves out numbers; print all of them (torch.set_printoptions(profile='full'))"
        ));
    }

    let wrong = || format!("`{word}` is not a number; {EXPECTED}");
    let bytes = word.as_bytes();
    let is_digit = |place: Option<usize>| {
        place
            .and_then(|i| bytes.get(i))
            .is_some_and(u8::is_ascii_digit)
    };

    // Underscores may only separate digits, as in 1_000.
    let are_placed = |(i, _): (usize, &str)| is_digit(i.checked_sub(1)) && is_digit(Some(i + 1));
    if !word.match_indices('_').all(are_placed) {
        return Err(wrong());
    }

    let value: f64 = word.replace('_', "").parse().map_err(|_| wrong())?;
    let is_written_infinite = word.to_ascii_lowercase().contains("inf");
    match value as f32 {
        rounded if rounded.is_infinite() && !is_written_infinite => Err(format!(
            "`{word}` is beyond float32, whose largest number is {:e}",
            f32::MAX
        )),
        rounded => Ok(rounded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Numbers, String> {
        let arguments: Vec<String> = text.split(' ').map(str::to_owned).collect();
        Numbers::read(&arguments).map_err(|error| error.0)
    }

    fn values(text: &str) -> Vec<f32> {
        read(text).unwrap().values
    }

    #[test]
    fn numbers_are_parsed_as_python_prints_them() {
        assert_eq!(values("3e-05 -2e-05"), [3e-5, -2e-5]);
        assert_eq!(
            values("-1E-3 -.5 1e+10 +2 5. 1_000 -1_0.2_5e1_0"),
            [-1e-3, -0.5, 1e10, 2.0, 5.0, 1000.0, -10.25e10]
        );
        let zero = values("-0.0")[0];
        assert!(zero == 0.0 && zero.is_sign_negative());
        assert_eq!(values("-inf Infinity"), [f32::NEG_INFINITY, f32::INFINITY]);
        assert!(values("nan")[0].is_nan() && values("-NaN")[0].is_nan());
        // torch.tensor(1.00000017881393432617187499) == 1.0000001192092896: rounded twice.
        assert_eq!(
            values("1.00000017881393432617187499")[0].to_bits(),
            0x3f80_0002
        );
    }

    #[test]
    fn negative_numbers_are_not_options() {
        let escaped = |text: &str| {
            let arguments = ["llm-int8", "affine"]
                .into_iter()
                .chain(text.split(' '))
                .map(OsString::from);
            let all = with_negative_numbers(arguments);
            all[2..]
                .iter()
                .map(|argument| argument.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };

        for number in [
            "-2e-05",
            "-1E-3",
            "-.5",
            "-5.5",
            "-inf",
            "-Infinity",
            "-nan",
            "-1]",
            "-2.5,",
        ] {
            assert_eq!(escaped(number), [format!(" {number}")]);
        }

        let options = ["1", "-h", "-V", "--json", "--scheme", "-", "--", "-x"];
        assert_eq!(escaped(&options.join(" ")), options);
        let others = ["llm-int8", "run", "-5"].map(OsString::from);
        assert_eq!(with_negative_numbers(others.clone().into_iter()), others);
    }

    #[test]
    fn lists_and_tensors_keep_their_shape() {
        for (text, shape) in [
            ("1 2 3", vec![3]),
            ("1, 2, 3,", vec![3]),
            ("[1.0, -2.5]", vec![2]),
            ("[[1, 2], [3, 4], [5, 6]]", vec![3, 2]),
            ("[[1. 2.]\n [3. 4.]]", vec![2, 2]),
            ("[1, 2] [3, 4]", vec![2, 2]),
            ("(1, 2)", vec![2]),
            ("7", vec![1]),
            ("tensor(7.)", vec![1]),
            ("tensor([ 3.0000e-05, -2.0000e-05])", vec![2]),
            (
                "tensor([[1., 2.],\n        [3., 4.]], dtype=torch.float64, requires_grad=True)",
                vec![2, 2],
            ),
            (
                "tensor([1., 2.], device='cuda:0', grad_fn=<AddBackward0>)",
                vec![2],
            ),
            ("array([1., 2.], dtype=float32)", vec![2]),
            ("[np.float32(1.5), np.float32(-2.0)]", vec![2]),
            (
                "tensor([1., 2.], size=(2,), dtype=torch.qint8, quantization_scheme=torch.per_tensor_affine, scale=0.1)",
                vec![2],
            ),
        ] {
            let found = read(text).unwrap();
            assert_eq!(found.shape, shape, "{text}");
            assert_eq!(
                found.values.len(),
                shape.iter().product::<usize>(),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused_by_name() {
        for (text, words) in [
            ("1 two", "`two` is not a number"),
            ("1_ 2", "`1_` is not a number"),
            ("1__0", "`1__0`"),
            ("1e", "`1e`"),
            ("0x10", "`0x10`"),
            ("1j", "`1j`"),
            ("True", "`True`"),
            ("\u{2212}5", "`\u{2212}5` is not a number"),
            ("1e40", "`1e40` is beyond float32"),
            ("-1e400", "beyond float32"),
            ("--5", "`--5` is not a number"),
            ("dtype=float32", "is not a number"),
            ("[1, 2", "a `[` lacks its `]`"),
            ("[1, 2)", "a `[` lacks its `]`"),
            ("1]", "`]` closes nothing"),
            ("[1,, 2]", "two commas"),
            (
                "[[1, 2], [3]]",
                "a list of shape [2] beside a list of shape [1]",
            ),
            ("[1, [2]]", "a number beside a list of shape [1]"),
            ("tensor(1., 2.)", "one list or number"),
            ("[1, ..., 3]", "leaves out numbers"),
            ("foo(1)", "`foo` is not a number"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }

        assert!(
            read(&"[".repeat(100_000))
                .unwrap_err()
                .contains("more than 32 nested brackets")
        );
    }
}
