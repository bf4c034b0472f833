//! Rows of a table, picked by number.

use crate::dtype::FloatDtype;
use crate::error::Result;
use crate::module::{Module, Node};
use crate::parameter::FloatParameter;
use candle_core::{DType, Tensor};

/// `torch.nn.Embedding`: weight `[rows, width]`.
#[derive(Debug, Clone)]
pub struct Embedding {
    class: String,
    padding: Option<usize>,
    weight: FloatParameter,
}

impl Embedding {
    /// A table without values; `class` and `padding` (the row of padding) are what PyTorch prints.
    pub fn declared(
        class: &str,
        [rows, width]: [usize; 2],
        padding: Option<usize>,
        dtype: FloatDtype,
    ) -> Self {
        Self { class: class.to_owned(), padding, weight: FloatParameter::declared([rows, width], dtype) }
    }

    /// The rows of `ids`: f32 `[ids…, width]`.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`](crate::NnError::NotLoaded); [`NnError::Candle`](crate::NnError::Candle)
    /// for an id beyond the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.weight.shape()[1]);
        let rows = self.weight.tensor()?.index_select(&ids.flatten_all()?, 0)?;
        Ok(rows.to_dtype(DType::F32)?.reshape(shape)?)
    }

    /// The table.
    pub fn weight(&self) -> &FloatParameter {
        &self.weight
    }

    /// The table, to be filled.
    pub fn weight_mut(&mut self) -> &mut FloatParameter {
        &mut self.weight
    }
}

impl Module for Embedding {
    fn describe(&self) -> Node {
        let [rows, width] = [self.weight.shape()[0], self.weight.shape()[1]];
        let padding = self.padding.map_or(String::new(), |row| format!(", padding_idx={row}"));
        Node::leaf(&self.class, format!("{rows}, {width}{padding}"))
            .with_parameter(self.weight.describe("weight"))
    }
}
