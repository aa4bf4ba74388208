"""The benchmark's container, and what is read of its result."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
from ansible.module_utils import sglang_host_bench as bench

from tests.unit.modules import module_testing

RECORD: dict[str, Any] = {
    "engine": "podman",
    "gate": {"address": "127.0.0.1", "port": 8000, "served_model_name": "tiny"},
    "content": {
        "image": "registry.example/sglang@sha256:1",
        "argv": ["python3", "-m", "sglang.launch_server", "--model-path", "lab/tiny"],
        "model": {"repo": "lab/tiny", "commit": "abc", "directory": None},
        "environment": {"HF_HOME": "/hf"},
    },
}


def record(**content: Any) -> dict[str, Any]:
    return {**RECORD, "content": {**RECORD["content"], **content}}


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({}, "/hf/hub/models--lab--tiny/snapshots/abc"),
        ({"environment": {"HF_HUB_CACHE": "/data/hub"}}, "/data/hub/models--lab--tiny/snapshots/abc"),
        ({"model": {"repo": "lab/tiny", "commit": None}}, "lab/tiny"),
        ({"model": {"repo": None, "directory": "/srv/m"}, "argv": ["x", "--model-path", "/checkpoint"]}, "/checkpoint"),
        ({"argv": ["x", "--tokenizer-path=/tok"]}, "/tok"),
    ],
)
def test_the_tokenizer_is_that_of_the_served_model(content: dict[str, Any], path: str) -> None:
    assert bench.tokenizer(record(**content)) == path


def test_the_container_has_the_cache_and_no_secret() -> None:
    inspected = [
        {"Type": "bind", "Source": "/srv/hf", "Destination": "/hf"},
        {"Type": "bind", "Source": "/var/lib/sglang-ops/x/secrets.env", "Destination": bench.SECRETS},
        {"Type": "volume", "Source": "/v", "Destination": "/w"},
    ]
    words = bench.command(RECORD, bench.mounts(inspected), "sglang-bench-1", "/tmp/d", ["--num-prompts", "4"])
    assert words[:4] == ["podman", "run", "--rm", "--name"]
    assert "type=bind,source=/srv/hf,target=/hf,readonly" in words
    assert not [word for word in words if "secrets.env" in word or "/w" in word.split(",")[-1:]]
    assert words[words.index("--network") + 1] == "host"
    assert words[words.index("--pull") + 1] == "never"
    assert "HF_HUB_OFFLINE=1" in words
    assert words[words.index("--base-url") + 1] == "http://127.0.0.1:8000"
    assert words[-2:] == ["--num-prompts", "4"]
    assert "--device" not in words


def test_paths_with_commas_stay_one_field() -> None:
    (fields,) = csv.reader([bench.mount('/a,"b', "/c")])
    assert fields == ["type=bind", 'source=/a,"b', "target=/c", "readonly"]


def test_the_server_s_arguments_are_not_kept() -> None:
    line = (
        '{"completed": 4, "request_rate": Infinity, "duration": 1.5, "server_info": {"api_key": "CANARY"}, "tag": null}'
    )
    numbers, kept = bench.read(f"{{}}\n{line}\n")
    assert numbers == {"completed": 4, "duration": 1.5}
    assert "CANARY" not in kept
    assert json.loads(kept)["request_rate"] is None


@pytest.mark.parametrize("text", ["", "\n", "no json\n"])
def test_no_result_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        bench.read(text)


def test_unanswered_requests_are_an_error() -> None:
    assert bench.why({"prompts": 4}, {"completed": 3}) == "3 of 4 requests were answered"
    assert not bench.why({"prompts": 4}, {"completed": 4})


@pytest.mark.parametrize("rank", [0, 1])
def test_of_hosts_that_serve_together_the_first_is_measured(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_testing.load("sglang_bench")
    gate = {**RECORD["gate"], "rank": rank}
    monkeypatch.setattr(module.store, "names", lambda: ["sglang-tiny"])
    monkeypatch.setattr(module, "serving", lambda _: {**RECORD, "gate": gate, "release": "r", "image_digest": "d"})
    done = module_testing.run(module, check=True, points=[{"name": "p", "prompts": 1, "arguments": []}])
    assert not done.failed
    assert bool(done.result["sglang_ops"].get("skipped")) == bool(rank)
    assert ("service" in done.result["sglang_ops"]) == (not rank)
