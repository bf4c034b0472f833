//! Decoder plans: the plan of every family as text, what is rejected, and combinations that no
//! family has, on the CPU and on devices.

use crate::support::devices::{
    distance, few_devices, on_device, options, step_by_step, write_random,
};
use crate::support::golden_models::{config, folders};
use crate::support::{golden, llm_int8};
use llm_int8_decoder::slot::BlockSlot;
use llm_int8_decoder::spec::Residual;
use llm_int8_decoder::template::{PartSpec, Template};
use llm_int8_decoder::{Decoder, DecoderSpec, ModelConfig, Placement, Plan, WeightDtype};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::OutlierRule;
use std::sync::Arc;

#[test]
fn every_family_has_the_expected_plan() {
    let is_rewritten = std::env::var_os("LLM_INT8_WRITE_PLANS").is_some();
    let names = folders();
    assert!(names.len() >= 37, "{names:?}");

    for name in names {
        let spec = DecoderSpec::from_config(&config(&name)).unwrap();
        let text = Plan::of(&spec).unwrap().to_string();
        let file = golden(&format!("models/{name}/plan.txt"));
        if is_rewritten {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&file).unwrap(), "{name}");
    }
}

#[test]
fn the_program_prints_a_plan() {
    let plan = |more: &[&str]| {
        let output = llm_int8(&[&["inspect", "tiny-gpt2", "--plan"][..], more].concat());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };

    let text = plan(&[]);
    assert_eq!(text, plan(&["--headers-only"]));

    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[1],
        "  stream = transformer.wte[token] + transformer.wpe[position]"
    );
    assert_eq!(lines[2], "blocks 0 to 3");
    assert_eq!(lines[3], "  qkv = attn.c_attn(ln_1(stream))");
    assert_eq!(lines[5], "  stream += attn.c_proj(mixed)");
    assert_eq!(
        lines.last().unwrap(),
        &"  logits = lm_head(transformer.ln_f(stream))"
    );
}

/// A small Qwen3: a Llama with norms of queries and keys.
fn small() -> (ModelConfig, DecoderSpec) {
    let config =
        br#"{"model_type": "qwen3", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": false}"#;
    let config = ModelConfig::parse(config).unwrap();
    let spec = DecoderSpec::from_config(&config).unwrap();

    (config, spec)
}

/// The children of a module, with their names.
type Children = Vec<(&'static str, Template)>;

/// Calls `change` with the children of the block in `template`.
fn change_block(template: &mut Template, change: &mut dyn FnMut(&mut Children)) {
    match template {
        Template::Container(_, children) => {
            children
                .iter_mut()
                .for_each(|(_, child)| change_block(child, change));
        }
        Template::Blocks(block) => match &mut **block {
            Template::Container(_, children) => change(children),
            _ => panic!("a block without children"),
        },
        Template::WithBuffers(inner, _) => change_block(inner, change),
        _ => {}
    }
}

/// Adds a module `name` to a block: a copy of the norm before the MLP, in slot `to`.
fn copy_mlp_norm(children: &mut Children, name: &'static str, to: BlockSlot) {
    let norm = children.iter().find_map(|(_, child)| match child {
        Template::BlockPart(slot, part @ PartSpec::Norm { .. }) if *slot == BlockSlot::MlpNorm => {
            Some(part.clone())
        }
        _ => None,
    });
    children.push((name, Template::BlockPart(to, norm.unwrap())));
}

#[test]
fn a_parallel_block_with_post_norms_is_the_same_on_the_cpu_and_devices() {
    let (config, mut spec) = small();
    spec.residual = Residual::Parallel;
    change_block(&mut spec.tree, &mut |block| {
        copy_mlp_norm(block, "post_mlp_layernorm", BlockSlot::MlpPostNorm);
        copy_mlp_norm(block, "post_attention_norm", BlockSlot::AttentionPostNorm);
    });
    let text = Plan::of(&spec).unwrap().to_string();
    let steps: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("branch") || line.contains("attended"))
        .collect();
    assert_eq!(
        steps,
        [
            "  attended = self_attn.o_proj(mixed)",
            "  attended = post_attention_norm(attended)",
            "  stream += attended",
            "  branch = mlp.down_proj(gate(raised))",
            "  branch = post_mlp_layernorm(branch)",
            "  stream += branch",
        ]
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_random(&spec, &path);
    let checkpoint = Arc::new(Checkpoint::open_safetensors(&[path], None).unwrap());
    for (int8, bound) in [(None, 1e-3), (Some(OutlierRule::row(6.0)), 2e-2)] {
        let on = |placement: Placement| {
            let options = options(int8, WeightDtype::Float16, placement);
            Decoder::load_described(spec.clone(), &config, &checkpoint, &options, &mut |_| ())
                .unwrap()
                .0
        };

        let ids: Vec<u32> = (0..24).map(|i| i * 37 % 128).collect();
        let host = step_by_step(&on(Placement::cpu()), &ids, 16);
        for device in few_devices() {
            let ours = step_by_step(&on(on_device(&device)), &ids, 16);
            for (step, (ours, theirs)) in ours.iter().zip(&host).enumerate() {
                let apart = distance(ours, theirs);
                assert!(apart < bound, "step {step} on {device:?}: {apart}");
            }
        }
    }
}

/// Merges the query, key and value layers of a block into one, as if it had no norms of queries and
/// keys.
fn fuse_qkv(tree: &mut Template) {
    change_block(tree, &mut |block| {
        for (_, child) in block {
            let Template::Container(_, attention) = child else {
                continue;
            };

            let is_projection =
                |slot| [BlockSlot::Query, BlockSlot::Key, BlockSlot::Value].contains(&slot);
            let first = attention
                .iter()
                .position(|(_, child)| matches!(child, Template::BlockPart(BlockSlot::Query, _)));
            let Some(first) = first else { continue };
            let Template::BlockPart(
                _,
                PartSpec::Linear {
                    class, in_features, ..
                },
            ) = attention[first].1.clone()
            else {
                panic!("a linear layer")
            };
            attention.retain(
                |(_, child)| !matches!(child, Template::BlockPart(slot, _) if is_projection(*slot)),
            );

            let layer = PartSpec::Linear {
                class,
                out_features: 64,
                in_features,
                bias: false,
            };
            attention.insert(0, ("qkv_proj", Template::BlockPart(BlockSlot::Qkv, layer)));
        }
    });
}

#[test]
fn unsupported_combinations_are_rejected_by_name() {
    let error_of = |spec: &DecoderSpec| Plan::of(spec).unwrap_err().to_string();
    let (_, spec) = small();

    let mut clamped = spec.clone();
    clamped.attention.qkv_clamp = Some(8.0);
    assert!(error_of(&clamped).contains("queries or keys that are both clamped and normalised"));

    let mut after = spec.clone();
    after.residual = Residual::NormAfter;
    change_block(&mut after.tree, &mut |block| {
        copy_mlp_norm(block, "post_mlp_layernorm", BlockSlot::MlpPostNorm);
    });
    assert!(error_of(&after).contains("norms after the residual and norms of what joins it"));

    let mut fused = spec.clone();
    fuse_qkv(&mut fused.tree);
    assert!(
        error_of(&fused)
            .contains("norms of queries or keys that come from one layer with the values")
    );

    let mut wide = spec;
    wide.attention.head_size = 16;
    assert!(error_of(&wide).contains("layers of other widths"));
}
