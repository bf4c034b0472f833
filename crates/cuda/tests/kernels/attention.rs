//! Attention against the formula in f64, starting with empty caches.

use crate::attention_oracle::{Model, SLOPES, cos_sin, expected, model};
use crate::{assert_near, few_devices, noise};
use llm_int8_cuda::args::AttendedRow;
use llm_int8_cuda::ops::{
    AttendScratch, Attention, AttentionRule, FloatType, HeadLayout, Partition, Qkv, Rotation,
    attend,
};
use llm_int8_cuda::{Buffer, Device, plan, testing};

/// Caches of sequences, which have two layers; the tests use layer 1.
pub(crate) struct Sequences {
    pub(crate) caches: Vec<Buffer<u8>>,
    pub(crate) capacity: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Way {
    /// One new row for each sequence; the number of splits.
    Decode(usize),
    /// Row by row; the number of splits.
    Rows(usize),
    Tiles,
}

impl Way {
    fn splits(self) -> usize {
        match self {
            Self::Decode(splits) | Self::Rows(splits) => splits,
            Self::Tiles => 1,
        }
    }
}

/// What a launch needs to know of each row, on the host.
struct RowInputs {
    qkv: Vec<f32>,
    rows: Vec<AttendedRow>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RowInputs {
    fn new(
        model: &Model,
        sequences: &Sequences,
        qkv: &[Vec<f32>],
        parts: &[(usize, usize, usize)],
    ) -> Self {
        let HeadLayout {
            heads,
            kv_heads,
            size,
            ..
        } = model.layout;
        let all = (heads + 2 * kv_heads) * size;
        let mut inputs = Self {
            qkv: Vec::new(),
            rows: Vec::new(),
            cos: Vec::new(),
            sin: Vec::new(),
        };

        for &(sequence, first, count) in parts {
            let values = &qkv[sequence][first * all..(first + count) * all];
            inputs.qkv.extend_from_slice(values);
            for position in first..first + count {
                inputs.rows.push(AttendedRow {
                    cache: sequences.caches[sequence].address(),
                    capacity: sequences.capacity as u32,
                    position: position as u32,
                });
                for (cos, sin) in cos_sin(position, model.dims) {
                    inputs.cos.push(cos);
                    inputs.sin.push(sin);
                }
            }
        }
        inputs
    }
}

/// Attends for new positions of sequences: each part is `(sequence, first position, count)`, and
/// its outputs are one vector of the result.
pub(crate) fn run(
    device: &Device,
    model: &Model,
    sequences: &Sequences,
    qkv: &[Vec<f32>],
    parts: &[(usize, usize, usize)],
    way: Way,
) -> Vec<Vec<f32>> {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        ..
    } = model.layout;

    let inputs = RowInputs::new(model, sequences, qkv, parts);
    let count = inputs.rows.len();
    let rows = device.upload(&inputs.rows).unwrap();
    let values = device.upload(&inputs.qkv).unwrap();
    let cos = device.upload(&inputs.cos).unwrap();
    let sin = device.upload(&inputs.sin).unwrap();
    let queries = device.allocate::<f32>(count * heads * size).unwrap();
    let attention = Attention {
        layout: model.layout,
        layer: 1,
        rows: rows.all(),
        count,
        queries: queries.all(),
    };
    let rotation = Rotation {
        cos: cos.all(),
        sin: sin.all(),
        dims: model.dims,
        neighbours: model.neighbours,
    };
    let qkv = Qkv {
        values: values.all(),
        stride: (heads + 2 * kv_heads) * size,
        is_grouped: model.is_grouped,
        rotation: (model.dims > 0).then_some(rotation),
        clamp: model.clamp,
        factor: 0.4,
    };
    let slopes = device.upload(&SLOPES).unwrap();
    let rule = AttentionRule {
        slopes: model.has_slopes.then(|| slopes.all()),
        bias_factor: model.bias_factor,
        window: model.window,
        softcap: model.softcap,
    };

    let lengths: Vec<usize> = parts.iter().map(|part| part.2).collect();
    let out = attend_with_scratch(device, &attention, &qkv, &rule, &lengths, way);

    let mut first = 0;
    let mut split = |(_, _, count): &(usize, usize, usize)| {
        let range = first * heads * size..(first + count) * heads * size;
        first += count;
        out[range].to_vec()
    };
    parts.iter().map(&mut split).collect()
}

/// Runs [`attend`] for sequences with `lengths` new positions; returns `[count, heads · size]`.
fn attend_with_scratch(
    device: &Device,
    attention: &Attention<'_>,
    qkv: &Qkv<'_>,
    rule: &AttentionRule<'_>,
    lengths: &[usize],
    way: Way,
) -> Vec<f32> {
    let layout = &attention.layout;
    let heads = attention.count * layout.heads;
    let sums = device
        .allocate::<f32>(heads * way.splits() * (layout.padded() + 2))
        .unwrap();
    let counters = device.zeros::<u32>(heads).unwrap();
    let scratch = AttendScratch {
        sums: sums.all(),
        counters: counters.all(),
    };
    let tiles = device.upload(&plan::query_tiles(lengths).concat()).unwrap();
    let partition = match way {
        Way::Decode(splits) => Partition::Decode { splits },
        Way::Rows(splits) => Partition::Rows { splits },
        Way::Tiles => Partition::Tiles(tiles.all()),
    };

    let out = device.allocate::<f32>(heads * layout.size).unwrap();
    attend(attention, qkv, rule, &partition, &scratch, out.all()).unwrap();
    device.synchronize().unwrap();
    assert!(
        counters.to_vec().unwrap().iter().all(|count| *count == 0),
        "counters are zero after a launch"
    );
    out.to_vec().unwrap()
}

/// Runs all but the last five positions of each sequence, then those; compares with the formula.
fn check(device: &Device, model: &Model, lengths: &[usize], way: Way, what: &str) {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        ..
    } = model.layout;
    let all = (heads + 2 * kv_heads) * size;
    let capacity = lengths.iter().max().unwrap() + 3;
    let qkv: Vec<Vec<f32>> = lengths
        .iter()
        .enumerate()
        .map(|(i, length)| {
            noise(length * all, i as u64 + 1)
                .iter()
                .map(|x| x * 2.0)
                .collect()
        })
        .collect();
    let cache_bytes = model.layout.cache_bytes(2, capacity);
    let caches = lengths
        .iter()
        .map(|_| device.allocate(cache_bytes).unwrap());
    let sequences = Sequences {
        caches: caches.collect(),
        capacity,
    };

    // The early positions fill the caches that the late ones attend to.
    let numbered = || lengths.iter().enumerate();
    let early: Vec<_> = numbered().map(|(i, length)| (i, 0, length - 5)).collect();
    let late: Vec<_> = numbered().map(|(i, length)| (i, length - 5, 5)).collect();
    let early_way = if way == Way::Tiles { way } else { Way::Rows(1) };
    let mut found = run(device, model, &sequences, &qkv, &early, early_way);

    let mut add = |parts: &[(usize, usize, usize)]| {
        let more = run(device, model, &sequences, &qkv, parts, way);
        found
            .iter_mut()
            .zip(more)
            .for_each(|(found, more)| found.extend(more));
    };
    if let Way::Decode(_) = way {
        for step in 0..5 {
            add(&late
                .iter()
                .map(|(i, first, _)| (*i, first + step, 1))
                .collect::<Vec<_>>());
        }
    } else {
        add(&late);
    }

    for (i, length) in lengths.iter().enumerate() {
        let expected = expected(model, &qkv[i], 0..*length, 0.4);
        let found = &found[i];
        assert_near(
            found,
            &expected,
            2e-5,
            &format!("{what}, sequence {i}, {way:?}, {device:?}"),
        );
    }
}

fn variants() -> Vec<(&'static str, Model)> {
    use FloatType::{BF16, F16, F32};
    vec![
        ("plain", model(3, 3, 16, F32)),
        ("odd heads in f16", model(2, 2, 13, F16)),
        ("bf16", model(2, 1, 24, BF16)),
        ("shared keys", model(6, 1, 8, F16)),
        (
            "grouped",
            Model {
                is_grouped: true,
                ..model(6, 2, 8, F32)
            },
        ),
        (
            "rotated",
            Model {
                dims: 16,
                ..model(2, 2, 16, F16)
            },
        ),
        (
            "partly rotated neighbours",
            Model {
                dims: 6,
                neighbours: true,
                ..model(4, 2, 10, F32)
            },
        ),
        (
            "partly rotated halves",
            Model {
                dims: 6,
                ..model(4, 2, 10, F32)
            },
        ),
        (
            "window",
            Model {
                window: Some(7),
                ..model(2, 2, 8, F32)
            },
        ),
        (
            "softcap",
            Model {
                softcap: Some(1.5),
                ..model(2, 2, 8, F16)
            },
        ),
        (
            "clamp",
            Model {
                clamp: Some(0.7),
                ..model(2, 2, 8, F32)
            },
        ),
        (
            "biases",
            Model {
                has_slopes: true,
                ..model(8, 4, 8, F32)
            },
        ),
        (
            "rounded biases",
            Model {
                has_slopes: true,
                bias_factor: Some(0.3),
                ..model(8, 8, 8, F16)
            },
        ),
    ]
}

#[test]
fn row_by_row() {
    for device in testing::devices(&[0, 1]) {
        for (what, model) in variants() {
            check(&device, &model, &[9, 6], Way::Rows(1), what);
            check(&device, &model, &[9, 6], Way::Decode(1), what);
        }
    }
}

#[test]
fn row_by_row_with_shared_positions() {
    for device in testing::devices(&[0, 1]) {
        for (what, model) in variants() {
            // More blocks than chunks of positions; below, several chunks for each block.
            check(&device, &model, &[9], Way::Rows(3), what);
            check(&device, &model, &[9], Way::Decode(3), what);
        }
        let window = Model {
            window: Some(140),
            ..model(2, 1, 8, FloatType::F16)
        };
        check(&device, &window, &[290], Way::Rows(2), "several chunks");
        for splits in 1..5 {
            check(
                &device,
                &window,
                &[290, 131],
                Way::Decode(splits),
                "several chunks",
            );
        }
    }
}

#[test]
fn tile_by_tile() {
    for device in testing::devices(&[0, 1]) {
        for (what, model) in variants() {
            check(&device, &model, &[41, 6], Way::Tiles, what);
        }
        let wide = Model {
            dims: 128,
            window: Some(50),
            ..model(1, 1, 128, FloatType::F16)
        };
        check(&device, &wide, &[80], Way::Tiles, "the widest heads");
    }
}

#[test]
fn new_positions_of_gpt2_large() {
    let model = model(20, 20, 64, FloatType::F16);
    let check = |device: &Device, positions: usize| {
        let all = 3 * 20 * 64;
        let qkv = [noise(positions * all, 3)
            .iter()
            .map(|x| x * 2.0)
            .collect::<Vec<f32>>()];
        let cache = device.allocate(model.layout.cache_bytes(2, 1024)).unwrap();
        let sequences = Sequences {
            caches: vec![cache],
            capacity: 1024,
        };
        run(
            device,
            &model,
            &sequences,
            &qkv,
            &[(0, 0, positions - 3)],
            Way::Tiles,
        );
        for position in positions - 3..positions {
            // As many splits as the decoder uses, fewer and more.
            for splits in [plan::splits(1024, 1, 20, device.multiprocessors()), 1, 3] {
                let found = run(
                    device,
                    &model,
                    &sequences,
                    &qkv,
                    &[(0, position, 1)],
                    Way::Decode(splits),
                );
                let expected = expected(&model, &qkv[0], position..position + 1, 0.4);
                let what = format!("position {position}, {splits} splits, {device:?}");
                assert_near(&found[0], &expected, 2e-5, &what);
            }
        }
    };
    testing::emulated(0, 1 << 28, 0)
        .iter()
        .for_each(|device| check(device, 100));
    for device in testing::gpus() {
        [100, 300, 1000]
            .into_iter()
            .for_each(|positions| check(&device, positions));
    }
}

#[test]
fn impossible_heads_are_refused() {
    for device in few_devices() {
        let wide = model(1, 1, 136, FloatType::F32);
        let rows = device
            .upload(&[AttendedRow {
                cache: 0,
                capacity: 1,
                position: 0,
            }])
            .unwrap();
        let memory = device.zeros::<f32>(4000).unwrap();
        let counters = device.zeros::<u32>(1).unwrap();
        let tiles = device.upload(&[0u32, 1]).unwrap();
        let attention = Attention {
            layout: wide.layout,
            layer: 0,
            rows: rows.all(),
            count: 1,
            queries: memory.all(),
        };
        let scratch = AttendScratch {
            sums: memory.all(),
            counters: counters.all(),
        };
        let qkv = Qkv {
            values: memory.all(),
            stride: 7 * 136,
            is_grouped: false,
            rotation: None,
            clamp: None,
            factor: 1.0,
        };
        let error = |attention: &Attention<'_>, partition| {
            attend(
                attention,
                &qkv,
                &AttentionRule::default(),
                &partition,
                &scratch,
                memory.all(),
            )
            .unwrap_err()
            .to_string()
        };

        assert!(error(&attention, Partition::Tiles(tiles.all())).contains("too wide"));

        let uneven = HeadLayout {
            heads: 3,
            kv_heads: 2,
            ..wide.layout
        };
        let attention = Attention {
            layout: uneven,
            ..attention
        };
        assert!(error(&attention, Partition::Rows { splits: 1 }).contains("cannot share"));
    }
}
