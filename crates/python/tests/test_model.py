"""The model: tree, parameters, logits and text, against values of transformers and of the program's own tests."""

import gc
import json
import shutil
import warnings

import llm_int8
import numpy as np
import pytest
from llm_int8 import AutoModelForCausalLM


def load(name="tiny-gpt2", **options):
    return AutoModelForCausalLM.from_pretrained(name, progress=False, **options)


def test_the_tree_and_the_parameters_are_those_of_transformers(golden):
    folder = golden / "models" / "gpt2"
    model = load(folder)
    assert str(model) + "\n" == (folder / "print.txt").read_text().rstrip("\n") + "\n"
    lines = [f"{name} {p.dtype} {p.shape}" for name, p in model.named_parameters()]
    assert lines == (folder / "parameters.txt").read_text().splitlines()
    facts = json.loads((folder / "facts.json").read_text())
    assert model.get_memory_footprint() == facts["memory_footprint_int8"]
    assert model.nbytes == sum(p.nbytes for p in model.parameters()) + sum(
        4 * p.shape[0] for p in model.parameters() if p.dtype == "torch.int8")


def test_inspect_reads_headers_only(golden):
    folder = golden / "models" / "gpt2"
    plan = llm_int8.inspect(folder)
    model = load(folder)
    assert str(plan) == str(model) and plan.layers == model.layers
    assert plan.get_memory_footprint() == model.get_memory_footprint()
    names = [(name, p.dtype, p.shape) for name, p in plan.named_parameters()]
    assert names == [(name, p.dtype, p.shape) for name, p in model.named_parameters()]
    with pytest.raises(RuntimeError, match="only described"):
        plan.named_parameters()[0][1].numpy()


def test_codes_and_absmax_are_those_of_bitsandbytes(golden, load_tensors):
    folder = golden / "bnb_checkpoints" / "gpt2"
    saved = load_tensors(folder / "model.safetensors")
    float_model = dict(load(golden / "models" / "gpt2").named_parameters())
    checked = 0
    for name, parameter in load(folder).named_parameters():
        if parameter.dtype == "torch.int8":
            # bitsandbytes' SCB beside its CB.
            scb = saved[name.removesuffix("weight") + "SCB"]
            assert (parameter.absmax == scb).all() and (parameter.numpy() == saved[name]).all()
            assert (float_model[name].numpy() == saved[name]).all()
            expected = saved[name].astype(np.float32) * (scb[:, None] / np.float32(127))
            np.testing.assert_allclose(parameter.dequantize(), expected, rtol=1e-6)
            checked += 1
    assert checked > 4


def test_logits_match_transformers(golden, load_tensors):
    expected = load_tensors(golden / "tiny_gpt2_expected.safetensors")
    model = load(load_in_8bit=False, dtype="float32")
    logits = model.logits(expected["input_ids"])
    assert logits.dtype == np.float32 and logits.shape == (1, 64, 4096)
    difference = np.linalg.norm(logits - expected["logits_f32"]) / np.linalg.norm(expected["logits_f32"])
    assert difference < 1e-4
    prompt = expected["input_ids"][0, :16]
    greedy = model.generate(prompt, max_new_tokens=32)
    assert [*prompt, *greedy.ids] == list(expected["greedy_f32"][0])


def test_logits_own_their_memory_and_take_what_numpy_takes(tiny):
    ids = [[1, 2, 3], [4, 5, 6]]
    batch = tiny.logits(np.array(ids))
    assert batch.shape == (2, 3, 4096)
    assert (tiny.logits(ids[1]) == batch[1]).all(), "a list without a batch"
    copy = batch.copy()
    del ids
    gc.collect()
    assert (batch == copy).all()
    for wrong, error in [
        ([[[1]]], ValueError), ([-1], ValueError), ([1.5], TypeError), ([], ValueError), ([99999], ValueError),
    ]:
        with pytest.raises(error):
            tiny.logits(wrong)


def test_parameters_share_the_memory_of_the_model():
    model = load()
    by_name = dict(model.named_parameters())
    weight = by_name["transformer.h.0.attn.c_attn.weight"]
    codes, again = weight.numpy(), weight.numpy()
    assert codes.dtype == np.int8 and codes.shape == weight.shape == (768, 256)
    assert np.shares_memory(codes, again) and not codes.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        codes[0, 0] = 1
    with pytest.raises(ValueError):
        codes.flags.writeable = True
    table = by_name["transformer.wte.weight"]
    assert table.numpy().dtype == np.float16 and np.shares_memory(table.numpy(), np.asarray(table))

    # The arrays keep the memory alive, not the model.
    kept = codes.sum(dtype=np.int64), codes[5, :9].tolist()
    del model, by_name, weight, again, table
    gc.collect()
    ballast = [load() for _ in range(3)]
    assert kept == (codes.sum(dtype=np.int64), codes[5, :9].tolist())
    del ballast


def test_float_weights_have_pytorchs_shapes():
    for name, parameter in load(load_in_8bit=False).named_parameters():
        assert parameter.numpy().shape == parameter.shape, name


def test_keys_and_values_in_another_dtype_change_logits_a_little(golden, load_tensors):
    ids = load_tensors(golden / "tiny_gpt2_expected.safetensors")["input_ids"]
    exact = load().logits(ids)
    for dtype in ("float32", "int8"):
        logits = load(cache_dtype=dtype).logits(ids)
        difference = np.linalg.norm(logits - exact) / np.linalg.norm(exact)
        assert 1e-6 < difference < 2e-2, (dtype, difference)
    with pytest.raises(ValueError, match="cache_dtype is int4; expected float16, bfloat16, float32 or int8"):
        load(cache_dtype="int4")


def test_bfloat16_goes_through_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    table = dict(load(dtype="bfloat16").named_parameters())["transformer.wte.weight"]
    assert table.dtype == "torch.bfloat16" and table.numpy().dtype == ml_dtypes.bfloat16
    half = dict(load(dtype="float16").named_parameters())["transformer.wte.weight"].numpy().astype(np.float32)
    assert np.abs(table.numpy().astype(np.float32) - half).max() <= 0.004 * np.abs(half).max()


def test_generate_stream_and_batch_give_the_same_text(tiny):
    settings = dict(max_new_tokens=24, temperature=0.8, seed=7)
    whole = tiny.generate("ROMEO:", **settings)
    stream = tiny.stream("ROMEO:", **settings)
    assert "".join(stream) == whole.text == str(whole) and whole.text
    assert stream.generated.ids == whole.ids and whole.finish_reason == "length"
    assert tiny.is_batch_invariant
    prompts = ["ROMEO:", "In the beginning", "And it came to pass", "ROMEO:"]
    batch = tiny.generate_batch(prompts, seeds=[7, 1, 2, 7], batch_size=3, max_new_tokens=24, temperature=0.8)
    assert batch[0].text == batch[3].text == whole.text
    assert batch[1].text == tiny.generate(prompts[1], max_new_tokens=24, temperature=0.8, seed=1).text
    ids = tiny.tokenizer("ROMEO:")["input_ids"]
    assert tiny.generate(np.array([ids]), **settings).ids == whole.ids
    assert tiny.tokenizer.decode(whole.ids) == whole.text


def test_settings_have_their_effect(tiny):
    def text(**settings):
        return tiny.generate("In the beginning", max_new_tokens=16, **settings).text

    greedy = text()
    assert text(temperature=0) == text(do_sample=False, temperature=0.7) == greedy
    assert text(top_k=1, seed=3) == greedy != text(temperature=1.5, seed=3)
    assert text(temperature=1.5, seed=3) == text(temperature=1.5, seed=3) != text(temperature=1.5, seed=4)
    stopped = tiny.generate("In the beginning", max_new_tokens=60, stop=[greedy[5:9]])
    assert stopped.finish_reason == "stop" and greedy.startswith(stopped.text)
    first = tiny.generate("In the beginning", max_new_tokens=1).ids[0]
    assert tiny.generate("In the beginning", max_new_tokens=1, suppress_tokens=[first]).ids[0] != first
    assert tiny.generate("In the beginning", max_new_tokens=1, logit_bias={7: 1000.0}).ids == [7]
    assert tiny.generate("In the beginning", max_new_tokens=1, sequence_bias={(7,): 1000.0}).ids == [7]
    assert tiny.generate("a", max_new_tokens=4, pad_token_id=0, use_cache=True, num_beams=1, top_p=None).ids


@pytest.mark.parametrize("settings, error, says", [
    (dict(max_new_token=3), TypeError, "`max_new_token` is no setting"),
    (dict(temperature="hot"), TypeError, "temperature: "),
    (dict(temperature=-1.0), ValueError, "temperature is -1"),
    (dict(top_p=1.5), ValueError, "top_p is 1.5"),
    (dict(num_beams=4), ValueError, "num_beams is 4; only 1"),
    (dict(max_new_tokens=100_000), ValueError, "100000 new ones are requested"),
    (dict(max_time=-1), ValueError, "max_time is -1"),
    (dict(seed=-1), TypeError, "seed: "),
])
def test_wrong_settings_are_refused_by_name(tiny, settings, error, says):
    with pytest.raises(error, match=says):
        tiny.generate("a", **settings)


def test_one_bad_prompt_need_not_end_a_batch(tiny):
    prompts = ["a", [99_999], "b"]
    with pytest.raises(ValueError, match="prompt 2: .*99999 is beyond the vocabulary"):
        tiny.generate_batch(prompts, max_new_tokens=2)
    first, second, third = tiny.generate_batch(prompts, max_new_tokens=2, return_exceptions=True)
    assert isinstance(second, ValueError) and first.text and len(third.ids) == 2
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        tiny.generate_batch(["a"], seeds=[1, 2])
    assert tiny.generate_batch([]) == []


def test_a_stream_reports_errors_and_can_be_dropped(tiny):
    with pytest.raises(ValueError, match="top_p is 2"):
        next(tiny.stream("a", top_p=2.0))
    stream = tiny.stream("a", max_new_tokens=200)
    assert isinstance(next(stream), str)
    stream.close()
    assert list(stream) == [] and stream.generated is None
    del stream


def test_chat_goes_through_the_template(golden, tmp_path):
    folder = tmp_path / "chat"
    load().save_pretrained(folder)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    model = load(folder)
    messages = [{"role": "user", "content": "Hello"}]
    prompt = "user: Hello\nassistant:"
    assert model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt
    expected = model.generate(model.tokenizer.encode(prompt, add_special_tokens=False), max_new_tokens=8)
    assert model.chat(messages, max_new_tokens=8).ids == model.chat("Hello", max_new_tokens=8).ids == expected.ids
    assert "".join(model.chat(messages, stream=True, max_new_tokens=8)) == expected.text
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no chat template"):
        load().chat("Hello")


def test_save_pretrained_gives_the_same_model(tmp_path, golden, load_tensors):
    model = load(golden / "models" / "gpt2")
    model.save_pretrained(tmp_path / "out")
    again = load(tmp_path / "out")
    ids = [[5, 9, 33, 77]]
    assert (again.logits(ids) == model.logits(ids)).all() and str(again) == str(model)
    theirs = load_tensors(golden / "bnb_checkpoints" / "gpt2" / "model.safetensors")
    ours = load_tensors(tmp_path / "out" / "model.safetensors")
    same = [name for name, tensor in theirs.items() if tensor.dtype == np.int8]
    assert same and all((ours[name] == theirs[name]).all() for name in same)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        model.save_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "float", dequantize=True)
    assert load_tensors(tmp_path / "float" / "model.safetensors")["transformer.h.0.attn.c_attn.weight"].dtype == np.float16


@pytest.mark.parametrize("options, says", [
    (dict(threshold="much"), "threshold is 'much'"),
    (dict(threshold="4rms", outliers="batch"), "leave out outliers"),
    (dict(outliers="columns"), "outliers is columns; expected batch or row"),
    (dict(accuracy="perfect"), "accuracy is perfect"),
    (dict(accuracy="better", threshold=6.0), "give it or them"),
    (dict(dtype="int4"), "dtype is int4"),
    (dict(device_map="gpu:0"), "device is gpu:0"),
    (dict(skip_modules=["c_atn"]), "did you mean `c_attn`"),
    (dict(quantization_config={"load_in_4bit": True}), "load_in_4bit"),
    (dict(num_threads=3), "computes with 2 threads"),
])
def test_wrong_options_are_refused_by_name(options, says):
    llm_int8.set_num_threads(2)
    with pytest.raises(ValueError, match=says):
        load(**options)


def test_transformers_words_mean_the_same():
    class TheirConfig:
        def to_dict(self):
            return {"load_in_8bit": True, "llm_int8_threshold": 4.0, "llm_int8_skip_modules": ["c_proj"],
                    "_load_in_4bit": False, "quant_method": "bitsandbytes", "llm_int8_has_fp16_weight": False}

    ours = load(threshold=4.0, skip_modules=["c_proj"])
    for options in [
        dict(quantization_config=TheirConfig()),
        dict(quantization_config=llm_int8.BitsAndBytesConfig(llm_int8_threshold=4.0, llm_int8_skip_modules=["c_proj"])),
        dict(load_in_8bit=True, llm_int8_threshold=4.0, llm_int8_skip_modules=["c_proj"], device_map="auto",
             torch_dtype="torch.float16", low_cpu_mem_usage=True),
    ]:
        model = load(**options)
        assert str(model) == str(ours)
        assert (model.logits([[1, 2, 3]]) == ours.logits([[1, 2, 3]])).all()
    assert not load(load_in_8bit=False).layers["int8"]


def test_files_and_names_raise_oserror_and_valueerror(tmp_path):
    with pytest.raises(OSError, match="no folder|there is no"):
        load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError, match="has no"):
        load(tmp_path)
    with pytest.raises(ValueError, match="at most one"):
        load("a/b/c")
    with pytest.raises(OSError, match="offline mode is on"):
        load("nobody/nothing", local_files_only=True, cache_dir=tmp_path / "cache")


def test_warnings_are_pythons(golden, tmp_path):
    # A config that lowers the number of layers: tensors are left over.
    folder = shutil.copytree(golden / "cases" / "c10f_extra_layer", tmp_path / "model")
    shutil.copy(golden / "cases" / "weights" / "fb455327b52c.safetensors", folder / "model.safetensors")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = load(folder)
    assert [str(one.message) for one in seen] == model.warnings != []


def test_progress_is_reported():
    steps = []
    AutoModelForCausalLM.from_pretrained("tiny-gpt2", progress=lambda *step: steps.append(step))
    modules = [step for step in steps if step[0] == "modules"]
    assert len(modules) == modules[-1][2] and all(step[1] == 1 for step in modules)

    def fails(*step):
        raise LookupError("no terminal")

    with pytest.raises(LookupError, match="no terminal"):
        AutoModelForCausalLM.from_pretrained("tiny-gpt2", progress=fails)


def test_html_holds_the_whole_tree(tiny):
    html = tiny._repr_html_()
    assert html.count("<details") == html.count("</details>") == str(tiny).count("(\n")
    assert "Linear8bitLt(in_features=256, out_features=768, bias=True)" in html and "parameters;" in html


def test_the_tokenizer_has_transformers_interface(tiny):
    tokenizer = tiny.tokenizer
    assert tokenizer("And it came to pass")["input_ids"] == tokenizer.encode("And it came to pass")
    both = tokenizer(["And", "it came"])
    assert len(both["input_ids"]) == 2 and [len(m) for m in both["attention_mask"]] == [len(i) for i in both["input_ids"]]
    ids = tokenizer.encode("And it came to pass")
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == "And it came to pass"
    assert len(tokenizer) == 4096 and len(tokenizer.convert_ids_to_tokens(ids)) == len(ids)
