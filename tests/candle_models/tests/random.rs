//! Random checkpoints: a `VarBuilder` invents whatever a model asks for and writes it down, so that
//! every model finds a checkpoint that fits it.

use crate::support::over;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use llm_int8_nn::drop_in::BuiltLinear;
use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Linear};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// How much larger.
const LARGE: f32 = 8.0;

type Tensors = Arc<Mutex<HashMap<String, Tensor>>>;

/// Gives the same values for the same name.
struct Inventor(Tensors);

impl SimpleBackend for Inventor {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let tensor = Tensor::from_vec(invented(name, shape.dims()), shape, device)?;
        // Checkpoints hold halves.
        let tensor = tensor.to_dtype(DType::F16)?;
        let mut tensors = self.0.lock().unwrap();
        tensors.insert(name.into(), tensor.clone());
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: no shape to invent")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        // T5 looks for the first; where CLIP finds none of the others it takes random values.
        ["shared.weight", "class_embedding", "logit_scale"]
            .iter()
            .any(|end| name.ends_with(end))
    }
}

/// Whether a feature is large, as a few are in trained models: its norms are, and the weights that
/// read it are small.
fn is_large(feature: usize) -> bool {
    feature % 17 == 3
}

/// Values for the parameter of this name: weights keep the size of their input.
fn invented(name: &str, shape: &[usize]) -> Vec<f32> {
    // FNV-1a of the name.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = StdRng::seed_from_u64(seed);
    // A sum of uniform values is near enough to a normal one.
    let mut normal = || (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;

    let count: usize = shape.iter().product();
    let is_norm = name.contains("norm") || name.contains("LayerNorm");
    let is_table = name.contains("embed") || name.contains("shared");
    let value = |i: usize| match *shape {
        _ if is_norm && name.ends_with("weight") => {
            (1.0 + 0.1 * normal()) * if is_large(i) { LARGE } else { 1.0 }
        }
        _ if is_table => 0.5 * normal(),
        [_, inputs] => {
            let value = normal() / (inputs as f32).sqrt();
            value / if is_large(i % inputs) { LARGE } else { 1.0 }
        }
        [_, inputs, ref kernel @ ..] => {
            normal() / ((inputs * kernel.iter().product::<usize>()) as f32).sqrt()
        }
        _ => 0.05 * normal(),
    };
    (0..count).map(value).collect()
}

/// A checkpoint in a file of f16, and its folder.
pub(crate) struct Random {
    folder: TempDir,
    tensors: HashMap<String, Tensor>,
}

impl Random {
    /// Whatever `build` asks for.
    pub(crate) fn of(build: impl FnOnce(VarBuilder<'_>) -> Result<Tensor>) -> Self {
        let tensors = Tensors::default();
        let inventor = Inventor(tensors.clone());
        let vb = VarBuilder::from_backend(Box::new(inventor), DType::F32, Device::Cpu);
        build(vb).unwrap();

        let folder = TempDir::new().unwrap();
        let tensors = tensors.lock().unwrap().clone();
        candle_core::safetensors::save(&tensors, folder.path().join("float.safetensors")).unwrap();
        Self { folder, tensors }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The float checkpoint.
    pub(crate) fn float(&self) -> VarBuilder<'static> {
        over(&[self.file("float.safetensors")])
    }

    /// The same with these layers in 8 bit, as bitsandbytes saves them.
    pub(crate) fn int8(&self, layers: &[BuiltLinear]) -> VarBuilder<'static> {
        let mut bytes: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> = HashMap::new();
        for (name, tensor) in &self.tensors {
            let values = tensor
                .flatten_all()
                .unwrap()
                .to_vec1::<half::f16>()
                .unwrap();
            let data = values.iter().flat_map(|value| value.to_le_bytes());
            bytes.insert(
                name.clone(),
                (Dtype::F16, tensor.dims().into(), data.collect()),
            );
        }
        for layer in layers.iter().filter(|layer| layer.is_int8) {
            let float = self.tensors[&format!("{}.weight", layer.path)].clone();
            let float = FloatLinear::new(float, None).unwrap();
            let int8 = Int8Linear::quantize(&float, Int8Config::default()).unwrap();
            let weight = int8.weight().unwrap();
            let codes = weight.codes().iter().map(|code| *code as u8).collect();
            let absmax = weight.absmax().iter().flat_map(|value| value.to_le_bytes());
            let rows = vec![layer.shape[0]];
            for (part, of) in [
                ("weight", (Dtype::I8, layer.shape.to_vec(), codes)),
                ("SCB", (Dtype::F32, rows, absmax.collect())),
                ("weight_format", (Dtype::U8, vec![], vec![0])),
            ] {
                bytes.insert(format!("{}.{part}", layer.path), of);
            }
        }

        let views = bytes.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let file = self.file("int8.safetensors");
        safetensors::serialize_to_file(views, None, &file).unwrap();
        over(&[file])
    }
}
