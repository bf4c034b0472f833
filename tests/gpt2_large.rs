//! A model of a real size on a device, beside what a CPU computed before.
//!
//! `LLM_INT8_GPT2_LARGE` names the model's folder (scripts/make_random_gpt2.py makes one); without
//! it nothing is tested. `LLM_INT8_GPT2_LARGE_REFERENCE` names the file with the CPU's logits, and
//! `LLM_INT8_GPT2_LARGE_WRITE` a file to which they are written instead (scripts/gpu_tests.sh).

use crate::support::devices::{distance, few_devices, on_device, options, step_by_step};
use crate::support::{Tensors, write_tensors};
use llm_int8_decoder::{Decoder, ModelConfig, Placement, WeightDtype};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::OutlierScope;
use std::path::Path;
use std::sync::Arc;

/// Blocks of the model that is too shallow for differences to grow, and how much of what quantising
/// changes they may be.
const SHALLOW: usize = 2;
const SHALLOW_BOUND: f64 = 0.5;

#[test]
fn device_logits_match_the_cpu() {
    let variable = |name: &str| std::env::var(format!("LLM_INT8_GPT2_LARGE{name}")).ok();
    let Some(folder) = variable("") else {
        println!("skipped: LLM_INT8_GPT2_LARGE names no model");
        return;
    };

    let folder = Path::new(&folder);
    let config_bytes = std::fs::read(folder.join("config.json")).unwrap();
    let config = ModelConfig::parse(&config_bytes).unwrap();
    let shallow = ModelConfig::parse(&with_layers(&config_bytes, SHALLOW)).unwrap();
    let file = [folder.join("model.safetensors")];
    let sample = sample_of(&file[0]);
    let compute = |config: &ModelConfig,
                   placement: Placement,
                   int8: Option<OutlierScope>,
                   uses_graphs: bool| {
        let checkpoint = Arc::new(Checkpoint::open_safetensors(&file, None).unwrap());
        let options = options(int8, WeightDtype::Float16, placement);
        let mut model = Decoder::load(config, &checkpoint, &options, &mut |_| ())
            .unwrap()
            .0;
        model.set_graphs(uses_graphs);
        // A prompt of 128 and twelve tokens after it, or what a smaller model has room for.
        let vocabulary = model.spec().vocab_size();
        let positions = model.spec().positions.min(140);
        let ids: Vec<u32> = (0..positions)
            .map(|i| (i * 7919 % vocabulary) as u32)
            .collect();
        let mut logits = step_by_step(&model, &ids, positions - 12);
        // After the prompt, by launches, by the graph when it is new, and at the end.
        let logits = [0, 1, 2, 12]
            .map(|step| std::mem::take(&mut logits[step]))
            .to_vec();
        (logits, model.graph_count())
    };

    let int8 = Some(OutlierScope::Row);

    if let Some(path) = variable("_WRITE") {
        let mut tensors = Tensors::new();
        let all = [
            ("int8", &config, int8),
            ("float", &config, None),
            ("shallow int8", &shallow, int8),
            ("shallow float", &shallow, None),
        ];

        for (name, config, int8) in all {
            let (logits, _) = compute(config, Placement::cpu(), int8, false);
            let values: Vec<u8> = logits
                .iter()
                .flatten()
                .flat_map(|x| x.to_le_bytes())
                .collect();
            let shape = vec![logits.len(), logits[0].len()];
            tensors.insert(name.into(), (safetensors::Dtype::F32, shape, values));
        }
        tensors.insert(
            "sample".into(),
            (safetensors::Dtype::U8, vec![sample.len()], sample),
        );
        write_tensors(path.as_ref(), &tensors);
        return;
    }

    let reference =
        std::fs::read(variable("_REFERENCE").expect("a file with the CPU's logits")).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&reference).unwrap();
    assert!(
        reference.tensor("sample").unwrap().data() == sample,
        "the reference is of another model"
    );

    let expected = |name: &str| -> Vec<Vec<f32>> {
        let logits = reference.tensor(name).unwrap();
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(logits.data());
        values
            .chunks(logits.shape()[1])
            .map(<[f32]>::to_vec)
            .collect()
    };

    let their_int8 = expected("int8");
    let their_float = expected("float");
    let their_shallow_int8 = expected("shallow int8");
    let their_shallow_float = expected("shallow float");
    for device in few_devices() {
        let what = format!("{device:?}, overlap {}", device.overlaps_kernels());
        let (float, _) = compute(&config, on_device(&device), None, true);
        let (by_graphs, graphs) = compute(&config, on_device(&device), int8, true);
        assert!(graphs > 0, "no graph was recorded on {what}");

        let (by_launches, _) = compute(&config, on_device(&device), int8, false);
        assert!(by_graphs == by_launches, "graphs change numbers on {what}");

        let (of_shallow, _) = compute(&shallow, on_device(&device), int8, true);

        for step in 0..their_int8.len() {
            let apart = distance(&float[step], &their_float[step]);
            println!("{what}: step {step}, float {apart:.6}");
            assert!(apart < 1e-3, "step {step} on {what}: {apart}");

            // Where the last bit of a norm differs, a code may be the one beside it, and what
            // follows from that grows from block to block. After two blocks it is little of what
            // quantising changes; after 36 of random weights nearly as much: the CPU's own logits
            // move by 0.75 to 0.86 of it when every 64th position embedding changes in its last
            // bit.
            let all = [
                (
                    "two blocks",
                    &of_shallow,
                    &their_shallow_int8,
                    &their_shallow_float,
                    SHALLOW_BOUND,
                ),
                ("all blocks", &by_graphs, &their_int8, &their_float, 1.1),
            ];

            for (blocks, ours, theirs, float, bound) in all {
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
}

/// `config.json` of the model's first blocks.
fn with_layers(config: &[u8], layers: usize) -> Vec<u8> {
    let mut config: serde_json::Value = serde_json::from_slice(config).unwrap();
    config["n_layer"] = layers.into();
    serde_json::to_vec(&config).unwrap()
}

/// Bytes from all over a file, by which two models of the same size are told apart.
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
