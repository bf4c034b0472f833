//! One forward pass of a batch of sequences: which steps run on the CPU, which on devices, and in
//! what order.
//!
//! The new tokens of all sequences are concatenated, one row per token. Lengths may differ and
//! nothing is padded.

use crate::decoder::{Decoder, KvCache, LogitPositions, SequenceInput};
use crate::error::{DecoderError, Result};
use crate::execute::gpu::{HostInputs, StagePass, Work};
use crate::execute::{Cpu, SequenceRows};
use crate::hook::LinearHook;
use crate::logits::Logits;
use candle_core::{Device, Tensor};
use llm_int8_nn::layers::{LayerCache, Rope};
use std::ops::Range;

impl Decoder {
    /// Appends each sequence's new tokens to its cache and returns the logits of the requested
    /// positions, one sequence after the other.
    ///
    /// # Shapes
    /// The result is f32 `[rows, V]`, with one row for each requested position.
    ///
    /// # Errors
    /// [`DecoderError::ContextExceeded`] if a cache and its new tokens exceed the model's
    /// positions; [`DecoderError::Input`] for a sequence without tokens or an id outside the
    /// vocabulary; [`NnError::NotLoaded`](llm_int8_nn::NnError). After an error the caches are
    /// unusable.
    pub fn forward(&self, sequences: &mut [SequenceInput<'_>]) -> Result<Vec<f32>> {
        self.logits_of(sequences)?.into_vec()
    }

    /// [`Decoder::forward`] with a hook for linear layers.
    ///
    /// # Errors
    /// As [`Decoder::forward`], and those of the hook; [`DecoderError::HookOnDevice`] if blocks are on a
    /// device.
    pub fn forward_hooked(
        &self,
        sequences: &mut [SequenceInput<'_>],
        hook: &mut dyn LinearHook,
    ) -> Result<Vec<f32>> {
        if !self.stages.is_empty() {
            return Err(DecoderError::HookOnDevice);
        }
        self.run(sequences, Some(hook))?.into_vec()
    }

    /// [`Decoder::forward`] with the logits left where they were computed: from a device, only the
    /// chosen tokens need to be copied. The device runs no other pass until they are dropped.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn logits_of(&self, sequences: &mut [SequenceInput<'_>]) -> Result<Logits<'_>> {
        self.run(sequences, None)
    }

    fn run(
        &self,
        sequences: &mut [SequenceInput<'_>],
        hook: Option<&mut dyn LinearHook>,
    ) -> Result<Logits<'_>> {
        for sequence in sequences.iter() {
            self.check(sequence)?;
        }
        let input = Input::new(self, sequences);

        let logits = if self.stages.is_empty() {
            on_cpu(self, &input, sequences, hook)?
        } else {
            on_devices(self, &input, sequences)?
        };

        for (sequence, rows) in sequences.iter_mut().zip(&input.sequences) {
            sequence.cache.len = rows.cached + rows.rows.len();
        }
        Ok(logits)
    }

    /// [`Decoder::forward`] for one sequence: the logits after its last token, f32 `[V]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        self.forward(&mut [SequenceInput {
            ids,
            cache,
            logits: LogitPositions::Last,
        }])
    }

    /// [`Decoder::next_logits`] on tensors, as candle's models have it: `model.forward(&ids,
    /// index_pos, &mut cache)`. So candle-transformers' `LogitsProcessor` and loops around it drive
    /// a decoder.
    ///
    /// # Shapes
    /// `ids` u32 `[1, T]` or `[T]`: the tokens at the positions from `index_pos` on. The result is
    /// f32 `[1, V]`, the logits after the last of them, on the CPU.
    ///
    /// # Errors
    /// [`DecoderError::Input`] if `index_pos` is not the length of the cache, or for several
    /// sequences; [`DecoderError::Candle`] if `ids` is not u32; otherwise as [`Decoder::forward`].
    pub fn forward_tensor(
        &self,
        ids: &Tensor,
        index_pos: usize,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        if !matches!(ids.dims(), [_] | [1, _]) {
            let shape = ids.dims();
            return Err(self.input_error(format!(
                "the token ids have shape {shape:?}; [1, tokens] or [tokens] is needed, one sequence for a cache"
            )));
        }
        if index_pos != cache.len() {
            let cached = cache.len();
            return Err(self.input_error(format!(
                "index_pos is {index_pos}, but the cache holds {cached} positions; give the tokens that follow them, or \
                 begin with a new cache"
            )));
        }

        let ids = ids.flatten_all()?.to_vec1::<u32>()?;
        let logits = self.next_logits(&ids, cache)?;
        let shape = (1, logits.len());
        Ok(Tensor::from_vec(logits, shape, &Device::Cpu)?)
    }

    /// Logits of every position of a batch of sequences of equal length, each from its beginning.
    ///
    /// # Shapes
    /// `ids` u32 `[B, T]`; the result f32 `[B, T, V]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; [`DecoderError::Candle`] if `ids` is not u32 of two dimensions.
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

    /// Checks that there is at least one id, and that all are inside the vocabulary.
    ///
    /// # Errors
    /// [`DecoderError::Input`] otherwise.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.spec().vocab_size();
        let Some(largest) = ids.iter().max() else {
            return Err(self.input_error("there are no token ids; give at least one".into()));
        };
        if *largest as usize >= vocab_size {
            return Err(self.input_error(format!(
                "token id {largest} is beyond the vocabulary of {vocab_size}; is the tokenizer this model's?"
            )));
        }
        Ok(())
    }

    fn input_error(&self, reason: String) -> DecoderError {
        DecoderError::Input {
            model: self.spec().family.into(),
            reason,
        }
    }

    fn check(&self, sequence: &SequenceInput<'_>) -> Result<()> {
        let requested = sequence.cache.len() + sequence.ids.len();
        let available = self.spec().positions;
        if requested > available {
            return Err(DecoderError::ContextExceeded {
                requested,
                available,
            });
        }
        self.check_ids(sequence.ids)
    }
}

/// The input of a pass.
struct Input {
    /// The new tokens of all sequences, one per row.
    ids: Vec<u32>,
    sequences: Vec<SequenceRows>,
    /// Rows whose logits are requested.
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
                // LongRoPE: the cached keys were rotated by the frequencies of the other length, so
                // all positions are computed again.
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
                LogitPositions::None => rows.end..rows.end,
            });
            input
                .sequences
                .push(SequenceRows::new(rows, cache.len(), ropes));
        }
        input
    }

    fn for_devices(&self, decoder: &Decoder) -> HostInputs {
        let offset = decoder.spec().position_offset;
        let mut inputs = HostInputs::default();
        for sequence in &self.sequences {
            let ids = &self.ids[sequence.rows.clone()];
            inputs.push(sequence.cached, ids, offset, &sequence.ropes);
        }
        inputs
    }
}

/// A pass that runs on the CPU alone.
fn on_cpu<'a>(
    decoder: &'a Decoder,
    input: &Input,
    sequences: &mut [SequenceInput<'_>],
    hook: Option<&mut dyn LinearHook>,
) -> Result<Logits<'a>> {
    let mut cpu = Cpu::new(decoder, &input.ids, &input.sequences);
    if let Some(hook) = hook {
        cpu.set_hook(hook);
    }
    cpu.embed()?;
    run_blocks(&mut cpu, 0..decoder.blocks.len(), sequences)?;
    let logits = match input.requested.is_empty() {
        true => Vec::new(),
        false => cpu.logits(&input.requested)?,
    };
    let vocabulary = decoder.spec().vocab_size();
    Ok(Logits::on_cpu(logits, vocabulary, &decoder.spare))
}

/// Runs blocks on the CPU.
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

/// A pass through the blocks of each device in turn, then through those of the CPU. Embeddings and
/// head run where they lie: on the first device or on the CPU. The stream is copied from device to
/// device through the host.
fn on_devices<'a>(
    decoder: &'a Decoder,
    input: &Input,
    sequences: &mut [SequenceInput<'_>],
) -> Result<Logits<'a>> {
    let inputs = input.for_devices(decoder);
    let blocks = decoder.blocks.len();
    let vocabulary = decoder.spec().vocab_size();
    let mut cpu = Cpu::new(decoder, &input.ids, &input.sequences);

    // The pass of the device with the head, which is kept until the last block has run.
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
        let mut pass = stage.begin(decoder, &inputs, &mut caches)?;

        let embeds = stage.has_head();
        if !embeds {
            pass.write_stream(&cpu.take_stream())?;
        }

        // Where the device has the whole model and all rows are requested, the head runs with the
        // blocks (in one graph); otherwise after them, for the requested rows.
        computed = stage.range().end;
        let has_all = embeds && computed == blocks;
        let computes_head = has_all && input.requested.len() == input.ids.len();
        pass.run(&Work {
            embeds,
            blocks: stage.range(),
            computes_head,
        })?;

        if computes_head {
            let rows = input.requested.len();
            return Ok(Logits::on_device(pass, rows, vocabulary));
        }
        if has_all && input.requested.is_empty() {
            return Ok(Logits::from_vec(Vec::new(), vocabulary));
        }
        if has_all {
            return logits_on_device(pass, &input.requested, vocabulary);
        }

        cpu.set_stream(pass.read_stream()?);
        if embeds {
            with_head = Some(pass);
        }
    }

    run_blocks(&mut cpu, computed..blocks, sequences)?;
    if input.requested.is_empty() {
        return Ok(Logits::from_vec(Vec::new(), vocabulary));
    }
    match with_head {
        Some(pass) => {
            pass.write_stream(&cpu.take_stream())?;
            logits_on_device(pass, &input.requested, vocabulary)
        }
        None => {
            let logits = cpu.logits(&input.requested)?;
            Ok(Logits::on_cpu(logits, vocabulary, &decoder.spare))
        }
    }
}

/// Runs the head on a device, for the requested rows of its stream.
fn logits_on_device<'a>(
    mut pass: StagePass<'a>,
    requested: &[usize],
    vocabulary: usize,
) -> Result<Logits<'a>> {
    pass.logits_of(requested)?;
    Ok(Logits::on_device(pass, requested.len(), vocabulary))
}
