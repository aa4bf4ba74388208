"""The layer `capacity`: a server that answers, and whose KV cache is too small all the same."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils import sglang_host_probe as probe
from test_gate import ACTIVE, GOOD, Server, gate, wait_module

__all__ = ["gate"]  # the fixture

LOADS = {"loads": [{"dp_rank": 0, "max_total_num_tokens": 20000}, {"dp_rank": 1, "max_total_num_tokens": 19000}]}


def last(gate: dict[str, Any], needed: int | None = 4096, **answers: tuple[int, Any]) -> dict[str, Any]:
    Server.answers = GOOD | {f"/{path.replace('__', '/')}": answer for path, answer in answers.items()}
    record = gate | {"tokens_needed": needed} if needed else gate
    layer: dict[str, Any] = probe.ask(record, ACTIVE)[-1]
    return layer


def test_it_is_asked_only_where_something_is_needed(gate: dict[str, Any]) -> None:
    assert last(gate, None, v1__loads=(200, LOADS))["name"] == "answer"
    assert last(gate, v1__loads=(200, LOADS))["name"] == "capacity"


def test_the_smallest_rank_counts(gate: dict[str, Any]) -> None:
    fine = last(gate, v1__loads=(200, LOADS))
    assert (fine["ok"], fine["detail"]) == (True, "19000 tokens of KV cache, 4 requests of 4096")
    short = last(gate, 19001, v1__loads=(200, LOADS))
    assert not short["ok"]
    assert "holds 19000 tokens, one request of the full context length needs 19001" in short["detail"]
    assert "Raise --mem-fraction-static, or lower --context-length to 19000" in short["detail"]
    assert wait_module.final(short)


@pytest.mark.parametrize("path", ["server_info", "get_server_info"])
def test_older_releases_tell_elsewhere(gate: dict[str, Any], path: str) -> None:
    told = (200, {"max_total_num_tokens": 5000, "api_key": "secret"})
    layer = last(gate, 4096, **{path: told})
    assert layer["detail"] == "5000 tokens of KV cache, 1 requests of 4096"


@pytest.mark.parametrize("told", [(404, {}), (200, b"secret <html>"), (200, {"loads": [{}]}), (200, {"loads": 3})])
def test_a_server_that_does_not_say_is_not_refused(gate: dict[str, Any], told: tuple[int, Any]) -> None:
    layer = last(gate, v1__loads=told, server_info=told)
    assert (layer["name"], layer["ok"]) == ("capacity", True)
    assert "does not say" in layer["detail"]
    assert "secret" not in layer["detail"]
