//! Benchmarks: how fast a model runs, compared with what the machine allows.

mod fit;
mod linear;

pub use fit::LeftOut;
pub use linear::{LayerShape, LinearBench, LinearRate};

use crate::error::Result;
use crate::generate::{Engine, EngineConfig, Generated, GenerationConfig, Request, Update};
use crate::model::AutoModelForCausalLM;
use llm_int8_nn::limits;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Context lengths, in tokens, at which decoding starts.
    pub contexts: Vec<usize>,
    /// Batch sizes for decoding.
    pub batches: Vec<usize>,
    /// Prompt lengths, in tokens.
    pub prompts: Vec<usize>,
    /// New tokens per run.
    pub new_tokens: usize,
    /// Runs per measurement; the median is reported.
    pub runs: usize,
    /// Drafts per step for the run on repetitive text; 0 leaves it out.
    pub speculate: usize,
}

/// The results of a benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchReport {
    /// The CPU's instruction set in use.
    pub isa: &'static str,
    /// Read bandwidth in bytes/s, measured by reading the model's own int8 weights. If the first
    /// part of the model is on a GPU, the bandwidth of a copy on that GPU, counting bytes read and
    /// written.
    pub read_rate: f64,
    /// The CPU's peak rate in int8 multiply-adds/s, from registers; `None` if the first part of the
    /// model is on a GPU.
    pub multiply_rate: Option<f64>,
    /// Decode speed for each context and batch size.
    pub decode: Vec<DecodeRate>,
    /// Prefill speed for each prompt length.
    pub prefill: Vec<PrefillRate>,
    /// Speculative decoding, if [`BenchOptions::speculate`] is not 0.
    pub speculation: Option<SpeculationRate>,
}

/// Decode speed at one context length and batch size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeRate {
    /// Tokens in the cache when decoding starts.
    pub context: usize,
    /// Sequences in the batch.
    pub batch: usize,
    /// New tokens per second, of all sequences together.
    pub tokens_per_second: f64,
    /// Minimum bytes read per token, in the middle of the run.
    pub bytes_per_token: u64,
}

/// Prefill speed at one prompt length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillRate {
    /// Length of the prompt.
    pub tokens: usize,
    /// Prompt tokens per second.
    pub tokens_per_second: f64,
}

/// Decode speed on a repetitive text (the model's own output), with drafts and without.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpeculationRate {
    /// Maximum drafts per step.
    pub drafts: usize,
    /// New tokens per second.
    pub tokens_per_second: f64,
    /// New tokens per second without drafts.
    pub plain_tokens_per_second: f64,
    /// The fraction of drafts that were accepted.
    pub acceptance: f64,
}

/// Tokens of the repetitive text, and how many of them are its prompt.
const REPETITIVE: usize = 128;
const REPETITIVE_PROMPT: usize = 16;

impl AutoModelForCausalLM {
    /// Measures the model. `observe` gets a description of each measurement before it starts.
    ///
    /// ```
    /// use llm_int8::{AutoModelForCausalLM, LoadConfig, bench::BenchOptions};
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// let options = BenchOptions {
    ///     contexts: vec![16], batches: vec![1, 2], prompts: vec![32], new_tokens: 4, runs: 1, speculate: 0,
    /// };
    /// let report = model.bench(&options, &mut |_| ())?;
    /// assert!(report.decode[0].tokens_per_second > 1.0 && report.read_rate > 1e8);
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// All before anything is measured: [`crate::LlmError::ContextExceeded`] if the model has too
    /// few positions (see [`BenchOptions::fit`]); [`crate::LlmError::Setting`] if the options are
    /// invalid, or the key/value caches do not fit into free memory.
    pub fn bench(
        &self,
        options: &BenchOptions,
        observe: &mut dyn FnMut(&str),
    ) -> Result<BenchReport> {
        self.check_bench(options)?;
        let isa = self.decoder().isa();
        observe("reading memory");
        let copy_rate = self.decoder().copy_rate()?;
        let read_rate = match (copy_rate, self.decoder().codes_in_order()) {
            (Some(rate), _) => rate,
            (None, codes) if codes.is_empty() => limits::read_rate_of_new_memory(),
            (None, codes) => limits::read_rate(&codes),
        };
        let multiply_rate = copy_rate.is_none().then(|| limits::multiply_rate(isa));

        let decode = self.decode_rates(options, observe)?;
        let prefill = self.prefill_rates(options, observe)?;
        let speculation = match options.speculate {
            0 => None,
            drafts => {
                observe("a repetitive text");
                Some(self.speculation(drafts, options)?)
            }
        };

        Ok(BenchReport {
            isa: isa.name(),
            read_rate,
            multiply_rate,
            decode,
            prefill,
            speculation,
        })
    }

    fn decode_rates(
        &self,
        options: &BenchOptions,
        observe: &mut dyn FnMut(&str),
    ) -> Result<Vec<DecodeRate>> {
        let mut rates = Vec::new();
        for &context in &options.contexts {
            for &batch in &options.batches {
                match batch {
                    1 => observe(&format!("decoding after {context} tokens")),
                    _ => observe(&format!(
                        "decoding {batch} sequences after {context} tokens"
                    )),
                }

                let tokens_per_second = match batch {
                    1 => self.median(&self.noise(context), options, 0, |done| {
                        done.timing.decode_rate()
                    })?,
                    _ => self.batch_median(context, batch, options)?,
                };

                let middle = context + options.new_tokens / 2;
                let bytes_per_token = self.decoder().bytes_per_step(middle, batch) / batch as u64;
                rates.push(DecodeRate {
                    context,
                    batch,
                    tokens_per_second,
                    bytes_per_token,
                });
            }
        }

        Ok(rates)
    }

    fn prefill_rates(
        &self,
        options: &BenchOptions,
        observe: &mut dyn FnMut(&str),
    ) -> Result<Vec<PrefillRate>> {
        let mut rates = Vec::new();
        for &tokens in &options.prompts {
            observe(&format!("a prompt of {tokens} tokens"));
            let one = BenchOptions {
                new_tokens: 1,
                ..options.clone()
            };
            let rate = |done: &Generated| Some(done.timing.prefill_rate());
            let tokens_per_second = self.median(&self.noise(tokens), &one, 0, rate)?;
            rates.push(PrefillRate {
                tokens,
                tokens_per_second,
            });
        }

        Ok(rates)
    }

    /// The median decode rate of a batch, in tokens/s of all its sequences, from the moment when
    /// all of them have their first token.
    fn batch_median(&self, context: usize, batch: usize, options: &BenchOptions) -> Result<f64> {
        // Prompts are computed one after the other, so the first sequence needs more tokens to
        // outlast the measurement.
        let room = self.decoder().spec().positions.saturating_sub(context);
        let limits = EngineConfig::default();
        let passes = (context * batch).div_ceil(limits.prefill_tokens);
        let most = (options.new_tokens + passes + batch).min(room);
        let config = GenerationConfig {
            max_new_tokens: Some(most),
            ..GenerationConfig::default()
        };
        let prompt = self.noise(context);

        let mut figures = Vec::new();
        for _ in 0..options.runs {
            let mut engine = self.engine(batch)?;
            for _ in 0..batch {
                engine.add(Request::new(&prompt).config(config.clone()).ids_only())?;
            }

            // Until the pass in which every sequence gets a token.
            while step(&mut engine)? < batch && !engine.is_idle() {}

            let started = Instant::now();
            let mut tokens = 0;
            for _ in 1..options.new_tokens {
                tokens += step(&mut engine)?;
            }

            figures.push(tokens as f64 / started.elapsed().as_secs_f64().max(1e-9));
        }

        figures.sort_by(f64::total_cmp);
        Ok(figures[figures.len() / 2])
    }

    fn speculation(&self, drafts: usize, options: &BenchOptions) -> Result<SpeculationRate> {
        // Greedy output soon becomes repetitive.
        let mut text = self.noise(REPETITIVE_PROMPT);
        let config = GenerationConfig {
            max_new_tokens: Some(REPETITIVE - REPETITIVE_PROMPT),
            ..GenerationConfig::default()
        };
        text.extend(self.generation(&text).config(config).ids_only().run()?.ids);
        let rate = |done: &Generated| done.timing.decode_rate();

        Ok(SpeculationRate {
            drafts,
            tokens_per_second: self.median(&text, options, drafts, rate)?,
            plain_tokens_per_second: self.median(&text, options, 0, rate)?,
            acceptance: self
                .median(&text, options, drafts, |done| done.timing.acceptance_rate())?,
        })
    }

    /// A prompt of arbitrary ids.
    fn noise(&self, length: usize) -> Vec<u32> {
        let vocabulary = self.decoder().spec().vocab_size();
        (0..length)
            .map(|i| (i * 7919 % vocabulary) as u32)
            .collect()
    }

    fn median(
        &self,
        ids: &[u32],
        options: &BenchOptions,
        speculate: usize,
        figure: impl Fn(&Generated) -> Option<f64>,
    ) -> Result<f64> {
        let config = GenerationConfig {
            max_new_tokens: Some(options.new_tokens),
            speculate,
            ..GenerationConfig::default()
        };

        let mut figures = Vec::new();
        for _ in 0..options.runs {
            let done = self
                .generation(ids)
                .config(config.clone())
                .ids_only()
                .run()?;
            figures.push(figure(&done).unwrap_or(0.0));
        }

        figures.sort_by(f64::total_cmp);
        Ok(figures[figures.len() / 2])
    }
}

/// Runs one step of an engine and returns the number of new tokens.
fn step(engine: &mut Engine<'_>) -> Result<usize> {
    let mut tokens = 0;
    for event in engine.step() {
        match event.update {
            Update::Piece(_) => tokens += 1,
            Update::Started { .. } | Update::Finished(_) => {}
            Update::Failed(error) => return Err(error),
        }
    }

    Ok(tokens)
}
