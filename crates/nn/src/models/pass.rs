//! One pass of some sequences through the decoder: where its steps are executed, and in what order.
//!
//! The new tokens of all sequences lie one after the other, so that lengths need not be equal and nothing is padded.

use super::decoder::{Decoder, KvCache, LogitPositions, Text};
use super::device::{PassRows, StagePass, Work};
use super::execute::{Cpu, TextRows};
use super::logits::Logits;
use crate::error::{NnError, Result};
use crate::layers::{LayerCache, Rope};
use candle_core::{Device, Tensor};
use std::ops::Range;

impl Decoder {
    /// Logits for the next tokens of some sequences: f32 `[rows, V]`, for the requested positions of each, one
    /// sequence after the other.
    ///
    /// # Errors
    /// [`NnError::ContextExceeded`] where a cache and its new tokens do not fit into the model's positions;
    /// [`NnError::Input`] for a sequence without tokens or an id beyond the vocabulary; [`NnError::NotLoaded`].
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
        let input = Input::new(self, texts, wanted);

        let logits = match self.stages.is_empty() {
            true => on_cpu(self, &input, texts),
            false => on_devices(self, &input, texts),
        }?;

        for (text, rows) in texts.iter_mut().zip(&input.texts) {
            text.cache.len = rows.cached + rows.rows.len();
        }
        Ok(logits)
    }

    /// [`Decoder::forward`] for one sequence: the logits after its last token, f32 `[V]`.
    ///
    /// # Errors
    /// As there.
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        self.forward(&mut [Text { ids, cache }], LogitPositions::Last)
    }

    /// Logits of every position of a batch of equally long sequences.
    ///
    /// # Shapes
    /// `ids` u32 `[B, T]`; the result f32 `[B, T, V]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; [`NnError::Candle`] where `ids` are not u32 of two dimensions.
    pub fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = ids.to_vec2::<u32>()?;
        let mut caches: Vec<KvCache> = rows.iter().map(|_| self.new_cache()).collect();
        let texts = rows.iter().zip(&mut caches).map(|(ids, cache)| Text { ids, cache });
        let logits = self.forward(&mut texts.collect::<Vec<_>>(), LogitPositions::All)?;

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

/// What a pass computes.
struct Input {
    /// The new tokens of all sequences.
    ids: Vec<u32>,
    texts: Vec<TextRows>,
    /// The rows whose logits are requested.
    requested: Vec<usize>,
}

impl Input {
    fn new(decoder: &Decoder, texts: &mut [Text<'_>], wanted: LogitPositions) -> Self {
        let mut input = Self { ids: Vec::new(), texts: Vec::new(), requested: Vec::new() };
        let ropes = &decoder.spec().attention.ropes;
        let may_change = ropes.iter().any(Rope::has_long);
        for Text { ids: new, cache } in texts {
            let length = cache.len() + new.len();
            let is_long = ropes.iter().any(|rope| rope.is_long(length));
            let first = input.ids.len();
            if !cache.is_empty() && is_long != cache.is_long {
                // What is cached was rotated by frequencies that no longer hold.
                input.ids.extend(std::mem::take(&mut cache.seen));
                **cache = decoder.new_cache();
            }
            input.ids.extend_from_slice(new);
            let rows = first..input.ids.len();
            if may_change {
                cache.seen.extend_from_slice(&input.ids[rows.clone()]);
            }
            cache.is_long = is_long;

            input.requested.extend(match wanted {
                LogitPositions::All => rows.end - new.len()..rows.end,
                LogitPositions::Last => rows.end - 1..rows.end,
            });
            input.texts.push(TextRows::new(rows, cache.len(), ropes));
        }
        input
    }

    fn rows_for_devices(&self, decoder: &Decoder) -> PassRows {
        let mut rows = PassRows::default();
        for text in &self.texts {
            let ids = &self.ids[text.rows.clone()];
            rows.push(text.cached, ids, decoder.spec().position_offset, &text.ropes);
        }
        rows
    }
}

/// Rows from which a pass runs on the thread pool from beginning to end, so that its threads need not be woken
/// for each layer. Fewer rows never leave the calling thread and the team of the kernels.
const POOLED_ROWS: usize = 16;

/// Runs work on the CPU for this many rows.
fn pooled<T: Send>(rows: usize, work: impl FnOnce() -> T + Send) -> T {
    if rows >= POOLED_ROWS { rayon::scope(|_| work()) } else { work() }
}

/// Everything on the CPU.
fn on_cpu<'a>(decoder: &'a Decoder, input: &Input, texts: &mut [Text<'_>]) -> Result<Logits<'a>> {
    let logits = pooled(input.ids.len(), || {
        let mut cpu = Cpu::new(decoder, &input.ids, &input.texts);
        cpu.embed()?;
        run_blocks(&mut cpu, 0..decoder.blocks.len(), texts)?;
        cpu.logits(&input.requested)
    })?;
    Ok(Logits::from_vec(logits, decoder.spec().vocab_size()))
}

/// Blocks on the CPU.
fn run_blocks(cpu: &mut Cpu<'_>, blocks: Range<usize>, texts: &mut [Text<'_>]) -> Result<()> {
    for number in blocks {
        let mut caches: Vec<&mut LayerCache> =
            texts.iter_mut().map(|text| &mut text.cache.layers[number]).collect();
        cpu.block(number, &mut caches)?;
    }
    Ok(())
}

/// The blocks of each device in turn, then those of the CPU; embeddings and head where they lie. The stream goes
/// from place to place through the host.
fn on_devices<'a>(decoder: &'a Decoder, input: &Input, texts: &mut [Text<'_>]) -> Result<Logits<'a>> {
    let rows = input.rows_for_devices(decoder);
    let blocks = decoder.blocks.len();
    let mut cpu = Cpu::new(decoder, &input.ids, &input.texts);
    // The device that has embeddings and head, once it has computed its blocks.
    let mut with_head: Option<StagePass<'a>> = None;
    let mut computed = 0;

    if !decoder.stages.first().is_some_and(|stage| stage.has_model()) {
        cpu.embed()?;
    }
    for (number, stage) in decoder.stages.iter().enumerate() {
        let mut caches: Vec<_> = texts.iter_mut().map(|text| &mut text.cache.devices[number]).collect();
        let mut pass = stage.begin(decoder, &rows, &mut caches)?;
        let embeds = stage.has_model();
        if !embeds {
            pass.write(&cpu.take_stream())?;
        }
        computed = stage.range().end;
        let is_last = embeds && computed == blocks;
        let heads = is_last && input.requested.len() == input.ids.len();
        pass.run(&Work { embeds, blocks: stage.range(), heads })?;
        if heads {
            return Ok(Logits::on_device(pass, input.requested.len(), decoder.spec().vocab_size()));
        }
        if is_last {
            return logits_on_device(decoder, pass, input);
        }
        cpu.set_stream(pass.read()?);
        if embeds {
            with_head = Some(pass);
        }
    }

    pooled(input.ids.len(), || run_blocks(&mut cpu, computed..blocks, texts))?;
    match with_head {
        Some(pass) => {
            pass.write(&cpu.take_stream())?;
            logits_on_device(decoder, pass, input)
        }
        None => Ok(Logits::from_vec(cpu.logits(&input.requested)?, decoder.spec().vocab_size())),
    }
}

/// The head of a device, for the requested rows of its stream.
fn logits_on_device<'a>(decoder: &Decoder, mut pass: StagePass<'a>, input: &Input) -> Result<Logits<'a>> {
    pass.logits_of(&input.requested)?;
    Ok(Logits::on_device(pass, input.requested.len(), decoder.spec().vocab_size()))
}
