#!/usr/bin/env python3
"""The clients that people have, against `llm-int8 serve`: openai for Python and for Node, langchain-openai and litellm.

    scripts/test_clients.py PROGRAM [--model MODEL]

They are installed into target/clients. Where PyPI or npm do not answer, their clients are skipped with a message. MODEL is
tiny-gpt2 by default, with a chat template that shows tools; what is tested is the protocol, so any model does.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target" / "clients"
PYTHON = ["openai==3.57.0", "langchain-openai==1.7.4", "litellm==1.110.2"]
# The newest version for Node 20; 7 needs 22.
NODE = "openai@6.49.0"
KEY = "test-key"
TEMPLATE = (
    "{% if tools %}TOOLS: {{ tools | tojson }}{{ '\\n' }}{% endif %}{% for m in messages %}{{ m.role.upper() }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
HELLO = [{"role": "user", "content": "Hello"}]


class Server:
    """`llm-int8 serve` on a free port, with a key and one sequence at a time."""

    def __init__(self, program, model, folder):
        keys = pathlib.Path(folder, "keys")
        keys.write_text(KEY + "\n")
        template = pathlib.Path(folder, "template.jinja")
        template.write_text(TEMPLATE)
        command = [program, "serve", model, "--port", "0", "--api-key-file", keys, "--chat-template", template]
        command += ["--parallel", "2", "--max-queue", "2", "--grace", "1", "--model-name", "test"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        self.url = next(word.rstrip(",") for word in line.split() if word.startswith("http://"))
        for _ in range(600):
            try:
                if urllib.request.urlopen(self.url + "/health").status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        sys.exit("the server did not load its model within a minute")

    def metric(self, name):
        request = urllib.request.Request(self.url + "/metrics", headers={"Authorization": "Bearer " + KEY})
        text = urllib.request.urlopen(request).read().decode()
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("llm_int8:" + name + " "))

    def wait_until_idle(self):
        for _ in range(300):
            if self.metric("num_requests_running") + self.metric("num_requests_waiting") == 0:
                return
            time.sleep(0.1)
        raise AssertionError("sequences still run 30 s after their clients have gone")

    def stop(self):
        self.process.terminate()
        assert self.process.wait(timeout=20) == 0, "SIGTERM did not end the server in order"


def install():
    """Installs the clients; returns the Python and the folder of Node, or None where a registry does not answer."""
    python = FOLDER / "venv" / "bin" / "python"
    wanted = " ".join(PYTHON)
    mark = FOLDER / "python.txt"
    if not (mark.is_file() and mark.read_text() == wanted):
        subprocess.run([sys.executable, "-m", "venv", FOLDER / "venv"], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--timeout", "20", "--retries", "1", *PYTHON]
        if subprocess.run(pip).returncode == 0:
            mark.write_text(wanted)
        else:
            python = None

    node = FOLDER / "node"
    installed = node / "node_modules" / "openai" / "package.json"
    is_there = installed.is_file() and json.loads(installed.read_text())["version"] == NODE.split("@")[1]
    if not shutil.which("node") or not shutil.which("npm"):
        node = None
    elif not is_there:
        node.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--fetch-retries", "1", NODE]
        if subprocess.run(npm, cwd=node, timeout=300).returncode != 0:
            node = None
    return python, node


def check_arguments(text):
    arguments = json.loads(text)
    assert arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9, text


def test_openai(server):
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["test"]
    answer = client.chat.completions.create(model="test", messages=HELLO, max_tokens=8)
    chunks = list(client.chat.completions.create(
        model="test", messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    # The second prompt is in the prefix cache, so that `cached_tokens` differs.
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens > 8
    assert answer.choices[0].finish_reason == "length" and answer.system_fingerprint.startswith("fp_")

    answer = client.chat.completions.create(
        model="test", messages=HELLO, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    call, = answer.choices[0].message.tool_calls
    check_arguments(call.function.arguments)
    again = HELLO + [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "21"}]
    client.chat.completions.create(model="test", messages=again, tools=[TOOL], max_tokens=4)
    with client.chat.completions.stream(
            model="test", messages=HELLO, tools=[TOOL], tool_choice="required", max_tokens=200,
            parallel_tool_calls=False) as stream:
        final = stream.get_final_completion()
    check_arguments(final.choices[0].message.tool_calls[0].function.arguments)

    answer = client.chat.completions.create(model="test", messages=HELLO, response_format=FORMAT, max_tokens=200)
    check_arguments(answer.choices[0].message.content)
    answer = client.completions.create(model="test", prompt="a", max_tokens=4, logprobs=2, echo=True)
    assert len(answer.choices[0].logprobs.tokens) == 5

    for error, ask in [
        (openai.BadRequestError, dict(model="test", messages=HELLO, temperature=9)),
        (openai.NotFoundError, dict(model="other", messages=HELLO)),
        (openai.BadRequestError, dict(model="test", messages=HELLO, max_tokens=100_000)),
    ]:
        try:
            client.chat.completions.create(**ask)
            raise AssertionError(f"no error for {ask}")
        except error as found:
            assert found.body["message"] and "param" in found.body, found.body
    try:
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong").models.list()
        raise AssertionError("a wrong key is taken")
    except openai.AuthenticationError:
        pass


def test_openai_retries_and_cancels(server):
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)
    before = server.metric('http_responses_total{status="400"}')
    try:
        client.with_options(max_retries=2).chat.completions.create(model="test", messages=HELLO, temperature=9)
    except openai.BadRequestError:
        pass
    assert server.metric('http_responses_total{status="400"}') == before + 1, "a mistake was sent again"

    ask = dict(model="test", prompt=["a"] * 4, max_tokens=400, extra_body={"ignore_eos": True})
    stream = client.completions.create(stream=True, **ask)
    next(iter(stream))
    try:
        client.completions.create(model="test", prompt="a", max_tokens=1)
        raise AssertionError("the queue is not full")
    except openai.RateLimitError as found:
        assert found.code == "queue_full" and found.response.headers["retry-after"]
    stream.close()
    server.wait_until_idle()
    assert server.metric("generation_tokens_total") > 0

    stream = client.completions.create(stream=True, **ask)
    next(iter(stream))
    # The client waits as Retry-After says and asks again.
    client.with_options(max_retries=8).completions.create(model="test", prompt="a", max_tokens=1)
    stream.close()
    server.wait_until_idle()


def test_langchain(server):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=server.url + "/v1", api_key=KEY, model="test", max_tokens=8, max_retries=0)
    answer = chat.invoke("Hello")
    assert answer.content == "".join(chunk.content for chunk in chat.stream("Hello"))
    assert answer.usage_metadata["output_tokens"] == 8
    chat = ChatOpenAI(base_url=server.url + "/v1", api_key=KEY, model="test", max_tokens=200, max_retries=0)
    bound = chat.bind_tools([TOOL], tool_choice="weather")
    call, = bound.invoke("Hello").tool_calls
    check_arguments(json.dumps(call["args"]))
    place = chat.with_structured_output({"title": "place", **SCHEMA}, method="json_schema").invoke("Hello")
    check_arguments(json.dumps(place))
    try:
        chat.invoke("word " * 10_000)
        raise AssertionError("a prompt of 10,000 words fits")
    except Exception as found:
        assert "ContextOverflow" in type(found).__name__ or "context_length_exceeded" in str(found), repr(found)


def test_litellm(server):
    import litellm

    ask = dict(model="openai/test", api_base=server.url + "/v1", api_key=KEY, messages=HELLO, num_retries=0)
    answer = litellm.completion(max_tokens=8, **ask)
    chunks = litellm.completion(max_tokens=8, stream=True, **ask)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    answer = litellm.completion(max_tokens=200, tools=[TOOL], tool_choice="required", **ask)
    check_arguments(answer.choices[0].message.tool_calls[0].function.arguments)
    answer = litellm.completion(max_tokens=200, response_format=FORMAT, **ask)
    check_arguments(answer.choices[0].message.content)
    try:
        litellm.completion(**{**ask, "messages": [{"role": "user", "content": "word " * 10_000}]})
        raise AssertionError("a prompt of 10,000 words fits")
    except litellm.ContextWindowExceededError:
        pass


NODE_TEST = """
import OpenAI from "openai";
import assert from "node:assert";
const [url, key, tool, format] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const ask = { model: "test", messages, max_tokens: 8 };
const check = text => {
  const place = JSON.parse(text);
  assert(["Paris", "Rome"].includes(place.city) && place.days >= 1 && place.days <= 9, text);
};
const answer = await client.chat.completions.create(ask);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? "";
assert.strictEqual(text, answer.choices[0].message.content);
const tools = { ...ask, max_tokens: 200, tools: [JSON.parse(tool)], tool_choice: "required", parallel_tool_calls: false };
const called = await client.chat.completions.create(tools);
check(called.choices[0].message.tool_calls[0].function.arguments);
const stream = client.chat.completions.stream(tools);
check((await stream.finalChatCompletion()).choices[0].message.tool_calls[0].function.arguments);
const json = await client.chat.completions.create({ ...ask, max_tokens: 200, response_format: JSON.parse(format) });
check(json.choices[0].message.content);
await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), error =>
  error instanceof OpenAI.BadRequestError && error.param === "temperature");
await assert.rejects(client.chat.completions.create({ ...ask, model: "other" }), OpenAI.NotFoundError);
const long = await client.completions.create({ model: "test", prompt: ["a", "a"], max_tokens: 400, ignore_eos: true, stream: true });
for await (const chunk of long) { long.controller.abort(); break; }
"""


def test_node(server, folder):
    script = folder / "test.mjs"
    script.write_text(NODE_TEST)
    arguments = ["node", script, server.url, KEY, json.dumps(TOOL), json.dumps(FORMAT)]
    subprocess.run(arguments, cwd=folder, check=True, timeout=120)
    server.wait_until_idle()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--model", default="tiny-gpt2")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        python, node = install()
        if python is None:
            print("PyPI does not answer: openai for Python, langchain-openai and litellm are skipped")
        if node is None:
            print("npm does not answer or is missing: openai for Node is skipped")
        inside = [python or sys.executable, __file__, args.program, "--model", args.model]
        inside += ["--inside", ("python " if python else "") + ("node" if node else "")]
        sys.exit(subprocess.run(inside, env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}).returncode)

    with tempfile.TemporaryDirectory() as folder:
        server = Server(args.program, args.model, folder)
        try:
            if "python" in args.inside:
                for test in (test_openai, test_openai_retries_and_cancels, test_langchain, test_litellm):
                    test(server)
                    print(test.__name__, "passed")
            if "node" in args.inside:
                test_node(server, FOLDER / "node")
                print("test_node passed")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
