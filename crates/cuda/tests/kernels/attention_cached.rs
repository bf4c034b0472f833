//! Attention of new positions over caches that are already filled, against the formula in f64.

use crate::attention::{Sequences, Way, run};
use crate::attention_oracle::{Model, expected, filled_cache, model};
use crate::{assert_near, noise};
use llm_int8_cuda::ops::{FloatType, HeadLayout};
use llm_int8_cuda::{Device, testing};

/// Sequences with `lengths` cached positions and `new` more, all in one launch.
fn continued(device: &Device, model: &Model, lengths: &[usize], new: usize, way: Way, what: &str) {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        ..
    } = model.layout;
    let all = (heads + 2 * kv_heads) * size;
    let capacity = lengths.iter().max().unwrap() + new + 2;
    let qkv: Vec<Vec<f32>> = lengths
        .iter()
        .enumerate()
        .map(|(i, length)| {
            noise((length + new) * all, i as u64 + 7)
                .iter()
                .map(|x| x * 2.0)
                .collect()
        })
        .collect();
    let cache = |(qkv, length): (&Vec<f32>, &usize)| {
        device
            .upload(&filled_cache(model, qkv, *length, capacity))
            .unwrap()
    };
    let sequences = Sequences {
        caches: qkv.iter().zip(lengths).map(cache).collect(),
        capacity,
    };
    let parts: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, length)| (i, *length, new))
        .collect();

    let found = run(device, model, &sequences, &qkv, &parts, way);
    for (i, length) in lengths.iter().enumerate() {
        let expected = expected(model, &qkv[i], *length..length + new, 0.4);
        let what = format!(
            "{what}, {:?}, {new} after {length}, {way:?}, {device:?}",
            model.layout
        );
        // On tensor cores, queries and attention weights are split into two 16-bit parts, which in
        // bf16 keep 16 of the 24 bits of f32.
        let is_narrow = way == Way::Tiles && model.layout.dtype == FloatType::BF16;
        assert_near(
            &found[i],
            &expected,
            if is_narrow { 4e-5 } else { 2e-5 },
            &what,
        );
    }
}

/// Lengths around the sizes of warps, rounds and splits.
const LENGTHS: [usize; 9] = [0, 1, 31, 32, 33, 100, 511, 513, 1500];

fn shapes() -> Vec<Model> {
    use FloatType::{BF16, F16, F32};
    vec![
        Model {
            dims: 64,
            ..model(2, 2, 64, F16)
        },
        Model {
            is_grouped: true,
            dims: 20,
            neighbours: true,
            ..model(6, 2, 20, BF16)
        },
        Model {
            window: Some(300),
            ..model(4, 1, 80, F16)
        },
        Model {
            is_grouped: true,
            softcap: Some(20.0),
            ..model(3, 1, 96, F32)
        },
        Model {
            dims: 128,
            ..model(8, 1, 128, BF16)
        },
        Model {
            dims: 32,
            has_slopes: true,
            ..model(5, 1, 128, F16)
        },
        Model {
            window: Some(64),
            ..model(1, 1, 64, BF16)
        },
    ]
}

#[test]
fn new_positions_after_many() {
    for device in testing::devices(&[0, 3]) {
        let wide = [
            model(1, 1, 256, FloatType::F16),
            model(3, 1, 520, FloatType::F32),
        ];
        for model in shapes().into_iter().chain(wide) {
            for splits in [1, 3, 7] {
                // With overlap the kernel prefetches.
                let overlaps = device.overlaps_kernels();
                device.set_overlap(overlaps || splits == 3);
                continued(&device, &model, &LENGTHS, 1, Way::Decode(splits), "decode");
                device.set_overlap(overlaps);
            }
        }
        for model in [&shapes()[0], &shapes()[1], &shapes()[2]] {
            for splits in [1, 3] {
                continued(
                    &device,
                    model,
                    &[0, 33, 511, 1100],
                    3,
                    Way::Rows(splits),
                    "a few",
                );
            }
        }
    }
}

#[test]
fn prompts_after_many() {
    for device in testing::devices(&[0, 4]) {
        for model in shapes() {
            continued(
                &device,
                &model,
                &[0, 1, 31, 64, 100],
                9,
                Way::Tiles,
                "short prompts",
            );
            continued(&device, &model, &[0, 37], 130, Way::Tiles, "prompts");
        }
        let small = Model {
            window: Some(70),
            ..model(2, 1, 16, FloatType::F16)
        };
        continued(
            &device,
            &small,
            &[511],
            200,
            Way::Tiles,
            "a prompt within a window",
        );
    }
}
