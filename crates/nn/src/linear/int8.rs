//! A linear layer with int8 weights: LLM.int8() (Dettmers et al. 2022, section 3;
//! bitsandbytes' `Linear8bitLt` at inference).

use super::config::{Int8Config, OutlierWeights};
use super::float::{FloatLinear, LinearClass, features};
use super::kept::KeptColumns;
use super::op::Int8Matmul;
use super::original::{ColumnStore, OriginalWeights, OutlierColumns};
use super::place::{CudaWeight, Place};
use super::weight::Int8Weight;
use crate::error::{NnError, Result};
use crate::module::{Module, ModulePath, Node, Parameter};
use crate::parameter::FloatParameter;
use crate::{FloatDtype, ParameterDtype};
use candle_core::{CpuStorage, CudaStorage, DType, Device, Layout, Storage, Tensor, WithDType};
use half::{bf16, f16};
use llm_int8_kernels::{Activation, Element, Isa, Layer, MatRef, Outliers};
use std::sync::Arc;

/// `y = x · Wᵀ + b` with int8 weights. Activations are quantised row by row at every call.
#[derive(Debug, Clone)]
pub struct Int8Linear {
    path: ModulePath,
    out_features: usize,
    in_features: usize,
    weight: Option<Place>,
    bias: Option<FloatParameter>,
    pub(super) original: Option<ColumnStore>,
    pub(super) kept: Option<Box<KeptColumns>>,
    config: Int8Config,
    /// The class of the float layer it replaces: it decides how the weight lies in checkpoints.
    class: LinearClass,
    isa: Isa,
}

impl Int8Linear {
    /// A layer without values, with the shape, path and bias of a float layer.
    pub fn declared(linear: &FloatLinear, config: Int8Config) -> Self {
        Self {
            path: linear.path().clone(),
            out_features: linear.out_features(),
            in_features: linear.in_features(),
            weight: None,
            bias: linear.bias().cloned(),
            original: None,
            kept: None,
            config,
            class: linear.class(),
            isa: linear.isa(),
        }
    }

    /// A layer with int8 weights `[out, in]` and an optional float bias `[out]`.
    ///
    /// # Errors
    /// [`NnError::Input`] for a bias of the wrong shape or dtype.
    pub fn new(weight: Int8Weight, bias: Option<Tensor>, config: Int8Config) -> Result<Self> {
        let [out_features, in_features] = weight.shape();
        let mut layer = Self {
            path: ModulePath::root(),
            out_features,
            in_features,
            weight: Some(Place::Host(weight)),
            bias: None,
            original: None,
            kept: None,
            config,
            class: LinearClass::Linear,
            isa: Isa::detect(),
        };
        if let Some(bias) = bias {
            layer.set_bias(bias)?;
        }
        Ok(layer)
    }

    /// Quantises a float layer. With [`OutlierWeights::Original`] the float weight stays in memory
    /// as the source of outlier columns; a layer read from a file takes them from the file instead.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Linear};
    /// let weight = Tensor::new(&[[127f32, 0.5], [0., 63.5]], &Device::Cpu)?;
    /// let layer = Int8Linear::quantize(&FloatLinear::new(weight, None)?, Int8Config::default())?;
    /// assert_eq!(layer.weight()?.codes(), [127, 0, 0, 127]); // 0.5 rounds half to even
    /// assert_eq!(layer.weight()?.absmax(), [127., 63.5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`NnError::NotLoaded`] if the layer has no values; [`NnError::Kernel`] for a weight that is
    /// not finite in f16.
    pub fn quantize(linear: &FloatLinear, config: Int8Config) -> Result<Self> {
        let tensor = linear.weight().tensor()?;
        let weight = match linear.weight().dtype() {
            FloatDtype::F16 => quantize_tensor::<f16>(linear, tensor)?,
            FloatDtype::BF16 => quantize_tensor::<bf16>(linear, tensor)?,
            FloatDtype::F32 => quantize_tensor::<f32>(linear, tensor)?,
        };

        let mut layer = Self::declared(linear, config);
        layer.weight = Some(Place::Host(weight));
        if config.outlier_weights != OutlierWeights::Dequantized {
            layer.original = Some(ColumnStore::new(Arc::new(TensorColumns(tensor.clone()))));
        }

        Ok(layer)
    }

    /// `x · Wᵀ + b`; see [`Linear::forward`](super::Linear::forward).
    ///
    /// Gradients reach `x`, and through it everything before: `∂x = ∂y · W` with the dequantised
    /// weights, the rule of bitsandbytes' `MatMul8bitLt.backward`. Weight and bias are frozen.
    ///
    /// # Errors
    /// As there; [`NnError::WrongDevice`] if `x` is on another device than the weights;
    /// [`NnError::NoOriginalWeights`] if the configuration requests original outlier weights and
    /// the layer has no source for them, [`NnError::UnsupportedOnGpu`] if it is on a GPU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check_device(x.device())?;
        super::op::check_input(&self.label(), x, self.in_features)?;
        self.placed()?; // fails here with our error, before candle wraps it

        let x = x.contiguous()?;
        let matmul = Int8Matmul {
            layer: self.clone(), // shares the weights
        };
        Ok(match x.track_op() {
            true => x.apply_op1(matmul)?,
            false => x.apply_op1_no_bwd(&matmul)?,
        })
    }

    /// The layer with its weights on `device`: the CPU, or with the feature `candle-cuda` a CUDA
    /// device of candle, where it takes f32, f16 and bf16 and gives the CPU's results but for the
    /// order of additions. Weights that are already there are shared.
    ///
    /// Gradients work there too; the weights are dequantised for them as one f32 tensor, four times
    /// the memory of the codes.
    ///
    /// # Errors
    /// [`NnError::UnsupportedDevice`] for a device without a kernel; [`NnError::UnsupportedOnGpu`]
    /// for [`OutlierWeights::Original`] on a GPU; [`NnError::NotLoaded`] if the layer has no values;
    /// the GPU's own errors.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let label = self.label();
        let weight = match (self.placed()?, device) {
            (Place::Host(weight), Device::Cpu) => Place::Host(weight.clone()),
            (Place::Cuda(weight), Device::Cpu) => Place::Host(weight.download(&label)?),
            (Place::Cuda(weight), Device::Cuda(device)) if weight.is_on(device) => {
                Place::Cuda(Arc::clone(weight))
            }
            (place, Device::Cuda(device)) => {
                let host = match place {
                    Place::Host(weight) => weight.clone(),
                    Place::Cuda(weight) => weight.download(&label)?,
                };
                let bias = self.bias_values()?;
                let weight = CudaWeight::upload(&label, device, &host, bias, self.config)?;
                Place::Cuda(Arc::new(weight))
            }
            (_, other) => {
                return Err(NnError::UnsupportedDevice {
                    layer: label,
                    device: format!("{:?}", other.location()),
                });
            }
        };

        Ok(Self {
            weight: Some(weight),
            ..self.clone()
        })
    }

    /// Refuses an input on another device than the weights.
    fn check_device(&self, device: &Device) -> Result<()> {
        let weights = match (&self.weight, device) {
            (Some(Place::Cuda(weight)), Device::Cuda(device)) if weight.is_on(device) => {
                return Ok(());
            }
            (Some(Place::Cuda(weight)), _) => weight.location(),
            (_, Device::Cpu) => return Ok(()),
            (_, Device::Cuda(_)) if cfg!(feature = "candle-cuda") => "Cpu".to_owned(),
            _ => {
                return Err(NnError::UnsupportedDevice {
                    layer: self.label(),
                    device: format!("{:?}", device.location()),
                });
            }
        };
        Err(NnError::WrongDevice {
            layer: self.label(),
            weights,
            input: format!("{:?}", device.location()),
        })
    }

    /// The layer on candle's CUDA device; `x` `[…, in_features]` has been checked.
    pub(super) fn forward_on_cuda(&self, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        match self.placed()? {
            Place::Cuda(weight) => weight.forward(&self.label(), x, layout, self.config),
            Place::Host(_) => Err(NnError::WrongDevice {
                layer: self.label(),
                weights: "Cpu".into(),
                input: "Cuda".into(),
            }),
        }
    }

    /// The dequantised weights `[out, in]` on the GPU, if they are there.
    pub(super) fn dequantized_on_cuda(&self) -> Result<Option<Tensor>> {
        match self.placed()? {
            Place::Cuda(weight) => weight.dequantize(&self.label()).map(Some),
            Place::Host(_) => Ok(None),
        }
    }

    fn placed(&self) -> Result<&Place> {
        self.weight.as_ref().ok_or(NnError::NotLoaded)
    }

    /// The layer as the kernels take it, for `rows` rows. `columns` are its original outlier columns;
    /// without them, outlier weights are dequantised, but for those of kept columns.
    pub(super) fn kernel_form<'a>(
        &'a self,
        rows: usize,
        columns: Option<&'a OutlierColumns>,
        activation: Option<Activation>,
    ) -> Result<Layer<'a>> {
        Ok(Layer {
            weight: self.weight()?.kernel_form(self.isa(), rows)?,
            outlier_weights: match (columns, self.active_kept()) {
                (Some(columns), _) => columns.kernel_form()?,
                (None, Some(kept)) => kept.kernel_form()?,
                (None, None) => llm_int8_kernels::OutlierWeights::Dequantized,
            },
            bias: self.bias_values()?,
            activation,
        })
    }

    /// The bias in f32.
    pub(super) fn bias_values(&self) -> Result<Option<&[f32]>> {
        self.bias
            .as_ref()
            .map(FloatParameter::f32_values)
            .transpose()
    }

    /// The original weights of the outlier columns of one call; `None` if other weights are
    /// configured or there are no outliers.
    pub(super) fn outlier_columns(
        &self,
        outliers: &Outliers,
    ) -> Result<Option<Arc<OutlierColumns>>> {
        if self.config.outlier_weights != OutlierWeights::Original || outliers.is_empty() {
            return Ok(None);
        }

        let Some(store) = &self.original else {
            return Err(NnError::NoOriginalWeights {
                layer: self.label(),
            });
        };

        store
            .with_columns(&outliers.distinct_columns(), self.out_features)
            .map(Some)
    }

    /// Sets the weight of a declared layer, and where its original outlier columns come from.
    ///
    /// # Errors
    /// [`NnError::Input`] if the weight does not have the declared shape.
    pub fn fill(
        &mut self,
        weight: Int8Weight,
        original: Option<Arc<dyn OriginalWeights>>,
    ) -> Result<()> {
        if weight.shape() != [self.out_features, self.in_features] {
            return Err(NnError::Input {
                layer: self.label(),
                reason: format!(
                    "the weight is {:?}; [{}, {}] is needed",
                    weight.shape(),
                    self.out_features,
                    self.in_features
                ),
            });
        }

        self.weight = Some(Place::Host(weight));
        self.original = original.map(ColumnStore::new);

        Ok(())
    }

    /// The int8 weight.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`] if it has not been filled; [`NnError::OnGpu`] if it is on a GPU.
    pub fn weight(&self) -> Result<&Int8Weight> {
        match self.placed()? {
            Place::Host(weight) => Ok(weight),
            Place::Cuda(weight) => Err(NnError::OnGpu {
                layer: self.label(),
                device: weight.location(),
            }),
        }
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&FloatParameter> {
        self.bias.as_ref()
    }

    /// Sets the bias, `[out]`.
    ///
    /// # Errors
    /// [`NnError::Input`] for a bias of the wrong shape or dtype; the GPU's own errors.
    pub fn set_bias(&mut self, bias: Tensor) -> Result<()> {
        if bias.dims() != [self.out_features] {
            return Err(NnError::Input {
                layer: self.label(),
                reason: format!(
                    "the bias must be [{}], it is {:?}",
                    self.out_features,
                    bias.dims()
                ),
            });
        }

        let bias = FloatParameter::loaded(bias)?;
        if let Some(Place::Cuda(weight)) = &self.weight {
            let weight = weight.with_bias(&self.label(), bias.f32_values()?)?;
            self.weight = Some(Place::Cuda(Arc::new(weight)));
        }
        self.bias = Some(bias);
        Ok(())
    }

    /// The bias, for filling it; none for a layer on a GPU ([`Int8Linear::set_bias`] changes that
    /// one).
    pub fn bias_mut(&mut self) -> Option<&mut FloatParameter> {
        match self.weight {
            Some(Place::Cuda(_)) => None,
            _ => self.bias.as_mut(),
        }
    }

    /// The layer's path in its model; empty for a standalone layer.
    pub fn path(&self) -> &ModulePath {
        &self.path
    }

    /// Sets the layer's path in its model, which its errors name.
    pub fn set_path(&mut self, path: ModulePath) {
        self.path = path;
    }

    /// The layer's name in errors: its path, or its class if it has none.
    pub(super) fn label(&self) -> String {
        self.path.or("Linear8bitLt")
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The PyTorch class of the float layer that it replaces.
    pub fn class(&self) -> LinearClass {
        self.class
    }

    /// How it treats outliers.
    pub fn config(&self) -> Int8Config {
        self.config
    }

    /// Changes how it treats outliers. The weights stay.
    pub fn set_config(&mut self, config: Int8Config) {
        self.config = config;
    }

    /// The instruction set its matmul uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of the original outlier columns cached so far.
    pub fn original_bytes(&self) -> u64 {
        self.original.as_ref().map_or(0, ColumnStore::bytes)
    }
}

fn quantize_tensor<T: Element + WithDType>(
    linear: &FloatLinear,
    weight: &Tensor,
) -> Result<Int8Weight> {
    let (out_features, in_features) = weight.dims2()?;
    let (storage, layout) = weight.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(cpu), Some((start, end))) => {
            let values = CpuStorage::as_slice::<T>(cpu)?;
            Int8Weight::quantize(
                linear.isa(),
                MatRef::new(&values[start..end], out_features, in_features)?,
            )
        }
        _ => Err(NnError::Input {
            layer: linear.path().or("Linear"),
            reason: "only a contiguous weight on the CPU can be quantised".into(),
        }),
    }
}

/// Original columns from a float weight `[out, in]` in memory.
struct TensorColumns(Tensor);

impl OriginalWeights for TensorColumns {
    fn columns(&self, columns: &[u32]) -> Result<Vec<f32>> {
        let index = Tensor::from_slice(columns, columns.len(), &Device::Cpu)?;
        let picked = self.0.index_select(&index, 1)?.to_dtype(DType::F32)?;
        Ok(picked.t()?.flatten_all()?.to_vec1()?)
    }
}

impl Module for Int8Linear {
    fn describe(&self) -> Node {
        let arguments = features(self.in_features, self.out_features, self.bias.is_some());
        let shape = [self.out_features, self.in_features];
        let kept = self.kept.as_deref().map_or(0, KeptColumns::bytes);
        let mut node = Node::leaf("Linear8bitLt", arguments).with_parameter(Parameter::new(
            "weight",
            ParameterDtype::I8,
            shape,
        ));
        node.uncounted_bytes = 4 * self.out_features as u64 + kept;

        self.bias.iter().fold(node, |node, bias| {
            node.with_parameter(bias.describe("bias"))
        })
    }
}
