//! How fast a model runs, beside what the machine allows.

mod fit;
mod linear;

pub use fit::LeftOut;
pub use linear::{LinearBench, LinearRate};

use crate::error::Result;
use crate::generate::{Engine, Generated, GenerationConfig, Request, Update};
use crate::model::AutoModelForCausalLM;
use llm_int8_nn::limits;
use std::time::Instant;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of context at which decoding starts.
    pub contexts: Vec<usize>,
    /// Sequences decoded together, each of these numbers.
    pub batches: Vec<usize>,
    /// Lengths of prompts.
    pub prompts: Vec<usize>,
    /// New tokens of a run.
    pub new_tokens: usize,
    /// Runs, of which the median counts.
    pub runs: usize,
    /// Drafts of a run on a repetitive text; 0 leaves it out.
    pub speculate: usize,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchReport {
    /// The instruction set of the CPU.
    pub isa: &'static str,
    /// Bytes a second that reading alone reaches, in the memory of the model's own int8 weights;
    /// where the model begins on a device, bytes a second that a copy there reads and writes.
    pub read_rate: f64,
    /// Multiply-adds of codes a second that registers of the CPU alone reach; none where the model
    /// begins on a device.
    pub multiply_rate: Option<f64>,
    /// Decoding.
    pub decode: Vec<DecodeRate>,
    /// Prompts.
    pub prefill: Vec<PrefillRate>,
    /// Drafts, if [`BenchOptions::speculate`] is not 0.
    pub speculation: Option<SpeculationRate>,
}

/// The speed of decoding after one context length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeRate {
    /// Tokens before the first decoded one.
    pub context: usize,
    /// Texts at once.
    pub batch: usize,
    /// New tokens a second, of all texts together.
    pub tokens_per_second: f64,
    /// Bytes a token has to read, in the middle of the run.
    pub bytes_per_token: u64,
}

/// The speed of reading a prompt of one length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillRate {
    /// Its length.
    pub tokens: usize,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// Decoding of a repetitive text, the model's own, with drafts and without.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpeculationRate {
    /// Drafts at once.
    pub drafts: usize,
    /// New tokens a second.
    pub tokens_per_second: f64,
    /// The same without drafts.
    pub plain_tokens_per_second: f64,
    /// The share of drafts that were accepted.
    pub acceptance: f64,
}

/// Length of the repetitive text, and how much of it is given.
const REPETITIVE: usize = 128;
const GIVEN: usize = 16;

impl AutoModelForCausalLM {
    /// Measures the model. `observe` is told what comes next.
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
    /// Before anything is measured: [`crate::LlmError::ContextExceeded`] where the model has too
    /// few positions (see [`BenchOptions::fit`]); [`crate::LlmError::Setting`] where nothing can be
    /// measured, or keys and values would need more memory than is free.
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
        let mut decode = Vec::new();
        for &context in &options.contexts {
            for &batch in &options.batches {
                match batch {
                    1 => observe(&format!("decoding after {context} tokens")),
                    _ => observe(&format!("decoding {batch} texts after {context} tokens")),
                }

                let tokens_per_second = match batch {
                    1 => self.median(&self.noise(context), options, 0, |done| {
                        done.timing.decode_rate()
                    })?,
                    _ => self.batch_median(context, batch, options)?,
                };

                let middle = context + options.new_tokens / 2;
                let bytes_per_token = self.decoder().bytes_per_step(middle, batch) / batch as u64;
                decode.push(DecodeRate {
                    context,
                    batch,
                    tokens_per_second,
                    bytes_per_token,
                });
            }
        }

        let mut prefill = Vec::new();
        for &tokens in &options.prompts {
            observe(&format!("a prompt of {tokens} tokens"));
            let one = BenchOptions {
                new_tokens: 1,
                ..options.clone()
            };
            let rate = |done: &Generated| Some(done.timing.prefill_rate());
            let tokens_per_second = self.median(&self.noise(tokens), &one, 0, rate)?;
            prefill.push(PrefillRate {
                tokens,
                tokens_per_second,
            });
        }

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

    /// New tokens a second of several sequences at once, from when all of them have their first
    /// token.
    fn batch_median(&self, context: usize, batch: usize, options: &BenchOptions) -> Result<f64> {
        // Prompts come in one pass after the other; the sequence that begins first must not end
        // before the others.
        let room = self.decoder().spec().positions.saturating_sub(context);
        let most = (options.new_tokens + batch).min(room);
        let config = GenerationConfig {
            max_new_tokens: Some(most),
            ..GenerationConfig::default()
        };
        let request = Request::new(self.noise(context)).config(config).ids_only();

        let mut figures = Vec::new();
        for _ in 0..options.runs {
            let mut engine = self.engine(batch)?;
            for _ in 0..batch {
                engine.add(request.clone())?;
            }

            while engine.waiting() > 0 {
                step(&mut engine)?;
            }

            let (started, mut tokens) = (Instant::now(), 0);
            for _ in 1..options.new_tokens {
                tokens += step(&mut engine)?;
            }

            figures.push(tokens as f64 / started.elapsed().as_secs_f64().max(1e-9));
        }

        figures.sort_by(f64::total_cmp);
        Ok(figures[figures.len() / 2])
    }

    fn speculation(&self, drafts: usize, options: &BenchOptions) -> Result<SpeculationRate> {
        // What a model chooses greedily repeats itself before long.
        let mut text = self.noise(GIVEN);
        let config = GenerationConfig {
            max_new_tokens: Some(REPETITIVE - GIVEN),
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

    /// Ids without meaning.
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

/// One step of an engine, and how many tokens it gave.
fn step(engine: &mut Engine<'_>) -> Result<usize> {
    let mut tokens = 0;
    for event in engine.step()? {
        match event.update {
            Update::Piece(_) => tokens += 1,
            Update::Finished(_) => {}
            Update::Failed(error) => return Err(error),
        }
    }

    Ok(tokens)
}
