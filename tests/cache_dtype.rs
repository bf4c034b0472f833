//! Keys and values in another dtype than the model's floats: exactness, size, and where it is refused.

use crate::support::devices::{few_devices, on_device};
use crate::support::golden_models::{at_most, in_every_folder, input_ids, load, try_load};
use crate::support::{failure, llm_int8 as run, relative_error, stderr, stdout};
use candle_core::{Device, Tensor};
use llm_int8_decoder::{
    Decoder, DecoderError, KvCache, LoadOptions, LogitPositions, SequenceInput, WeightDtype,
};
use llm_int8_nn::linear::{Int8Config, OutlierRule};
use llm_int8_nn::{CacheDtype, FloatDtype};

fn options(cache_dtype: Option<CacheDtype>) -> LoadOptions {
    let int8 = Some(Int8Config {
        outliers: OutlierRule::row(6.0),
        ..Int8Config::default()
    });
    LoadOptions {
        int8,
        cache_dtype,
        dtype: WeightDtype::Float32,
        ..LoadOptions::default()
    }
}

fn pass(model: &Decoder, ids: &[u32], cache: &mut KvCache) -> Vec<f32> {
    model.next_logits(ids, cache).unwrap()
}

fn same(what: &str, ours: &[f32], theirs: &[f32]) -> Result<(), String> {
    match ours == theirs {
        true => Ok(()),
        false => Err(format!("{what} changes the result")),
    }
}

/// Rotary positions, ALiBi, windows, shared heads and soft caps: every family. With int8 codes,
/// batches, chunks, drafts that are taken back and copies give the bits of one pass.
#[test]
fn an_int8_cache_gives_the_same_bits_however_it_was_filled() {
    in_every_folder(|name| {
        let model = load(name, &options(Some(CacheDtype::Int8)));
        let rows: Vec<Vec<u32>> = input_ids(name).to_vec2().unwrap();
        let whole: Vec<Vec<f32>> = (rows.iter())
            .map(|ids| pass(&model, ids, &mut model.new_cache()))
            .collect();
        if !model.is_batch_invariant() {
            return Ok(());
        }

        let mut caches: Vec<KvCache> = rows.iter().map(|_| model.new_cache()).collect();
        let logits = LogitPositions::Last;
        let inputs = rows.iter().zip(&mut caches);
        let inputs = inputs.map(|(ids, cache)| SequenceInput { ids, cache, logits });
        let together = model.forward(&mut inputs.collect::<Vec<_>>()).unwrap();
        same("a batch", &together, &whole.concat())?;

        let (ids, whole) = (&rows[0], &whole[0]);
        for size in [1, 3, 7] {
            let mut cache = model.new_cache();
            let (chunks, rest) = ids.split_at(ids.len() - 2);
            for chunk in chunks.chunks(size) {
                pass(&model, chunk, &mut cache);
            }

            // Wrong drafts, which a copy does not have and truncating takes back.
            let mut copy = cache.prefix(ids.len() - 5).unwrap();
            pass(&model, &ids[..4], &mut cache);
            same(
                "a copy",
                &pass(&model, &ids[ids.len() - 5..], &mut copy),
                whole,
            )?;
            cache.truncate(ids.len() - 2);
            same("truncating", &pass(&model, rest, &mut cache), whole)?;
        }
        Ok(())
    });
}

/// Codes are some times as coarse as bf16, whose distance shows how sensitive a model is.
#[test]
fn an_int8_cache_is_small_and_close_to_a_float_one() {
    in_every_folder(|name| {
        let unquantised = |dtype| LoadOptions {
            int8: None,
            ..options(Some(dtype))
        };
        let ids: Vec<u32> = input_ids(name).get(0).unwrap().to_vec1().unwrap();
        let logits = |dtype| {
            let model = load(name, &unquantised(dtype));
            let mut cache = model.new_cache();
            let logits = model.forward(&mut [SequenceInput {
                ids: &ids,
                cache: &mut cache,
                logits: LogitPositions::All,
            }]);
            let logits = Tensor::new(&logits.unwrap()[..], &Device::Cpu).unwrap();
            (model, cache, logits)
        };
        let (float, float_cache, exact) = logits(CacheDtype::Float(FloatDtype::F32));
        let (int8, int8_cache, ours) = logits(CacheDtype::Int8);
        let (_, _, coarse) = logits(CacheDtype::Float(FloatDtype::BF16));
        let distance = relative_error(&ours, &exact);
        at_most("distance", distance, 12.0 * relative_error(&coarse, &exact))?;
        at_most("equality", 1e-7, distance)?;

        // Of each vector f32 components, padded if it is a value; in int8 bytes and a scale.
        let heads = &int8.spec().attention;
        let components = heads.head_size + heads.head_size.next_multiple_of(16);
        let vectors = (int8.spec().layers.len() * heads.kv_heads) as u64;
        let per_position = |head: usize| vectors * head as u64;
        assert_eq!(
            float.cache_bytes_per_position(),
            per_position(4 * components)
        );
        assert_eq!(
            int8.cache_bytes_per_position(),
            per_position(components + 8)
        );
        for (model, cache) in [(&float, &float_cache), (&int8, &int8_cache)] {
            assert_eq!(cache.bytes(), model.cache_bytes(ids.len()));
            assert_eq!(cache.bytes(), 256 * model.cache_bytes_per_position());
        }
        let read = |model: &Decoder| model.bytes_per_step(9, 1) - model.bytes_per_step(8, 1);
        let all_seen = int8
            .spec()
            .layers
            .iter()
            .all(|layer| layer.window.is_none());
        if all_seen {
            let head = heads.head_size;
            assert_eq!(read(&float), per_position(2 * 4 * head));
            assert_eq!(read(&int8), per_position(2 * (head + 4)));
        }
        Ok(())
    });
}

/// The dtype can be changed later; caches that exist keep theirs.
#[test]
fn caches_of_different_dtypes_work_side_by_side() {
    let mut model = load("llama", &options(None));
    let ids: Vec<u32> = input_ids("llama").get(0).unwrap().to_vec1().unwrap();
    let (first, rest) = ids.split_at(5);
    let mut float = model.new_cache();
    pass(&model, first, &mut float);
    let expected = pass(&model, rest, &mut float.prefix(5).unwrap());

    model.set_cache_dtype(CacheDtype::Int8).unwrap();
    let mut int8 = model.new_cache();
    pass(&model, first, &mut int8);
    let logits = LogitPositions::Last;
    let mut inputs = [&mut float, &mut int8].map(|cache| SequenceInput {
        ids: rest,
        cache,
        logits,
    });
    let together = model.forward(&mut inputs).unwrap();
    let (with_floats, with_codes) = together.split_at(expected.len());
    assert_eq!(with_floats, expected);
    assert_ne!(with_floats, with_codes);
    assert!(4 * int8.bytes() > float.bytes() && 2 * int8.bytes() < float.bytes());
}

#[test]
fn a_device_refuses_other_dtypes_than_the_models() {
    for device in few_devices() {
        let on = |dtype| LoadOptions {
            placement: on_device(&device),
            ..options(Some(dtype))
        };
        let others = [CacheDtype::Int8, CacheDtype::Float(FloatDtype::F16)];
        for other in others {
            let error = try_load("llama", &on(other)).unwrap_err();
            assert!(
                matches!(error, DecoderError::CacheDtypeOnDevice { dtype, .. } if dtype == other),
                "{error}"
            );
            assert_eq!(
                error.to_string(),
                format!(
                    "keys and values in {other} are kept on the CPU only, and part of the model would lie on a device; \
                     compute on the CPU, or keep them in float32"
                )
            );
        }

        let same = CacheDtype::Float(FloatDtype::F32);
        let mut model = try_load("llama", &on(same)).unwrap();
        assert!(model.set_cache_dtype(CacheDtype::Int8).is_err());
        assert!(model.set_cache_dtype(same).is_ok() && model.cache_dtype() == same);
        let mut cache = model.new_cache();
        let per_position = model.cache_bytes_per_position();
        pass(&model, &[1, 2, 3], &mut cache);
        assert_eq!(cache.bytes(), model.cache_bytes(3));
        assert_eq!(cache.bytes() % per_position, 0);
    }
}

/// tiny-gpt2 has 4 layers of 4 heads of 64: 512 vectors of 64 components a token.
#[test]
fn the_program_says_what_keys_and_values_take() {
    let last = |dtype| {
        let text = stdout(&run(&["inspect", "tiny-gpt2", "--cache-dtype", dtype]));
        text.lines().last().unwrap().to_owned()
    };
    assert_eq!(
        last("float32"),
        "keys and values: 8,192 bytes for each token, float32"
    );
    assert_eq!(
        last("bfloat16"),
        "keys and values: 4,096 bytes for each token, bfloat16"
    );
    assert_eq!(
        last("int8"),
        "keys and values: 2,176 bytes for each token, int8"
    );
    let headers = ["--headers-only", "--cache-dtype", "int8"];
    let text = stdout(&run(&[&["inspect", "tiny-gpt2"], &headers[..]].concat()));
    assert_eq!(text.lines().last().unwrap(), last("int8"));

    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&stdout(&run(arguments))).unwrap()
    };
    let json_of = |dtype| json(&["inspect", "tiny-gpt2", "--json", "--cache-dtype", dtype]);
    let expected = serde_json::json!({ "dtype": "int8", "bytes_per_token": 2176 });
    assert_eq!(json_of("int8")["cache"], expected);

    let few = [
        "--contexts",
        "8",
        "--prompts",
        "16",
        "-n",
        "4",
        "--runs",
        "1",
    ];
    let bench = [&["bench", "tiny-gpt2", "--cache-dtype", "int8"], &few[..]].concat();
    assert!(stdout(&run(&bench)).contains("keys and values: 2,176 bytes for each token, int8"));
    let report = json(&[&bench[..], &["--json"]].concat());
    assert_eq!(report["memory"]["cache_bytes_per_token"], 2176);
    assert_eq!(report["memory"]["cache_dtype"], "int8");
}

#[test]
fn the_program_generates_with_an_int8_cache_and_drafts_change_nothing() {
    let prompt = "the king said unto him, the king said unto them, the king said unto";
    let arguments = ["run", "tiny-gpt2", "--prompt", prompt, "--outliers", "row"];
    let int8 = ["--cache-dtype", "int8"];
    let plain = run(&[&arguments[..], &int8].concat());
    let drafted = run(&[&arguments[..], &int8, &["--speculate", "6"]].concat());
    assert_eq!(stdout(&plain), stdout(&drafted));

    // 256 positions of 2,176 bytes, and of 4,096.
    assert!(
        stderr(&plain).contains("key/value cache 544.00 KiB in int8"),
        "{}",
        stderr(&plain)
    );
    assert!(stderr(&drafted).contains("drafts:  "));
    let float = run(&arguments);
    assert!(
        stderr(&float).contains("key/value cache 1.00 MiB in float16"),
        "{}",
        stderr(&float)
    );
}

#[test]
fn other_dtypes_are_usage_errors() {
    let (code, text) = failure(&["inspect", "tiny-gpt2", "--cache-dtype", "int4"]);
    assert_eq!(code, 2);
    assert!(text.contains("float16, bfloat16, float32, int8"), "{text}");
    let arguments = [
        "chat",
        "--server",
        "http://localhost:9",
        "--cache-dtype",
        "int8",
    ];
    assert_eq!(failure(&arguments).0, 2);
}
