//! bitsandbytes' results for ten matmuls.

use crate::{assert_near, devices, golden};
use half::f16;
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::{
    Int8Matrix, Outliers, Output, QuantizedMemory, Source, gemv, matmul, quantize,
};
use safetensors::SafeTensors;

/// One matmul: its tensors are named `{name}.{tensor}`.
struct Case<'a> {
    name: String,
    file: &'a SafeTensors<'a>,
    threshold: f32,
}

impl Case<'_> {
    fn bytes(&self, tensor: &str) -> Vec<u8> {
        self.file
            .tensor(&format!("{}.{tensor}", self.name))
            .unwrap()
            .data()
            .to_vec()
    }

    fn values<T: bytemuck::Pod>(&self, tensor: &str) -> Vec<T> {
        bytemuck::allocation::pod_collect_to_vec(&self.bytes(tensor))
    }

    fn shape(&self, tensor: &str) -> [usize; 2] {
        let view = self
            .file
            .tensor(&format!("{}.{tensor}", self.name))
            .unwrap();
        [view.shape()[0], view.shape()[1]]
    }

    fn bias(&self) -> Option<Vec<f32>> {
        let name = format!("{}.bias", self.name);
        let has_bias = self.file.names().contains(&name.as_str());
        has_bias.then(|| {
            self.values::<f16>("bias")
                .iter()
                .map(|x| x.to_f32())
                .collect()
        })
    }

    fn check(&self, device: &Device) {
        let what = format!("{} on {device:?}", self.name);
        let matrix = self.quantized_weight(device, &what);
        self.check_matmul(device, &matrix, &what);
    }

    /// Quantises the weight and compares its codes and absmax.
    fn quantized_weight(&self, device: &Device, what: &str) -> Int8Matrix {
        let [n, k] = self.shape("weight");
        let matrix = Int8Matrix::new(device, n, k).unwrap();
        let mark = Int8Matrix::mark(device).unwrap();
        matrix
            .quantize_rows(
                device.upload(&self.values::<f16>("weight")).unwrap().all(),
                0..n,
                &mark,
            )
            .unwrap();
        assert_eq!(Int8Matrix::check_finite(&mark).unwrap(), None, "{what}");

        let mut codes = vec![0i8; n * matrix.pitch()];
        let mut absmax = vec![0f32; n];
        matrix.codes().read(&mut codes).unwrap();
        matrix.absmax().read(&mut absmax).unwrap();
        let codes: Vec<i8> = codes
            .chunks(matrix.pitch())
            .flat_map(|row| &row[..k])
            .copied()
            .collect();
        assert_eq!(
            (codes, absmax),
            (self.values("weight_int8"), self.values("weight_absmax")),
            "{what}"
        );
        matrix
    }

    fn outliers(&self) -> Outliers {
        Outliers::Absolute {
            threshold: self.threshold,
            by_row: false,
        }
    }

    /// Quantises the activations and compares them, then the outputs of the matmul.
    fn check_matmul(&self, device: &Device, matrix: &Int8Matrix, what: &str) {
        let [m, k] = self.shape("a");
        let n = matrix.out_features();
        let a = device.upload(&self.values::<f16>("a")).unwrap();
        let memory = QuantizedMemory::new(device, m, k).unwrap();
        let source = Source::plain(a.all(), m, k);
        let quantized = quantize(&source, self.outliers(), &memory).unwrap();
        assert_eq!(
            quantized.codes().unwrap(),
            self.values::<i8>("a_int8"),
            "{what}"
        );
        assert_eq!(
            quantized.absmax().unwrap(),
            self.values::<f32>("a_absmax"),
            "{what}"
        );
        let columns: Vec<i64> = quantized
            .columns()
            .unwrap()
            .into_iter()
            .map(i64::from)
            .collect();
        assert_eq!(columns, self.values::<i64>("outlier_cols"), "{what}");

        let bias = self.bias().map(|bias| device.upload(&bias).unwrap());
        let out = device.allocate::<f16>(m * n).unwrap();
        let output = Output {
            bias: bias.as_ref().map(|bias| bias.all()),
            ..Output::plain(out.all(), n)
        };
        let theirs = self.values::<f32>("out_exact");
        let compare = |kernel: &str| {
            let ours: Vec<f32> = out.to_vec().unwrap().iter().map(|x| x.to_f32()).collect();
            // Ours are rounded to f16.
            assert_near(&ours, &theirs, 5e-4, &format!("{what}, {kernel}"));
        };

        matmul(&quantized, matrix, &output).unwrap();
        compare("matmul");
        if m == 1 {
            assert!(gemv(&source, self.outliers(), matrix, &output).unwrap());
            compare("gemv");
        }
    }
}

#[test]
fn codes_absmax_and_columns_equal_bitsandbytes_and_outputs_are_near() {
    let bytes = std::fs::read(golden("llm_int8_matmul.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let mut thresholds: Vec<(String, f32)> = (metadata.iter())
        .filter_map(|(key, value)| {
            Some((
                key.strip_suffix(".threshold")?.to_owned(),
                value.parse().ok()?,
            ))
        })
        .collect();
    thresholds.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(thresholds.len(), 10);

    for device in devices() {
        for (name, threshold) in &thresholds {
            Case {
                name: name.clone(),
                file: &file,
                threshold: *threshold,
            }
            .check(&device);
        }
    }
}
