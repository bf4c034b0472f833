//! The executor of plans on the CPU. That of GPUs is `models/device/steps.rs`.

mod cpu;

pub(super) use cpu::{Cpu, SequenceRows};
