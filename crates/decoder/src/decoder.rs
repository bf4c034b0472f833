//! The one decoder and its parts. Which ones a model has, its family's template says; what is done
//! with them says its plan.

use crate::error::Result;
use crate::execute::gpu::{DeviceCache, Stage};
use crate::plan::Plan;
use crate::slot::{BlockSlot, ModelSlot, Part, Parts, Slot};
use crate::spec::{DecoderSpec, LayerSpec};
use crate::template::PartSpec;
use llm_int8_kernels::Isa;
use llm_int8_nn::dtype::FloatDtype;
use llm_int8_nn::layers::{Embedding, HeadNorms, LayerCache, Norm, Rope};
use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Weight, Linear, OutlierScope};
use llm_int8_nn::module::ModulePath;

/// The positions of a sequence for which logits are requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitPositions {
    /// Every new position.
    All,
    /// The last new position, which is all that generating needs.
    Last,
}

/// What one sequence has left in the blocks: keys and values of the positions seen so far.
#[derive(Debug)]
pub struct KvCache {
    /// Of every block; those of blocks on devices stay empty.
    pub(super) layers: Vec<LayerCache>,
    /// Of every stage of the decoder.
    pub(super) devices: Vec<DeviceCache>,
    pub(super) len: usize,
    /// The tokens seen, where they may have to be computed again.
    pub(super) seen: Vec<u32>,
    /// Whether its keys are rotated by the frequencies for long texts.
    pub(super) is_long: bool,
}

impl KvCache {
    /// Positions seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        let devices: u64 = self.devices.iter().map(DeviceCache::bytes).sum();
        devices + self.layers.iter().map(LayerCache::bytes).sum::<u64>()
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
        self.len = self.len.min(len);
        self.seen.truncate(len);
    }
}

/// What a pass computes of one sequence: new tokens after those its cache has seen.
#[derive(Debug)]
pub struct SequenceInput<'a> {
    /// The new tokens.
    pub ids: &'a [u32],
    /// What was seen of it.
    pub cache: &'a mut KvCache,
    /// The new positions whose logits are requested.
    pub logits: LogitPositions,
}

impl Part {
    /// A part without values.
    fn declared(spec: &PartSpec, dtype: FloatDtype, isa: Isa) -> Self {
        match *spec {
            PartSpec::Embedding {
                ref class,
                rows,
                width,
                padding,
            } => Self::Embedding(Embedding::declared(class, [rows, width], padding, dtype)),
            PartSpec::Norm {
                ref class,
                kind,
                width,
                eps,
            } => Self::Norm(Norm::declared(class, kind, width, eps, dtype)),
            PartSpec::HeadNorms { ref norm, heads } => match Self::declared(norm, dtype, isa) {
                Self::Norm(norm) => Self::HeadNorms(HeadNorms::declared(&norm, heads)),
                other => other,
            },
            PartSpec::Linear {
                class,
                out_features,
                in_features,
                bias,
            } => {
                let shape = [out_features, in_features];
                Self::Linear(Linear::Float(FloatLinear::declared(
                    class, shape, bias, dtype, isa,
                )))
            }
        }
    }
}

/// A causal language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    spec: DecoderSpec,
    dtype: FloatDtype,
    isa: Isa,
    plan: Plan,
    pub(super) model: Parts<ModelSlot>,
    pub(super) blocks: Vec<Parts<BlockSlot>>,
    /// What lies on devices, in the order of the blocks; if any has embeddings and head, it is the
    /// first.
    pub(super) stages: Vec<Stage>,
}

impl Decoder {
    /// A decoder without values; `dtype` is what its float parameters will be stored in.
    ///
    /// # Errors
    /// [`DecoderError::Config`](crate::DecoderError::Config) for a combination of parts that cannot
    /// be computed.
    pub fn declared(spec: DecoderSpec, dtype: FloatDtype, isa: Isa) -> Result<Self> {
        let plan = Plan::of(&spec)?;
        let (mut model, mut block) = (Parts::default(), Parts::default());
        for (slot, spec) in spec.tree.slots() {
            match slot {
                Slot::Model(slot) => model.insert(slot, Part::declared(spec, dtype, isa)),
                Slot::Block(_, slot) => block.insert(slot, Part::declared(spec, dtype, isa)),
            }
        }
        let blocks = vec![block; spec.layers.len()];

        let mut decoder = Self {
            plan,
            model,
            blocks,
            stages: Vec::new(),
            spec,
            dtype,
            isa,
        };
        for (path, slot) in decoder.paths() {
            match decoder.part_mut(slot) {
                Some(Part::Linear(linear)) => linear.set_path(path),
                Some(Part::Embedding(table)) => table.set_path(path),
                _ => {}
            }
        }
        Ok(decoder)
    }

    /// What it does with tokens, step by step.
    pub fn execution_plan(&self) -> &Plan {
        &self.plan
    }

    /// The parts of all blocks, then those of the embeddings and the head.
    pub(super) fn all_parts(&self) -> impl Iterator<Item = &Part> {
        let blocks = self
            .blocks
            .iter()
            .flat_map(Parts::iter)
            .map(|(_, part)| part);
        blocks.chain(self.model.iter().map(|(_, part)| part))
    }

    /// An empty cache.
    pub fn new_cache(&self) -> KvCache {
        let layers = vec![LayerCache::new(self.dtype); self.blocks.len()];
        let devices = self
            .stages
            .iter()
            .map(|stage| stage.new_cache(self.spec.positions))
            .collect();
        KvCache {
            layers,
            devices,
            len: 0,
            seen: Vec::new(),
            is_long: false,
        }
    }

    /// The description the decoder was built from.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// What the float parameters are stored in.
    pub fn dtype(&self) -> FloatDtype {
        self.dtype
    }

    /// The instruction set it computes with.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How the int8 layers compute; none where no layer is int8.
    pub fn int8_config(&self) -> Option<Int8Config> {
        self.all_parts().find_map(|part| match part {
            Part::Linear(Linear::Int8(linear)) => Some(linear.config()),
            _ => None,
        })
    }

    /// The path of every part, in PyTorch's order.
    pub(super) fn paths(&self) -> Vec<(ModulePath, Slot)> {
        self.spec.tree.paths(self.spec.layers.len())
    }

    /// Lets the head share the token table's values, where it does.
    pub(super) fn tie_head(&mut self) -> Result<()> {
        let Some(Part::Embedding(tokens)) = self.model.get(ModelSlot::Tokens) else {
            return Ok(());
        };
        let (weight, int8) = (tokens.weight().clone(), tokens.int8_weight().cloned());
        match (
            self.spec.tied_head,
            self.part_mut(Slot::Model(ModelSlot::Head)),
            int8,
        ) {
            (true, Some(Part::Linear(Linear::Float(head))), _) => *head.weight_mut() = weight,
            (true, Some(Part::Linear(Linear::Int8(head))), Some(int8)) => head.fill(int8, None)?,
            _ => {}
        }
        Ok(())
    }

    /// Whether the head and the token table are int8, as no checkpoint of bitsandbytes has them.
    pub fn has_int8_head(&self) -> bool {
        matches!(self.model.get(ModelSlot::Tokens), Some(Part::Embedding(table)) if table.is_int8())
    }

    /// Codes of a part, as far as it holds any of its own.
    pub(super) fn own_codes(&self, slot: Slot) -> usize {
        match self.part(slot) {
            Some(Part::Embedding(table)) if table.is_int8() => table.shape().iter().product(),
            Some(Part::Linear(Linear::Int8(_)))
                if self.spec.tied_head && slot == Slot::Model(ModelSlot::Head) =>
            {
                0
            }
            Some(Part::Linear(Linear::Int8(linear))) => {
                linear.out_features() * linear.in_features()
            }
            _ => 0,
        }
    }

    /// The codes of all int8 weights of products, in the order in which a token reads them.
    pub fn codes_in_order(&self) -> Vec<&[i8]> {
        let codes = |part| match part {
            &Part::Linear(Linear::Int8(ref linear)) => linear.weight().ok().map(Int8Weight::codes),
            _ => None,
        };
        self.all_parts().filter_map(codes).collect()
    }

    /// Minimum bytes read to decode one token for each of `batch` sequences of `context` tokens:
    /// the weights of all linear layers once, and keys and values.
    pub fn bytes_per_step(&self, context: usize, batch: usize) -> u64 {
        let weights = self.all_parts().map(|part| match part {
            Part::Linear(Linear::Int8(linear)) => {
                linear.out_features() * (linear.in_features() + 4)
            }
            Part::Linear(Linear::Float(linear)) => {
                linear.out_features()
                    * linear.in_features()
                    * linear.weight().dtype().candle().size_in_bytes()
            }
            _ => 0,
        });
        let attention = &self.spec.attention;
        let position =
            2 * attention.kv_heads * attention.head_size * self.dtype.candle().size_in_bytes();
        let seen = |layer: &LayerSpec| layer.window.map_or(context, |window| context.min(window));
        let positions: usize = self.spec.layers.iter().map(seen).sum();
        (weights.sum::<usize>() + batch * positions * position) as u64
    }

    /// Whether a token's logits depend only on what is before it, and not on how many tokens are
    /// computed at once: outliers are looked for row by row, rotations do not change with the
    /// length of the text, and no block is on a device, whose kernels for one row and for several
    /// add in different orders.
    pub fn is_batch_invariant(&self) -> bool {
        let by_row = |config: Int8Config| {
            config.threshold == 0.0 || config.outlier_scope == OutlierScope::Row
        };
        self.stages.is_empty()
            && self.int8_config().is_none_or(by_row)
            && self.spec.attention.ropes.iter().all(Rope::is_fixed)
    }

    pub(super) fn part(&self, slot: Slot) -> Option<&Part> {
        match slot {
            Slot::Model(slot) => self.model.get(slot),
            Slot::Block(layer, slot) => self.blocks.get(layer)?.get(slot),
        }
    }

    pub(super) fn part_mut(&mut self, slot: Slot) -> Option<&mut Part> {
        match slot {
            Slot::Model(slot) => self.model.get_mut(slot),
            Slot::Block(layer, slot) => self.blocks.get_mut(layer)?.get_mut(slot),
        }
    }
}
