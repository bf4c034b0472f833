//! The parts of a decoder that are not linear layers.

pub mod activation;
pub mod alibi;
pub mod attention;
pub mod embedding;
pub mod norm;
pub mod rope;

pub use activation::Activation;
pub use alibi::Alibi;
pub use attention::{AttentionRule, Heads, LayerCache, QkvLayout, attend};
pub use embedding::Embedding;
pub use norm::{HeadNorms, Norm, NormKind};
pub use rope::{Rope, RopePairs, RopeTable};

use crate::error::Result;
use candle_core::{DType, Storage, Tensor};

/// Calls `f` with the values of a tensor on the CPU, in f32 and row-major order.
pub(crate) fn with_f32<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    {
        let (storage, layout) = x.storage_and_layout();
        if let (Storage::Cpu(storage), Some((start, end)), DType::F32) =
            (&*storage, layout.contiguous_offsets(), x.dtype())
        {
            return f(&storage.as_slice::<f32>()?[start..end]);
        }
    }
    f(&x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}
