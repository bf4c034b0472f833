//! The decoder and its KV cache. The family's template says which parts a model has, the plan what
//! is computed with them.

use crate::error::{DecoderError, Result};
use crate::execute::Spare;
use crate::execute::gpu::{DeviceCache, Stage};
use crate::plan::Plan;
use crate::slot::{BlockSlot, ModelSlot, Part, Parts, Slot};
use crate::spec::{DecoderSpec, LayerSpec};
use crate::template::PartSpec;
use llm_int8_kernels::Isa;
use llm_int8_nn::dtype::{CacheDtype, FloatDtype};
use llm_int8_nn::layers::{Embedding, HeadNorms, LayerCache, Norm, Rope};
use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Weight, Linear};
use llm_int8_nn::lora::LoraUpdate;
use llm_int8_nn::module::ModulePath;

/// The positions of a sequence for which logits are requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitPositions {
    /// Every new position.
    All,
    /// The last new position: all that generation needs.
    Last,
    /// None, for all chunks of a prompt but the last.
    None,
}

/// The keys and values of one sequence, for the positions computed so far.
#[derive(Debug)]
pub struct KvCache {
    /// One for each block; those of blocks on devices stay empty.
    pub(super) layers: Vec<LayerCache>,
    /// One for each stage of the decoder.
    pub(super) devices: Vec<DeviceCache>,
    pub(super) len: usize,
    /// The tokens of the cached positions, for a model whose rotation changes with the length
    /// (LongRoPE), so that they can be computed again; empty for others.
    pub(super) seen: Vec<u32>,
    /// Whether the keys are rotated by the frequencies for long sequences.
    pub(super) is_long: bool,
}

impl KvCache {
    /// Cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes allocated, on the CPU and on devices.
    pub fn bytes(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(LayerCache::bytes).sum();
        let devices: u64 = self.devices.iter().map(DeviceCache::bytes).sum();
        layers + devices
    }

    /// A copy of the first `len` positions, or of all if there are fewer, with no more memory than
    /// they need.
    ///
    /// # Errors
    /// [`DecoderError::Cuda`](crate::DecoderError::Cuda) if a device has no memory left.
    pub fn prefix(&self, len: usize) -> Result<Self> {
        let len = len.min(self.len);
        let devices = self.devices.iter().map(|device| device.prefix(len));
        Ok(Self {
            layers: self.layers.iter().map(|layer| layer.prefix(len)).collect(),
            devices: devices.collect::<Result<_>>()?,
            len,
            seen: self.seen[..len.min(self.seen.len())].to_vec(),
            is_long: self.is_long,
        })
    }

    /// Drops all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
        self.len = self.len.min(len);
        self.seen.truncate(len);
    }
}

/// One sequence of a batch: new tokens that follow those in its cache.
#[derive(Debug)]
pub struct SequenceInput<'a> {
    /// The new tokens.
    pub ids: &'a [u32],
    /// The cache of the tokens before them, to which they are added.
    pub cache: &'a mut KvCache,
    /// The new positions whose logits are requested.
    pub logits: LogitPositions,
}

impl Part {
    /// A part whose values are not loaded yet.
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
    cache_dtype: CacheDtype,
    isa: Isa,
    plan: Plan,
    pub(super) model: Parts<ModelSlot>,
    pub(super) blocks: Vec<Parts<BlockSlot>>,
    /// The parts on devices, in the order of the blocks. If one of them has the embeddings and the
    /// head, it is the first.
    pub(super) stages: Vec<Stage>,
    pub(super) spare: Spare,
}

impl Decoder {
    /// A decoder whose values are not loaded yet. Its float parameters will be stored as `dtype`.
    ///
    /// # Errors
    /// [`DecoderError::Config`](crate::DecoderError::Config) for a combination of parts that no
    /// executor can compute.
    pub fn declared(spec: DecoderSpec, dtype: FloatDtype, isa: Isa) -> Result<Self> {
        let plan = Plan::of(&spec)?;
        let mut model = Parts::default();
        let mut block = Parts::default();
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
            spare: Spare::default(),
            spec,
            dtype,
            cache_dtype: dtype.into(),
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

    /// What it computes from token ids to logits, step by step.
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
        self.new_cache_in(self.cache_dtype)
    }

    /// An empty cache whose part on the CPU has this dtype.
    pub(super) fn new_cache_in(&self, dtype: CacheDtype) -> KvCache {
        let layers = vec![LayerCache::new(dtype); self.blocks.len()];
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

    /// Bytes that a cache allocates for `positions` positions, on the CPU and on devices.
    pub fn cache_bytes(&self, positions: usize) -> u64 {
        let heads = &self.spec.attention;
        let [kv_heads, size] = [heads.kv_heads, heads.head_size];
        let block = LayerCache::bytes_for(self.cache_dtype, kv_heads, size, positions);
        let on_cpu = block * self.blocks_on_cpu() as u64;

        let devices = self.stages.iter();
        let devices = devices.map(|stage| stage.cache_bytes_for(positions, self.spec.positions));
        on_cpu + devices.sum::<u64>()
    }

    /// Bytes that a cache grows by for each position, without what it allocates ahead.
    pub fn cache_bytes_per_position(&self) -> u64 {
        let heads = &self.spec.attention;
        let [kv_heads, size] = [heads.kv_heads, heads.head_size];
        let block = LayerCache::bytes_of_position(self.cache_dtype, kv_heads, size);
        let on_device = Stage::cache_bytes(self, 1);
        let on_cpu = self.blocks_on_cpu();
        block * on_cpu as u64 + on_device * (self.blocks.len() - on_cpu) as u64
    }

    fn blocks_on_cpu(&self) -> usize {
        let on_devices: usize = self.stages.iter().map(|stage| stage.range().len()).sum();
        self.blocks.len() - on_devices
    }

    /// The description the decoder was built from.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The dtype of the float parameters.
    pub fn dtype(&self) -> FloatDtype {
        self.dtype
    }

    /// The dtype of keys and values in new caches.
    pub fn cache_dtype(&self) -> CacheDtype {
        self.cache_dtype
    }

    /// Changes the dtype of keys and values in caches made from now on. Those that exist keep theirs
    /// and stay usable.
    ///
    /// # Errors
    /// [`DecoderError::CacheDtypeOnDevice`] if blocks are on a device and the dtype is not that of the
    /// float parameters.
    pub fn set_cache_dtype(&mut self, dtype: CacheDtype) -> Result<()> {
        self.check_cache_dtype(dtype, !self.stages.is_empty())?;
        self.cache_dtype = dtype;
        Ok(())
    }

    /// Devices store keys and values in the dtype of the float parameters only.
    pub(super) fn check_cache_dtype(&self, dtype: CacheDtype, on_device: bool) -> Result<()> {
        let float = self.dtype.into();
        match on_device && dtype != float {
            true => Err(DecoderError::CacheDtypeOnDevice { dtype, float }),
            false => Ok(()),
        }
    }

    /// The instruction set that the CPU computes with.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How the int8 layers compute; none if no layer is int8.
    pub fn int8_config(&self) -> Option<Int8Config> {
        self.all_parts().find_map(|part| match part {
            Part::Linear(Linear::Int8(linear)) => Some(linear.config()),
            _ => None,
        })
    }

    /// The module path of every part, in PyTorch's order.
    pub(super) fn paths(&self) -> Vec<(ModulePath, Slot)> {
        self.spec.tree.paths(self.spec.layers.len())
    }

    /// Makes a tied head share the token table's values.
    pub(super) fn tie_head(&mut self) -> Result<()> {
        if !self.spec.tied_head {
            return Ok(());
        }
        let Some(Part::Embedding(tokens)) = self.model.get(ModelSlot::Tokens) else {
            return Ok(());
        };

        let weight = tokens.weight().clone();
        let int8 = tokens.int8_weight().cloned();
        match (self.model.get_mut(ModelSlot::Head), int8) {
            (Some(Part::Linear(Linear::Float(head))), _) => *head.weight_mut() = weight,
            (Some(Part::Linear(Linear::Int8(head))), Some(int8)) => head.fill(int8, None)?,
            _ => {}
        }
        Ok(())
    }

    /// Whether the head and the token table are int8 (`quantize_head`), which bitsandbytes never
    /// does.
    pub fn has_int8_head(&self) -> bool {
        matches!(self.model.get(ModelSlot::Tokens), Some(Part::Embedding(table)) if table.is_int8())
    }

    /// Number of int8 codes that a part has to itself: none if it is float or a tied head.
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

    /// The codes of all int8 linear layers, in the order in which a token reads them.
    pub fn codes_in_order(&self) -> Vec<&[i8]> {
        let codes = |part| match part {
            &Part::Linear(Linear::Int8(ref linear)) => linear.weight().ok().map(Int8Weight::codes),
            _ => None,
        };
        self.all_parts().filter_map(codes).collect()
    }

    /// Minimum bytes read to decode one token for each of `batch` sequences of `context` tokens:
    /// the weights of all linear layers once, an adapter's too, and each sequence's keys and values.
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
        let dtype = self.cache_dtype;
        let vector = attention.head_size * dtype.size_in_bytes() + dtype.scale_bytes();
        let position = 2 * attention.kv_heads * vector;
        let seen = |layer: &LayerSpec| layer.window.map_or(context, |window| context.min(window));
        let positions: usize = self.spec.layers.iter().map(seen).sum();

        let updates: usize = self.updates().map(LoraUpdate::bytes).sum();
        (weights.sum::<usize>() + updates + batch * positions * position) as u64
    }

    /// Whether a token's logits depend only on the tokens before it, and not on how many tokens are
    /// computed at once. This holds if outliers are searched row by row, if rotations do not change
    /// with the length of the sequence, and if no block is on a device: the kernels for one row and
    /// for several sum in different orders.
    pub fn is_batch_invariant(&self) -> bool {
        let by_row = |config: Int8Config| config.outliers.is_by_row();
        self.stages.is_empty()
            && self.int8_config().is_none_or(by_row)
            && self.spec.attention.ropes.iter().all(Rope::is_fixed)
    }

    /// Whether keys depend on the passes that computed them: with dynamic NTK scaling, the base of
    /// the rotations grows with the length of the sequence so far. A prompt must then be computed in
    /// one pass to give what transformers gives, and its beginning does not serve another one.
    pub fn keys_depend_on_passes(&self) -> bool {
        let mut ropes = self.spec.attention.ropes.iter();
        ropes.any(|rope| !rope.is_fixed() && !rope.has_long())
    }

    /// The updates of an adapter.
    fn updates(&self) -> impl Iterator<Item = &LoraUpdate> {
        let blocks = self.blocks.iter().flat_map(Parts::updates);
        blocks.chain(self.model.updates())
    }

    /// Number of layers that an adapter changes; 0 without one.
    pub fn adapted_layers(&self) -> usize {
        self.updates().count()
    }

    /// Whether an adapter is applied.
    pub fn has_adapter(&self) -> bool {
        self.updates().next().is_some()
    }

    pub(super) fn set_update(&mut self, slot: Slot, update: LoraUpdate) {
        match slot {
            Slot::Model(slot) => self.model.set_update(slot, update),
            Slot::Block(layer, slot) => {
                if let Some(block) = self.blocks.get_mut(layer) {
                    block.set_update(slot, update);
                }
            }
        }
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
