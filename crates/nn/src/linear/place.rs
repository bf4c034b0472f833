//! Where the weights of an int8 layer are.

#[cfg(feature = "candle-cuda")]
pub(super) use super::cuda::CudaWeight;
use super::weight::Int8Weight;
use std::sync::Arc;

/// An int8 weight on the CPU or on candle's CUDA device. Clones share the memory.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Host(Int8Weight),
    Cuda(Arc<CudaWeight>),
}

#[cfg(not(feature = "candle-cuda"))]
pub(super) use no_cuda::CudaWeight;

/// Stands in for the module `cuda`: without the feature there are no weights on a GPU.
#[cfg(not(feature = "candle-cuda"))]
mod no_cuda {
    use crate::error::{NnError, Result};
    use crate::linear::{Int8Config, Int8Weight};
    use candle_core::{CudaDevice, CudaStorage, Layout, Tensor};

    #[derive(Debug)]
    pub(in crate::linear) enum CudaWeight {}

    impl CudaWeight {
        pub(in crate::linear) fn upload(
            layer: &str,
            _: &CudaDevice,
            _: &Int8Weight,
            _: Option<&[f32]>,
            _: Int8Config,
        ) -> Result<Self> {
            Err(NnError::UnsupportedDevice {
                layer: layer.to_owned(),
                device: "Cuda".into(),
            })
        }

        pub(in crate::linear) fn with_bias(&self, _: &str, _: &[f32]) -> Result<Self> {
            match *self {}
        }

        pub(in crate::linear) fn download(&self, _: &str) -> Result<Int8Weight> {
            match *self {}
        }

        pub(in crate::linear) fn is_on(&self, _: &CudaDevice) -> bool {
            match *self {}
        }

        pub(in crate::linear) fn location(&self) -> String {
            match *self {}
        }

        pub(in crate::linear) fn forward(
            &self,
            _: &str,
            _: &CudaStorage,
            _: &Layout,
            _: Int8Config,
        ) -> Result<CudaStorage> {
            match *self {}
        }

        pub(in crate::linear) fn dequantize(&self, _: &str) -> Result<Tensor> {
            match *self {}
        }
    }
}
