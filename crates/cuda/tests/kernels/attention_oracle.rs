//! The formula of attention in f64, with the variants of all model families.

use half::{bf16, f16};
use llm_int8_cuda::ops::{FloatType, HeadLayout};
use std::ops::Range;

#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub(crate) layout: HeadLayout,
    pub(crate) is_grouped: bool,
    pub(crate) dims: usize,
    pub(crate) neighbours: bool,
    pub(crate) window: Option<usize>,
    pub(crate) softcap: Option<f32>,
    pub(crate) clamp: Option<f32>,
    pub(crate) has_slopes: bool,
    pub(crate) bias_factor: Option<f32>,
}

pub(crate) fn model(heads: usize, kv_heads: usize, size: usize, dtype: FloatType) -> Model {
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

pub(crate) fn cos_sin(position: usize, dims: usize) -> Vec<(f32, f32)> {
    (0..dims / 2)
        .map(|i| ((position * (i + 1)) as f32 * 0.3).sin_cos())
        .map(|(s, c)| (c, s))
        .collect()
}

/// A head's vector, clamped, and rotated if `is_rotated`.
fn vector(model: &Model, x: &[f32], position: usize, is_rotated: bool) -> Vec<f32> {
    let mut x: Vec<f32> = x
        .iter()
        .map(|x| model.clamp.map_or(*x, |limit| x.clamp(-limit, limit)))
        .collect();
    if is_rotated {
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

pub(crate) const SLOPES: [f32; 8] = [0.5, -0.25, 0.125, 0.3, 0.05, -0.02, 0.7, 0.01];

/// The index of a query head (kind 0), key (1) or value (2) among the vectors of a row.
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

/// The outputs `[positions, heads · size]` for queries, keys and values `[all positions, (heads + 2
/// kv_heads) · size]` of one sequence.
pub(crate) fn expected(
    model: &Model,
    qkv: &[f32],
    positions: Range<usize>,
    factor: f32,
) -> Vec<f32> {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        dtype,
    } = model.layout;
    let all = heads + 2 * kv_heads;
    let group = heads / kv_heads;
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
    let keys = rounded(1);
    let values = rounded(2);

    let mut out = Vec::new();
    for position in positions {
        for head in 0..heads {
            let query: Vec<f32> = get(position, 0, head).iter().map(|q| q * factor).collect();
            let start = model
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window));
            let scores: Vec<f64> = (start..=position)
                .map(|key| score(model, head, key, &query, &keys[key][head / group]))
                .collect();

            let largest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();

            let mut sums = vec![0f64; size];
            for (key, weight) in (start..).zip(&weights) {
                let value_vector = &values[key][head / group];
                sums.iter_mut()
                    .zip(value_vector)
                    .for_each(|(sum, value)| *sum += weight * value);
            }
            out.extend(sums.iter().map(|sum| (sum / total) as f32));
        }
    }
    out
}

/// The score of a scaled query and the key at position `key`: softcap and ALiBi applied.
fn score(model: &Model, head: usize, key: usize, query: &[f32], key_vector: &[f64]) -> f64 {
    let dot: f64 = query
        .iter()
        .zip(key_vector)
        .map(|(q, k)| f64::from(*q) * k)
        .sum();
    let capped = model
        .softcap
        .map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh());

    let slope = if model.has_slopes {
        SLOPES[head % SLOPES.len()]
    } else {
        0.0
    };
    capped + position_bias(model, slope, key)
}

/// ALiBi; with a factor as Falcon computes it.
fn position_bias(model: &Model, slope: f32, key: usize) -> f64 {
    match model.bias_factor {
        None => f64::from(slope * key as f32),
        Some(factor) => {
            let slope = round(slope, FloatType::BF16) as f32;
            round(slope * key as f32, FloatType::BF16) * f64::from(factor)
        }
    }
}

/// A cache of two layers in the kernels' layout: the keys and values of the first `positions` in
/// layer 1, NaN elsewhere.
pub(crate) fn filled_cache(
    model: &Model,
    qkv: &[f32],
    positions: usize,
    capacity: usize,
) -> Vec<u8> {
    let HeadLayout {
        heads,
        kv_heads,
        size,
        dtype,
    } = model.layout;
    let all = (heads + 2 * kv_heads) * size;
    let padded = model.layout.padded();
    let width = dtype.bytes();

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
