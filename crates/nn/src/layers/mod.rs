//! The parts of a decoder that are not linear layers.

pub mod activation;
pub mod attention;
pub mod embedding;
pub mod norm;

pub use activation::Activation;
pub use attention::{LayerCache, attend};
pub use embedding::Embedding;
pub use norm::Norm;
