//! What a decoder does with tokens: embeddings, blocks, final norm, head.
//!
//! Texts of a batch lie one after the other, each with the rows of its new tokens, so that lengths need not
//! be equal and nothing is filled up. Values between layers are rows of f32; what the weights are stored in
//! is each layer's own business.

use super::decoder::{Decoder, KvCache, LogitPositions, Part, Parts, Text};
use super::device::{PassRows, Widths, Work};
use super::logits::Logits;
use super::spec::{BlockSlot, LayerSpec, ModelSlot, Residual};
use crate::error::{NnError, Result};
use crate::layers::{AttendedText, AttentionRule, Heads, Rope, RopeTable, attend};
use crate::linear::{Linear, Projection, for_rows, project};
use candle_core::{Device, Tensor};
use llm_int8_kernels::{QuantizedActivations, activation};
use std::ops::Range;

impl Decoder {
    /// Logits for the next tokens of some texts: f32 `[rows, V]`, for the positions wanted of each text, one
    /// text after the other.
    ///
    /// # Errors
    /// [`NnError::ContextExceeded`] where a cache and its new tokens do not fit into the model's positions;
    /// [`NnError::Input`] for a text without tokens or an id beyond the vocabulary; [`NnError::NotLoaded`].
    /// After an error the caches hold nothing usable.
    pub fn forward(&self, texts: &mut [Text<'_>], wanted: LogitPositions) -> Result<Vec<f32>> {
        self.logits_of(texts, wanted)?.into_vec()
    }

    /// [`Decoder::forward`] with the logits where they were computed: of those on a device only the tokens chosen
    /// need to be fetched. The device is this pass's until they are dropped.
    ///
    /// # Errors
    /// As there.
    pub fn logits_of(&self, texts: &mut [Text<'_>], wanted: LogitPositions) -> Result<Logits<'_>> {
        for text in texts.iter() {
            self.check(text)?;
        }
        let pass = Pass::new(self, texts, wanted)?;
        let lengths: Vec<usize> = pass.segments.iter().map(|part| part.cached + part.rows.len()).collect();
        let logits = if self.stages.is_empty() { pass.run(texts) } else { pass.run_on_devices(texts) }?;
        texts.iter_mut().zip(lengths).for_each(|(text, length)| text.cache.len = length);
        Ok(logits)
    }

    /// [`Decoder::forward`] for one text: the logits after its last token, f32 `[V]`.
    ///
    /// # Errors
    /// As there.
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        self.forward(&mut [Text { ids, cache }], LogitPositions::Last)
    }

    /// Logits of every position of a batch of equally long texts.
    ///
    /// # Shapes
    /// `ids` u32 `[B, T]`; the result f32 `[B, T, V]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; [`NnError::Candle`] where `ids` are not u32 of two dimensions.
    pub fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = ids.to_vec2::<u32>()?;
        let mut caches: Vec<KvCache> = rows.iter().map(|_| self.new_cache()).collect();
        let mut texts: Vec<Text<'_>> =
            rows.iter().zip(&mut caches).map(|(ids, cache)| Text { ids, cache }).collect();
        let logits = self.forward(&mut texts, LogitPositions::All)?;
        let (batch, tokens) = ids.dims2()?;
        Ok(Tensor::from_vec(logits, (batch, tokens, self.spec().vocab_size()), &Device::Cpu)?)
    }

    fn check(&self, text: &Text<'_>) -> Result<()> {
        let error = |reason: String| Err(NnError::Input { layer: self.spec().family.into(), reason });
        let (requested, available) = (text.cache.len() + text.ids.len(), self.spec().positions);
        if requested > available {
            return Err(NnError::ContextExceeded { requested, available });
        }
        let (Some(largest), vocab_size) = (text.ids.iter().max(), self.spec().vocab_size()) else {
            return error("there are no token ids; give at least one".into());
        };
        if *largest as usize >= vocab_size {
            return error(format!(
                "token id {largest} is beyond the vocabulary of {vocab_size}; is the tokenizer this model's?"
            ));
        }
        Ok(())
    }
}

/// Rows from which a pass runs on the thread pool from beginning to end, so that its threads need not be woken
/// for each layer. Fewer rows never leave the calling thread and the team of the kernels.
const POOLED_ROWS: usize = 16;

/// A text during a pass.
struct Segment {
    rows: Range<usize>,
    /// Positions that were seen before its first row.
    cached: usize,
    /// Rows whose logits are wanted.
    wanted: Range<usize>,
    /// Rotations of its rows, one for each of the model's.
    ropes: Vec<RopeTable>,
}

/// One pass of some texts through the model.
struct Pass<'a> {
    decoder: &'a Decoder,
    segments: Vec<Segment>,
    ids: Vec<u32>,
    memory: Memory,
}

/// What blocks work in, reused from block to block.
#[derive(Default)]
struct Memory {
    quantized: QuantizedActivations,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    branch: Vec<f32>,
    /// What attention gave, where it joins the stream together with the MLP.
    attended: Vec<f32>,
}

/// The first `length` values.
fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}

impl<'a> Pass<'a> {
    fn new(decoder: &'a Decoder, texts: &mut [Text<'_>], wanted: LogitPositions) -> Result<Self> {
        let (mut ids, mut segments) = (Vec::new(), Vec::new());
        let ropes = &decoder.spec().attention.ropes;
        let may_change = ropes.iter().any(Rope::has_long);
        for Text { ids: new, cache } in texts {
            let length = cache.len() + new.len();
            let is_long = ropes.iter().any(|rope| rope.is_long(length));
            let first = ids.len();
            if !cache.is_empty() && is_long != cache.is_long {
                // What is cached was rotated by frequencies that no longer hold.
                ids.extend(std::mem::take(&mut cache.seen));
                **cache = decoder.new_cache();
            }
            ids.extend_from_slice(new);
            let (rows, cached) = (first..ids.len(), cache.len());
            if may_change {
                cache.seen.extend_from_slice(&ids[rows.clone()]);
            }
            cache.is_long = is_long;
            let wanted = match wanted {
                LogitPositions::All => rows.end - new.len()..rows.end,
                LogitPositions::Last => rows.end - 1..rows.end,
            };
            let ropes = ropes.iter().map(|rope| rope.table(cached, rows.len())).collect();
            segments.push(Segment { rows, cached, wanted, ropes });
        }
        Ok(Self { decoder, segments, ids, memory: Memory::default() })
    }

    /// Everything on the CPU.
    fn run(mut self, texts: &mut [Text<'_>]) -> Result<Logits<'a>> {
        let all = 0..self.decoder.blocks.len();
        let run = |pass: &mut Self| {
            let mut x = pass.embed()?;
            pass.run_blocks(all, &mut x, texts)?;
            pass.logits(&x)
        };
        let is_pooled = self.ids.len() >= POOLED_ROWS;
        let logits = if is_pooled { rayon::scope(|_| run(&mut self)) } else { run(&mut self) }?;
        Ok(Logits::from_vec(logits, self.decoder.spec().vocab_size()))
    }

    /// The blocks of each device, then those of the CPU; the head where it lies.
    fn run_on_devices(mut self, texts: &mut [Text<'_>]) -> Result<Logits<'a>> {
        let (decoder, widths) = (self.decoder, Widths::of(self.decoder));
        let (spec, blocks) = (decoder.spec(), decoder.blocks.len());
        let wanted: Vec<usize> = self.segments.iter().flat_map(|part| part.wanted.clone()).collect();
        let rows = self.rows_for_devices();
        let is_with_head = decoder.stages.first().is_some_and(|stage| stage.has_model());
        let mut x = if is_with_head { Vec::new() } else { self.embed()? };
        let (mut head, mut first) = (None, 0);
        for (number, stage) in decoder.stages.iter().enumerate() {
            let mut caches: Vec<_> = texts.iter_mut().map(|text| &mut text.cache.devices[number]).collect();
            let mut pass = stage.begin(spec, &widths, &rows, &mut caches)?;
            let embeds = stage.has_model();
            if !embeds {
                pass.write(&x)?;
            }
            first = stage.range().end;
            let ends = embeds && first == blocks;
            let heads = ends && wanted.len() == self.ids.len();
            pass.run(&Work { embeds, blocks: stage.range(), heads })?;
            if ends {
                if !heads {
                    pass.logits_of(&wanted)?;
                }
                return Ok(Logits::on_device(pass, wanted.len(), spec.vocab_size()));
            }
            x = pass.read()?;
            if embeds {
                head = Some(pass);
            }
        }
        let is_pooled = self.ids.len() >= POOLED_ROWS;
        let mut rest = || self.run_blocks(first..blocks, &mut x, texts);
        if is_pooled { rayon::scope(|_| rest()) } else { rest() }?;
        match head {
            Some(mut pass) => {
                pass.write(&x)?;
                pass.logits_of(&wanted)?;
                Ok(Logits::on_device(pass, wanted.len(), spec.vocab_size()))
            }
            None => Ok(Logits::from_vec(self.logits(&x)?, spec.vocab_size())),
        }
    }

    fn rows_for_devices(&self) -> PassRows {
        let mut rows = PassRows::default();
        for part in &self.segments {
            let ids = &self.ids[part.rows.clone()];
            rows.push(part.cached, ids, self.decoder.spec().position_offset, &part.ropes);
        }
        rows
    }

    /// Blocks of the CPU.
    fn run_blocks(&mut self, blocks: Range<usize>, x: &mut [f32], texts: &mut [Text<'_>]) -> Result<()> {
        let decoder = self.decoder;
        for number in blocks {
            let layer = &decoder.spec().layers[number];
            let caches = texts.iter_mut().map(|text| &mut *text.cache);
            let attended = attended(&self.segments, caches, number, layer);
            let block = Block { decoder, parts: &decoder.blocks[number], layer, rows: self.ids.len() };
            block.run(x, attended, &mut self.memory)?;
        }
        Ok(())
    }

    fn embed(&mut self) -> Result<Vec<f32>> {
        let (decoder, rows) = (self.decoder, self.ids.len());
        let (spec, isa) = (decoder.spec(), decoder.isa());
        let table = |slot: ModelSlot| match decoder.model.get(slot as usize) {
            Some(Part::Embedding(table)) => Some(table),
            _ => None,
        };
        let tokens = table(ModelSlot::Tokens).ok_or(NnError::NotLoaded)?;
        let mut x = vec![0f32; rows * tokens.shape()[1]];
        tokens.rows(isa, self.ids.iter().map(|id| *id as usize), &mut x)?;
        if spec.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= spec.embedding_scale as f32);
        }
        if let Some(linear) = decoder.model.linear(ModelSlot::ProjectIn as usize) {
            x = self.project(linear, &x, rows)?;
        }
        if let Some(positions) = table(ModelSlot::Positions) {
            let mut rows = vec![0f32; x.len()];
            let number = |part: &Segment| {
                let first = part.cached + spec.position_offset;
                first..first + part.rows.len()
            };
            positions.rows(isa, self.segments.iter().flat_map(number), &mut rows)?;
            x.iter_mut().zip(&rows).for_each(|(x, position)| *x += position);
        }
        if let Some(norm) = decoder.model.norm(ModelSlot::EmbeddingNorm as usize) {
            norm.forward_rows(isa, &mut x)?;
        }
        Ok(x)
    }

    fn project(&mut self, linear: &Linear, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let mut out = vec![0f32; rows * linear.out_features()];
        project(x, rows, vec![Projection::plain(linear, &mut out)], &mut self.memory.quantized)?;
        Ok(out)
    }

    /// Logits of the rows wanted of the stream `x`.
    fn logits(&mut self, x: &[f32]) -> Result<Vec<f32>> {
        let width = self.decoder.spec().hidden_size;
        let wanted = self.segments.iter().map(|part| &x[part.wanted.start * width..part.wanted.end * width]);
        let mut x = wanted.collect::<Vec<_>>().concat();
        let (decoder, rows) = (self.decoder, x.len() / width);
        let spec = decoder.spec();
        if let Some(norm) = decoder.model.norm(ModelSlot::FinalNorm as usize) {
            norm.forward_rows(decoder.isa(), &mut x)?;
        }
        if let Some(linear) = decoder.model.linear(ModelSlot::ProjectOut as usize) {
            x = self.project(linear, &x, rows)?;
        }
        let head = decoder.model.linear(ModelSlot::Head as usize).ok_or(NnError::NotLoaded)?;
        let mut logits = self.project(head, &x, rows)?;
        let (scale, cap) = (spec.logit_scale as f32, spec.logit_softcap.map(|cap| cap as f32));
        if scale != 1.0 || cap.is_some() {
            for_rows(&mut logits, spec.vocab_size().max(1), |_, row| {
                row.iter_mut().for_each(|x| *x *= scale);
                if let Some(cap) = cap {
                    row.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
                }
            });
        }
        Ok(logits)
    }
}

/// The texts with their caches of one layer.
fn attended<'a>(
    segments: &'a [Segment],
    caches: impl Iterator<Item = &'a mut KvCache>,
    number: usize,
    layer: &LayerSpec,
) -> Vec<AttendedText<'a>> {
    let text = |(part, cache): (&'a Segment, &'a mut KvCache)| AttendedText {
        rows: part.rows.clone(),
        cache: &mut cache.layers[number],
        rope: layer.rope.map(|rope| &part.ropes[rope]),
    };
    segments.iter().zip(caches).map(text).collect()
}

/// One block at work.
struct Block<'a> {
    decoder: &'a Decoder,
    parts: &'a Parts,
    layer: &'a LayerSpec,
    rows: usize,
}

impl Block<'_> {
    /// Changes the residual stream `x` `[rows, C]`.
    fn run(&self, x: &mut [f32], mut texts: Vec<AttendedText<'_>>, memory: &mut Memory) -> Result<()> {
        match self.decoder.spec().residual {
            Residual::Sequential => {
                self.normed(BlockSlot::AttentionNorm, x, memory)?;
                self.attention(&mut texts, memory)?;
                self.norm(BlockSlot::AttentionPostNorm, &mut memory.branch)?;
                self.add(x, &memory.branch);
                self.normed(BlockSlot::MlpNorm, x, memory)?;
                self.mlp(memory)?;
                self.norm(BlockSlot::MlpPostNorm, &mut memory.branch)?;
                self.add(x, &memory.branch);
            }
            Residual::Parallel => {
                self.normed(BlockSlot::AttentionNorm, x, memory)?;
                self.attention(&mut texts, memory)?;
                std::mem::swap(&mut memory.branch, &mut memory.attended);
                if self.parts.get(BlockSlot::MlpNorm as usize).is_some() {
                    self.normed(BlockSlot::MlpNorm, x, memory)?;
                }
                self.mlp(memory)?;
                self.add(x, &memory.attended);
                self.add(x, &memory.branch);
            }
            Residual::NormAfter => {
                sized(&mut memory.normed, x.len()).copy_from_slice(x);
                self.attention(&mut texts, memory)?;
                self.add(x, &memory.branch);
                self.norm(BlockSlot::AttentionNorm, x)?;
                sized(&mut memory.normed, x.len()).copy_from_slice(x);
                self.mlp(memory)?;
                self.add(x, &memory.branch);
                self.norm(BlockSlot::MlpNorm, x)?;
            }
        }
        Ok(())
    }

    /// `memory.normed` becomes `x` through the norm of a slot.
    fn normed(&self, slot: BlockSlot, x: &[f32], memory: &mut Memory) -> Result<()> {
        let out = sized(&mut memory.normed, x.len());
        if let Some(norm) = self.parts.norm(slot as usize) {
            return norm.forward_from(self.decoder.isa(), x, out);
        }
        out.copy_from_slice(x);
        self.norm(slot, out)
    }

    /// The norm of a slot; without one nothing happens.
    fn norm(&self, slot: BlockSlot, x: &mut [f32]) -> Result<()> {
        match self.parts.get(slot as usize) {
            Some(Part::Norm(norm)) => norm.forward_rows(self.decoder.isa(), x),
            Some(Part::HeadNorms(norms)) => norms.forward_rows(self.decoder.isa(), x),
            _ => Ok(()),
        }
    }

    fn linear(&self, slot: BlockSlot) -> Result<&Linear> {
        self.parts.linear(slot as usize).ok_or(NnError::NotLoaded)
    }

    fn add(&self, x: &mut [f32], branch: &[f32]) {
        let (width, scale) = (x.len() / self.rows, self.decoder.spec().residual_scale as f32);
        for_rows(x, width, |row, x| {
            let branch = &branch[row * width..][..width];
            if scale == 1.0 {
                x.iter_mut().zip(branch).for_each(|(x, y)| *x += y);
            } else {
                x.iter_mut().zip(branch).for_each(|(x, y)| *x += y * scale);
            }
        });
    }

    /// From `memory.normed` to `memory.branch`.
    fn attention(&self, texts: &mut [AttendedText<'_>], memory: &mut Memory) -> Result<()> {
        let attention = &self.decoder.spec().attention;
        let (heads, kv_heads, size) = (attention.heads, attention.kv_heads, attention.head_size);
        let (isa, rows) = (self.decoder.isa(), self.rows);
        let rule = AttentionRule {
            factor: self.layer.factor as f32,
            softcap: attention.softcap.map(|cap| cap as f32),
            window: self.layer.window,
            alibi: attention.alibi.as_ref(),
        };
        let Memory { quantized, normed, qkv, keys, values, mixed, branch, .. } = memory;
        let (q_width, kv_width) = (heads * size, kv_heads * size);
        let mixed = sized(mixed, rows * q_width);
        if let Some(linear) = self.parts.linear(BlockSlot::Qkv as usize) {
            let qkv = sized(qkv, rows * (q_width + 2 * kv_width));
            project(normed, rows, vec![Projection::plain(linear, qkv)], quantized)?;
            self.clamp(qkv);
            let [q, k, v] = Heads::split(qkv, attention.layout, [heads, kv_heads, size]);
            attend(isa, [&q, &k, &v], &rule, texts, mixed);
        } else {
            let (q, k, v) =
                (sized(qkv, rows * q_width), sized(keys, rows * kv_width), sized(values, rows * kv_width));
            let projections = vec![
                Projection::plain(self.linear(BlockSlot::Query)?, q),
                Projection::plain(self.linear(BlockSlot::Key)?, k),
                Projection::plain(self.linear(BlockSlot::Value)?, v),
            ];
            project(normed, rows, projections, quantized)?;
            [&mut *q, &mut *k, &mut *v].into_iter().for_each(|x| self.clamp(x));
            self.norm(BlockSlot::QueryNorm, q)?;
            self.norm(BlockSlot::KeyNorm, k)?;
            let queries = Heads::in_order(q, q_width, 0, heads, size);
            let [keys, values] = [k, v].map(|x| Heads::in_order(x, kv_width, 0, kv_heads, size));
            attend(isa, [&queries, &keys, &values], &rule, texts, mixed);
        }
        let linear = self.linear(BlockSlot::AttentionOut)?;
        let out = sized(branch, rows * linear.out_features());
        project(mixed, rows, vec![Projection::plain(linear, out)], quantized)
    }

    fn clamp(&self, x: &mut [f32]) {
        if let Some(limit) = self.decoder.spec().attention.qkv_clamp {
            x.iter_mut().for_each(|x| *x = x.clamp(-limit as f32, limit as f32));
        }
    }

    /// From `memory.normed` to `memory.branch`.
    fn mlp(&self, memory: &mut Memory) -> Result<()> {
        let (rows, isa, function) = (self.rows, self.decoder.isa(), self.decoder.spec().activation.kernel());
        let Memory { quantized, normed, gate, up, branch, .. } = memory;
        let middle = if let Some(linear) = self.parts.linear(BlockSlot::GateUp as usize) {
            let width = linear.out_features() / 2;
            let both = sized(gate, rows * 2 * width);
            project(normed, rows, vec![Projection::plain(linear, both)], quantized)?;
            let both = &*both;
            let up = sized(up, rows * width);
            for_rows(up, width, |row, out| {
                let (gate, up) = both[row * 2 * width..][..2 * width].split_at(width);
                out.copy_from_slice(gate);
                activation::apply(isa, function, out);
                out.iter_mut().zip(up).for_each(|(x, up)| *x *= up);
            });
            up
        } else {
            let linear = self.linear(BlockSlot::Up)?;
            let width = linear.out_features();
            let up = sized(up, rows * width);
            match self.parts.linear(BlockSlot::Gate as usize) {
                Some(gate_linear) => {
                    let gate = sized(gate, rows * width);
                    let projections = vec![
                        Projection { linear: gate_linear, activation: Some(function), out: gate },
                        Projection::plain(linear, up),
                    ];
                    project(normed, rows, projections, quantized)?;
                    let gate = &*gate;
                    for_rows(up, width, |row, up| {
                        up.iter_mut().zip(&gate[row * width..]).for_each(|(x, gate)| *x *= gate);
                    });
                }
                None => {
                    let projection = Projection { linear, activation: Some(function), out: up };
                    project(normed, rows, vec![projection], quantized)?;
                }
            }
            up
        };
        let linear = self.linear(BlockSlot::Down)?;
        let out = sized(branch, rows * linear.out_features());
        project(middle, rows, vec![Projection::plain(linear, out)], quantized)
    }
}
