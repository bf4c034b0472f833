//! The two executors of a plan, one for the CPU and one for GPUs. Neither looks at a family, a kind
//! of residual or an optional part: everything that a model computes is in the steps of its plan.

mod buffers;
mod cpu;
pub(crate) mod gpu;
mod layers;

pub(crate) use buffers::Spare;
pub(crate) use cpu::{Cpu, SequenceRows};
