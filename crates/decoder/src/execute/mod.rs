//! The two executors of a plan. Neither looks at a family, a kind of residual or an optional part:
//! what a model computes is in the steps of its plan.

mod cpu;
pub(crate) mod gpu;

pub(crate) use cpu::{Cpu, SequenceRows};
