//! Checks that everything a benchmark measures fits the model and the memory, before anything is
//! measured.

use super::{BenchOptions, REPETITIVE};
use crate::error::{LlmError, Result};
use crate::memory;
use crate::model::AutoModelForCausalLM;

/// Lengths that a benchmark leaves out because the model has too few positions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Contexts that leave no room for the new tokens.
    pub contexts: Vec<usize>,
    /// Prompts that leave no room for one new token.
    pub prompts: Vec<usize>,
}

impl BenchOptions {
    /// Removes the contexts and prompts that do not fit a model with `positions` positions, and
    /// returns them.
    ///
    /// ```
    /// use llm_int8::bench::{BenchOptions, LeftOut};
    /// let mut options = BenchOptions {
    ///     contexts: vec![32, 128, 500], batches: vec![1], prompts: vec![511, 512], new_tokens: 32, runs: 3, speculate: 0,
    /// };
    /// assert_eq!(options.fit(512), LeftOut { contexts: vec![500], prompts: vec![512] });
    /// assert_eq!((options.contexts, options.prompts), (vec![32, 128], vec![511]));
    /// ```
    pub fn fit(&mut self, positions: usize) -> LeftOut {
        let without = |lengths: &mut Vec<usize>, new: usize| {
            let fits = |length: &usize| length.saturating_add(new) <= positions;
            let (fitting, beyond) = std::mem::take(lengths).into_iter().partition(fits);
            *lengths = fitting;
            beyond
        };
        LeftOut {
            contexts: without(&mut self.contexts, self.new_tokens),
            prompts: without(&mut self.prompts, 1),
        }
    }
}

impl AutoModelForCausalLM {
    /// Rejects options that cannot be measured.
    pub(super) fn check_bench(&self, options: &BenchOptions) -> Result<()> {
        let refuse = |name, value: usize, expected| {
            Err(LlmError::Setting {
                name,
                value: value.to_string(),
                expected,
            })
        };
        if options.runs == 0 {
            return refuse("the number of runs", 0, "it must be 1 or more");
        }

        if options.new_tokens < 2 {
            let expected = "it must be 2 or more, because the first is not counted";
            return refuse("the number of new tokens", options.new_tokens, expected);
        }

        let lengths = options
            .contexts
            .iter()
            .chain(&options.batches)
            .chain(&options.prompts);
        if lengths.clone().any(|length| *length == 0) {
            return refuse("a context, a prompt or a batch", 0, "it must be 1 or more");
        }

        let positions = self.decoder().spec().positions;
        let exceeded = |prompt, new| {
            Err(LlmError::ContextExceeded {
                prompt,
                new,
                available: positions,
            })
        };

        let left_out = options.clone().fit(positions);
        if let Some(&context) = left_out.contexts.first() {
            return exceeded(context, options.new_tokens);
        }

        if let Some(&prompt) = left_out.prompts.first() {
            return exceeded(prompt, 1);
        }

        if options.speculate > 0 && options.new_tokens.saturating_add(REPETITIVE) > positions {
            return exceeded(REPETITIVE, options.new_tokens);
        }

        self.check_memory(options)
    }

    /// Rejects batches whose key/value caches do not fit into memory.
    fn check_memory(&self, options: &BenchOptions) -> Result<()> {
        let devices = self.decoder().device_memory()?;
        let on_devices: u64 = devices.iter().map(|(_, memory)| memory.free).sum();
        let free = memory::available().map(|bytes| bytes.saturating_add(on_devices));
        for &context in &options.contexts {
            for &batch in &options.batches {
                let length = context + options.new_tokens;
                let one =
                    self.decoder().bytes_per_step(length, 1) - self.decoder().bytes_per_step(0, 1);
                let what = format!("the keys and values of {batch} sequences of {length} tokens");
                check_memory(&what, one.saturating_mul(batch as u64), free)?;
            }
        }

        Ok(())
    }
}

/// Rejects what needs more bytes than are free. Unknown free memory (`None`) rejects nothing.
pub(super) fn check_memory(what: &str, bytes: u64, free: Option<u64>) -> Result<()> {
    match free {
        Some(free) if bytes > free => Err(LlmError::Setting {
            name: "the memory needed",
            value: format!("{:.1} GB for {what}", bytes as f64 / 1e9),
            expected: "this is more than is free",
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadConfig;

    #[test]
    fn nothing_is_measured_before_everything_fits() {
        let model =
            AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default()).unwrap();
        let small = BenchOptions {
            contexts: vec![16],
            batches: vec![1],
            prompts: vec![16],
            new_tokens: 4,
            runs: 1,
            speculate: 0,
        };

        let refused = |set: fn(&mut BenchOptions), words: &str| {
            let mut options = small.clone();
            set(&mut options);
            let error = model
                .bench(&options, &mut |what| panic!("{what} was measured"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{error}");
        };

        refused(|options| options.runs = 0, "the number of runs is 0");
        refused(
            |options| options.new_tokens = 1,
            "the number of new tokens is 1",
        );
        refused(
            |options| options.contexts = vec![16, 0],
            "is 0; it must be 1 or more",
        );
        refused(
            |options| options.contexts = vec![16, 509],
            "the prompt has 509 tokens",
        );
        refused(
            |options| options.prompts = vec![usize::MAX],
            "the model has 512 positions",
        );
        refused(
            |options| {
                options.speculate = 2;
                options.new_tokens = 400;
            },
            "the model has 512 positions",
        );
        refused(
            |options| options.batches = vec![1, usize::MAX],
            "is more than is free",
        );
        assert!(model.check_bench(&small).is_ok());
    }

    #[test]
    fn memory_is_compared_if_it_is_known() {
        assert!(
            check_memory("x", 10, Some(10)).is_ok() && check_memory("x", u64::MAX, None).is_ok()
        );
        let error = check_memory("much", 5_000_000_000, Some(10))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the memory needed is 5.0 GB for much; this is more than is free"
        );
    }
}
