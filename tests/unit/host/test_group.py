"""A server that several hosts run together, as one of them sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_group as group


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """The commands that were run."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(group, "run", lambda *words: commands.append(words))
    monkeypatch.setattr(group, "TRANSIENT", str(tmp_path))
    return commands


def test_no_part_of_a_group_is_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    records: dict[str, Any] = {
        "sglang-big": {"gate": {"group": ["a", "b"], "rank": 1}}, "sglang-one": {"gate": {}}, "sglang-gone": {},
    }  # fmt: skip
    monkeypatch.setattr(group.store, "read_state", lambda name: {"release": "r"})
    monkeypatch.setattr(group.store, "read_record", lambda name, release: records[name])
    assert group.shared(list(records)) == [{"name": "sglang-big", "group": ["a", "b"]}]
    assert group.cut(list(records), []) == ""
    assert group.cut(list(records), ["c"]) == ""
    assert group.cut(list(records), ["a"]) == (
        "sglang-big runs on a, b together, and this run leaves out a. Name all of them in --limit, or none."
    )


def test_a_member_that_was_stopped_starts_again_by_itself(told: list[tuple[str, ...]], tmp_path: Path) -> None:
    group.arm("sglang-big", 420)
    (command,) = told
    assert command[:2] == ("systemd-run", "--quiet")
    assert command[command.index("--on-active") :][:2] == ("--on-active", "420")
    assert command[-3:] == ("systemctl", "start", "sglang-big.service")
    group.disarm("sglang-big")
    assert len(told) == 1, "there is no such timer"
    (tmp_path / "sglang-ops-again-sglang-big.timer").touch()
    group.disarm("sglang-big")
    assert told[-1] == ("systemctl", "stop", "sglang-ops-again-sglang-big.timer")
