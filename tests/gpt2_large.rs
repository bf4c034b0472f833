//! A full-size model on a device, against logits that a CPU computed before.
//!
//! `LLM_INT8_GPT2_LARGE` names the model's folder (scripts/make_random_gpt2.py makes one); without
//! it nothing is tested. `LLM_INT8_GPT2_LARGE_REFERENCE` names the file with the CPU's logits. If
//! `LLM_INT8_GPT2_LARGE_WRITE` is set, they are written to that file instead
//! (scripts/gpu_tests.sh).

use crate::support::devices::{distance, few_devices, on_device, options, step_by_step};
use crate::support::{Tensors, write_tensors};
use llm_int8_decoder::cuda::Device;
use llm_int8_decoder::{Decoder, ModelConfig, Placement, WeightDtype};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{OutlierRule, OutlierScope};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Blocks of a model that is too shallow for differences to grow, and the bound on its difference
/// as a fraction of the quantisation error.
const SHALLOW: usize = 2;
const SHALLOW_BOUND: f64 = 0.5;

/// The same bound for the whole model.
const DEEP_BOUND: f64 = 1.1;

const INT8: Option<OutlierRule> = Some(OutlierRule::Absolute {
    threshold: 6.0,
    scope: OutlierScope::Row,
});

/// Logits at each of four steps.
type Steps = Vec<Vec<f32>>;

/// The value of `LLM_INT8_GPT2_LARGE` with a suffix.
fn variable(suffix: &str) -> Option<String> {
    std::env::var(format!("LLM_INT8_GPT2_LARGE{suffix}")).ok()
}

/// A model, and its first blocks as a model of their own.
struct Models {
    file: PathBuf,
    deep: ModelConfig,
    shallow: ModelConfig,
}

impl Models {
    fn open(folder: &Path) -> Self {
        let config = std::fs::read(folder.join("config.json")).unwrap();
        Self {
            file: folder.join("model.safetensors"),
            deep: ModelConfig::parse(&config).unwrap(),
            shallow: ModelConfig::parse(&with_layers(&config, SHALLOW)).unwrap(),
        }
    }

    /// The logits of one of the models, and the number of graphs that were recorded.
    fn compute(
        &self,
        config: &ModelConfig,
        placement: Placement,
        int8: Option<OutlierRule>,
        uses_graphs: bool,
    ) -> (Steps, usize) {
        let files = [self.file.clone()];
        let checkpoint = Arc::new(Checkpoint::open_safetensors(&files, None).unwrap());
        let options = options(int8, WeightDtype::Float16, placement);
        let mut model = Decoder::load(config, &checkpoint, &options, &mut |_| ())
            .unwrap()
            .0;
        model.set_graphs(uses_graphs);

        // A prompt of 128 tokens and twelve more, or what a smaller model has positions for.
        let vocabulary = model.spec().vocab_size();
        let positions = model.spec().positions.min(140);
        let ids: Vec<u32> = (0..positions)
            .map(|i| (i * 7919 % vocabulary) as u32)
            .collect();
        let mut logits = step_by_step(&model, &ids, positions - 12);

        // After the prompt, by launches, by the new graph, and at the end.
        let logits = [0, 1, 2, 12]
            .map(|step| std::mem::take(&mut logits[step]))
            .to_vec();
        (logits, model.graph_count())
    }

    /// Writes the CPU's logits.
    fn write_reference(&self, path: &Path) {
        let mut tensors = Tensors::new();
        for (name, config, int8) in [
            ("int8", &self.deep, INT8),
            ("float", &self.deep, None),
            ("shallow int8", &self.shallow, INT8),
            ("shallow float", &self.shallow, None),
        ] {
            let (logits, _) = self.compute(config, Placement::cpu(), int8, false);
            let values: Vec<u8> = logits
                .iter()
                .flatten()
                .flat_map(|x| x.to_le_bytes())
                .collect();
            let shape = vec![logits.len(), logits[0].len()];
            tensors.insert(name.into(), (safetensors::Dtype::F32, shape, values));
        }

        let sample = sample_of(&self.file);
        tensors.insert(
            "sample".into(),
            (safetensors::Dtype::U8, vec![sample.len()], sample),
        );
        write_tensors(path, &tensors);
    }
}

/// What the CPU computed.
struct Reference {
    int8: Steps,
    float: Steps,
    shallow_int8: Steps,
    shallow_float: Steps,
}

impl Reference {
    fn read(path: &Path, models: &Models) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(
            file.tensor("sample").unwrap().data() == sample_of(&models.file),
            "the reference is of another model"
        );

        let steps = |name: &str| -> Steps {
            let logits = file.tensor(name).unwrap();
            let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(logits.data());
            values
                .chunks(logits.shape()[1])
                .map(<[f32]>::to_vec)
                .collect()
        };
        Self {
            int8: steps("int8"),
            float: steps("float"),
            shallow_int8: steps("shallow int8"),
            shallow_float: steps("shallow float"),
        }
    }
}

#[test]
fn device_logits_match_the_cpu() {
    let Some(folder) = variable("") else {
        println!("skipped: LLM_INT8_GPT2_LARGE names no model");
        return;
    };

    let models = Models::open(Path::new(&folder));
    if let Some(path) = variable("_WRITE") {
        models.write_reference(path.as_ref());
        return;
    }

    let path = variable("_REFERENCE").expect("a file with the CPU's logits");
    let reference = Reference::read(path.as_ref(), &models);
    for device in few_devices() {
        check_device(&models, &reference, &device);
    }
}

fn check_device(models: &Models, reference: &Reference, device: &Device) {
    let what = format!("{device:?}, overlap {}", device.overlaps_kernels());
    let on_device = || on_device(device);
    let (float, _) = models.compute(&models.deep, on_device(), None, true);
    let (by_graphs, graphs) = models.compute(&models.deep, on_device(), INT8, true);
    assert!(graphs > 0, "no graph was recorded on {what}");

    let (by_launches, _) = models.compute(&models.deep, on_device(), INT8, false);
    assert!(by_graphs == by_launches, "graphs change numbers on {what}");

    let (shallow, _) = models.compute(&models.shallow, on_device(), INT8, true);

    for step in 0..reference.int8.len() {
        let apart = distance(&float[step], &reference.float[step]);
        println!("{what}: step {step}, float {apart:.6}");
        assert!(apart < 1e-3, "step {step} on {what}: {apart}");

        // Where the last bit of a norm differs, an int8 code may differ by one, and the difference
        // grows from block to block. After two blocks it is a small part of the quantisation error.
        // After 36 blocks of random weights it is nearly as large: the CPU's own logits move by
        // 0.75 to 0.86 of that error when the last bit of every 64th position embedding changes.
        for (blocks, ours, theirs, float, bound) in [
            (
                "two blocks",
                &shallow,
                &reference.shallow_int8,
                &reference.shallow_float,
                SHALLOW_BOUND,
            ),
            (
                "all blocks",
                &by_graphs,
                &reference.int8,
                &reference.float,
                DEEP_BOUND,
            ),
        ] {
            let apart = distance(&ours[step], &theirs[step]);
            let quantised = distance(&theirs[step], &float[step]);
            println!(
                "{what}: step {step}, {blocks}: int8 {apart:.6}, quantising changes {quantised:.6}"
            );
            assert!(
                apart < bound * quantised,
                "{blocks}, step {step} on {what}: {apart} of {quantised}"
            );
        }
    }
}

/// `config.json` of the model's first blocks.
fn with_layers(config: &[u8], layers: usize) -> Vec<u8> {
    let mut config: serde_json::Value = serde_json::from_slice(config).unwrap();
    config["n_layer"] = layers.into();
    serde_json::to_vec(&config).unwrap()
}

/// Bytes from all over a file, which tell models of the same size apart.
fn sample_of(path: &Path) -> Vec<u8> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut sample = length.to_le_bytes().to_vec();
    for part in 0..64 {
        file.seek(SeekFrom::Start(length / 64 * part)).unwrap();
        let mut bytes = [0; 16];
        file.read_exact(&mut bytes).unwrap();
        sample.extend_from_slice(&bytes);
    }

    sample
}
