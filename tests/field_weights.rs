//! Weights found in the wild: too many or too few tensors, and shards that contradict their index,
//! against what transformers makes of them (`golden/field/weights.json`).

use crate::support::field_llama::{
    NORM, config, distance, floats_in_f32, folder, load, ones, tensors, warnings,
};
use crate::support::{Tensors, llm_int8, read_tensors, write_tensors};
use llm_int8::Warning;
use llm_int8::decoder::{LoadOptions, LoadWarning};
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn unused_tensors_are_ignored_with_a_warning_unless_loading_is_strict() {
    let mut extra = tensors();
    extra.insert("v_head.summary.weight".into(), ones(&[1, 16]));
    extra.insert("score.weight".into(), ones(&[3, 16]));
    extra.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        ones(&[4]),
    );
    extra.insert(
        "model.layers.0.self_attn.rotary_emb.cos_cached".into(),
        ones(&[1, 1, 8, 8]),
    );
    extra.insert("model.layers.1.self_attn.q_proj.bias".into(), ones(&[16]));
    let folder = folder(&config(), &extra);
    let model = load(folder.path(), &floats_in_f32()).unwrap();
    assert!(distance(&model, "extra") < 1e-5);

    let [warning] = &warnings(&model)[..] else {
        panic!("{:?}", warnings(&model))
    };

    let named = "ignored 4 tensors that llama has no place for: `model.layers.0.self_attn.rotary_emb.cos_cached`, \
                 `model.layers.1.self_attn.q_proj.bias`, `score.weight`, `v_head.summary.weight`";
    assert!(
        warning.ends_with(named) && warning.contains("model.safetensors"),
        "{warning}"
    );

    let strict = LoadOptions {
        strict: true,
        ..floats_in_f32()
    };
    let error = load(folder.path(), &strict).unwrap_err().to_string();
    assert!(
        error.contains("4 tensor(s)") && error.contains("option `strict`"),
        "{error}"
    );

    let path = folder.path().display().to_string();
    for (more, code, message) in [
        (&["--headers-only"][..], 0, "warning: "),
        (&[], 0, "warning: "),
        (&["--strict"], 1, "cannot be loaded with --strict"),
    ] {
        let output = llm_int8(&[&["inspect", &path], more].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), text.contains(message)),
            (Some(code), true),
            "{text}"
        );
        assert!(text.contains("`score.weight`"), "{text}");
    }
}

#[test]
fn extra_layers_are_ignored_but_missing_tensors_are_errors() {
    let mut fewer = config();
    fewer["num_hidden_layers"] = 1.into();
    let model = load(folder(&fewer, &tensors()).path(), &floats_in_f32()).unwrap();
    assert!(distance(&model, "fewer_layers") < 1e-5);

    let warning = &warnings(&model)[0];
    assert!(
        warning.contains("ignored 9 tensors")
            && warning.ends_with("`model.layers.1.post_attention_layernorm.weight` and 4 more"),
        "{warning}"
    );

    // The weights of another model have extra tensors and lack others.
    let other = read_tensors("models/gpt2/model.safetensors");
    let error = load(folder(&config(), &other).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(error.contains("has no tensor"), "{error}");
}

/// The names of two shards, their tensors (alternating between the two), and the index's weight
/// map.
fn shards() -> (
    [&'static str; 2],
    [Tensors; 2],
    serde_json::Map<String, Value>,
) {
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors().into_iter().enumerate() {
        map.insert(name.clone(), names[i % 2].into());
        shards[i % 2].insert(name, tensor);
    }

    (names, shards, map)
}

/// A model folder with these shards and this weight map in its index.
fn sharded(shards: &[Tensors; 2], map: &serde_json::Map<String, Value>) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), config().to_string()).unwrap();

    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    names
        .iter()
        .zip(shards)
        .for_each(|(name, shard)| write_tensors(&folder.path().join(name), shard));
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();

    folder
}

#[test]
fn the_index_decides_which_copy_of_a_tensor_is_used() {
    let (names, parts, map) = shards();
    let here = usize::from(map[NORM] == names[1]);
    for listed in [0, 1] {
        let mut parts = parts.clone();
        let mut map = map.clone();
        parts[listed].insert(NORM.into(), parts[here][NORM].clone());
        parts[1 - listed].insert(NORM.into(), ones(&[16]));
        map.insert(NORM.into(), names[listed].into());
        let model = load(sharded(&parts, &map).path(), &floats_in_f32()).unwrap();
        assert!(distance(&model, "plain") < 1e-5, "{listed}");

        // transformers takes the copy in the last shard.
        let warned = matches!(&model.load_report().warnings[..], [Warning::Weights(LoadWarning::CopiedTensors { names })] if names == &[NORM]);
        assert_eq!(warned, listed == 0, "{:?}", model.load_report().warnings);
    }
}

#[test]
fn an_index_may_name_the_wrong_shard_or_unused_tensors() {
    let (names, parts, map) = shards();
    let mut moved = map.clone();
    moved.insert(
        NORM.into(),
        names[usize::from(map[NORM] == names[0])].into(),
    );
    let model = load(sharded(&parts, &moved).path(), &floats_in_f32()).unwrap();
    assert!(distance(&model, "index_names_another_shard") < 1e-5 && warnings(&model).is_empty());

    let mut more = map.clone();
    more.insert("ghost".into(), names[0].into());
    let model = load(sharded(&parts, &more).path(), &floats_in_f32()).unwrap();
    assert!(
        distance(&model, "index_lists_nothing") < 1e-5 && warnings(&model)[0].contains("`ghost`")
    );
}

#[test]
fn only_tensors_in_both_the_index_and_a_shard_are_loaded() {
    let (_, parts, map) = shards();
    let mut stale = parts.clone();
    let mut unlisted = map.clone();
    stale[0].insert("stale".into(), ones(&[1]));
    let folder = sharded(&stale, &map);
    // A file that the index does not name is not opened.
    std::fs::write(
        folder.path().join("model-00003-of-00003.safetensors"),
        "no tensors",
    )
    .unwrap();
    assert!(warnings(&load(folder.path(), &floats_in_f32()).unwrap()).is_empty());

    let strict = LoadOptions {
        strict: true,
        ..floats_in_f32()
    };
    assert!(
        load(folder.path(), &strict)
            .unwrap_err()
            .to_string()
            .contains("`stale`")
    );

    unlisted.remove(NORM);
    let error = load(sharded(&parts, &unlisted).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(NORM) && error.contains("but the index does not list it"),
        "{error}"
    );

    let mut lacking = parts.clone();
    lacking.iter_mut().for_each(|part| drop(part.remove(NORM)));
    let error = load(sharded(&lacking, &map).path(), &floats_in_f32())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(NORM) && error.contains("the index says that it is in model-0000"),
        "{error}"
    );
}
