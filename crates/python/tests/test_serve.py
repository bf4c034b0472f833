"""The server in this process."""

import json
import threading
import urllib.error
import urllib.request

import llm_int8
import pytest


def post(url, body, key="k"):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


def test_a_server_answers_as_the_model_does(tiny):
    with llm_int8.serve("tiny-gpt2", port=0, api_keys=["k"], model_name="m") as server:
        body = dict(model="m", prompt="ROMEO:", max_tokens=12, temperature=0)
        answers = []
        ask = lambda: answers.append(post(server.url + "/v1/completions", body)["choices"][0]["text"])
        threads = [threading.Thread(target=ask) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert answers == [tiny.generate("ROMEO:", max_new_tokens=12, temperature=0).text] * 3
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(server.url + "/v1/completions", body, key="wrong")
        with pytest.raises(OSError, match="cannot listen"):
            llm_int8.serve("tiny-gpt2", port=int(server.url.rsplit(":")[-1]))
        assert server.is_running
    assert not server.is_running and "ended" in repr(server)


def test_what_keeps_a_model_from_loading_is_raised(tmp_path):
    with pytest.raises(OSError, match="no folder|there is no"):
        llm_int8.serve(tmp_path / "nothing", port=0)
    with pytest.raises(ValueError, match="host is nowhere"):
        llm_int8.serve("tiny-gpt2", host="nowhere")
