//! Goldens made with bitsandbytes: ten cases of one linear layer.

use super::{Layer, relative_error};
use half::f16;
use llm_int8_kernels::{
    Isa, MatMut, MatRef, OutlierRule, OutlierWeights, matmul_i32, quantize_activations,
    quantize_weight, quantize_weight_transposed,
};
use safetensors::SafeTensors;

/// The golden file, in the checkout or below `LLM_INT8_TEST_ROOT`.
fn file() -> std::path::PathBuf {
    let root = std::env::var_os("LLM_INT8_TEST_ROOT").map(std::path::PathBuf::from);
    let root = root.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into());
    root.join("tests/golden/llm_int8_matmul.safetensors")
}

const CASES: [&str; 10] = [
    "at_threshold",
    "decode",
    "many_outliers",
    "no_outlier",
    "odd",
    "outlier",
    "threshold0",
    "tiny",
    "zero_row",
    "zero_weight_row",
];

/// One case of the file, whose tensors are named `case.tensor`.
struct Case<'a> {
    name: &'a str,
    file: &'a SafeTensors<'a>,
    threshold: f32,
}

/// `[M, K]` activations and `[N, K]` weights.
struct Shape {
    m: usize,
    k: usize,
    n: usize,
}

impl Case<'_> {
    fn numbers<const SIZE: usize, T>(&self, tensor: &str, parse: fn([u8; SIZE]) -> T) -> Vec<T> {
        let view = self
            .file
            .tensor(&format!("{}.{tensor}", self.name))
            .unwrap();
        view.data()
            .as_chunks::<SIZE>()
            .0
            .iter()
            .map(|&bytes| parse(bytes))
            .collect()
    }

    fn f32(&self, tensor: &str) -> Vec<f32> {
        self.numbers(tensor, f32::from_le_bytes)
    }

    fn f16(&self, tensor: &str) -> Vec<f16> {
        self.numbers(tensor, f16::from_le_bytes)
    }

    fn i8(&self, tensor: &str) -> Vec<i8> {
        self.numbers(tensor, i8::from_le_bytes)
    }

    fn bias(&self) -> Option<Vec<f32>> {
        let name = format!("{}.bias", self.name);
        let given = self.file.names().contains(&name.as_str());
        given.then(|| self.f16("bias").iter().map(|x| x.to_f32()).collect())
    }

    fn shape(&self) -> Shape {
        let shape = |tensor| {
            self.file
                .tensor(&format!("{}.{tensor}", self.name))
                .unwrap()
                .shape()
                .to_vec()
        };

        let a = shape("a");
        let w = shape("weight");
        Shape {
            m: a[0],
            k: a[1],
            n: w[0],
        }
    }
}

/// Runs `check` for every case on every instruction set.
fn each_case(check: impl Fn(Isa, &Case<'_>)) {
    let bytes = std::fs::read(file()).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();

    for name in CASES {
        let threshold = metadata[&format!("{name}.threshold")].parse().unwrap();
        Isa::available().into_iter().for_each(|isa| {
            check(
                isa,
                &Case {
                    name,
                    file: &file,
                    threshold,
                },
            )
        });
    }
}

#[test]
fn weights_have_the_codes_and_absmax_of_bitsandbytes() {
    each_case(|isa, case| {
        let Shape { k, n, .. } = case.shape();
        let weight = case.f16("weight");
        let mut codes = vec![0; n * k];
        let mut absmax = vec![0.0; n];
        let target = MatMut::new(&mut codes, n, k).unwrap();
        quantize_weight(
            isa,
            MatRef::new(&weight, n, k).unwrap(),
            target,
            &mut absmax,
        )
        .unwrap();
        assert_eq!(codes, case.i8("weight_int8"), "{} {isa:?}", case.name);
        assert_eq!(absmax, case.f32("weight_absmax"), "{} {isa:?}", case.name);

        let stored: Vec<f16> = (0..k * n).map(|i| weight[i % n * k + i / n]).collect();
        codes.fill(0);
        let target = MatMut::new(&mut codes, n, k).unwrap();
        quantize_weight_transposed(
            isa,
            MatRef::new(&stored, k, n).unwrap(),
            target,
            &mut absmax,
        )
        .unwrap();
        assert_eq!(
            codes,
            case.i8("weight_int8"),
            "{} {isa:?} transposed",
            case.name
        );
        assert_eq!(
            absmax,
            case.f32("weight_absmax"),
            "{} {isa:?} transposed",
            case.name
        );
    });
}

#[test]
fn activations_have_the_codes_absmax_and_outlier_columns_of_bitsandbytes() {
    each_case(|isa, case| {
        let Shape { m, k, .. } = case.shape();
        let values = case.f16("a");
        let a = MatRef::new(&values, m, k).unwrap();
        let a = quantize_activations(isa, a, OutlierRule::batch(case.threshold));
        assert_eq!(a.codes().data(), case.i8("a_int8"), "{} {isa:?}", case.name);
        assert_eq!(a.absmax(), case.f32("a_absmax"), "{} {isa:?}", case.name);

        let columns: Vec<i64> = a
            .outliers()
            .distinct_columns()
            .into_iter()
            .map(i64::from)
            .collect();
        assert_eq!(
            columns,
            case.numbers("outlier_cols", i64::from_le_bytes),
            "{} {isa:?}",
            case.name
        );

        for row in 0..m {
            let (columns, originals) = a.outliers().row(row);
            assert_eq!(columns, a.outliers().distinct_columns());

            let expected = columns
                .iter()
                .map(|&c| values[row * k + c as usize].to_f32());
            assert!(originals.iter().copied().eq(expected));
        }
    });
}

#[test]
fn accumulators_are_exact() {
    each_case(|isa, case| {
        let Shape { m, k, n } = case.shape();
        let a = case.i8("a_int8");
        let w = case.i8("weight_int8");
        let mut out = vec![0; m * n];
        let a = MatRef::new(&a, m, k).unwrap();
        let w = MatRef::new(&w, n, k).unwrap();
        matmul_i32(isa, a, w, MatMut::new(&mut out, m, n).unwrap()).unwrap();
        assert_eq!(
            out,
            case.numbers("acc_i32", i32::from_le_bytes),
            "{} {isa:?}",
            case.name
        );
    });
}

#[test]
fn outputs_match_the_formula() {
    each_case(|isa, case| {
        let k = case.shape().k;
        let layer = Layer::new(&case.f16("weight"), k);
        let found = layer.forward(
            isa,
            &case.f16("a"),
            OutlierRule::batch(case.threshold),
            OutlierWeights::Dequantized,
            case.bias().as_deref(),
        );

        let error = relative_error(&found, &case.f32("out_exact"));
        assert!(error < 1e-5, "{} {isa:?}: {error}", case.name);
    });
}
