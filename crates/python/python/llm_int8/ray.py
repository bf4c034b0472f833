"""Jobs over many machines, with Ray Data: `Generator` for `map_batches`.

    import ray
    from llm_int8.ray import Generator

    rows = ray.data.read_json("prompts.jsonl")  # columns id and prompt
    rows = rows.map_batches(
        Generator, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=16, batch_size=64,
        fn_constructor_kwargs=dict(model="gpt2-large", temperature=0.8, max_new_tokens=64))
    rows.write_parquet("texts")

An actor holds a model of its own and computes with as many threads as it has CPUs (Ray sets OMP_NUM_THREADS), so give
each machine, or each NUMA node, one actor with all its cores: the weights are read once for a whole batch.

A row's text depends on its prompt, the settings and its seed, which comes from its id, and not on the rows beside it
nor on the actor. So it may be computed again after a failure: it has the same bytes.
"""

import hashlib

import numpy as np

__all__ = ["Generator", "seed_of"]

# What goes to `from_pretrained`; all other settings go to `generate_batch`.
_LOADING = (
    "quantization_config", "load_in_8bit", "threshold", "llm_int8_threshold", "llm_int8_skip_modules", "skip_modules",
    "device_map", "device", "max_memory", "torch_dtype", "dtype", "token", "cache_dir", "local_files_only", "outliers",
    "outlier_weights", "accuracy", "quantize_head", "strict", "adapter", "num_threads", "revision", "cache_dtype",
)


def seed_of(seed, row_id):
    """The seed of a row: 64 bits of BLAKE2b over the job's seed and the row's id. Ids of numpy are as Python's."""
    if isinstance(row_id, np.generic):
        row_id = row_id.item()
    digest = hashlib.blake2b(f"{seed}:{type(row_id).__name__}:{row_id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class Generator:
    """Adds texts to batches of rows; an actor class for `ray.data.Dataset.map_batches`.

    model: as for `AutoModelForCausalLM.from_pretrained`.
    prompt, id: the columns of the prompts (texts, or lists of token ids) and of the rows' ids, which must be unique.
    seed: of the job; a row's own seed is `seed_of(seed, id)`.
    at_once: sequences that run at once, by default all rows of a batch.
    errors: "raise" ends the job at a prompt that cannot be computed, "column" writes the reason into the column `error`.
    settings: of loading (`outliers` is "row" unless they say otherwise) and of `generate`.

    Each row keeps its columns and gets `text`, `finish_reason`, `prompt_tokens` and `new_tokens`.

    Raises ValueError for a model whose texts depend on the batch that they are computed in.
    """

    def __init__(self, model, *, prompt="prompt", id="id", seed=0, at_once=None, errors="raise", **settings):
        from . import AutoModelForCausalLM

        if errors not in ("raise", "column"):
            raise ValueError(f"errors is {errors!r}; expected 'raise' or 'column'")
        loading = {key: settings.pop(key) for key in _LOADING if key in settings}
        rule = ("outliers", "threshold", "llm_int8_threshold", "accuracy", "quantization_config", "load_in_8bit")
        if not any(key in loading for key in rule):
            loading["outliers"] = "row"
        self.model = AutoModelForCausalLM.from_pretrained(model, progress=False, **loading)
        if not self.model.is_batch_invariant:
            raise ValueError(
                f"texts of {model} would depend on the rows beside them, so a row could not be computed again after a "
                "failure; use outliers='row' or a threshold in rms, on the CPU")
        self.prompt, self.id, self.seed, self.at_once, self.errors = prompt, id, seed, at_once, errors
        self.settings = settings

    def __call__(self, batch):
        for column in (self.prompt, self.id):
            if column not in batch:
                raise ValueError(f"the rows have no column {column!r}; they have {', '.join(sorted(batch))}")
        prompts = [prompt if isinstance(prompt, str) else list(prompt) for prompt in batch[self.prompt]]
        results = self.model.generate_batch(
            prompts, seeds=[seed_of(self.seed, row_id) for row_id in batch[self.id]],
            batch_size=self.at_once or max(len(prompts), 1), return_exceptions=True, **self.settings)
        failed = [isinstance(result, Exception) for result in results]
        if self.errors == "raise":
            for row_id, result in zip(batch[self.id], results):
                if isinstance(result, Exception):
                    raise type(result)(f"row {row_id}: {result}")

        def column(of):
            return np.array([None if is_failed else of(result) for result, is_failed in zip(results, failed)])

        added = {
            "text": column(lambda result: result.text),
            "finish_reason": column(lambda result: result.finish_reason),
            "prompt_tokens": column(lambda result: result.prompt_tokens),
            "new_tokens": column(lambda result: len(result.ids)),
        }
        if self.errors == "column":
            added["error"] = np.array([str(result) if is_failed else None for result, is_failed in zip(results, failed)])
        return {**batch, **added}
