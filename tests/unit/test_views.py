"""What people are told after Ctrl-C in the middle of a roll-out."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sglang_ops.commands import _views
from sglang_ops.events import HostState, RunState


def told(*reports: dict[str, Any]) -> str:
    host = HostState("gpu-1", started=0, updated=0)
    host.results["gateway"] = [{"kind": "gateway", "service": "sglang-m-gateway", **report} for report in reports]
    console = Console(file=io.StringIO(), width=200)
    _views.interrupted(console, RunState(hosts={"gpu-1": host}), "sglang-ops deploy -i hosts")
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_server_that_is_out_of_its_gateway_is_named_with_when_it_comes_back() -> None:
    text = told({"state": "left", "rejoin": 4201})
    assert "out of sglang-m-gateway: it comes back by itself within 71 minutes once it serves, or with the next" in text
    assert "by itself" not in told({"state": "left", "rejoin": 0})


def test_a_server_that_has_joined_again_or_never_left_is_not_named() -> None:
    assert "out of" not in told({"state": "left", "rejoin": 60}, {"state": "joined", "rejoin": 60})
    assert "out of" not in told({"state": "left", "rejoin": 60, "failed": True})
    assert "out of" not in told()
