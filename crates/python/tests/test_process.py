"""What happens around the interpreter: other threads, signals, forks, memory."""

import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import llm_int8
import pytest


def run(code, **options):
    """Runs Python code in a process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, **options)


# A job in the background of a shell script ignores SIGINT, and so would its children.
HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
LOOP = HEED + """
import llm_int8, sys, time
model = llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", num_threads=1, outliers="row", progress=False)
print("ready", flush=True)
try:
    while True:
        {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    assert model.generate("ROMEO:", max_new_tokens=4).ids, "the model is whole"
    print("whole", flush=True)
"""


@pytest.mark.parametrize("call", [
    'model.generate("ROMEO:", max_new_tokens=200)',
    'model.generate_batch(["ROMEO:"] * 400, max_new_tokens=200)',
    'list(model.stream("ROMEO:", max_new_tokens=200))',
])
def test_ctrl_c_ends_a_token_loop(call):
    process = run(LOOP.format(call=call))
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out == "interrupted\nwhole\n", err
    assert process.returncode == 0 and time.monotonic() - started < 10


def test_ctrl_c_ends_loading():
    code = HEED + """
import llm_int8, os, signal
def step(*_):
    os.kill(os.getpid(), signal.SIGINT)
try:
    llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", num_threads=1, progress=step)
except KeyboardInterrupt:
    print("interrupted")
"""
    process = run(code)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)


def test_the_interpreter_runs_while_a_model_computes(tiny):
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    tiny.generate_batch(["ROMEO:"] * 16, max_new_tokens=150)
    done.set()
    thread.join()
    assert counted[0] > 10


def test_threads_share_a_model(tiny):
    expected = [tiny.generate("ROMEO:", max_new_tokens=20, temperature=0.9, seed=seed).text for seed in range(4)]
    found = [None] * 4

    def generate(seed):
        found[seed] = tiny.generate("ROMEO:", max_new_tokens=20, temperature=0.9, seed=seed).text

    threads = [threading.Thread(target=generate, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == expected


FORK = """
import llm_int8, os, sys
{before}
child = os.fork()
if child == 0:
    try:
        model = llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", num_threads=1, progress=False)
        print(len(model.generate("a", max_new_tokens=3).ids), flush=True)
        os._exit(0)
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_is_refused_only_after_threads_have_started():
    process = run(FORK.format(before="llm_int8.set_num_threads(1)"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3 and "threads do not survive a fork" in out and "spawn" in out, err
    process = run(FORK.format(before=""))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "3\n"), err


def count_tokens(prompt):
    model = llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", num_threads=1, progress=False)
    return len(model.generate(prompt, max_new_tokens=5).ids)


def test_spawned_processes_work():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(count_tokens, ("ROMEO:",)) == 5


def resident():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_no_memory_and_no_reference_is_lost(tiny):
    def once():
        model = llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", progress=False)
        arrays = [parameter.numpy() for parameter in model.parameters()]
        model.logits([[1, 2, 3, 4]])
        model.generate("ROMEO:", max_new_tokens=4)
        list(model.stream("ROMEO:", max_new_tokens=4))
        next(model.stream("ROMEO:", max_new_tokens=50))
        llm_int8.Int8Linear(tiny.logits([1, 2]))(tiny.logits([3]))
        with pytest.raises(ValueError):
            model.generate([99_999])
        return len(arrays)

    prompt, callback = "ROMEO: " + "x" * 50, lambda *step: None
    references = sys.getrefcount(prompt), sys.getrefcount(callback)
    for _ in range(20):
        once()
    gc.collect()
    before = resident()
    for _ in range(60):
        once()
        tiny.generate(prompt, max_new_tokens=1)
        llm_int8.AutoModelForCausalLM.from_pretrained("tiny-gpt2", progress=callback)
    gc.collect()
    # One model takes 5.5 MB and was loaded 120 times; one array of logits takes 64 KB.
    assert resident() - before < 16e6
    assert (sys.getrefcount(prompt), sys.getrefcount(callback)) == references
