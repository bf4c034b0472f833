use super::*;
use crate::layers::Rope;
use crate::{CacheDtype, FloatDtype};

fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i + seed * 31) as f32 * 1.7).sin())
        .collect()
}

fn rule<'a>() -> AttentionRule<'a> {
    AttentionRule {
        factor: 0.5,
        softcap: None,
        window: None,
        alibi: None,
    }
}

/// Attends with positions `range` of a sequence of five: 4 query heads, 2 key/value heads, 3
/// values each.
fn run(
    range: Range<usize>,
    rule: AttentionRule<'_>,
    rope: Option<&Rope>,
    cache: &mut LayerCache,
) -> Vec<f32> {
    let [q, k, v] = [noise(5 * 12, 0), noise(5 * 6, 7), noise(5 * 6, 19)];
    let tokens = range.len();
    let table = rope.map(|rope| rope.table(range.start, tokens));
    let q = Heads::in_order(&q[range.start * 12..], 12, 0, 4, 3);
    let k = Heads::in_order(&k[range.start * 6..], 6, 0, 2, 3);
    let v = Heads::in_order(&v[range.start * 6..], 6, 0, 2, 3);
    let mut out = vec![0f32; tokens * 12];
    let mut sequence = [AttendedSequence {
        rows: 0..tokens,
        cache,
        rope: table.as_ref(),
    }];

    let qkv = Qkv {
        q: &q,
        k: &k,
        v: &v,
    };

    attend(Isa::detect(), qkv, &rule, &mut sequence, &mut out);
    out
}

const DTYPES: [CacheDtype; 2] = [CacheDtype::Float(FloatDtype::F32), CacheDtype::Int8];

fn empty() -> LayerCache {
    LayerCache::new(DTYPES[0])
}

#[test]
fn decoding_one_by_one_equals_prefill_bit_for_bit() {
    let alibi = Alibi::bloom(4);
    let rope = Rope::plain(100.0, 2);
    for rule in [
        rule(),
        AttentionRule {
            softcap: Some(0.7),
            ..rule()
        },
        AttentionRule {
            window: Some(2),
            ..rule()
        },
        AttentionRule {
            alibi: Some(&alibi),
            ..rule()
        },
    ] {
        for (rope, dtype) in [None, Some(&rope)]
            .into_iter()
            .flat_map(|rope| DTYPES.map(|dtype| (rope, dtype)))
        {
            let whole = run(0..5, rule, rope, &mut LayerCache::new(dtype));
            let mut cache = LayerCache::new(dtype);
            let parts: Vec<f32> = (0..5)
                .flat_map(|t| run(t..t + 1, rule, rope, &mut cache))
                .collect();
            assert_eq!(whole, parts);
        }
    }
}

#[test]
fn a_window_of_one_returns_the_value_itself() {
    let out = run(
        0..5,
        AttentionRule {
            window: Some(1),
            ..rule()
        },
        None,
        &mut empty(),
    );

    let values = noise(5 * 6, 19);
    assert_eq!(out[4 * 12..4 * 12 + 3], values[4 * 6..4 * 6 + 3]);
}

#[test]
fn an_int8_cache_gives_what_its_codes_say() {
    let window = AttentionRule {
        window: Some(1),
        ..rule()
    };
    let out = run(0..5, window, None, &mut LayerCache::new(CacheDtype::Int8));
    let values = noise(5 * 6, 19);
    for position in 0..5 {
        let value = &values[position * 6..][..3];
        let (codes, scale) = llm_int8_kernels::reference::quantize_vector(value);
        let expected: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
        assert_eq!(out[position * 12..][..3], expected);
    }
}

#[test]
fn a_batch_gives_what_each_sequence_gives_alone() {
    DTYPES.into_iter().for_each(check_batch);
}

fn check_batch(dtype: CacheDtype) {
    let empty = || LayerCache::new(dtype);
    let [q, k, v] = [noise(5 * 12, 0), noise(5 * 6, 7), noise(5 * 6, 19)];
    let heads = |values, row, count| Heads::in_order(values, row, 0, count, 3);
    let alone = [
        run(0..2, rule(), None, &mut empty()),
        run(2..5, rule(), None, &mut empty()),
    ]
    .concat();
    let mut caches = [empty(), empty()];
    let [first, second] = &mut caches;
    let mut sequences = [
        AttendedSequence {
            rows: 0..2,
            cache: first,
            rope: None,
        },
        AttendedSequence {
            rows: 2..5,
            cache: second,
            rope: None,
        },
    ];

    let mut out = vec![0f32; 5 * 12];
    let qkv = Qkv {
        q: &heads(&q, 12, 4),
        k: &heads(&k, 6, 2),
        v: &heads(&v, 6, 2),
    };

    attend(Isa::detect(), qkv, &rule(), &mut sequences, &mut out);
    assert_eq!(out, alone);
    assert_eq!((caches[0].len(), caches[1].len()), (2, 3));
}

#[test]
fn layouts_find_every_head() {
    // 4 query heads, 2 key/value heads, one value each: queries 0..4, keys 10 11, values 20 21.
    let blocks = [0., 1., 2., 3., 10., 11., 20., 21.];
    let grouped = [0., 1., 10., 20., 2., 3., 11., 21.];
    for (layout, row) in [(QkvLayout::Blocks, blocks), (QkvLayout::Grouped, grouped)] {
        let shape = HeadShape {
            heads: 4,
            kv_heads: 2,
            size: 1,
        };

        let [q, k, v] = Heads::split(&row, layout, shape);
        assert_eq!([0, 1, 2, 3].map(|head| q.get(0, head)[0]), [0., 1., 2., 3.]);
        assert_eq!(
            [0, 1].map(|head| (k.get(0, head)[0], v.get(0, head)[0])),
            [(10., 20.), (11., 21.)]
        );
    }
}
