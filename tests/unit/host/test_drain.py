"""Servers that are to end: those that have failed, within seconds."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

drain: Any = importlib.import_module("ansible.module_utils.sglang_host_drain")
HUNG, FAILED = {"name": "hung", "engine": "podman"}, {"name": "failed", "engine": "docker"}


def test_a_server_that_failed_and_hangs_is_killed_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[str, ...]] = []
    clock = iter(range(1000))
    monkeypatch.setattr(drain.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(drain.time, "sleep", lambda _: None)
    monkeypatch.setattr(drain, "run", lambda *words: killed.append(words))
    monkeypatch.setattr(drain.systemd, "systemctl", lambda *_: "")
    monkeypatch.setattr(
        drain.systemd,
        "show",
        lambda names: {name: {"ActiveState": "deactivating" if name == "hung" else "inactive"} for name in names},
    )
    assert drain.end([HUNG, FAILED]) == ["hung"]
    assert killed == [("podman", "kill", "hung")]
    assert next(clock) <= drain.END_SECONDS + 3, "no requests are waited for"
    assert drain.stop([HUNG | {"gate": None, "gateways": []}], 30) == {"hung": "it did not end within 30 s"}
