#!/usr/bin/env python3
"""Compares our tokenizers with transformers', for every tokenizer class that the families use and every file format: ids
with and without special tokens, and decoding. Small vocabularies are trained here, so nothing is downloaded.

    scripts/check_tokenizers.py                                  # 500 strings per form, with target/release/llm-int8
    scripts/check_tokenizers.py --golden tests/golden/tokenizers # writes the folders and a sample for the tests

Needs transformers 4.57, tokenizers, sentencepiece, protobuf. LLM_INT8 names another program.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import subprocess
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import sentencepiece  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("LLM_INT8", str(ROOT / "target/release/llm-int8"))
VOCABULARY = 420
QWEN2 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

WORDS = ("the king of land and it came to pass that he said unto them Hello HELLO don't I'm we'll they've naïve façade "
         "Übermut Straße Привет мир как дела 你好世界 東京都 日本語 안녕하세요 مرحبا بالعالم नमस्ते दुनिया ภาษาไทย שלום עולם "
         "café cafe\u0301 Å A\u030a ﬁ ² ½ Ⅷ x=1; foo_bar->baz() http://a.b/c?d=e 3.14159 1,000,000 2026 007 "
         "🙂 👩‍👩‍👧 🇫🇷 ❤️ — … “quoted” \u00a0 \u2009 \u3000 \u200b \ufeff").split(" ")
SPACES = [" ", " ", " ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", " \n ", ""]


def corpus():
    text = (ROOT / "README.md").read_text() + (ROOT / "ARCHITECTURE.md").read_text()
    return text.splitlines() + [" ".join(WORDS)] * 20 + ["def f(x):\n    return x + 1\n"] * 20


def strings(count, special, seed):
    """Random strings: words of several scripts, digits, white space, and special tokens between them."""
    rng, found = random.Random(seed), ["", " ", "\n", "Hello, I am the king of the land", " leading and trailing "]

    while len(found) < count:
        parts = []
        for _ in range(rng.randint(1, 14)):
            kind = rng.random()
            if kind < 0.08 and special:
                parts.append(rng.choice(special))
            elif kind < 0.16:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 9))))
            elif kind < 0.22:
                parts.append("".join(chr(rng.choice([rng.randint(33, 126), rng.randint(161, 0x24f), rng.randint(0x4e00, 0x4e80),
                                                     rng.randint(0x1f600, 0x1f640)])) for _ in range(rng.randint(1, 5))))
            else:
                parts.append(rng.choice(WORDS))

            parts.append(rng.choice(SPACES))

        found.append("".join(parts))

    return found


# Vocabularies --------------------------------------------------------------------------------------------------------

def byte_level(pre=None, special=("<|endoftext|>",), normalizer=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(special), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(), trainer)

    return tokenizer


def split(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentences(folder, kind, gemma=False, **more):
    """Trains a SentencePiece model into `tokenizer.model`."""
    text = folder / "corpus.txt"
    text.write_text("\n".join(line for line in corpus() if line.strip()))
    if gemma:
        more.update(pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
                    user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\t"], add_dummy_prefix=False)

    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "t"), vocab_size=700, model_type=kind, byte_fallback=True,
        character_coverage=0.985, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, minloglevel=2, **more)
    (folder / "t.model").rename(folder / "tokenizer.model")
    (folder / "t.vocab").unlink()
    text.unlink()


def write(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1))


def files(folder, tokenizer, last_line=True):
    """Writes `vocab.json` and `merges.txt`."""
    model = json.loads(tokenizer.to_str())["model"]
    write(folder, "vocab.json", model["vocab"])
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    write(folder, "merges.txt", "\n".join(["#version: 0.2", *merges]) + ("\n" if last_line else ""))


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
            "special": True, **flags}


def saved(folder, source, **more):
    """Writes `tokenizer.json` as transformers converts it from the files of `source`."""
    AutoTokenizer.from_pretrained(source, **more)._tokenizer.save(str(folder / "tokenizer.json"))


# Forms ---------------------------------------------------------------------------------------------------------------

FORMS = {}


def form(name, class_name, model_type="llama"):
    def add(make):
        FORMS[name] = (class_name, model_type, make)
        return make
    return add


def config(folder, class_name, **more):
    write(folder, "tokenizer_config.json", {"tokenizer_class": class_name, **more})


@form("gpt2_json", "GPT2Tokenizer", "gpt2")
def _(folder):
    byte_level().save(str(folder / "tokenizer.json"))
    config(folder, "GPT2Tokenizer")


@form("gpt2_json_prefix_space_reset", "GPT2TokenizerFast", "gpt2")
def _(folder):
    byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)).save(str(folder / "tokenizer.json"))
    config(folder, "GPT2Tokenizer")


@form("gpt2_json_prefix_space", "GPT2TokenizerFast", "gpt2")
def _(folder):
    byte_level().save(str(folder / "tokenizer.json"))
    config(folder, "GPT2Tokenizer", add_prefix_space=True)


@form("gpt2_json_truncated_padded", "GPT2Tokenizer", "gpt2")
def _(folder):
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(direction="left", pad_to_multiple_of=8)
    tokenizer.save(str(folder / "tokenizer.json"))


@form("gpt2_merges", "GPT2Tokenizer", "gpt2")
def _(folder):
    files(folder, byte_level())


@form("gpt2_merges_no_last_line", "GPT2Tokenizer", "gpt2")
def _(folder):
    files(folder, byte_level(), last_line=False)
    config(folder, "GPT2Tokenizer", add_prefix_space=True)


@form("gpt2_merges_added", "GPT2Tokenizer", "gpt2")
def _(folder):
    tokenizer = byte_level()
    files(folder, tokenizer)
    size = tokenizer.get_vocab_size()
    write(folder, "added_tokens.json", {"<|user|>": size, "<|assistant|>": size + 1, "    ": size + 2})
    write(folder, "special_tokens_map.json", {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
                                              "additional_special_tokens": ["<|user|>"]})


@form("opt_merges", "GPT2Tokenizer", "opt")
def _(folder):
    files(folder, byte_level(special=("<s>", "<pad>", "</s>", "<unk>")))
    opt = lambda text: {"__type": "AddedToken", **token(text, normalized=True, special=False)}
    config(folder, "GPT2Tokenizer", add_bos_token=True, add_prefix_space=False, bos_token=opt("</s>"),
           eos_token=opt("</s>"), unk_token=opt("</s>"), pad_token=opt("<pad>"))


@form("codegen_merges_added", "CodeGenTokenizer", "phi")
def _(folder):
    tokenizer = byte_level()
    files(folder, tokenizer)
    size = tokenizer.get_vocab_size()
    added = {size + i: token(" " * (9 - i), normalized=True, special=False) for i in range(8)}
    added[size + 8] = token("\t\t", normalized=True, special=False)
    config(folder, "CodeGenTokenizer", added_tokens_decoder=added, bos_token="<|endoftext|>")


@form("codegen_json", "CodeGenTokenizerFast", "phi")
def _(folder):
    byte_level().save(str(folder / "tokenizer.json"))


@form("qwen2_merges", "Qwen2Tokenizer", "qwen2")
def _(folder):
    tokenizer = byte_level(split(QWEN2), special=())
    files(folder, tokenizer)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    size = tokenizer.get_vocab_size()
    config(folder, "Qwen2Tokenizer", bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
           additional_special_tokens=names[1:], errors="replace",
           added_tokens_decoder={size + i: token(name) for i, name in enumerate(names)})


@form("qwen2_json", "Qwen2TokenizerFast", "qwen3")
def _(folder):
    byte_level(split(QWEN2), normalizer=normalizers.NFC()).save(str(folder / "tokenizer.json"))
    config(folder, "Qwen2Tokenizer", added_tokens_decoder={"900": token("<tool_call>", special=False)})


@form("starcoder_json", "GPT2TokenizerFast", "starcoder2")
def _(folder):
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                      pre_tokenizers.ByteLevel(add_prefix_space=False)])
    byte_level(digits, special=("<|endoftext|>", "<fim_prefix>", "<fim_middle>")).save(str(folder / "tokenizer.json"))
    config(folder, "GPT2Tokenizer", additional_special_tokens=["<fim_prefix>", "<fim_middle>"])


@form("gpt_neox_json", "GPTNeoXTokenizer", "gpt_neox")
def _(folder):
    byte_level(normalizer=normalizers.NFC()).save(str(folder / "tokenizer.json"))
    config(folder, "GPTNeoXTokenizer", add_prefix_space=False)


@form("gpt_neox_json_bos_eos", "GPTNeoXTokenizerFast", "stablelm")
def _(folder):
    byte_level(special=("<|endoftext|>", "<|padding|>", "<|s|>")).save(str(folder / "tokenizer.json"))
    config(folder, "GPTNeoXTokenizer", add_bos_token=True, add_eos_token=True, bos_token="<|s|>")


@form("bloom_json", "BloomTokenizerFast", "bloom")
def _(folder):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level(pre, special=("<unk>", "<s>", "</s>", "<pad>")).save(str(folder / "tokenizer.json"))


@form("bloom_json_prefix_space", "BloomTokenizerFast", "bloom")
def _(folder):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[^\s]+"), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level(pre, special=("<unk>", "<s>", "</s>", "<pad>")).save(str(folder / "tokenizer.json"))
    config(folder, "BloomTokenizerFast", add_prefix_space=True)


@form("falcon_json", "PreTrainedTokenizerFast", "falcon")
def _(folder):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(False),
                                   pre_tokenizers.Digits(individual_digits=False),
                                   pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")])
    byte_level(pre, special=("<|endoftext|>", ">>TITLE<<")).save(str(folder / "tokenizer.json"))
    config(folder, "PreTrainedTokenizerFast", eos_token="<|endoftext|>", add_prefix_space=False,
           additional_special_tokens=[">>TITLE<<"])


@form("llama3_json", "PreTrainedTokenizerFast", "llama")
def _(folder):
    tokenizer = byte_level(split(LLAMA3), special=("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), ignore_merges=True)
    tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config(folder, "PreTrainedTokenizerFast", bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", add_bos_token=False)


@form("llama3_json_llama_class", "LlamaTokenizerFast", "llama")
def _(folder):
    byte_level(split(LLAMA3), special=("<|begin_of_text|>", "<|end_of_text|>")).save(str(folder / "tokenizer.json"))
    config(folder, "LlamaTokenizer", bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", add_eos_token=True)


@form("cohere_json", "CohereTokenizerFast", "llama")
def _(folder):
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    byte_level(digits, normalizer=normalizers.NFC(), special=(
        "<PAD>", "<UNK>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>")).save(str(folder / "tokenizer.json"))
    config(folder, "CohereTokenizer", add_prefix_space=False)


@form("llama_model_bpe", "LlamaTokenizer", "llama")
def _(folder):
    sentences(folder, "bpe")


@form("llama_model_bpe_new", "LlamaTokenizer", "llama")
def _(folder):
    sentences(folder, "bpe", user_defined_symbols=["<tool>"])
    config(folder, "LlamaTokenizer", legacy=False, add_eos_token=True, add_bos_token=False)


@form("llama_model_no_prefix", "LlamaTokenizer", "mistral")
def _(folder):
    sentences(folder, "bpe")
    config(folder, "LlamaTokenizer", legacy=False, add_prefix_space=False)


@form("llama_model_null_prefix", "LlamaTokenizer", "mistral")
def _(folder):
    sentences(folder, "bpe")
    config(folder, "LlamaTokenizer", legacy=True, add_prefix_space=None)


@form("llama_model_unigram_added", "LlamaTokenizer", "phi3")
def _(folder):
    sentences(folder, "unigram")
    write(folder, "added_tokens.json", {"<|user|>": 700, "<|end|>": 701})
    write(folder, "special_tokens_map.json", {"eos_token": token("<|end|>", rstrip=True), "pad_token": "<unk>"})


@form("llama_json_and_model", "LlamaTokenizerFast", "llama")
def _(folder):
    sentences(folder, "bpe")
    config(folder, "LlamaTokenizer", legacy=False)
    saved(folder, folder)
    # `add_prefix_space` makes transformers ignore tokenizer.json and convert tokenizer.model again.
    config(folder, "LlamaTokenizer", legacy=False, add_prefix_space=True, add_eos_token=True)


@form("phi3_json", "LlamaTokenizerFast", "phi3")
def _(folder):
    sentences(folder, "bpe")
    saved(folder, folder, model_type="llama")
    (folder / "tokenizer.model").unlink()
    added = {"700": token("<|user|>", rstrip=True), "701": token("<|end|>", rstrip=True), "2": token("</s>", rstrip=True, special=False)}
    config(folder, "LlamaTokenizer", add_bos_token=False, added_tokens_decoder=added, eos_token="<|end|>")


@form("code_llama_model", "CodeLlamaTokenizer", "llama")
def _(folder):
    sentences(folder, "bpe", user_defined_symbols=["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"])
    config(folder, "CodeLlamaTokenizer")


@form("gemma_model", "GemmaTokenizer", "gemma2")
def _(folder):
    sentences(folder, "bpe", gemma=True)


@form("gemma_json", "GemmaTokenizerFast", "gemma3_text")
def _(folder):
    sentences(folder, "bpe", gemma=True)
    config(folder, "GemmaTokenizer")
    saved(folder, folder)
    (folder / "tokenizer.model").unlink()
    config(folder, "GemmaTokenizer", add_eos_token=True, added_tokens_decoder={
        "0": token("<pad>"), "1": token("<eos>"), "2": token("<bos>"), "3": token("<unk>"),
        "900": token("<start_of_image>")})


# Comparison ----------------------------------------------------------------------------------------------------------

def run(folder, *arguments, text=""):
    done = subprocess.run([PROGRAM, "tokenize", str(folder), *arguments], input=text.encode(), capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{folder.name}: {done.stderr.decode().strip()}")
    return done.stdout.decode()[:-1]


def expected(tokenizer, text, rng):
    """transformers' ids of a text and their decoding, and the decoding of random ids."""
    ids = tokenizer(text)["input_ids"]
    noise = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 12))]
    decode = lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    return {"text": text, "ids": ids, "plain": tokenizer(text, add_special_tokens=False)["input_ids"],
            "decoded": [decode(ids, False), decode(ids, True)], "noise": noise,
            "noise_decoded": [decode(noise, False), decode(noise, True)]}


def compare(folder, case):
    """The names of the results that differ."""
    listed = lambda ids: ",".join(map(str, ids)) or ","
    decoded = lambda ids: [run(folder, listed(ids), "--decode"), run(folder, listed(ids), "--decode", "--skip-special-tokens")]

    found = {
        "ids": json.loads(run(folder, "-", "--ids", text=case["text"])) == case["ids"],
        "plain": json.loads(run(folder, "-", "--ids", "--no-special-tokens", text=case["text"])) == case["plain"],
        "decoded": decoded(case["ids"]) == case["decoded"],
        "noise": decoded(case["noise"]) == case["noise_decoded"],
    }

    return [name for name, is_equal in found.items() if not is_equal]


def make(parent, name):
    class_name, model_type, build = FORMS[name]
    folder = parent / name
    folder.mkdir(parents=True)
    write(folder, "config.json", {"model_type": model_type})
    build(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer).__name__.removesuffix("Fast") == class_name.removesuffix("Fast"), type(tokenizer)
    return folder, tokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--strings", type=int, default=500)
    parser.add_argument("--golden", type=pathlib.Path)
    parser.add_argument("--only")
    args = parser.parse_args()
    names = [name for name in FORMS if not args.only or name.startswith(args.only)]

    if args.golden:
        shutil.rmtree(args.golden, ignore_errors=True)
        for name in names:
            folder, tokenizer = make(args.golden, name)
            rng = random.Random(name)
            special = sorted(tokenizer.get_added_vocab())
            cases = [expected(tokenizer, text, rng) for text in strings(16, special, name)]
            lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
            (folder / "expected.json").write_text(f"[\n{lines}\n]\n")

        return

    print("| form | class | strings | ids | without special tokens | text of ids | text of random ids |\n|---|---|---|---|---|---|---|")
    failed = False

    with tempfile.TemporaryDirectory() as parent, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name in names:
            folder, tokenizer = make(pathlib.Path(parent), name)
            rng = random.Random(name)
            special = sorted(tokenizer.get_added_vocab())
            cases = [expected(tokenizer, text, rng) for text in strings(args.strings, special, name)]
            wrong = list(pool.map(lambda case: compare(folder, case), cases))
            counts = [sum(key not in one for one in wrong) for key in ("ids", "plain", "decoded", "noise")]
            failed |= any(wrong)
            print(f"| {name} | {type(tokenizer).__name__} | {len(cases)} | " + " | ".join(map(str, counts)) + " |", flush=True)
            for case, differs in zip(cases, wrong):
                if differs and args.only:
                    print(differs, json.dumps(case, ensure_ascii=False)[:600])

    raise SystemExit(failed)


if __name__ == "__main__":
    main()
