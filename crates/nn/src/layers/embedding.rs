//! Embedding tables, in floats or int8.

use crate::dtype::{FloatDtype, ParameterDtype};
use crate::error::{NnError, Result};
use crate::linear::Int8Weight;
use crate::module::{Module, ModulePath, Node, Parameter};
use crate::parameter::FloatParameter;
use candle_core::{CpuStorage, Storage};
use llm_int8_kernels::{Element, Isa};

/// `torch.nn.Embedding`: weight `[rows, width]`.
#[derive(Debug, Clone)]
pub struct Embedding {
    path: ModulePath,
    class: String,
    /// `padding_idx`. Only printed.
    padding: Option<usize>,
    weight: FloatParameter,
    int8: Option<Int8Table>,
}

/// The table in int8, with one `absmax` for each row (bitsandbytes' `Embedding8bit`).
#[derive(Debug, Clone)]
enum Int8Table {
    Declared,
    Loaded(Int8Weight),
}

impl Embedding {
    /// A table without values, of shape `[rows, width]`. `class` and `padding` (the padding row)
    /// are what PyTorch prints.
    pub fn declared(
        class: &str,
        [rows, width]: [usize; 2],
        padding: Option<usize>,
        dtype: FloatDtype,
    ) -> Self {
        let weight = FloatParameter::declared([rows, width], dtype);
        Self {
            path: ModulePath::root(),
            class: class.to_owned(),
            padding,
            weight,
            int8: None,
        }
    }

    /// Looks up `ids` and writes their rows to `out`, f32 `[ids, width]`.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`]; [`NnError::Input`] for an id past the end of the table.
    pub fn rows(&self, isa: Isa, ids: impl Iterator<Item = usize>, out: &mut [f32]) -> Result<()> {
        let [rows, width] = self.shape();
        let targets = out.chunks_exact_mut(width).zip(ids);
        let checked = targets.map(|(out, id)| {
            if id < rows {
                Ok((out, id))
            } else {
                Err(self.input_error(format!("row {id} is past the end of the table of {rows}")))
            }
        });

        match &self.int8 {
            Some(Int8Table::Loaded(weight)) => {
                for pair in checked {
                    let (out, id) = pair?;
                    weight.row(isa, id, out)?;
                }
                return Ok(());
            }
            Some(Int8Table::Declared) => return Err(NnError::NotLoaded),
            None => {}
        }

        let (storage, layout) = self.weight.tensor()?.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets())
        else {
            return Err(self.input_error("the table is not on the CPU".into()));
        };

        for pair in checked {
            let (out, id) = pair?;
            let range = start + id * width..start + (id + 1) * width;
            match storage {
                CpuStorage::F16(values) => Element::to_f32_slice(&values[range], out),
                CpuStorage::BF16(values) => Element::to_f32_slice(&values[range], out),
                _ => out.copy_from_slice(&storage.as_slice::<f32>()?[range]),
            }
        }

        Ok(())
    }

    /// Sets the table's path in its model, which its errors name.
    pub fn set_path(&mut self, path: ModulePath) {
        self.path = path;
    }

    fn input_error(&self, reason: String) -> NnError {
        NnError::Input {
            layer: self.path.or(&self.class),
            reason,
        }
    }

    /// `[rows, width]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.weight.shape()[0], self.weight.shape()[1]]
    }

    /// The float table. It has no values if the table is int8.
    pub fn weight(&self) -> &FloatParameter {
        &self.weight
    }

    /// The float table, for filling it.
    pub fn weight_mut(&mut self) -> &mut FloatParameter {
        &mut self.weight
    }

    /// Declares that the table will be filled with int8 codes.
    pub fn declare_int8(&mut self) {
        self.int8 = Some(Int8Table::Declared);
    }

    /// Sets the int8 values.
    pub fn fill_int8(&mut self, weight: Int8Weight) {
        self.int8 = Some(Int8Table::Loaded(weight));
    }

    /// Whether the table is int8, filled or not.
    pub fn is_int8(&self) -> bool {
        self.int8.is_some()
    }

    /// The int8 table, if it is int8 and has been filled.
    pub fn int8_weight(&self) -> Option<&Int8Weight> {
        match &self.int8 {
            Some(Int8Table::Loaded(weight)) => Some(weight),
            _ => None,
        }
    }
}

impl Module for Embedding {
    fn describe(&self) -> Node {
        let [rows, width] = self.shape();
        let padding = self
            .padding
            .map_or(String::new(), |row| format!(", padding_idx={row}"));
        let arguments = format!("{rows}, {width}{padding}");

        if !self.is_int8() {
            return Node::leaf(&self.class, arguments)
                .with_parameter(self.weight.describe("weight"));
        }

        let weight = Parameter::new("weight", ParameterDtype::I8, [rows, width]);
        let mut node = Node::leaf("Embedding8bit", arguments).with_parameter(weight);
        node.uncounted_bytes = 4 * rows as u64;

        node
    }
}
