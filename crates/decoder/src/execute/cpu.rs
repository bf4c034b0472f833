//! Follows the steps of a plan on the CPU. Rows are f32; what the weights are stored in is each
//! layer's own business.

use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::plan::{
    Activated, Attend, Embed, HeadNorm, Index, LinearStep, LogitsStep, NormStep, Rows, Step,
    Through,
};
use crate::slot::{Part, PartSlot, Parts};
use llm_int8_kernels::{Isa, QuantizedActivations, activation};
use llm_int8_nn::layers::{
    Alibi, AttendedSequence, AttentionRule, HeadShape, Heads, LayerCache, Qkv, Rope, RopeTable,
    attend,
};
use llm_int8_nn::linear::{Projection, for_rows, project};
use std::ops::Range;

/// The rows of one sequence in a pass.
#[derive(Debug)]
pub(crate) struct SequenceRows {
    pub(crate) rows: Range<usize>,
    /// Positions before its first row.
    pub(crate) cached: usize,
    /// The rotations of its rows, one for each of the model's.
    pub(crate) ropes: Vec<RopeTable>,
}

impl SequenceRows {
    pub(crate) fn new(rows: Range<usize>, cached: usize, ropes: &[Rope]) -> Self {
        let ropes = ropes
            .iter()
            .map(|rope| rope.table(cached, rows.len()))
            .collect();
        Self {
            rows,
            cached,
            ropes,
        }
    }
}

/// A pass on the CPU: rows, and memory that is reused from step to step.
pub(crate) struct Cpu<'a> {
    decoder: &'a Decoder,
    ids: &'a [u32],
    sequences: &'a [SequenceRows],
    /// Rows of the steps at work: all of the pass, or those whose logits are requested.
    count: usize,
    /// Of each kind of rows a buffer for each layer that writes them.
    rows: [Vec<Vec<f32>>; Rows::COUNT],
    /// Input of layers, made by a norm or a gate.
    made: Vec<f32>,
    /// The slot's number of the norm through which `made` was made from the stream as it is now.
    normed: Option<usize>,
    /// Output of layers that is added to other rows.
    added: Vec<f32>,
    quantized: QuantizedActivations,
}

/// A step names a part that its plan did not check: a mistake in this program.
fn no_part<T>(what: &'static str) -> Result<T> {
    Err(DecoderError::Bug { what })
}

/// `count` rows of `width` values, whatever was in them.
fn sized(buffer: &mut Vec<f32>, count: usize, width: usize) -> &mut [f32] {
    buffer.resize(count * width, 0.0);
    buffer
}

impl<'a> Cpu<'a> {
    pub(crate) fn new(decoder: &'a Decoder, ids: &'a [u32], sequences: &'a [SequenceRows]) -> Self {
        Self {
            decoder,
            ids,
            sequences,
            count: ids.len(),
            rows: Default::default(),
            made: Vec::new(),
            normed: None,
            added: Vec::new(),
            quantized: QuantizedActivations::default(),
        }
    }

    /// The stream `[rows, C]`, which becomes empty here.
    pub(crate) fn take_stream(&mut self) -> Vec<f32> {
        self.take_one(Rows::Stream)
    }

    pub(crate) fn set_stream(&mut self, stream: Vec<f32>) {
        self.put_one(Rows::Stream, stream);
    }

    /// From token ids to the stream.
    pub(crate) fn embed(&mut self) -> Result<()> {
        let decoder = self.decoder;
        decoder
            .execution_plan()
            .embed
            .iter()
            .try_for_each(|step| self.step(step, &decoder.model, &mut []))
    }

    /// One block, with the cache of each sequence.
    pub(crate) fn block(&mut self, number: usize, caches: &mut [&mut LayerCache]) -> Result<()> {
        let decoder = self.decoder;
        let steps = &decoder.execution_plan().blocks[number];
        steps
            .iter()
            .try_for_each(|step| self.step(step, &decoder.blocks[number], caches))
    }

    /// Logits `[requested, V]` of these rows of the stream.
    pub(crate) fn logits(mut self, requested: &[usize]) -> Result<Vec<f32>> {
        let decoder = self.decoder;
        let (stream, width) = (self.take_stream(), decoder.spec().hidden_size);
        let rows = requested
            .iter()
            .flat_map(|row| &stream[row * width..][..width])
            .copied();
        let stream = if requested.len() * width == stream.len() {
            stream
        } else {
            rows.collect()
        };
        self.set_stream(stream);
        self.count = requested.len();
        decoder
            .execution_plan()
            .head
            .iter()
            .try_for_each(|step| self.step(step, &decoder.model, &mut []))?;
        Ok(self.take_one(Rows::Logits))
    }

    fn isa(&self) -> Isa {
        self.decoder.isa()
    }

    /// The buffers of some rows, taken out so that others can be borrowed beside them.
    fn take(&mut self, rows: Rows) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.rows[rows as usize])
    }

    /// The values of rows that have one buffer.
    fn take_one(&mut self, rows: Rows) -> Vec<f32> {
        self.rows[rows as usize]
            .first_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn put_one(&mut self, rows: Rows, buffer: Vec<f32>) {
        let mut buffers = self.take(rows);
        buffers.resize_with(1, Vec::new);
        buffers[0] = buffer;
        self.put(rows, buffers);
    }

    fn put(&mut self, rows: Rows, buffers: Vec<Vec<f32>>) {
        if rows == Rows::Stream {
            self.normed = None;
        }
        self.rows[rows as usize] = buffers;
    }

    fn step<S: PartSlot>(
        &mut self,
        step: &Step<S>,
        parts: &Parts<S>,
        caches: &mut [&mut LayerCache],
    ) -> Result<()> {
        match step {
            Step::Embed(step) => self.rows_of_tables(step, parts),
            Step::Linear(step) => self.linear(step, parts),
            Step::HeadNorm(step) => self.head_norm(step, parts),
            Step::Attend(step) => self.attend(step, caches),
            Step::Norm(step) => self.norm(step, parts),
            Step::Add(step) => {
                let from = self.take_one(step.from);
                let mut stream = self.take_one(Rows::Stream);
                if from.len() != stream.len() {
                    return no_part("rows for the stream");
                }
                add(&mut stream, &from, self.count, step.scale as f32);
                self.put_one(step.from, from);
                self.put_one(Rows::Stream, stream);
                Ok(())
            }
            Step::Logits(step) => {
                self.logits_step(*step);
                Ok(())
            }
        }
    }

    fn rows_of_tables<S: PartSlot>(&mut self, step: &Embed<S>, parts: &Parts<S>) -> Result<()> {
        let isa = self.isa();
        let table = |slot| match parts.get(slot) {
            Some(Part::Embedding(table)) => Ok(table),
            _ => no_part("a table"),
        };
        let positions = || {
            self.sequences.iter().flat_map(|sequence| {
                let first = sequence.cached + step.offset;
                first..first + sequence.rows.len()
            })
        };

        let tokens = table(step.table)?;
        let mut x = vec![0f32; self.count * tokens.shape()[1]];
        match step.index {
            Index::Token => tokens.rows(isa, self.ids.iter().map(|id| *id as usize), &mut x)?,
            Index::Position => tokens.rows(isa, positions(), &mut x)?,
        }
        if step.scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= step.scale as f32);
        }
        if let Some(slot) = step.positions {
            let mut rows = vec![0f32; x.len()];
            table(slot)?.rows(isa, positions(), &mut rows)?;
            x.iter_mut()
                .zip(&rows)
                .for_each(|(x, position)| *x += position);
        }
        self.put_one(step.into, x);
        Ok(())
    }

    fn linear<S: PartSlot>(&mut self, step: &LinearStep<S>, parts: &Parts<S>) -> Result<()> {
        let (count, isa) = (self.count, self.isa());
        let mut input = self.take(step.input);
        let is_made = self.make_input(step, parts, &mut input)?;
        // Of a gate in two buffers the product is in the second.
        let x = if is_made {
            Some(&self.made)
        } else {
            input.last()
        };
        let Some(x) = x else {
            return no_part("rows that no step wrote");
        };

        let mut outputs = match step.adds {
            Some(_) => vec![std::mem::take(&mut self.added)],
            None => std::mem::take(&mut self.rows[step.into as usize]),
        };
        outputs.resize_with(step.layers.len(), Vec::new);
        let mut projections = Vec::with_capacity(step.layers.len());
        for (layer, out) in step.layers.iter().zip(&mut outputs) {
            let Some(linear) = parts.linear(layer.slot) else {
                return no_part("a linear layer");
            };
            let whole =
                |activated: &Activated| layer.offset + layer.out_features <= activated.outputs;
            let activation = step
                .activation
                .filter(whole)
                .map(|activated| activated.function.kernel());
            projections.push(Projection {
                linear,
                activation,
                out: sized(out, count, layer.out_features),
            });
        }
        project(x, count, projections, &mut self.quantized)?;

        for (layer, out) in step.layers.iter().zip(&mut outputs) {
            let Some(Activated { function, outputs }) = step.activation else {
                continue;
            };
            let (first, end) = (layer.offset, layer.offset + layer.out_features);
            if first < outputs && outputs < end {
                // The gate of a layer that gives gate and up.
                let activated = outputs - first;
                for_rows(out, layer.out_features, |_, row| {
                    activation::apply(isa, function.kernel(), &mut row[..activated]);
                });
            }
        }

        self.rows[step.input as usize] = input;
        match (step.adds, outputs.as_slice()) {
            (Some(scale), [added]) => {
                let mut rows = self.take_one(step.into);
                add(&mut rows, added, count, scale as f32);
                self.put_one(step.into, rows);
                self.added = outputs.remove(0);
            }
            _ => self.put(step.into, outputs),
        }
        Ok(())
    }

    /// The input of layers in `self.made`, or false where it lies in the last buffer of `input`.
    fn make_input<S: PartSlot>(
        &mut self,
        step: &LinearStep<S>,
        parts: &Parts<S>,
        input: &mut [Vec<f32>],
    ) -> Result<bool> {
        let (count, isa) = (self.count, self.isa());
        match step.through {
            Through::Plain => Ok(false),
            Through::Norm(slot) => {
                if step.input == Rows::Stream && self.normed == Some(slot.number()) {
                    return Ok(true);
                }
                let (Some(Part::Norm(norm)), [x]) = (parts.get(slot), &*input) else {
                    return no_part("a norm");
                };
                norm.forward_from(isa, x, sized(&mut self.made, count, step.in_features))?;
                self.normed = (step.input == Rows::Stream).then(|| slot.number());
                Ok(true)
            }
            Through::Gate => match input {
                [gate, up] => {
                    let width = step.in_features;
                    for_rows(up, width, |row, up| {
                        up.iter_mut()
                            .zip(&gate[row * width..])
                            .for_each(|(x, gate)| *x *= gate);
                    });
                    Ok(false)
                }
                [both] => {
                    let width = step.in_features;
                    self.normed = None;
                    for_rows(sized(&mut self.made, count, width), width, |row, out| {
                        let (gate, up) = both[row * 2 * width..][..2 * width].split_at(width);
                        out.iter_mut()
                            .zip(gate)
                            .zip(up)
                            .for_each(|((x, gate), up)| *x = gate * up);
                    });
                    Ok(true)
                }
                _ => no_part("gate and up"),
            },
        }
    }

    fn head_norm<S: PartSlot>(&mut self, step: &HeadNorm<S>, parts: &Parts<S>) -> Result<()> {
        let isa = self.isa();
        let Some(x) = self.rows[step.rows as usize].get_mut(step.layer) else {
            return no_part("queries or keys");
        };
        match parts.get(step.norm) {
            Some(Part::Norm(norm)) => Ok(norm.forward_rows(isa, x)?),
            Some(Part::HeadNorms(norms)) => Ok(norms.forward_rows(isa, x)?),
            _ => no_part("a norm of heads"),
        }
    }

    fn attend(&mut self, step: &Attend, caches: &mut [&mut LayerCache]) -> Result<()> {
        let (heads, kv_heads, size) = (step.heads, step.kv_heads, step.head_size);
        let mut qkv = self.take(Rows::Qkv);
        if let Some(clamp) = step.clamp {
            let clamp = clamp as f32;
            qkv.iter_mut()
                .flatten()
                .for_each(|x| *x = x.clamp(-clamp, clamp));
        }
        let [queries, keys, values] = match qkv.as_slice() {
            [all] => {
                let shape = HeadShape {
                    heads,
                    kv_heads,
                    size,
                };
                Heads::split(all, step.layout, shape)
            }
            [q, k, v] => [(q, heads), (k, kv_heads), (v, kv_heads)]
                .map(|(x, heads)| Heads::in_order(x, heads * size, 0, heads, size)),
            _ => return no_part("queries, keys and values"),
        };

        let alibi: Option<&Alibi> = self.decoder.spec().attention.alibi.as_ref();
        let rule = AttentionRule {
            factor: step.scale as f32,
            softcap: step.softcap.map(|cap| cap as f32),
            window: step.window,
            alibi: alibi.filter(|_| step.alibi),
        };
        let attended =
            self.sequences
                .iter()
                .zip(caches)
                .map(|(sequence, cache)| AttendedSequence {
                    rows: sequence.rows.clone(),
                    cache,
                    rope: step.rope.map(|rope| &sequence.ropes[rope]),
                });
        let mut attended: Vec<AttendedSequence<'_>> = attended.collect();
        let mut mixed = self.take(Rows::Mixed);
        mixed.resize_with(1, Vec::new);
        let out = sized(&mut mixed[0], self.count, heads * size);
        attend(
            self.isa(),
            Qkv {
                q: &queries,
                k: &keys,
                v: &values,
            },
            &rule,
            &mut attended,
            out,
        );

        self.put(Rows::Qkv, qkv);
        self.put(Rows::Mixed, mixed);
        Ok(())
    }

    fn norm<S: PartSlot>(&mut self, step: &NormStep<S>, parts: &Parts<S>) -> Result<()> {
        let mut rows = self.take(step.rows);
        match (parts.get(step.norm), rows.as_mut_slice()) {
            (Some(Part::Norm(norm)), [x]) => norm.forward_rows(self.isa(), x)?,
            _ => return no_part("a norm"),
        }
        self.put(step.rows, rows);
        Ok(())
    }

    fn logits_step(&mut self, step: LogitsStep) {
        let mut logits = self.take_one(Rows::Logits);
        let width = self.decoder.spec().vocab_size().max(1);
        let (scale, cap) = (step.scale as f32, step.softcap.map(|cap| cap as f32));
        for_rows(&mut logits, width, |_, row| {
            row.iter_mut().for_each(|x| *x *= scale);
            if let Some(cap) = cap {
                row.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
            }
        });
        self.put_one(Rows::Logits, logits);
    }
}

/// `rows += scale · from`.
fn add(rows: &mut [f32], from: &[f32], count: usize, scale: f32) {
    let width = rows.len() / count.max(1);
    for_rows(rows, width, |row, x| {
        let from = &from[row * width..][..width];
        if scale == 1.0 {
            x.iter_mut().zip(from).for_each(|(x, y)| *x += y);
        } else {
            x.iter_mut().zip(from).for_each(|(x, y)| *x += y * scale);
        }
    });
}
