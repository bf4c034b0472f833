//! Attention against the formula in f64, with everything that families ask for.

use crate::{assert_near, few_devices, noise};
use half::{bf16, f16};
use llm_int8_cuda::args::AttendedRow;
use llm_int8_cuda::ops::{
    Attention, AttentionRule, Cut, FloatType, HeadLayout, Parts, Products, Rotation, attend,
};
use llm_int8_cuda::{Buffer, Device, plan, testing};
use std::ops::Range;

#[derive(Clone, Copy)]
struct Model {
    layout: HeadLayout,
    is_grouped: bool,
    dims: usize,
    neighbours: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    clamp: Option<f32>,
    has_slopes: bool,
    bias_factor: Option<f32>,
}

fn model(heads: usize, kv_heads: usize, size: usize, dtype: FloatType) -> Model {
    Model {
        layout: HeadLayout {
            heads,
            kv_heads,
            size,
            dtype,
        },
        is_grouped: false,
        dims: 0,
        neighbours: false,
        window: None,
        softcap: None,
        clamp: None,
        has_slopes: false,
        bias_factor: None,
    }
}

fn round(x: f32, dtype: FloatType) -> f64 {
    f64::from(match dtype {
        FloatType::F32 => x,
        FloatType::F16 => f16::from_f32(x).to_f32(),
        FloatType::BF16 => bf16::from_f32(x).to_f32(),
    })
}

fn cos_sin(position: usize, dims: usize) -> Vec<(f32, f32)> {
    (0..dims / 2)
        .map(|i| ((position * (i + 1)) as f32 * 0.3).sin_cos())
        .map(|(s, c)| (c, s))
        .collect()
}

/// The head's vector, clamped and rotated.
fn vector(model: &Model, x: &[f32], position: usize, turns: bool) -> Vec<f32> {
    let mut x: Vec<f32> = x
        .iter()
        .map(|x| model.clamp.map_or(*x, |limit| x.clamp(-limit, limit)))
        .collect();
    if turns {
        for (i, (cos, sin)) in cos_sin(position, model.dims).into_iter().enumerate() {
            let (a, b) = if model.neighbours {
                (2 * i, 2 * i + 1)
            } else {
                (i, i + model.dims / 2)
            };
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
        }
    }
    x
}

const SLOPES: [f32; 8] = [0.5, -0.25, 0.125, 0.3, 0.05, -0.02, 0.7, 0.01];

/// Where a head of queries (kind 0), keys or values lies among the products.
fn place(model: &Model, kind: usize, head: usize) -> usize {
    let HeadLayout {
        heads, kv_heads, ..
    } = model.layout;
    let group = heads / kv_heads;
    match (model.is_grouped, kind) {
        (true, 0) => head / group * (group + 2) + head % group,
        (true, kind) => head * (group + 2) + group + kind - 1,
        (false, kind) => [0, heads, heads + kv_heads][kind] + head,
    }
}

/// The oracle: products `[positions, all heads · size]` of one text to outputs `[positions, heads ·
/// size]` of these positions.
fn expected(model: &Model, qkv: &[f32], positions: Range<usize>, factor: f32) -> Vec<f32> {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        dtype,
    } = model.layout;
    let (all, group) = (heads + 2 * kv_heads, heads / kv_heads);
    let get = |position: usize, kind: usize, head: usize| {
        let x = &qkv[(position * all + place(model, kind, head)) * size..][..size];
        vector(model, x, position, kind < 2)
    };
    let rounded = |kind: usize| -> Vec<Vec<Vec<f64>>> {
        let of = |position: usize, head: usize| -> Vec<f64> {
            get(position, kind, head)
                .iter()
                .map(|x| round(*x, dtype))
                .collect()
        };
        (0..positions.end)
            .map(|position| (0..kv_heads).map(|head| of(position, head)).collect())
            .collect()
    };
    let (keys, values) = (rounded(1), rounded(2));
    let mut out = Vec::new();
    for position in positions {
        for head in 0..heads {
            let slope = if model.has_slopes {
                SLOPES[head % SLOPES.len()]
            } else {
                0.0
            };
            let query = get(position, 0, head);
            let start = model
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window));
            let score = |key: usize| {
                let its = &keys[key][head / group];
                let dot: f64 = query
                    .iter()
                    .zip(its)
                    .map(|(q, k)| f64::from(q * factor) * k)
                    .sum();
                let capped = model
                    .softcap
                    .map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh());
                capped
                    + match model.bias_factor {
                        None => f64::from(slope * key as f32),
                        Some(by) => {
                            round(
                                round(slope, FloatType::BF16) as f32 * key as f32,
                                FloatType::BF16,
                            ) * f64::from(by)
                        }
                    }
            };
            let scores: Vec<f64> = (start..=position).map(score).collect();
            let largest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sums = vec![0f64; size];
            for (key, weight) in (start..).zip(&weights) {
                let its = &values[key][head / group];
                sums.iter_mut()
                    .zip(its)
                    .for_each(|(sum, value)| *sum += weight * value);
            }
            out.extend(sums.iter().map(|sum| (sum / total) as f32));
        }
    }
    out
}

/// A cache of two layers as the kernels keep it, with the keys and values of these positions in
/// layer 1, NaN elsewhere.
fn filled_cache(model: &Model, qkv: &[f32], positions: usize, capacity: usize) -> Vec<u8> {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        dtype,
    } = model.layout;
    let (all, padded, width) = (
        (heads + 2 * kv_heads) * size,
        model.layout.padded(),
        dtype.bytes(),
    );
    let mut bytes = vec![0xff; model.layout.cache_bytes(2, capacity)];
    for position in 0..positions {
        for kv in 0..kv_heads {
            for kind in [1, 2] {
                let place = place(model, kind, kv);
                let x = &qkv[position * all + place * size..][..size];
                let mut x = vector(model, x, position, kind == 1);
                x.resize(padded, 0.0);
                for (d, x) in x.iter().enumerate() {
                    let within = match kind {
                        1 => (d / 8 * capacity + position) * 8 + d % 8,
                        _ => position * padded + d,
                    };
                    let head = 2 * kv_heads + (kind - 1) * kv_heads + kv;
                    let at = (head * capacity * padded + within) * width;
                    match dtype {
                        FloatType::F32 => bytes[at..at + 4].copy_from_slice(&x.to_le_bytes()),
                        FloatType::F16 => {
                            bytes[at..at + 2].copy_from_slice(&f16::from_f32(*x).to_le_bytes())
                        }
                        FloatType::BF16 => {
                            bytes[at..at + 2].copy_from_slice(&bf16::from_f32(*x).to_le_bytes())
                        }
                    }
                }
            }
        }
    }
    bytes
}

/// Texts with caches in layer 1 of 2.
struct Texts {
    caches: Vec<Buffer<u8>>,
    capacity: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    New(usize),
    Rows(usize),
    Tiles,
}

/// Runs new positions of texts: `(text, first position, count)`.
fn run(
    device: &Device,
    model: &Model,
    texts: &Texts,
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
    let all = (heads + 2 * kv_heads) * size;
    let (mut products, mut rows, mut cos, mut sin) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &(text, first, count) in parts {
        products.extend_from_slice(&qkv[text][first * all..(first + count) * all]);
        for position in first..first + count {
            let (cache, capacity) = (texts.caches[text].address(), texts.capacity as u32);
            rows.push(AttendedRow {
                cache,
                capacity,
                position: position as u32,
            });
            for (c, s) in cos_sin(position, model.dims) {
                cos.push(c);
                sin.push(s);
            }
        }
    }
    let count = rows.len();
    let rows = device.upload(&rows).unwrap();
    let [products, cos, sin] = [&products, &cos, &sin].map(|values| device.upload(values).unwrap());
    let queries = device.allocate::<f32>(count * heads * size).unwrap();
    let attention = Attention {
        layout: model.layout,
        layer: 1,
        rows: rows.all(),
        count,
        queries: queries.all(),
    };
    let turn = Rotation {
        cos: cos.all(),
        sin: sin.all(),
        dims: model.dims,
        neighbours: model.neighbours,
    };
    let products = Products {
        qkv: products.all(),
        stride: all,
        is_grouped: model.is_grouped,
        rotation: (model.dims > 0).then_some(turn),
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
    let out = device.allocate::<f32>(count * heads * size).unwrap();
    let splits = if let Way::New(splits) | Way::Rows(splits) = way {
        splits
    } else {
        1
    };
    let partial = device
        .allocate::<f32>(count * heads * splits * (model.layout.padded() + 2))
        .unwrap();
    let counters = device.zeros::<u32>(count * heads).unwrap();
    let tiles: Vec<u32> =
        plan::query_tiles(&parts.iter().map(|part| part.2).collect::<Vec<_>>()).concat();
    let tiles = device.upload(&tiles).unwrap();
    let cut = match way {
        Way::New(splits) => Cut::New(splits),
        Way::Rows(splits) => Cut::Rows(splits),
        Way::Tiles => Cut::Tiles(tiles.all()),
    };
    let memory = Parts {
        sums: partial.all(),
        counters: counters.all(),
    };
    attend(&attention, &products, &rule, &cut, &memory, out.all()).unwrap();
    device.synchronize().unwrap();
    assert!(
        counters.to_vec().unwrap().iter().all(|count| *count == 0),
        "counters are left as they were"
    );
    let out = out.to_vec().unwrap();
    let mut first = 0;
    let mut split = |(_, _, count): &(usize, usize, usize)| {
        let range = first * heads * size..(first + count) * heads * size;
        first += count;
        out[range].to_vec()
    };
    parts.iter().map(&mut split).collect()
}

fn check(device: &Device, model: &Model, lengths: &[usize], way: Way, what: &str) {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        ..
    } = model.layout;
    let (all, capacity) = (
        (heads + 2 * kv_heads) * size,
        lengths.iter().max().unwrap() + 3,
    );
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
    let caches = lengths.iter().map(|_| {
        device
            .allocate(model.layout.cache_bytes(2, capacity))
            .unwrap()
    });
    let texts = Texts {
        caches: caches.collect(),
        capacity,
    };
    // All but the last five positions first, then the rest: with what was seen before.
    let early: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, length)| (i, 0, length - 5))
        .collect();
    let late: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, length)| (i, length - 5, 5))
        .collect();
    let mut found = run(
        device,
        model,
        &texts,
        &qkv,
        &early,
        if way == Way::Tiles { way } else { Way::Rows(1) },
    );
    let mut add = |parts: &[(usize, usize, usize)]| {
        let more = run(device, model, &texts, &qkv, parts, way);
        found
            .iter_mut()
            .zip(more)
            .for_each(|(found, more)| found.extend(more));
    };
    if let Way::New(_) = way {
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
            &format!("{what}, text {i}, {way:?}, {device:?}"),
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
            check(&device, &model, &[9, 6], Way::New(1), what);
        }
    }
}

#[test]
fn row_by_row_with_shared_positions() {
    for device in testing::devices(&[0, 1]) {
        for (what, model) in variants() {
            // More blocks than chunks, and chunks enough that each block takes several.
            check(&device, &model, &[9], Way::Rows(3), what);
            check(&device, &model, &[9], Way::New(3), what);
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
                Way::New(splits),
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
        let texts = Texts {
            caches: vec![cache],
            capacity: 1024,
        };
        run(
            device,
            &model,
            &texts,
            &qkv,
            &[(0, 0, positions - 3)],
            Way::Tiles,
        );
        for position in positions - 3..positions {
            // As a decoder cuts it, and in more and fewer parts.
            for splits in [plan::splits(1024, 1, 20, device.multiprocessors()), 1, 3] {
                let found = run(
                    device,
                    &model,
                    &texts,
                    &qkv,
                    &[(0, position, 1)],
                    Way::New(splits),
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

/// Sequences with `cached` positions in their caches and `new` more, all in one launch.
fn continued(device: &Device, model: &Model, lengths: &[usize], new: usize, way: Way, what: &str) {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        ..
    } = model.layout;
    let (all, capacity) = (
        (heads + 2 * kv_heads) * size,
        lengths.iter().max().unwrap() + new + 2,
    );
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
    let texts = Texts {
        caches: qkv.iter().zip(lengths).map(cache).collect(),
        capacity,
    };
    let parts: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, length)| (i, *length, new))
        .collect();
    let found = run(device, model, &texts, &qkv, &parts, way);
    for (i, length) in lengths.iter().enumerate() {
        let expected = expected(model, &qkv[i], *length..length + new, 0.4);
        let what = format!(
            "{what}, {:?}, {new} after {length}, {way:?}, {device:?}",
            model.layout
        );
        // Tensor cores get queries and weights in two parts, which in bf16 keep 16 of their 24
        // bits.
        let is_narrow = way == Way::Tiles && model.layout.dtype == FloatType::BF16;
        assert_near(
            &found[i],
            &expected,
            if is_narrow { 4e-5 } else { 2e-5 },
            &what,
        );
    }
}

/// Positions about the sizes of warps, blocks and shares.
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
                // With early starts the kernel prefetches.
                let overlaps = device.overlaps_kernels();
                device.set_overlap(overlaps || splits == 3);
                continued(&device, &model, &LENGTHS, 1, Way::New(splits), "decode");
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

#[test]
fn what_cannot_be_is_refused() {
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
        let (counters, tiles) = (
            device.zeros::<u32>(1).unwrap(),
            device.upload(&[0u32, 1]).unwrap(),
        );
        let attention = Attention {
            layout: wide.layout,
            layer: 0,
            rows: rows.all(),
            count: 1,
            queries: memory.all(),
        };
        let parts = Parts {
            sums: memory.all(),
            counters: counters.all(),
        };
        let products = Products {
            qkv: memory.all(),
            stride: 7 * 136,
            is_grouped: false,
            rotation: None,
            clamp: None,
            factor: 1.0,
        };
        let run = |attention: &Attention<'_>, cut| {
            attend(
                attention,
                &products,
                &AttentionRule::default(),
                &cut,
                &parts,
                memory.all(),
            )
        };
        assert!(
            run(&attention, Cut::Tiles(tiles.all()))
                .unwrap_err()
                .to_string()
                .contains("too wide")
        );
        let uneven = HeadLayout {
            heads: 3,
            kv_heads: 2,
            ..wide.layout
        };
        let attention = Attention {
            layout: uneven,
            ..attention
        };
        assert!(
            run(&attention, Cut::Rows(1))
                .unwrap_err()
                .to_string()
                .contains("cannot share")
        );
    }
}
