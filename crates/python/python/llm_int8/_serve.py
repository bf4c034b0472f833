"""The OpenAI-compatible server in this process."""

import time
import urllib.error
import urllib.request

from . import _native
from ._options import name_of, options_of


def serve(pretrained_model_name_or_path, *, revision=None, host="127.0.0.1", port=8080, parallel=8, max_queue=64,
          api_keys=(), cache_bytes=None, prefix_cache_bytes=1 << 30, grace=30.0, allowed_origins=(), model_name=None,
          chat_template=None, wait_until_loaded=True, **options):
    """Serves a model to OpenAI's clients and in a chat page, on threads of this process. Returns a `Server` with its
    `url`; `wait()` blocks until ctrl-C, `stop()` ends it, and so does `with`.

        with llm_int8.serve("tiny-gpt2", port=0) as server:
            print(server.url)

    At most `parallel` sequences run at once and `max_queue` wait; port 0 is any free one. Further options are those of
    `AutoModelForCausalLM.from_pretrained`. `outliers` is "row" unless the options say otherwise, so that texts do not
    depend on the load. Raises OSError if the address cannot be listened on, and what keeps the model from loading.
    """
    rule = ("outliers", "threshold", "llm_int8_threshold", "accuracy", "quantization_config")
    if options.get("load_in_8bit", True) and not any(options.get(key) is not None for key in rule):
        options["outliers"] = "row"
    settings = {
        "host": host,
        "port": port,
        "parallel": parallel,
        "max_queue": max_queue,
        "api_keys": list(api_keys),
        "cache_bytes": cache_bytes,
        "prefix_cache_bytes": prefix_cache_bytes,
        "grace": float(grace),
        "allowed_origins": list(allowed_origins),
        "model_name": model_name,
        "chat_template": chat_template,
    }
    server = _native.serve(name_of(pretrained_model_name_or_path, revision), options_of(**options), settings)
    if wait_until_loaded:
        _wait(server)
    return server


def _wait(server):
    """Returns once the server answers; raises what ended it."""
    # A proxy of the environment has no business here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if not server.is_running:
            server.wait()
            raise RuntimeError("the server ended before its model was loaded")
        try:
            if opener.open(server.url.replace("0.0.0.0", "127.0.0.1") + "/health", timeout=5).status == 200:
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
