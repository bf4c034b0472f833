//! Decoders: one implementation, and families that describe themselves to it.

pub mod decoder;
pub mod device;
mod execute;
pub mod families;
mod gguf;
mod load;
mod logits;
mod pass;
mod place;
pub mod plan;
mod save;
pub mod slot;
pub mod spec;
pub mod template;
mod tree;

pub use crate::config::ModelConfig;
pub use decoder::{Decoder, KvCache, LogitPositions, SequenceInput};
pub use device::{DeviceBudget, DeviceMap, Place, Placement};
pub use families::FAMILIES;
pub use gguf::open_gguf;
pub use load::{LoadEvent, LoadOptions, LoadOutcome, LoadWarning, WeightDtype};
pub use logits::{Choice, Logits, largest};
pub use place::PlacedPart;
pub use plan::Plan;
pub use save::SavedLayers;
pub use spec::DecoderSpec;
