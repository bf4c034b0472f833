//! `llm-int8 verify`: sound files pass, and every fault that is put into a copy is found where it
//! is.

use crate::support::golden_models::folders;
use crate::support::{
    Tensors, failure, golden, golden_text, llm_int8, read_tensors, stderr, stdout, tensors_of,
    write_tensors,
};
use half::f16;
use llm_int8::decoder::{LoadOptions, WeightDtype};
use llm_int8::hub::{HubConfig, NoProgress};
use llm_int8::verify::{Fault, Report, VerifyOptions, verify};
use llm_int8::{AutoModelForCausalLM, LlmError, LoadConfig, SaveOptions};
use safetensors::Dtype;
use std::ops::ControlFlow;
use std::path::Path;
use tempfile::TempDir;

const LAYER: &str = "transformer.h.0.attn.c_attn";

fn offline() -> HubConfig {
    HubConfig {
        offline: true,
        ..HubConfig::default()
    }
}

fn try_report(model: &Path, against: Option<&Path>) -> llm_int8::Result<Report> {
    let options = VerifyOptions {
        against: against.map(|path| path.display().to_string()),
        hub: offline(),
    };
    let model = model.display().to_string();
    verify(&model, &options, &NoProgress, &mut |_| {
        ControlFlow::Continue(())
    })
}

fn report(model: &Path, against: Option<&Path>) -> Report {
    try_report(model, against).unwrap()
}

/// The findings as tensor and kind.
fn found(report: &Report) -> Vec<(&str, Fault)> {
    let findings = report.findings.iter();
    findings.map(|f| (f.tensor.as_str(), f.fault)).collect()
}

/// A copy of a golden model with other tensors.
fn changed(model: &str, change: impl FnOnce(&mut Tensors)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut tensors = read_tensors(&format!("{model}/model.safetensors"));
    change(&mut tensors);
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    let config = golden_text(&format!("{model}/config.json"));
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

fn changed_int8(change: impl FnOnce(&mut Tensors)) -> TempDir {
    changed("bnb_checkpoints/gpt2", change)
}

/// Makes F16 tensors F32.
fn widen(tensors: &mut Tensors) {
    for (dtype, _, bytes) in tensors
        .values_mut()
        .filter(|(dtype, ..)| *dtype == Dtype::F16)
    {
        let halves = bytes.as_chunks::<2>().0.iter();
        let floats = halves.map(|half| f16::from_le_bytes(*half).to_f32());
        *bytes = floats.flat_map(f32::to_le_bytes).collect();
        *dtype = Dtype::F32;
    }
}

/// Changes one element of an F32 tensor.
fn set_f32(tensors: &mut Tensors, name: &str, index: usize, change: impl Fn(f32) -> f32) {
    let (dtype, _, bytes) = tensors.get_mut(name).unwrap();
    assert_eq!(*dtype, Dtype::F32);
    let bytes = &mut bytes[4 * index..][..4];
    let value = f32::from_le_bytes((&*bytes).try_into().unwrap());
    bytes.copy_from_slice(&change(value).to_le_bytes());
}

#[test]
fn checkpoints_of_bitsandbytes_are_sound_alone_and_beside_their_source() {
    for (family, int8_layers) in [("gpt2", 12), ("llama", 21)] {
        let model = golden(&format!("bnb_checkpoints/{family}"));
        let source = golden(&format!("models/{family}"));
        for against in [None, Some(source.as_path())] {
            let report = report(&model, against);
            assert_eq!(found(&report), [], "{family}");
            assert_eq!(
                (report.int8_layers, report.float_layers, report.notes.len()),
                (int8_layers, 0, 0),
                "{family}: {:?}",
                report.notes
            );
            let tensors = tensors_of(&model);
            assert_eq!(report.tensors, tensors.len(), "{family}");
            let formats = int8_layers as u64;
            let bytes: usize = tensors.values().map(|(_, _, bytes)| bytes.len()).sum();
            assert_eq!(report.bytes, bytes as u64 - formats, "{family}");
        }
    }

    let pickle = golden("field/llama_int8_bin");
    assert_eq!(found(&report(&pickle, None)), []);
}

#[test]
fn float_models_of_every_family_are_sound() {
    let mut models: Vec<_> = folders()
        .iter()
        .map(|name| golden(&format!("models/{name}")))
        .collect();
    models.push(golden("models/gpt2_bin"));
    for name in ["gemma2", "gpt2", "llama", "phi3", "qwen2"] {
        models.push(golden(&format!("gguf/{name}.gguf")));
    }
    for model in models {
        let report = report(&model, None);
        assert_eq!(found(&report), [], "{}", model.display());
        assert!(report.float_layers > 0 && report.int8_layers == 0);

        let config = LoadConfig {
            hub: offline(),
            ..LoadConfig::default()
        };
        let name = model.display().to_string();
        let plan = AutoModelForCausalLM::plan(&name, &config, &NoProgress).unwrap();
        assert_eq!(report.tensors, plan.tree.named_parameters().len(), "{name}");
        assert_eq!(report.float_layers, plan.layers.replaced.len(), "{name}");
    }
}

/// Our codes are those of bitsandbytes, so what is saved is sound beside its source, in every
/// family and in both dtypes that weights are rounded through.
#[test]
fn what_is_saved_is_sound_beside_its_source() {
    for (i, family) in folders().iter().enumerate() {
        let source = golden(&format!("models/{family}"));
        let dtype = match i % 2 {
            0 => WeightDtype::Float16,
            _ => WeightDtype::BFloat16,
        };
        let config = LoadConfig {
            options: LoadOptions {
                dtype,
                ..LoadOptions::default()
            },
            hub: offline(),
            ..LoadConfig::default()
        };
        let name = source.display().to_string();
        let model = AutoModelForCausalLM::from_pretrained(&name, &config).unwrap();
        let scratch = TempDir::new().unwrap();
        let saved = scratch.path().join("saved");
        let options = SaveOptions {
            max_shard_size: 40_000,
            ..SaveOptions::default()
        };
        model
            .save_pretrained(&saved, &options, &mut |_| ControlFlow::Continue(()))
            .unwrap();

        let report = report(&saved, Some(&source));
        assert_eq!(found(&report), [], "{family}");
        assert!(report.int8_layers > 0);
    }
}

#[test]
fn faults_of_int8_layers_are_found_without_a_source() {
    let weight = format!("{LAYER}.weight");
    let scb = format!("{LAYER}.SCB");
    let finds = |change: &dyn Fn(&mut Tensors), expected: &[(&str, Fault)]| {
        let folder = changed_int8(|tensors| change(tensors));
        assert_eq!(found(&report(folder.path(), None)), expected);
    };

    // Row 2 of 48 codes.
    let row = |tensors: &mut Tensors, code: i8| {
        tensors.get_mut(&weight).unwrap().2[2 * 48..][..48].fill(code as u8);
    };
    finds(&|t| row(t, 0), &[(&weight, Fault::DeadRow)]);
    finds(&|t| row(t, 100), &[(&weight, Fault::UnscaledRow)]);
    finds(&|t| row(t, -127), &[(&weight, Fault::SaturatedRow)]);
    finds(
        &|t| t.get_mut(&weight).unwrap().2[96] = 0x80,
        &[(&weight, Fault::Minus128)],
    );

    let absmax = |value: f32, fault| {
        finds(
            &|t| set_f32(t, &scb, 2, |_| value),
            &[(scb.as_str(), fault)],
        )
    };
    absmax(f32::NAN, Fault::Nan);
    absmax(f32::INFINITY, Fault::Infinite);
    absmax(-1.0, Fault::AbsmaxNegative);
    absmax(0.0, Fault::AbsmaxZero);
    absmax(1e-40, Fault::AbsmaxDenormal);
    absmax(0.1, Fault::AbsmaxNotF16);

    finds(&|t| drop(t.remove(&scb)), &[(&scb, Fault::Missing)]);
    finds(
        &|t| drop(t.insert(scb.clone(), (Dtype::F32, vec![3], vec![0; 12]))),
        &[(&scb, Fault::Shape)],
    );
    finds(
        &|t| drop(t.insert(scb.clone(), (Dtype::F16, vec![144], vec![0; 288]))),
        &[(&scb, Fault::Dtype)],
    );
    let format = format!("{LAYER}.weight_format");
    finds(
        &|t| drop(t.insert(format.clone(), (Dtype::U8, vec![], vec![2]))),
        &[(&weight, Fault::State)],
    );
    let float = f16::ONE.to_le_bytes().repeat(144 * 48);
    finds(
        &|t| drop(t.insert(weight.clone(), (Dtype::F16, vec![144, 48], float.clone()))),
        &[(LAYER, Fault::State)],
    );
}

#[test]
fn a_row_of_zeros_is_a_note() {
    let folder = changed_int8(|tensors| {
        tensors.get_mut(&format!("{LAYER}.weight")).unwrap().2[48..96].fill(0);
        set_f32(tensors, &format!("{LAYER}.SCB"), 1, |_| 0.0);
    });
    let report = report(folder.path(), None);
    assert_eq!(found(&report), []);
    assert_eq!(report.notes.len(), 1);
    assert!(
        report.notes[0].detail.starts_with("row 1: all zero"),
        "{:?}",
        report.notes
    );
}

#[test]
fn differences_from_the_source_are_found() {
    let weight = format!("{LAYER}.weight");
    let scb = format!("{LAYER}.SCB");
    let norm = "transformer.ln_f.weight";
    let source = golden("models/gpt2");
    let finds = |change: &dyn Fn(&mut Tensors), expected: &[(&str, Fault)]| -> Report {
        let folder = changed_int8(|tensors| change(tensors));
        let report = report(folder.path(), Some(&source));
        assert_eq!(found(&report), expected);
        report
    };

    let step = |code: u8, by: i8| {
        let code = code as i8;
        (if code > 0 { code - by } else { code + by }) as u8
    };
    let flipped = finds(
        &|t| {
            let codes = &mut t.get_mut(&weight).unwrap().2;
            // Not the codes of magnitude 127, without which a row is unscaled.
            let mut small = (48..96).filter(|i| (codes[*i] as i8).unsigned_abs() < 120);
            let [a, b] = [small.next().unwrap(), small.next().unwrap()];
            codes[a] = step(codes[a], 1);
            codes[b] = step(codes[b], 5);
        },
        &[(&weight, Fault::CodesDiffer)],
    );
    let finding = &flipped.findings[0];
    assert_eq!((finding.count, finding.rows.as_slice()), (2, &[1][..]));
    assert!(
        finding.detail.ends_with("1 off by 1, 1 by more"),
        "{finding:?}"
    );

    // Twice an f16 value is one, so only the source can tell.
    let scaled = finds(
        &|t| set_f32(t, &scb, 7, |absmax| 2.0 * absmax),
        &[(&scb, Fault::AbsmaxDiffers)],
    );
    let finding = &scaled.findings[0];
    assert_eq!((finding.count, finding.rows.as_slice()), (1, &[7][..]));
    assert!(
        finding.detail.ends_with("off by up to 100.000 %"),
        "{finding:?}"
    );

    finds(
        &|t| t.get_mut(norm).unwrap().2[1] ^= 1,
        &[(norm, Fault::ValuesDiffer)],
    );
    finds(&|t| drop(t.remove(norm)), &[(norm, Fault::Missing)]);
    finds(
        &|t| {
            let half = t.get_mut(norm).unwrap();
            *half = (Dtype::F16, vec![24], half.2[..48].to_vec());
        },
        &[(norm, Fault::Shape)],
    );
    finds(
        &|t| t.get_mut(norm).unwrap().2[..2].copy_from_slice(&f16::NAN.to_le_bytes()),
        &[(norm, Fault::Nan), (norm, Fault::ValuesDiffer)],
    );
}

#[test]
fn a_source_that_cannot_be_compared_is_a_finding() {
    let name = "h.0.attn.c_attn.weight";
    let tree = format!("{LAYER}.weight");
    let source = |change: &dyn Fn(&mut Tensors)| {
        changed("models/gpt2", |tensors| {
            // Names without the prefix, as the hub's gpt2 has them.
            *tensors = std::mem::take(tensors)
                .into_iter()
                .map(|(name, tensor)| (name.replace("transformer.", ""), tensor))
                .collect();
            widen(tensors);
            change(tensors);
        })
    };
    let model = golden("bnb_checkpoints/gpt2");
    let same = source(&|_| ());
    assert_eq!(found(&report(&model, Some(same.path()))), []);

    let nan = source(&|t| set_f32(t, name, 5, |_| f32::NAN));
    let report_of_nan = report(&model, Some(nan.path()));
    assert_eq!(found(&report_of_nan), [(tree.as_str(), Fault::Source)]);
    assert!(report_of_nan.findings[0].detail.contains("NaN"));

    let absent = source(&|t| drop(t.remove(name)));
    let report_of_absent = report(&model, Some(absent.path()));
    assert_eq!(found(&report_of_absent), [(tree.as_str(), Fault::Source)]);
}

#[test]
fn float_weights_that_cannot_be_quantised_are_found() {
    let name = format!("{LAYER}.weight");
    // Element 5 of a Conv1D is its output 5.
    let folder = changed("models/gpt2", |tensors| {
        widen(tensors);
        set_f32(tensors, &name, 5, |_| 70_000.0);
        set_f32(tensors, &name, 6, |_| f32::NAN);
        set_f32(tensors, "transformer.ln_f.bias", 3, |_| f32::NEG_INFINITY);
    });
    let report = report(folder.path(), None);
    let rows: Vec<_> = report.findings.iter().map(|f| f.rows.clone()).collect();
    assert_eq!(
        found(&report),
        [
            (name.as_str(), Fault::Nan),
            (name.as_str(), Fault::BeyondF16),
            ("transformer.ln_f.bias", Fault::Infinite)
        ]
    );
    assert_eq!(rows, [[6], [5], [3]]);
}

#[test]
fn a_shard_without_a_tensor_of_the_index_is_named() {
    let theirs = golden("bnb_checkpoints/llama");
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(&theirs).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let shard = "model-00002-of-00003.safetensors";
    let mut tensors = read_tensors(&format!("bnb_checkpoints/llama/{shard}"));
    let norm = "model.norm.weight";
    tensors.remove(norm).unwrap();
    write_tensors(&folder.path().join(shard), &tensors);

    let report = report(folder.path(), None);
    assert_eq!(found(&report), [(norm, Fault::Missing)]);
    assert!(report.findings[0].detail.contains(shard), "{report:?}");
}

#[test]
fn an_unknown_family_is_checked_by_names() {
    let folder = changed_int8(|tensors| {
        set_f32(tensors, &format!("{LAYER}.SCB"), 0, |_| f32::NAN);
    });
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"gpt2\"", "\"gpt9\"")).unwrap();

    let alone = report(folder.path(), None);
    assert_eq!(found(&alone), [(&*format!("{LAYER}.SCB"), Fault::Nan)]);
    assert_eq!(alone.int8_layers, 12);
    assert!(alone.notes[0].detail.contains("`gpt9`"), "{alone:?}");

    // Square Conv1D weights cannot be told from others without their class.
    let compared = report(folder.path(), Some(&golden("models/gpt2")));
    let c_attn = compared
        .findings
        .iter()
        .filter(|f| f.tensor.contains("c_attn"));
    let c_attn: Vec<_> = c_attn.map(|f| f.fault).collect();
    assert_eq!(c_attn, [Fault::Nan, Fault::AbsmaxDiffers]);
}

#[test]
fn an_8_bit_source_and_a_stop_are_errors() {
    let model = golden("bnb_checkpoints/gpt2");
    let error = try_report(&model, Some(&model)).unwrap_err();
    assert!(matches!(error, LlmError::Setting { .. }));
    let name = model.display().to_string();
    let (code, error) = failure(&["verify", &name, "--against", &name]);
    assert_eq!(code, 2);
    assert!(error.contains("it is 8-bit itself"), "{error}");
    let (code, error) = failure(&["verify", &name, "--against", "/nowhere/at/all"]);
    assert_eq!(code, 1);
    assert!(
        error.starts_with("error: /nowhere/at/all cannot be loaded"),
        "{error}"
    );

    let mut seen = 0;
    let options = VerifyOptions {
        against: None,
        hub: offline(),
    };
    let stopped = verify(&name, &options, &NoProgress, &mut |event| {
        seen += 1;
        assert!(event.done > 0 && event.done <= event.total);
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(LlmError::Interrupted)) && seen == 1);
}

#[test]
fn the_program_prints_findings_and_exits_with_1() {
    let sound = golden("bnb_checkpoints/gpt2").display().to_string();
    let source = golden("models/gpt2").display().to_string();
    let text = stdout(&llm_int8(&["verify", &sound, "--against", &source]));
    assert_eq!(
        text,
        "sound: 64 tensors, 12 int8 layers, 119.91 KiB; no findings\n"
    );
    let json = stdout(&llm_int8(&["verify", &sound, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["sound"], true);
    assert_eq!(json["against"], serde_json::Value::Null);
    assert_eq!(json["findings"], serde_json::json!([]));

    let folder = changed_int8(|tensors| {
        tensors.get_mut(&format!("{LAYER}.weight")).unwrap().2[96..98].fill(0x80);
        let extra = "evil\u{1b}[2J\u{202e}".to_owned();
        tensors.insert(extra, (Dtype::F16, vec![1], vec![0; 2]));
    });
    let name = folder.path().display().to_string();
    let output = llm_int8(&["verify", &name]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(
        text.contains("transformer.h.0.attn.c_attn.weight  code_minus_128      2  2,…"),
        "{text}"
    );
    assert!(text.contains("`evil\\u{1b}[2J\\u{202e}`"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
    assert!(text.ends_with("code_minus_128 1\n"), "{text}");
    assert_eq!(
        stderr(&output),
        format!("error: {name} is not sound: 1 finding\n")
    );

    let output = llm_int8(&["verify", &name, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["findings"][0],
        serde_json::json!({
            "tensor": "transformer.h.0.attn.c_attn.weight",
            "kind": "code_minus_128",
            "count": 2,
            "rows": [2],
            "detail": "code -128, which bitsandbytes never writes",
        })
    );
}
