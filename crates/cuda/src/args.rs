//! Kernel arguments: each kernel takes one struct by value, mirrored here field by field from
//! `kernels/`. Fields named after memory are device addresses; 0 is a null pointer.
//!
//! All fields are 4 or 8 bytes without padding between them (`Pod` checks that), so the C++ layout
//! is the same; the emulated device also compares the sizes.

use bytemuck::{Pod, Zeroable};

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type),* })*
    };
}

structs! {
    /// `source.cuh`: rows of activations.
    Source { x: u64, up: u64, weight: u64, bias: u64, stride: u32, cols: u32, kind: u32, eps: f32 }
    /// `source.cuh`: which values of a row are outliers.
    OutlierRule { limit: u32, factor: f32 }
    /// `epilogue.cuh`: what is done with the outputs of a matmul.
    Epilogue {
        bias: u64, residual: u64, out: u64,
        out_stride: u32, residual_stride: u32, activation: u32, activated: u32, residual_scale: f32, padding: u32,
    }
    /// `epilogue.cuh`: int8 weights.
    Int8Weight { codes: u64, absmax: u64, out_features: u32, pitch: u32 }
    /// `quantize.cu`.
    QuantizeArgs {
        source: Source, codes: u64, absmax: u64, values: u64, flags: u64, blocks: u64, columns: u64, count: u64,
        limits: u64, rule: OutlierRule, rows: u32, pitch: u32,
    }
    /// `quantize.cu`.
    ClearArgs { codes: u64, columns: u64, count: u64, pitch: u32, padding: u32 }
    /// `gemv.cu`.
    GemvArgs {
        source: Source, weight: Int8Weight, epilogue: Epilogue,
        rule: OutlierRule, lanes: u32, rows: u32,
    }
    /// `product.cuh`.
    MatmulArgs {
        codes: u64, absmax: u64, values: u64, columns: u64, count: u64, limits: u64,
        weight: Int8Weight, epilogue: Epilogue, sums: u64, counters: u64,
        rows: u32, value_stride: u32, warps_k: u32, splits: u32,
    }
    /// `dense.cu`.
    DenseArgs {
        x: u64, weight: u64, epilogue: Epilogue,
        rows: u32, out_features: u32, in_features: u32, x_stride: u32, pitch: u32, padding: u32,
    }
    /// `rows.cu`.
    EmbedArgs {
        ids: u64, position_rows: u64, table: u64, table_absmax: u64, positions: u64, out: u64,
        width: u32, table_pitch: u32, position_pitch: u32, factor: f32,
    }
    /// `rows.cu`.
    NormArgs { source: Source, out: u64, heads: u32, weight_stride: u32, out_stride: u32, padding: u32 }
    /// `rows.cu`.
    CombineArgs {
        x: u64, up: u64, out: u64, width: u32, x_stride: u32, up_stride: u32, adds: u32, factor: f32, padding: u32,
    }
    /// `rows.cu`.
    SoftcapArgs { x: u64, count: u64, scale: f32, cap: f32 }
    /// `rows.cu`.
    CopyRowsArgs { from: u64, to: u64, words: u32, from_pitch: u32, to_pitch: u32, padding: u32 }
    /// `attention.cuh`: one row of a pass: the cache of its sequence and its position in it.
    AttendedRow { cache: u64, capacity: u32, position: u32 }
    /// `attention.cuh`: numbers and sizes of heads.
    Heads { heads: u32, kv_heads: u32, size: u32, padded: u32, layer: u32, shift: u32 }
    /// `attention.cuh`.
    PrepareArgs {
        qkv: u64, rows: u64, cos: u64, sin: u64, queries: u64, heads: Heads,
        stride: u32, is_grouped: u32, dims: u32, neighbours: u32, clamp: f32, factor: f32,
    }
    /// `attention.cuh`: how scores are computed and masked.
    Rule { slopes: u64, window: u32, softcap: f32, bias_factor: f32, softcap_inverse: f32 }
    /// `attention.cuh`.
    AttendArgs {
        queries: u64, rows: u64, out: u64, partial: u64, counters: u64, tiles: u64, heads: Heads, rule: Rule,
        splits: u32, group: u32, sets: u32, inverse: u32,
    }
    /// `attention.cu`.
    AttendNewArgs { attend: AttendArgs, prepare: PrepareArgs, prefetches: u32, padding: u32 }
    /// `select.cu`.
    PenaliseArgs { logits: u64, ids: u64, count: u32, penalty: f32 }
    /// `select.cu`.
    SelectArgs { logits: u64, ids: u64, values: u64, is_bad: u64, vocabulary: u32, k: u32 }
    /// `weights.cu`.
    WeightArgs {
        weight: u64, codes: u64, absmax: u64, bad_row: u64,
        out_features: u32, in_features: u32, pitch: u32, padding: u32,
    }
}
