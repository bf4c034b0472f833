//! Every family against transformers and bitsandbytes (the folders of `golden/models`).

use crate::support::golden_models::{
    at_most, config, expected, folders, in_every_folder, input_ids, load,
};
use crate::support::{golden_text, relative_error};
use candle_core::{DType, Device, Tensor};
use llm_int8_decoder::{
    Decoder, FAMILIES, KvCache, LoadOptions, LogitPositions, SequenceInput, WeightDtype,
};
use llm_int8_nn::linear::{Int8Config, OutlierRule};
use llm_int8_nn::module::Module;

fn unquantised() -> LoadOptions {
    LoadOptions {
        int8: None,
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

fn int8(outliers: OutlierRule) -> LoadOptions {
    let int8 = Some(Int8Config {
        outliers,
        ..Int8Config::default()
    });
    LoadOptions {
        int8,
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

fn logits(model: &Decoder, ids: &Tensor) -> Tensor {
    model.logits(ids).unwrap()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: &T, theirs: &T) -> Result<(), String> {
    if ours == theirs {
        Ok(())
    } else {
        Err(format!("{what}:\n{ours:?}\n{theirs:?}"))
    }
}

#[test]
fn every_family_has_a_golden_model() {
    let types: Vec<String> = folders()
        .iter()
        .map(|name| config(name).model_type().unwrap().to_owned())
        .collect();

    for family in FAMILIES {
        assert!(
            types
                .iter()
                .any(|model_type| model_type == family.model_type),
            "{}",
            family.model_type
        );
    }
}

#[test]
fn unquantised_logits_match_transformers() {
    in_every_folder(|name| {
        let ours = logits(&load(name, &unquantised()), &input_ids(name));
        at_most(
            "distance",
            relative_error(&ours, &expected(name, "logits_f32")),
            1e-4,
        )
    });
}

#[test]
fn greedy_ids_match_transformers() {
    in_every_folder(|name| {
        let theirs = expected(name, "greedy_f32")
            .flatten_all()
            .unwrap()
            .to_vec1::<i64>()
            .unwrap();
        let model = load(name, &unquantised());
        let mut cache = model.new_cache();
        let mut ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
        let mut fed = 0;
        while ids.len() < theirs.len() {
            let logits = model.next_logits(&ids[fed..], &mut cache).unwrap();
            fed = ids.len();
            ids.push(
                (0..)
                    .zip(&logits)
                    .max_by(|a, b| a.1.total_cmp(b.1))
                    .unwrap()
                    .0,
            );
        }
        same("ids", &ids, &theirs.iter().map(|id| *id as u32).collect())
    });
}

#[test]
fn int8_logits_are_as_accurate_as_those_of_bitsandbytes() {
    in_every_folder(|name| {
        let exact = expected(name, "logits_f32");
        let theirs = relative_error(&expected(name, "logits_int8_f32"), &exact);
        let ours = relative_error(
            &logits(
                &load(name, &int8(OutlierRule::batch(6.0))),
                &input_ids(name),
            ),
            &exact,
        );
        at_most("distance", ours, 1.15 * theirs)
    });
}

#[test]
fn printed_trees_parameters_and_footprints_match_transformers() {
    in_every_folder(|name| {
        let tree = load(name, &LoadOptions::default()).describe();
        same(
            "tree",
            &format!("{tree}\n"),
            &golden_text(&format!("models/{name}/print.txt")),
        )?;

        let parameters: String = tree
            .named_parameters()
            .iter()
            .map(|p| format!("{p}\n"))
            .collect();
        same(
            "parameters",
            &parameters,
            &golden_text(&format!("models/{name}/parameters.txt")),
        )?;
        let facts = golden_text(&format!("models/{name}/facts.json"));
        let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
        let theirs = facts["memory_footprint_int8"].as_u64().unwrap();
        same("footprint", &tree.footprint().transformers(), &theirs)
    });
}

/// Falcon's linear layers are of a class of their own until int8 layers replace them.
#[test]
fn unquantised_falcon_layers_print_as_falcon_linear() {
    let tree = load("falcon", &unquantised()).describe().to_string();
    assert!(
        tree.contains("(dense): FalconLinear(in_features=48, out_features=48, bias=False)"),
        "{tree}"
    );
    assert!(
        tree.contains("(lm_head): Linear(in_features=48, out_features=256, bias=False)"),
        "{tree}"
    );
}

#[test]
fn a_sequence_gives_the_same_bits_alone_and_in_a_batch() {
    in_every_folder(|name| {
        let model = load(name, &int8(OutlierRule::row(6.0)));
        let ids = input_ids(name);
        let both = logits(&model, &ids);
        for row in 0..2 {
            let alone = logits(&model, &ids.narrow(0, row, 1).unwrap());
            let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            same(
                "bits",
                &bits(&both.narrow(0, row, 1).unwrap()),
                &bits(&alone),
            )?;
        }
        Ok(())
    });
}

#[test]
fn decoding_token_by_token_gives_the_logits_of_one_pass() {
    in_every_folder(|name| {
        let model = load(name, &unquantised());
        let ids = input_ids(name);
        let whole = logits(&model, &ids);
        let mut caches: Vec<_> = (0..ids.dim(0).unwrap())
            .map(|_| model.new_cache())
            .collect();
        for position in 0..24 {
            let rows = ids
                .narrow(1, position, 1)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<u32>()
                .unwrap();
            let logits = LogitPositions::Last;
            let inputs = rows
                .chunks(1)
                .zip(&mut caches)
                .map(|(ids, cache)| SequenceInput { ids, cache, logits });
            let step = model.forward(&mut inputs.collect::<Vec<_>>()).unwrap();
            let step = Tensor::from_vec(
                step,
                (rows.len(), 1, model.spec().vocab_size()),
                &Device::Cpu,
            )
            .unwrap();

            // Rotary embeddings that depend on the length (dynamic, LongRoPE) differ while the
            // sequence is shorter.
            if name.ends_with("dynamic_rope") || name.ends_with("longrope") {
                continue;
            }
            at_most(
                "distance",
                relative_error(&step, &whole.narrow(1, position, 1).unwrap()),
                1e-5,
            )?;
        }
        Ok(())
    });
}

/// With outliers per row, chunks of a prompt and a copied prefix of a cache give the bits of one pass.
#[test]
fn chunks_of_a_prompt_and_a_copied_prefix_give_the_bits_of_one_pass() {
    in_every_folder(|name| {
        let model = load(name, &int8(OutlierRule::row(6.0)));
        let depends = ["dynamic_rope", "longrope"].map(|end| name.ends_with(end));
        assert_eq!(model.keys_depend_on_passes(), depends[0], "{name}");
        assert_eq!(model.is_batch_invariant(), depends == [false; 2], "{name}");
        if depends[0] {
            return Ok(());
        }

        let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
        let whole = model.next_logits(&ids, &mut model.new_cache()).unwrap();
        let pass = |ids: &[u32], cache: &mut KvCache, logits| {
            model.forward(&mut [SequenceInput { ids, cache, logits }])
        };

        for size in [1, 3, 7] {
            let mut cache = model.new_cache();
            let (chunks, rest) = ids.split_at(ids.len() - 2);
            for chunk in chunks.chunks(size) {
                let logits = pass(chunk, &mut cache, LogitPositions::None).unwrap();
                assert!(logits.is_empty());
            }

            // A copy, whose original goes on with other tokens.
            let mut copy = cache.prefix(ids.len() - 5).unwrap();
            pass(&ids[..4], &mut cache, LogitPositions::None).unwrap();
            assert_eq!((copy.len(), cache.len()), (ids.len() - 5, ids.len() + 2));
            assert_eq!(copy.bytes(), model.cache_bytes(copy.len()), "{name}");
            let again = &ids[ids.len() - 5..];
            same(
                "bits",
                &model.next_logits(again, &mut copy).unwrap(),
                &whole,
            )?;

            cache.truncate(ids.len() - 2);
            same(
                "bits",
                &model.next_logits(rest, &mut cache).unwrap(),
                &whole,
            )?;
        }
        Ok(())
    });
}

/// This model rotates keys by the frequencies for long contexts from the 17th position on.
#[test]
fn a_cache_shortened_below_the_limit_of_longrope_gives_the_logits_of_a_fresh_one() {
    let model = load("phi3_longrope", &unquantised());
    let ids = input_ids("phi3_longrope");
    let forward = |cache: &mut KvCache, start, count| {
        let ids = ids
            .get(0)
            .unwrap()
            .narrow(0, start, count)
            .unwrap()
            .to_vec1::<u32>()
            .unwrap();
        model.next_logits(&ids, cache).unwrap()
    };

    let mut cache = model.new_cache();
    forward(&mut cache, 0, 24);
    for kept in [20, 4] {
        cache.truncate(kept);
        let again = forward(&mut cache, kept, 3);
        let fresh = forward(&mut model.new_cache(), 0, kept + 3);
        assert_eq!(again, fresh, "{kept}");
    }
}

#[test]
fn a_decoder_runs_on_tensors_as_candles_models_do() {
    let model = load("llama", &unquantised());
    let ids = input_ids("llama").get(0).unwrap();
    let whole = model.logits(&ids.unsqueeze(0).unwrap()).unwrap();
    let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let after = |position: usize| bits(&whole.narrow(1, position, 1).unwrap());

    let mut cache = model.new_cache();
    let prompt = ids.narrow(0, 0, 7).unwrap();
    let logits = model.forward_tensor(&prompt, 0, &mut cache).unwrap();
    assert_eq!(logits.dims(), [1, 256]);
    assert_eq!(bits(&logits), after(6));
    let next = ids.narrow(0, 7, 1).unwrap().unsqueeze(0).unwrap();
    let logits = model.forward_tensor(&next, 7, &mut cache).unwrap();
    assert_eq!(bits(&logits), after(7));

    let mut refused = |ids: &Tensor, index_pos| {
        let error = model.forward_tensor(ids, index_pos, &mut cache);
        error.unwrap_err().to_string()
    };
    let error = refused(&next, 7);
    assert!(
        error.contains("index_pos is 7, but the cache holds 8"),
        "{error}"
    );
    let error = refused(&input_ids("llama"), 8);
    assert!(error.contains("shape [2, 24]"), "{error}");
    let error = refused(&next.to_dtype(DType::F32).unwrap(), 8);
    assert!(error.contains("unexpected dtype"), "{error}");
    assert_eq!(cache.len(), 8);
}
