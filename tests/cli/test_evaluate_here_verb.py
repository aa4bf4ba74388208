"""Runs of this machine (`execution: local`): their verbs ask no host."""

from __future__ import annotations

import json

from conftest import Shell


def test_a_run_that_nobody_is_at_work_on_is_seen_and_ended_without_a_host(shell: Shell) -> None:
    shell.inventory("one")
    base = shell.home / "state/evaluations/r"
    base.mkdir(parents=True)
    status = {"state": "running", "why": "", "problems": [], "done": 3, "total": 12, "rate": 1.0, "seconds_left": 9}
    (base / "job.json").write_text(json.dumps({"deployment": "sglang-tiny", "tasks": [{"name": "ifeval"}]}))
    (base / "status.json").write_text(json.dumps(status))
    (base / "log").write_text("a\nb\nc\n")
    (row,) = shell.json("evaluate", "ls", "-i", "hosts.yml", "r")["runs"]
    assert (row["host"], row["service"], row["state"]) == ("controller", "sglang-tiny", "stopped")
    assert shell.run("evaluate", "logs", "-i", "hosts.yml", "r", "-n", "2") == 0
    assert shell.out == "b\nc\n"
    assert shell.run("evaluate", "wait", "-i", "hosts.yml", "r") == 1, "it has not ended as it should"
    assert "evaluate resume -i hosts.yml r" in shell.err
    assert shell.json("evaluate", "cancel", "-i", "hosts.yml", "r")["states"] == {"controller": "cancelled"}
    assert shell.json("evaluate", "rm", "-i", "hosts.yml", "r")["states"] == {"controller": "removed"}
    assert not base.exists()
