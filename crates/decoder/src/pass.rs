//! One pass of some sequences through the decoder: where its steps are executed, and in what order.
//!
//! The new tokens of all sequences lie one after the other, so that lengths need not be equal and
//! nothing is padded.

use crate::decoder::{Decoder, KvCache, LogitPositions, SequenceInput};
use crate::error::{DecoderError, Result};
use crate::execute::gpu::{PassRows, StagePass, Work};
use crate::execute::{Cpu, SequenceRows};
use crate::logits::Logits;
use candle_core::{Device, Tensor};
use llm_int8_nn::layers::{LayerCache, Rope};
use std::ops::Range;

impl Decoder {
    /// Logits for the next tokens of some sequences: f32 `[rows, V]`, for the positions that each
    /// requests, one sequence after the other.
    ///
    /// # Errors
    /// [`DecoderError::ContextExceeded`] where a cache and its new tokens do not fit into the
    /// model's positions; [`DecoderError::Input`] for a sequence without tokens or an id beyond the
    /// vocabulary; [`NnError::NotLoaded`](llm_int8_nn::NnError). After an error the caches hold
    /// nothing usable.
    pub fn forward(&self, sequences: &mut [SequenceInput<'_>]) -> Result<Vec<f32>> {
        self.logits_of(sequences)?.into_vec()
    }

    /// [`Decoder::forward`] with the logits where they were computed: of those on a device only the
    /// tokens chosen need to be fetched. The device is this pass's until they are dropped.
    ///
    /// # Errors
    /// As there.
    pub fn logits_of(&self, sequences: &mut [SequenceInput<'_>]) -> Result<Logits<'_>> {
        for sequence in sequences.iter() {
            self.check(sequence)?;
        }
        let input = Input::new(self, sequences);

        let logits = match self.stages.is_empty() {
            true => on_cpu(self, &input, sequences),
            false => on_devices(self, &input, sequences),
        }?;

        for (sequence, rows) in sequences.iter_mut().zip(&input.sequences) {
            sequence.cache.len = rows.cached + rows.rows.len();
        }
        Ok(logits)
    }

    /// [`Decoder::forward`] for one sequence: the logits after its last token, f32 `[V]`.
    ///
    /// # Errors
    /// As there.
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        self.forward(&mut [SequenceInput {
            ids,
            cache,
            logits: LogitPositions::Last,
        }])
    }

    /// Logits of every position of a batch of equally long sequences.
    ///
    /// # Shapes
    /// `ids` u32 `[B, T]`; the result f32 `[B, T, V]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; [`DecoderError::Candle`] where `ids` are not u32 of two dimensions.
    pub fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = ids.to_vec2::<u32>()?;
        let mut caches: Vec<KvCache> = rows.iter().map(|_| self.new_cache()).collect();
        let logits = LogitPositions::All;
        let sequences = rows
            .iter()
            .zip(&mut caches)
            .map(|(ids, cache)| SequenceInput { ids, cache, logits });
        let logits = self.forward(&mut sequences.collect::<Vec<_>>())?;

        let (batch, tokens) = ids.dims2()?;
        Ok(Tensor::from_vec(
            logits,
            (batch, tokens, self.spec().vocab_size()),
            &Device::Cpu,
        )?)
    }

    /// Whether all ids belong to the vocabulary, and there are some.
    ///
    /// # Errors
    /// [`DecoderError::Input`] where they do not.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let error = |reason: String| {
            Err(DecoderError::Input {
                model: self.spec().family.into(),
                reason,
            })
        };
        let (Some(largest), vocab_size) = (ids.iter().max(), self.spec().vocab_size()) else {
            return error("there are no token ids; give at least one".into());
        };
        if *largest as usize >= vocab_size {
            return error(format!(
                "token id {largest} is beyond the vocabulary of {vocab_size}; is the tokenizer this model's?"
            ));
        }
        Ok(())
    }

    fn check(&self, sequence: &SequenceInput<'_>) -> Result<()> {
        let (requested, available) = (
            sequence.cache.len() + sequence.ids.len(),
            self.spec().positions,
        );
        if requested > available {
            return Err(DecoderError::ContextExceeded {
                requested,
                available,
            });
        }
        self.check_ids(sequence.ids)
    }
}

/// What a pass computes.
struct Input {
    /// The new tokens of all sequences.
    ids: Vec<u32>,
    sequences: Vec<SequenceRows>,
    /// The rows whose logits are requested.
    requested: Vec<usize>,
}

impl Input {
    fn new(decoder: &Decoder, sequences: &mut [SequenceInput<'_>]) -> Self {
        let mut input = Self {
            ids: Vec::new(),
            sequences: Vec::new(),
            requested: Vec::new(),
        };
        let ropes = &decoder.spec().attention.ropes;
        let may_change = ropes.iter().any(Rope::has_long);
        for SequenceInput {
            ids: new,
            cache,
            logits,
        } in sequences
        {
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

            input.requested.extend(match logits {
                LogitPositions::All => rows.end - new.len()..rows.end,
                LogitPositions::Last => rows.end - 1..rows.end,
            });
            input
                .sequences
                .push(SequenceRows::new(rows, cache.len(), ropes));
        }
        input
    }

    fn rows_for_devices(&self, decoder: &Decoder) -> PassRows {
        let mut rows = PassRows::default();
        for sequence in &self.sequences {
            let ids = &self.ids[sequence.rows.clone()];
            rows.push(
                sequence.cached,
                ids,
                decoder.spec().position_offset,
                &sequence.ropes,
            );
        }
        rows
    }
}

/// Rows from which a pass runs on the thread pool from beginning to end, so that its threads need
/// not be woken for each layer. Fewer rows never leave the calling thread and the team of the
/// kernels.
const POOLED_ROWS: usize = 16;

/// Runs work on the CPU for this many rows.
fn pooled<T: Send>(rows: usize, work: impl FnOnce() -> T + Send) -> T {
    if rows >= POOLED_ROWS {
        rayon::scope(|_| work())
    } else {
        work()
    }
}

/// Everything on the CPU.
fn on_cpu<'a>(
    decoder: &'a Decoder,
    input: &Input,
    sequences: &mut [SequenceInput<'_>],
) -> Result<Logits<'a>> {
    let logits = pooled(input.ids.len(), || {
        let mut cpu = Cpu::new(decoder, &input.ids, &input.sequences);
        cpu.embed()?;
        run_blocks(&mut cpu, 0..decoder.blocks.len(), sequences)?;
        cpu.logits(&input.requested)
    })?;
    Ok(Logits::from_vec(logits, decoder.spec().vocab_size()))
}

/// Blocks on the CPU.
fn run_blocks(
    cpu: &mut Cpu<'_>,
    blocks: Range<usize>,
    sequences: &mut [SequenceInput<'_>],
) -> Result<()> {
    for number in blocks {
        let mut caches: Vec<&mut LayerCache> = sequences
            .iter_mut()
            .map(|sequence| &mut sequence.cache.layers[number])
            .collect();
        cpu.block(number, &mut caches)?;
    }
    Ok(())
}

/// The blocks of each device in turn, then those of the CPU; embeddings and head where they lie.
/// The stream goes from place to place through the host.
fn on_devices<'a>(
    decoder: &'a Decoder,
    input: &Input,
    sequences: &mut [SequenceInput<'_>],
) -> Result<Logits<'a>> {
    let rows = input.rows_for_devices(decoder);
    let blocks = decoder.blocks.len();
    let mut cpu = Cpu::new(decoder, &input.ids, &input.sequences);
    // The device that has embeddings and head, once it has computed its blocks.
    let mut with_head: Option<StagePass<'a>> = None;
    let mut computed = 0;

    if !decoder.stages.first().is_some_and(|stage| stage.has_head()) {
        cpu.embed()?;
    }
    for (number, stage) in decoder.stages.iter().enumerate() {
        let mut caches: Vec<_> = sequences
            .iter_mut()
            .map(|sequence| &mut sequence.cache.devices[number])
            .collect();
        let mut pass = stage.begin(decoder, &rows, &mut caches)?;
        let embeds = stage.has_head();
        if !embeds {
            pass.write(&cpu.take_stream())?;
        }
        computed = stage.range().end;
        let is_last = embeds && computed == blocks;
        let heads = is_last && input.requested.len() == input.ids.len();
        pass.run(&Work {
            embeds,
            blocks: stage.range(),
            heads,
        })?;
        if heads {
            return Ok(Logits::on_device(
                pass,
                input.requested.len(),
                decoder.spec().vocab_size(),
            ));
        }
        if is_last {
            return logits_on_device(decoder, pass, input);
        }
        cpu.set_stream(pass.read()?);
        if embeds {
            with_head = Some(pass);
        }
    }

    pooled(input.ids.len(), || {
        run_blocks(&mut cpu, computed..blocks, sequences)
    })?;
    match with_head {
        Some(pass) => {
            pass.write(&cpu.take_stream())?;
            logits_on_device(decoder, pass, input)
        }
        None => Ok(Logits::from_vec(
            cpu.logits(&input.requested)?,
            decoder.spec().vocab_size(),
        )),
    }
}

/// The head of a device, for the requested rows of its stream.
fn logits_on_device<'a>(
    decoder: &Decoder,
    mut pass: StagePass<'a>,
    input: &Input,
) -> Result<Logits<'a>> {
    pass.logits_of(&input.requested)?;
    Ok(Logits::on_device(
        pass,
        input.requested.len(),
        decoder.spec().vocab_size(),
    ))
}
