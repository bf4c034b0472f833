//! Executes the steps of a plan on the CPU. Activations are f32; each layer knows the dtype of its
//! own weights.

use crate::decoder::Decoder;
use crate::error::Result;
use crate::execute::buffers::Buffers;
use crate::execute::layers::{activate_gates, linears, missing, project_layers, sized};
use crate::hook::{LinearHook, LinearInput};
use crate::plan::{
    Add, Attend, Embed, HeadNorm, Index, LinearStep, LogitsStep, NormStep, Rows, Step, Through,
};
use crate::slot::{Part, PartSlot, Parts};
use llm_int8_kernels::Isa;
use llm_int8_nn::layers::{
    Alibi, AttendedSequence, AttentionRule, HeadShape, Heads, LayerCache, Qkv, Rope, RopeTable,
    attend,
};
use llm_int8_nn::linear::for_rows;
use std::ops::Range;

/// The rows of one sequence in a pass.
#[derive(Debug)]
pub(crate) struct SequenceRows {
    pub(crate) rows: Range<usize>,
    /// Cached positions before its first row.
    pub(crate) cached: usize,
    /// Cosines and sines of its rows, for each of the model's rotations.
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

/// A pass on the CPU: the rows, and memory that is reused from step to step and from pass to pass.
pub(crate) struct Cpu<'a> {
    decoder: &'a Decoder,
    hook: Option<&'a mut dyn LinearHook>,
    ids: &'a [u32],
    sequences: &'a [SequenceRows],
    /// Rows that steps work on: all of the pass, or for the head those whose logits are requested.
    count: usize,
    buffers: Buffers,
    /// The norm (its slot's number) whose output for the present stream is in `buffers.layer_input`. With
    /// parallel residuals, attention and MLP share it.
    normed: Option<usize>,
}

impl Drop for Cpu<'_> {
    fn drop(&mut self) {
        self.decoder.spare.give(std::mem::take(&mut self.buffers));
    }
}

impl<'a> Cpu<'a> {
    pub(crate) fn new(decoder: &'a Decoder, ids: &'a [u32], sequences: &'a [SequenceRows]) -> Self {
        Self {
            decoder,
            hook: None,
            ids,
            sequences,
            count: ids.len(),
            buffers: decoder.spare.take(),
            normed: None,
        }
    }

    /// Has `hook` called for the linear layers.
    pub(crate) fn set_hook(&mut self, hook: &'a mut dyn LinearHook) {
        self.hook = Some(hook);
    }

    /// Takes the residual stream `[rows, C]` out; it is empty afterwards.
    pub(crate) fn take_stream(&mut self) -> Vec<f32> {
        self.take_one(Rows::Stream)
    }

    pub(crate) fn set_stream(&mut self, stream: Vec<f32>) {
        self.put_one(Rows::Stream, stream);
    }

    /// Runs the embeddings, from token ids to the stream.
    pub(crate) fn embed(&mut self) -> Result<()> {
        let decoder = self.decoder;
        decoder
            .execution_plan()
            .embed
            .iter()
            .try_for_each(|step| self.step(step, &decoder.model, &mut []))
    }

    /// Runs one block. `caches` has the block's cache of each sequence.
    pub(crate) fn block(&mut self, number: usize, caches: &mut [&mut LayerCache]) -> Result<()> {
        let decoder = self.decoder;
        let steps = &decoder.execution_plan().blocks[number];
        steps
            .iter()
            .try_for_each(|step| self.step(step, &decoder.blocks[number], caches))
    }

    /// Runs the head for these rows of the stream and returns their logits `[requested, V]`.
    pub(crate) fn logits(mut self, requested: &[usize]) -> Result<Vec<f32>> {
        let decoder = self.decoder;
        let width = decoder.spec().hidden_size;

        let mut stream = self.take_stream();
        if requested.len() * width != stream.len() {
            let rows = requested
                .iter()
                .flat_map(|row| &stream[row * width..][..width]);
            stream = rows.copied().collect();
        }
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

    /// Takes the buffers of some rows out, so that others can be borrowed at the same time.
    fn take(&mut self, rows: Rows) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.buffers.rows[rows as usize])
    }

    /// Takes the buffer of rows that have only one.
    fn take_one(&mut self, rows: Rows) -> Vec<f32> {
        self.buffers.rows[rows as usize]
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

    /// Puts buffers back, whose values may have changed.
    fn put(&mut self, rows: Rows, buffers: Vec<Vec<f32>>) {
        if rows == Rows::Stream {
            self.normed = None;
        }
        self.buffers.rows[rows as usize] = buffers;
    }

    fn step<S: PartSlot>(
        &mut self,
        step: &Step<S>,
        parts: &Parts<S>,
        caches: &mut [&mut LayerCache],
    ) -> Result<()> {
        match step {
            Step::Embed(step) => self.embed_step(step, parts),
            Step::Linear(step) => self.linear(step, parts),
            Step::HeadNorm(step) => self.head_norm(step, parts),
            Step::Attend(step) => self.attend(step, caches),
            Step::Norm(step) => self.norm(step, parts),
            Step::Add(step) => self.add_step(step),
            Step::Logits(step) => {
                self.logits_step(*step);
                Ok(())
            }
        }
    }

    fn add_step(&mut self, step: &Add) -> Result<()> {
        let from = self.take_one(step.from);
        let mut stream = self.take_one(Rows::Stream);
        if from.len() != stream.len() {
            return missing("rows for the stream");
        }

        add(&mut stream, &from, self.count, step.scale as f32);

        self.put_one(step.from, from);
        self.put_one(Rows::Stream, stream);
        Ok(())
    }

    fn embed_step<S: PartSlot>(&mut self, step: &Embed<S>, parts: &Parts<S>) -> Result<()> {
        let isa = self.isa();
        let table = |slot| match parts.get(slot) {
            Some(Part::Embedding(table)) => Ok(table),
            _ => missing("a table"),
        };
        let positions = || {
            self.sequences.iter().flat_map(|sequence| {
                let first = sequence.cached + step.offset;
                first..first + sequence.rows.len()
            })
        };

        let tokens = table(step.table)?;
        let mut embedded = self.take_one(step.into);
        let x = sized(&mut embedded, self.count, tokens.shape()[1]);
        match step.index {
            Index::Token => tokens.rows(isa, self.ids.iter().map(|id| *id as usize), x)?,
            Index::Position => tokens.rows(isa, positions(), x)?,
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
        self.put_one(step.into, embedded);
        Ok(())
    }

    fn linear<S: PartSlot>(&mut self, step: &LinearStep<S>, parts: &Parts<S>) -> Result<()> {
        let mut input = self.take(step.input);
        let is_prepared = self.prepare_input(step, parts, &mut input)?;

        let mut outputs = match step.adds {
            Some(_) => vec![std::mem::take(&mut self.buffers.added)],
            None => std::mem::take(&mut self.buffers.rows[step.into as usize]),
        };
        outputs.resize_with(step.layers.len(), Vec::new);

        let x = if is_prepared {
            Some(&self.buffers.layer_input)
        } else {
            input.last()
        };
        let Some(x) = x else {
            return missing("rows that no step wrote");
        };
        let isa = self.isa();
        let input_rows = LinearInput {
            layers: linears(step, parts)?,
            values: x,
            rows: self.count,
            reads_stream: step.input == Rows::Stream,
        };
        let hook = self.hook.as_mut();
        let hook = hook.map(|hook| &mut **hook as &mut dyn LinearHook);
        let quantized = &mut self.buffers.quantized;
        project_layers(isa, step, parts, &input_rows, &mut outputs, quantized, hook)?;
        activate_gates(isa, step, &mut outputs);

        self.buffers.rows[step.input as usize] = input;
        match (step.adds, outputs.as_slice()) {
            (Some(scale), [added]) => {
                let mut rows = self.take_one(step.into);
                add(&mut rows, added, self.count, scale as f32);
                self.put_one(step.into, rows);
                self.buffers.added = outputs.remove(0);
            }
            _ => self.put(step.into, outputs),
        }
        Ok(())
    }

    /// Applies the norm or the gate of a linear step. Returns true if the layers' input is now in
    /// `self.buffers.layer_input`, false if it is the last buffer of `input`.
    fn prepare_input<S: PartSlot>(
        &mut self,
        step: &LinearStep<S>,
        parts: &Parts<S>,
        input: &mut [Vec<f32>],
    ) -> Result<bool> {
        let count = self.count;
        let width = step.in_features;
        match step.through {
            Through::Plain => Ok(false),
            Through::Norm(slot) => {
                if step.input == Rows::Stream && self.normed == Some(slot.number()) {
                    return Ok(true);
                }
                let (Some(Part::Norm(norm)), [x]) = (parts.get(slot), &*input) else {
                    return missing("a norm");
                };
                let isa = self.isa();
                norm.forward_from(isa, x, sized(&mut self.buffers.layer_input, count, width))?;
                self.normed = (step.input == Rows::Stream).then(|| slot.number());
                Ok(true)
            }
            Through::Gate => match input {
                // Gate and up of two layers: their product replaces up.
                [gate, up] => {
                    for_rows(up, width, |row, up| {
                        up.iter_mut()
                            .zip(&gate[row * width..])
                            .for_each(|(x, gate)| *x *= gate);
                    });
                    Ok(false)
                }
                // Gate and up of one layer, side by side in each row.
                [both] => {
                    self.normed = None;
                    let gated = sized(&mut self.buffers.layer_input, count, width);
                    for_rows(gated, width, |row, out| {
                        let (gate, up) = both[row * 2 * width..][..2 * width].split_at(width);
                        out.iter_mut()
                            .zip(gate)
                            .zip(up)
                            .for_each(|((x, gate), up)| *x = gate * up);
                    });
                    Ok(true)
                }
                _ => missing("gate and up"),
            },
        }
    }

    fn head_norm<S: PartSlot>(&mut self, step: &HeadNorm<S>, parts: &Parts<S>) -> Result<()> {
        let isa = self.isa();
        let Some(x) = self.buffers.rows[step.rows as usize].get_mut(step.layer) else {
            return missing("queries or keys");
        };
        match parts.get(step.norm) {
            Some(Part::Norm(norm)) => Ok(norm.forward_rows(isa, x)?),
            Some(Part::HeadNorms(norms)) => Ok(norms.forward_rows(isa, x)?),
            _ => missing("a norm of heads"),
        }
    }

    fn attend(&mut self, step: &Attend, caches: &mut [&mut LayerCache]) -> Result<()> {
        let heads = step.heads;
        let kv_heads = step.kv_heads;
        let size = step.head_size;

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
            _ => return missing("queries, keys and values"),
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

        let mut outputs = self.take(Rows::Heads);
        outputs.resize_with(1, Vec::new);
        let out = sized(&mut outputs[0], self.count, heads * size);
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
        self.put(Rows::Heads, outputs);
        Ok(())
    }

    fn norm<S: PartSlot>(&mut self, step: &NormStep<S>, parts: &Parts<S>) -> Result<()> {
        let mut rows = self.take(step.rows);
        match (parts.get(step.norm), rows.as_mut_slice()) {
            (Some(Part::Norm(norm)), [x]) => norm.forward_rows(self.isa(), x)?,
            _ => return missing("a norm"),
        }
        self.put(step.rows, rows);
        Ok(())
    }

    fn logits_step(&mut self, step: LogitsStep) {
        let mut logits = self.take_one(Rows::Logits);
        let width = self.decoder.spec().vocab_size().max(1);
        let scale = step.scale as f32;
        let cap = step.softcap.map(|cap| cap as f32);

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
