#!/usr/bin/env python3
"""Prints which settings huggingface_hub 0.36 and transformers 4.57 take from the environment, case by case.

    python scripts/make_hub_golden.py > crates/hub/tests/golden/environment.json

Needs both packages, but no network. Each case runs in a process of its own, because both packages read the environment
only when they are imported.
"""

import json
import os
import subprocess
import sys

ASK = """
import json, os, warnings
warnings.simplefilter("ignore")
from huggingface_hub import constants
from huggingface_hub.utils import get_token_to_send
import requests
from transformers.utils import hub

settings = requests.Session().merge_environment_settings("https://huggingface.co", {}, None, None, None)
print(json.dumps({
    "cache": hub.TRANSFORMERS_CACHE,
    "endpoint": constants.ENDPOINT,
    "token": get_token_to_send(None),
    "offline": constants.HF_HUB_OFFLINE,
    "hides_progress": constants.HF_HUB_DISABLE_PROGRESS_BARS is True,
    "ca_bundle": settings["verify"] if isinstance(settings["verify"], str) else None,
    "download_timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT,
    "etag_timeout": constants.HF_HUB_ETAG_TIMEOUT,
}))
"""

TRUE_VALUES = ["1", "ON", "yes", "True", "0", "no", "off", "y", "2"]

CASES = [
    {},
    {"XDG_CACHE_HOME": "/x"},
    {"XDG_CACHE_HOME": "~/x"},
    {"HF_HOME": "/hf", "XDG_CACHE_HOME": "/x"},
    {"HF_HOME": "~/hf"},
    {"HF_HOME": "$DISK/hf", "DISK": "/disk"},
    {"HF_HOME": "${DISK}/hf", "DISK": "/disk"},
    {"HF_HOME": "$NOWHERE/hf"},
    {"HF_HOME": "/a$$DISK/${DISK", "DISK": "/disk"},
    {"HF_HOME": "~"},
    {"HF_HOME": "/hf", "HF_HUB_CACHE": "~/c"},
    {"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old"},
    {"HUGGINGFACE_HUB_CACHE": "/old"},
    {"HUGGINGFACE_HUB_CACHE": "~/old"},
    {"TRANSFORMERS_CACHE": "/t", "HF_HUB_CACHE": "/new", "HF_HOME": "/hf"},
    {"PYTORCH_TRANSFORMERS_CACHE": "/pt", "HF_HUB_CACHE": "/new"},
    {"PYTORCH_PRETRAINED_BERT_CACHE": "/bert", "HF_HOME": "/hf"},
    {"PYTORCH_PRETRAINED_BERT_CACHE": "/bert", "PYTORCH_TRANSFORMERS_CACHE": "/pt"},
    {"TRANSFORMERS_CACHE": "/t", "PYTORCH_TRANSFORMERS_CACHE": "/pt"},
    {"HF_ENDPOINT": "https://hf-mirror.com/"},
    {"HF_ENDPOINT": "http://127.0.0.1:8080/artifactory/api/huggingfaceml/remote"},
    {"HUGGINGFACE_CO_RESOLVE_ENDPOINT": "https://old-mirror.example"},
    {"HF_MIRROR": "https://mirror.example"},
    {"HF_TOKEN": "hf_x\n"},
    {"HF_TOKEN": " hf_\r\nx "},
    {"HUGGING_FACE_HUB_TOKEN": "hf_old"},
    {"HF_TOKEN": "hf_new", "HUGGING_FACE_HUB_TOKEN": "hf_old"},
    {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_old"},
    {"HF_TOKEN": "hf_x", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"},
    {"HF_TOKEN": "hf_x", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"},
    *({"HF_HUB_OFFLINE": value} for value in TRUE_VALUES),
    {"TRANSFORMERS_OFFLINE": "1"},
    {"TRANSFORMERS_OFFLINE": "true", "HF_HUB_OFFLINE": "0"},
    {"TRANSFORMERS_OFFLINE": "YES", "HF_HUB_OFFLINE": ""},
    {"TRANSFORMERS_OFFLINE": "0", "HF_HUB_OFFLINE": "1"},
    {"HF_DATASETS_OFFLINE": "1"},
    {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    {"HF_HUB_DISABLE_PROGRESS_BARS": "0"},
    {"HF_HUB_DOWNLOAD_TIMEOUT": "60"},
    {"HF_HUB_DOWNLOAD_TIMEOUT": "0", "HF_HUB_ETAG_TIMEOUT": "7"},
    {"REQUESTS_CA_BUNDLE": "/etc/corporate.pem", "CURL_CA_BUNDLE": "/etc/other.pem"},
    {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "/etc/other.pem"},
    {"HF_HUB_ENABLE_HF_TRANSFER": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
]


def ask(variables: dict[str, str]) -> dict[str, object]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/home/somebody", **variables}
    answer = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    cases = []
    for variables in CASES:
        cases.append({"environment": {"HOME": "/home/somebody", **variables}, "expected": ask(variables)})
    print(json.dumps(cases, indent=1))


main()
