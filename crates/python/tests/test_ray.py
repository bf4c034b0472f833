"""Jobs on Ray: two nodes on one machine, an actor killed, a node removed, the driver killed and started again. The rows
are always those of one process, byte by byte."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("ray.data")

import pyarrow.dataset  # noqa: E402
import pyarrow.json  # noqa: E402
import pyarrow.parquet  # noqa: E402
import ray.data  # noqa: E402
from llm_int8.ray import Generator, seed_of  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[3]
ROWS = 400
SETTINGS = dict(model="tiny-gpt2", seed=3, max_new_tokens=8, temperature=0.8)
MEMORY = 100_000_000
# Reading and writing need next to nothing, and all cores belong to the actors.
LIGHT = {"num_cpus": 0.01}


@pytest.fixture(autouse=True)
def limit_of_time():
    def late(*_):
        raise TimeoutError("a test of Ray took more than 5 minutes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("ray") / "prompts.jsonl"
    words = ["ROMEO:", "In the beginning", "And it came to pass", "The king said", "O"]
    rows = [{"id": f"row-{i:04}", "prompt": f"{words[i % 5]} {i}"} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def expected(source):
    """The rows as one process computes them, in batches of another size."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    generator = Generator(**SETTINGS)
    found = []
    for start in range(0, ROWS, 50):
        part = rows[start:start + 50]
        out = generator({"id": [row["id"] for row in part], "prompt": [row["prompt"] for row in part]})
        found += [dict(zip(out, values)) for values in zip(*out.values())]
    return [text_of(row) for row in found]


def text_of(row):
    keys = ("id", "prompt", "text", "finish_reason", "prompt_tokens", "new_tokens")
    return json.dumps([row[key] if isinstance(row[key], str) else int(row[key]) for key in keys])


def cluster(nodes):
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, object_store_memory=MEMORY))
    added = [made.add_node(num_cpus=2, object_store_memory=MEMORY) for _ in range(nodes - 1)]
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return made, added


@pytest.fixture
def two_nodes():
    made, added = cluster(2)
    yield made, added
    ray.shutdown()
    made.shutdown()


def watched(folder):
    """A generator whose actors leave their pid and node in `folder`, and take their time."""

    class Watched(Generator):
        def __init__(self, **settings):
            super().__init__(**settings)
            node = ray.get_runtime_context().get_node_id()
            pathlib.Path(folder, f"{os.getpid()}").write_text(node)
            self.done = 0

        def __call__(self, batch):
            time.sleep(0.3)
            self.done += 1
            pathlib.Path(folder, f"{os.getpid()}.done").write_text(str(self.done))
            return super().__call__(batch)

    return Watched


def run(source, kind):
    rows = ray.data.read_json(str(source), override_num_blocks=20, **LIGHT)
    rows = rows.map_batches(
        kind, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1, scheduling_strategy="SPREAD", batch_size=20,
        fn_constructor_kwargs=SETTINGS)
    return sorted(text_of(row) for row in rows.take_all())


def when_both_work(folder, act):
    """Calls `act` with the pids of two actors once both have computed something."""

    def wait():
        while True:
            done = [path.stem for path in pathlib.Path(folder).glob("*.done") if path.read_text() not in ("", "1")]
            if len(done) >= 2:
                return act(sorted(done))
            time.sleep(0.05)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_two_nodes_give_the_rows_of_one_process(source, expected, two_nodes, tmp_path):
    assert run(source, watched(tmp_path)) == sorted(expected)
    nodes = {path.read_text() for path in tmp_path.iterdir() if path.suffix != ".done"}
    assert len(nodes) == 2, "both nodes took part"


def test_a_killed_actor_changes_nothing(source, expected, two_nodes, tmp_path):
    killer = when_both_work(tmp_path, lambda pids: os.kill(int(pids[0]), signal.SIGKILL))
    assert run(source, watched(tmp_path)) == sorted(expected)
    killer.join(timeout=1)
    assert not killer.is_alive()
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".done"]) > 2, "another actor took over"


def test_a_removed_node_changes_nothing(source, expected, two_nodes, tmp_path):
    made, added = two_nodes
    remover = when_both_work(tmp_path, lambda _: made.remove_node(added[0], allow_graceful=False))
    # The actor starts again on the other node, which has a core for it.
    assert run(source, watched(tmp_path)) == sorted(expected)
    remover.join(timeout=20)
    assert not remover.is_alive() and len([node for node in ray.nodes() if node["Alive"]]) == 1


def job(source, target, *more):
    script = ROOT / "examples" / "ray" / "generate.py"
    command = [sys.executable, str(script), str(source), str(target), "--part", "20", "--batch", "10", "--seed", "3",
               "--max-new-tokens", "8", "--temperature", "0.8", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(source, target, merged):
    """Starts the job until it succeeds: on a busy machine Ray itself sometimes does not start within its 30 s."""
    for _ in range(3):
        process = job(source, target, "--actors", "2", "--merge", str(merged))
        try:
            out, _ = process.communicate(timeout=200)
        finally:
            # The rest of Ray ends with the driver.
            process.kill()
        if process.returncode == 0:
            return
        assert "timed out during startup" in out, out[-3000:]
    pytest.fail("Ray does not start")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_killed_job_goes_on_where_it_stopped(source, expected, tmp_path, kind):
    if kind == "parquet":
        table = pyarrow.json.read_json(source)
        source = tmp_path / "prompts.parquet"
        pyarrow.parquet.write_table(table, source)

    target, merged = tmp_path / "texts", tmp_path / f"merged.{kind}"
    written = lambda: len(list(target.glob("*"))) if target.is_dir() else 0
    process = job(source, target, "--actors", "1")
    while written() < 4 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = written()
    assert 4 <= before < 20, "it was killed in the middle"

    finish(source, target, merged)
    if kind == "parquet":
        rows = pyarrow.parquet.read_table(merged).to_pylist()
    else:
        rows = [json.loads(line) for line in merged.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"row-{i:04}" for i in range(ROWS)], "no id is missing, none is there twice"
    assert sorted(text_of(row) for row in rows) == sorted(expected)
    total = pyarrow.dataset.dataset(target, format="parquet" if kind == "parquet" else "json").count_rows()
    assert ROWS <= total <= ROWS + 40, "finished rows were not computed again"


def test_rows_that_cannot_be_computed():
    rows = {"id": [1, 2], "prompt": ["a", "b " * 5000]}
    with pytest.raises(ValueError, match="row 2: .*positions"):
        Generator("tiny-gpt2")(rows)
    out = Generator("tiny-gpt2", errors="column", max_new_tokens=2)(rows)
    assert out["error"][0] is None and "positions" in out["error"][1] and out["text"][1] is None
    with pytest.raises(ValueError, match="depend on the rows beside them"):
        Generator("tiny-gpt2", outliers="batch")
    with pytest.raises(ValueError, match="no column 'prompt'; they have id"):
        Generator("tiny-gpt2")({"id": [1]})


def test_seeds_are_the_same_on_every_machine():
    import numpy as np

    assert seed_of(0, 1) == seed_of(0, np.int64(1)) != seed_of(0, "1")
    assert seed_of(0, "a") == seed_of(0, np.str_("a")) == 7731914379788528535
    assert len({seed_of(seed, i) for seed in range(10) for i in range(100)}) == 1000
