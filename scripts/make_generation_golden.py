#!/usr/bin/env python3
"""Makes tests/golden/generation with transformers 4.57.1 and torch 2.8 (CPU, float32):

greedy.json       settings in the generation_config.json or config.json of models of tests/golden/models and of
                  models/tiny-gpt2, and the new ids that `generate` gives
rows.json         rows of logits, for the next two files
processors.json   settings, ids so far, the index of a row of logits, and what transformers' logits processors change
                  in it
filters.json      sampling settings, the index of a row, and the probability of each token that may be sampled
class_tokens.json bos_token_id and eos_token_id of a generation config made from an empty config.json

    python3 scripts/make_generation_golden.py
"""
import json
import pathlib
import shutil
import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/golden/generation"
PROMPT = [5, 9, 33, 77, 9, 33]


def folder_of(model):
    return ROOT / ("models/tiny-gpt2" if model == "tiny-gpt2" else f"tests/golden/models/{model}")


def generate(case):
    """The new ids of a case, generated with a copy of the model's folder that has the case's settings."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "model"
        shutil.copytree(folder_of(case["model"]), folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if case.get("generation_config") is not None:
            (folder / "generation_config.json").write_text(json.dumps(case["generation_config"]))
        config = json.loads((folder / "config.json").read_text())
        config.update(case.get("config", {}))
        for key in case.get("config_without", []):
            config.pop(key, None)
        (folder / "config.json").write_text(json.dumps(config))

        if case.get("special_token") is not None:
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            tokenizer["added_tokens"].append(case["special_token"])
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        given = {}
        if case.get("max_new_tokens"):
            given["max_new_tokens"] = case["max_new_tokens"]
        if (case.get("generation_config") or {}).get("stop_strings"):
            given["tokenizer"] = AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([case["prompt"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **given)

    return out[0, len(case["prompt"]):].tolist()


def file_cases(model):
    """Settings alone and combined, chosen by what the model generates without them."""
    plain = {"model": model, "prompt": PROMPT, "generation_config": {}, "max_new_tokens": 16}
    g = generate(plain)
    first = next(id for id in g if id != g[0]) if len(set(g)) > 1 else g[0]
    cases = []

    def case(name, settings, new=12, prompt=PROMPT, **more):
        cases.append({"name": f"{model}: {name}", "model": model, "prompt": prompt, "max_new_tokens": new,
                      "generation_config": settings, **more})

    case("nothing", {})
    for size in (1, 2, 3):
        case(f"no_repeat_ngram_size {size}", {"no_repeat_ngram_size": size})
        case(f"encoder_no_repeat_ngram_size {size}", {"encoder_no_repeat_ngram_size": size})

    case("bad words, one token", {"bad_words_ids": [[g[0]]]})
    case("bad words, two tokens", {"bad_words_ids": [[g[0], g[1]], [g[1], g[2]]]})
    case("bad words, mixed and given twice", {"bad_words_ids": [[first], [g[0], g[1]], [first], [PROMPT[-1], g[0]]]})
    case("a bad word that is the end token", {"bad_words_ids": [[first]], "eos_token_id": first})
    case("bad words longer than the text", {"bad_words_ids": [[5, g[0]], [5, 9]]}, prompt=[5])
    case("suppress_tokens", {"suppress_tokens": [g[0], first, -1, 99999]})
    case("begin_suppress_tokens", {"begin_suppress_tokens": [g[0], 3]})
    case("begin_suppress_tokens after a forced first token", {"begin_suppress_tokens": [g[0], 7],
                                                             "forced_bos_token_id": 7}, prompt=[5])
    case("forced_bos_token_id", {"forced_bos_token_id": 7}, prompt=[5])
    case("forced_bos_token_id after a longer prompt", {"forced_bos_token_id": 7})
    case("forced_eos_token_id", {"forced_eos_token_id": 2})
    case("forced_eos_token_id, a list", {"forced_eos_token_id": [9, 4], "eos_token_id": 4})
    case("forced end by max_length", {"forced_eos_token_id": 2, "max_length": 15}, new=None)
    case("both forced at once", {"forced_eos_token_id": 2, "forced_bos_token_id": 7}, new=1, prompt=[5])
    case("an end token", {"eos_token_id": first})
    case("end tokens", {"eos_token_id": [255, first, g[0]]})
    case("a negative end token", {"eos_token_id": -1})
    case("min_new_tokens", {"eos_token_id": g[0], "min_new_tokens": 4})
    case("min_length", {"eos_token_id": g[0], "min_length": 10})
    case("min_length below the prompt", {"eos_token_id": g[0], "min_length": 5})
    case("min_new_tokens wins over min_length", {"eos_token_id": g[0], "min_length": 16, "min_new_tokens": 2})
    case("min_new_tokens without an end token", {"min_new_tokens": 4})
    case("repetition_penalty", {"repetition_penalty": 1.7})
    case("repetition_penalty below 1", {"repetition_penalty": 0.6})
    case("encoder_repetition_penalty", {"encoder_repetition_penalty": 3.0})
    case("encoder_repetition_penalty below 1", {"encoder_repetition_penalty": 0.3})
    case("sequence_bias", {"sequence_bias": [[[g[0]], -4.0], [[g[0], first], 6.5], [[9, 33, 77], 30.0]]})
    case("sequence_bias, the end of the prompt", {"sequence_bias": [[[9, 33, 8], 30.0], [[8, 9], 30.0],
                                                                    [[33, 8], -2.5]]})
    case("exponential_decay_length_penalty", {"eos_token_id": 17, "exponential_decay_length_penalty": [2, 1.8]})
    case("exponential decay of a forbidden end", {"eos_token_id": 17, "min_new_tokens": 9,
                                                  "exponential_decay_length_penalty": [3, 1.2]})
    case("remove_invalid_values", {"remove_invalid_values": True, "suppress_tokens": [g[0]]})
    case("renormalize_logits", {"renormalize_logits": True, "no_repeat_ngram_size": 2})
    case("sampling settings beside greedy", {"do_sample": False, "top_p": 0.0, "top_k": 3, "temperature": 0.0,
                                             "typical_p": 0.2, "min_p": 0.4, "epsilon_cutoff": 0.1})
    case("null", {key: None for key in (
        "do_sample", "eos_token_id", "bad_words_ids", "suppress_tokens", "min_length", "top_k", "temperature",
        "repetition_penalty", "forced_eos_token_id", "no_repeat_ngram_size", "max_new_tokens")})
    case("unknown keys", {"chat_format": "x", "max_window_size": 7, "no_repeat_ngram_size": 2})
    case("max_length", {"max_length": 11}, new=None)
    case("max_length of 20 is that of new tokens", {"max_length": 20}, new=None)
    case("max_new_tokens wins over max_length", {"max_length": 11, "max_new_tokens": 7}, new=None)
    case("what is given wins over max_length", {"max_length": 9}, new=5)
    case("everything", {
        "no_repeat_ngram_size": 3, "bad_words_ids": [[g[0], g[1]]], "repetition_penalty": 1.2,
        "encoder_repetition_penalty": 1.1, "suppress_tokens": [g[2]], "begin_suppress_tokens": [g[0]],
        "min_new_tokens": 5, "eos_token_id": [first, 3], "forced_eos_token_id": 3, "renormalize_logits": True,
        "sequence_bias": [[[11], 1.5], [[11, 12], 3.5]], "exponential_decay_length_penalty": [6, 1.1]})

    return cases, g, first


def model_config_cases(model, g, first):
    """Settings in config.json."""
    cases = []

    def case(name, config, settings=None, **more):
        cases.append({"name": f"{model}: {name}", "model": model, "prompt": PROMPT, "max_new_tokens": 12,
                      "generation_config": settings, "config": config, **more})

    case("config.json alone", {"eos_token_id": first, "no_repeat_ngram_size": 2, "suppress_tokens": [g[0]]})
    case("config.json with what pipelines alone read", {
        "eos_token_id": None, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 7}}})
    case("config.json with a length", {"eos_token_id": None, "max_length": 10})
    cases[-1]["max_new_tokens"] = None
    case("config.json does not count beside generation_config.json",
         {"eos_token_id": first, "no_repeat_ngram_size": 1}, {})
    case("a generation_config.json that is a copy of config.json", {"eos_token_id": g[0], "no_repeat_ngram_size": 1},
         {"_from_model_config": True, "eos_token_id": 3})
    case("a copy of a config.json without generation settings", {"eos_token_id": g[0]},
         {"_from_model_config": True, "eos_token_id": first})

    if model == "llama":
        # The class's own end token is 2: a bias makes it the most likely one.
        bias = {"sequence_bias": [[[2], 50.0]]}
        case("the class's end token", bias, config_without=["eos_token_id"])
        case("no end token", dict(bias, eos_token_id=None))

    return cases


def stop_cases():
    """Stop strings, with a tokenizer."""
    model = "tiny-gpt2"
    tokenizer = AutoTokenizer.from_pretrained(folder_of(model))
    prompt = tokenizer("And it came to pass")["input_ids"]
    plain = {"model": model, "prompt": prompt, "generation_config": {}, "max_new_tokens": 24}
    ids = generate(plain)
    text = tokenizer.decode(ids)
    print("tiny-gpt2 says", repr(text))
    before = len(tokenizer.decode(ids[:6]))
    comma = {"id": tokenizer.convert_tokens_to_ids(","), "content": ",", "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
    cases = []

    def case(name, stops, **more):
        settings = {"stop_strings": stops, **more.pop("settings", {})}
        cases.append(dict(plain, name=f"stop strings: {name}", generation_config=settings, **more))

    case("a word", text[before:before + 6].strip())
    case("within and across tokens", [text[before + 1:before + 9]])
    case("the first of several", [text[before + 12:before + 15], "never there", text[before + 2:before + 5]])
    case("never there", ["never there"])
    case("begun by the prompt", ["pass" + text[:2]])
    case("in the prompt already", ["came"])
    case("a text alone", text[before:before + 6])
    case("a special token", [","], special_token=comma)
    case("a special token that is not the first", [",", "zzz"], special_token=comma, prompt=prompt + ids[:3])
    case("a special token and what follows", [", that"], special_token=comma)
    case("what comes before a special token", ["Babylon, and"], special_token=comma)
    case("a special token that the prompt ends with", [", that the"], special_token=comma, prompt=prompt + ids[:1])

    return cases


def rows():
    """Rows of logits: two random ones, one with ties, one with NaN and infinities for `remove_invalid_values`."""
    generator = torch.Generator().manual_seed(4)
    random = [[round(x, 3) for x in (torch.randn(count, generator=generator) * 3).tolist()] for count in (40, 25)]
    ties = [0.0, 0.0, 0.0, -1.0, -1.0, -1.0, -2.0, -2.0]
    return [*random, ties, [float("nan"), float("inf"), float("-inf"), 1.0]]


def processed(settings, ids, prompt, logits, most=10):
    """The row after the logits processors that `generate` would use for at most `most` new tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama"), dtype=torch.float32)
    config = GenerationConfig.from_dict(json.loads(json.dumps(settings)))
    inputs = torch.tensor([ids[:prompt]])
    model._prepare_special_tokens(config, True)
    config.max_new_tokens = most
    config = model._prepare_generated_length(config, True, True, "input_ids", prompt, inputs)
    processors = model._get_logits_processor(config, prompt, inputs, device="cpu")

    return processors(torch.tensor([ids]), torch.tensor([logits]))[0]


def number(x):
    """JSON has no infinities and no NaN: they become strings."""
    return x if x == x and abs(x) != float("inf") else str(x)


def processor_cases():
    """The logits processors of greedy decoding, applied to rows."""
    settings = [
        {"sequence_bias": [[[3], 1.25], [[4, 7], -2.5], [[4], 0.1], [[9, 4, 7], 0.7], [[9, 5], 3.0]]},
        {"encoder_repetition_penalty": 1.3}, {"encoder_repetition_penalty": 0.7}, {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.9, "encoder_repetition_penalty": 1.2, "sequence_bias": [[[3], -0.3]]},
        {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3},
        {"encoder_no_repeat_ngram_size": 1}, {"encoder_no_repeat_ngram_size": 2},
        {"bad_words_ids": [[2], [4, 11], [9, 4, 12], [9, 8], [1, 9, 4, 9, 4, 3]], "eos_token_id": 2},
        {"min_length": 5, "eos_token_id": [1, 6]}, {"min_length": 8, "eos_token_id": [1, 6]},
        {"min_new_tokens": 2, "eos_token_id": 6}, {"min_new_tokens": 3, "eos_token_id": 6},
        {"forced_bos_token_id": 3}, {"forced_eos_token_id": [3, 8]},
        {"remove_invalid_values": True, "no_repeat_ngram_size": 2},
        {"exponential_decay_length_penalty": [0, 1.3], "eos_token_id": [5, 8]},
        {"exponential_decay_length_penalty": [2, 1.3], "eos_token_id": 5},
        {"exponential_decay_length_penalty": [-3, 0.9], "eos_token_id": 5},
        {"exponential_decay_length_penalty": [0, 1.3], "eos_token_id": [5, 8], "min_length": 30},
        {"suppress_tokens": [3, -1, 7, 9999]}, {"begin_suppress_tokens": [3, 7]},
        {"begin_suppress_tokens": [3, 7], "forced_bos_token_id": 4},
    ]

    texts = [([9, 4, 7, 9, 4], 3, 10), ([9, 4, 7, 9, 4], 3, 3), ([9, 4, 7], 3, 10), ([9], 1, 10), ([9, 4], 1, 10)]
    cases = []

    def case(values, ids, prompt, most, row):
        before, after = rows()[row], processed(values, ids, prompt, rows()[row], most).tolist()
        changed = {str(id): number(x) for id, x in enumerate(after) if torch.tensor(before)[id] != x}
        cases.append({"settings": values, "ids": ids, "prompt": prompt, "new_tokens": most, "row": row,
                      "changed": changed})

    for values in settings:
        for count, (ids, prompt, most) in enumerate(texts):
            case(values, ids, prompt, most, count % 2)

    case({"remove_invalid_values": True}, [0], 1, 10, 3)
    return cases


def filter_cases():
    """The tokens that sampling keeps, and their probabilities."""
    settings = [{"top_k": 0}, {"top_k": 5}, {"top_k": 2}, {"top_k": 4}, {"top_k": 500}, {"top_k": 0, "top_p": 0.6},
                {"top_k": 0, "top_p": 0.0}, {"top_k": None, "min_p": 0.1}, {"temperature": 0.5, "min_p": 0.1},
                {"temperature": 2.0, "top_p": 0.8}, {"top_k": 0, "typical_p": 0.15}, {"typical_p": 0.5},
                {"top_k": 0, "typical_p": 0.9}, {"top_k": 6, "typical_p": 0.6},
                {"top_k": 0, "epsilon_cutoff": 0.03}, {"epsilon_cutoff": 0.95}, {"top_k": 3, "epsilon_cutoff": 0.3},
                {"top_k": 0, "eta_cutoff": 0.02}, {"eta_cutoff": 0.3}, {"temperature": 3.0, "eta_cutoff": 0.3},
                {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8,
                 "epsilon_cutoff": 0.05, "eta_cutoff": 0.2, "renormalize_logits": True},
                {"top_p": 2.0, "typical_p": 1.5, "epsilon_cutoff": 1.0, "eta_cutoff": -1.0, "top_k": 7},
                {"no_repeat_ngram_size": 1, "repetition_penalty": 1.4, "top_k": 4, "top_p": 0.9},
                {"suppress_tokens": [0, 1], "typical_p": 0.5, "top_k": 0}]

    cases = []
    for values in settings:
        values = dict(values, do_sample=True)
        for row in range(3):
            scores = processed(values, [3, 4, 3], 3, rows()[row])
            probabilities = torch.softmax(scores, -1).tolist()
            kept = {str(id): p for id, p in enumerate(probabilities) if scores[id] != float("-inf")}
            cases.append({"settings": values, "ids": [3, 4, 3], "row": row, "probabilities": kept})

    return cases


def class_tokens():
    """bos and eos of every family of tests/golden/models."""
    folders = sorted((ROOT / "tests/golden/models").iterdir())
    names = sorted({json.loads((folder / "config.json").read_text())["model_type"] for folder in folders})
    made = {name: GenerationConfig.from_model_config(AutoConfig.for_model(name)) for name in names}
    return [[name, config.bos_token_id, config.eos_token_id] for name, config in made.items()]


def write(name, cases):
    lines = ",\n".join(json.dumps(case, sort_keys=True) for case in cases)
    (OUT / name).write_text(f"[\n{lines}\n]\n")
    print(name, len(cases), (OUT / name).stat().st_size)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    greedy = []
    for model in ("gpt2", "llama"):
        cases, g, first = file_cases(model)
        greedy += cases + model_config_cases(model, g, first)

    greedy += stop_cases()
    for case in greedy:
        case["ids"] = generate(case)
        print(case["name"], case["ids"])

    write("greedy.json", greedy)
    write("rows.json", [[number(x) for x in row] for row in rows()])
    write("processors.json", processor_cases())
    write("filters.json", filter_cases())
    write("class_tokens.json", class_tokens())


main()
