//! The parts of a decoder that are not linear layers.

pub mod activation;
pub mod alibi;
pub mod attention;
pub mod cache;
pub mod embedding;
pub mod norm;
pub mod rope;

pub use activation::Activation;
pub use alibi::Alibi;
pub use attention::{AttendedSequence, AttentionRule, HeadShape, Heads, Qkv, QkvLayout, attend};
pub use cache::LayerCache;
pub use embedding::Embedding;
pub use norm::{HeadNorms, Norm, NormKind, python_float};
pub use rope::{Rope, RopePairs, RopeTable};
