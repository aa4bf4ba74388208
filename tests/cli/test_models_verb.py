"""`models pull|ls|verify|prune`: what is shown, what is asked, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Shell, task

from sglang_ops import cli

VERBS = ("pull", "ls", "verify", "prune")
COMMIT = "c" * 40
MODEL = {
    "repo": "org/a",
    "hub": "/data/hub",
    "bytes": 15_000_000_000,
    "left_bytes": 2_000_000,
    "under_way": False,
    "revisions": [
        {
            "commit": COMMIT, "refs": ["main"], "bytes": 15_000_000_000, "complete": True, "missing": 0,
            "last_used": 1_790_000_000, "used_by": ["sglang-a"],
        },
        {
            "commit": "d" * 40, "refs": [], "bytes": 1_000, "complete": False, "missing": 4_200_000_000,
            "last_used": 0, "used_by": [],
        },
    ],
}  # fmt: skip
BAD = {
    "repo": "org/a",
    "hub": "/data/hub",
    "files": ["model-2.safetensors"],
    "path": "/data/x",
    "why": "its SHA-256 is 0",
}


def models(**more: Any) -> dict[str, Any]:
    return {"sglang_ops": {"kind": "models", "hubs": ["/data/hub"], "models": [MODEL], **more}}


@pytest.mark.parametrize("verb", VERBS)
def test_letters_mean_what_ansible_users_expect(verb: str) -> None:
    expected = {"-i": "--inventory", "-l": "--limit", "-C": "--check", "-D": "--diff", "-e": "--extra-vars"}
    expected |= {"-K": "--ask-become-pass", "-o": "--override", "-y": "--yes", "-c": "--config", "-h": "--help"}
    for option in cli.load("models").commands[verb].params:
        for short in (word for word in option.opts if word in expected):
            assert expected[short] in option.opts


class TestPull:
    """Up to the models."""

    def play(self, shell: Shell, found: dict[str, Any], *more: dict[str, Any]) -> None:
        shell.inventory("one")
        shell.playbook("models_pull", task("sglang_plan", found), *more)

    def found(self, plan: Callable[..., dict[str, Any]], *missing: str) -> dict[str, Any]:
        found = plan(action="start")
        content = found["sglang_ops"]["plan"]
        content["services"][0]["content"] = {"model": {"repo": "org/a", "commit": COMMIT}}
        content["models"] = [{"repo": repo} for repo in missing]
        content["steps"] = [{"step": "model", "subject": repo, "why": "not in the cache"} for repo in missing]
        content["steps"].append({"step": "start", "subject": "sglang-tiny", "why": "not deployed yet"})
        return found

    def test_what_was_fetched(self, shell: Shell, plan: Callable[..., dict[str, Any]]) -> None:
        told = {"repo": "org/a", "revision": COMMIT, "path": "/data", "bytes": 15_000_000_000}
        fetched = {"changed": True, "sglang_ops": {"kind": "model", "models": [told], "peers": {"org/a": "two"}}}
        self.play(shell, self.found(plan, "org/a"), task("sglang_model", fetched))
        assert shell.run("models", "pull", "-i", "hosts.yml") == 0
        (row,) = shell.out.splitlines()[1:]
        assert row.split() == ["one", "org/a", "cccccccccccc", "fetched", "15.0", "GB", "two"]
        assert "Next: sglang-ops deploy" in shell.err
        result = shell.json("models", "pull", "-i", "hosts.yml")
        (host,) = result["hosts"]
        assert host["models"] == [
            {
                "repo": "org/a",
                "commit": COMMIT,
                "fetched": True,
                "bytes": 15_000_000_000,
                "giver": "two",
                "origin": "two",
            }
        ]
        assert "services" not in host
        assert [step["step"] for step in result["steps"]] == ["model"], "nothing is started"

    def test_check_mode_announces_the_model_and_no_start(
        self, shell: Shell, plan: Callable[..., dict[str, Any]]
    ) -> None:
        self.play(shell, self.found(plan, "org/a"))
        assert shell.run("models", "pull", "-i", "hosts.yml", "--check", "--detailed-exitcode") == 2
        assert "model org/a" in shell.out
        assert "start" not in shell.out

    def test_nothing_to_do(self, shell: Shell, plan: Callable[..., dict[str, Any]]) -> None:
        self.play(shell, self.found(plan))
        assert shell.run("models", "pull", "-i", "hosts.yml", "--check", "--detailed-exitcode") == 0
        assert "Nothing to do" in shell.out
        assert shell.run("models", "pull", "-i", "hosts.yml") == 0
        assert "unchanged" in shell.out

    def test_a_failure_is_told(self, shell: Shell, plan: Callable[..., dict[str, Any]]) -> None:
        failed = {"failed": True, "msg": "org/a stands still.", "sglang_ops": {"kind": "model", "models": []}}
        self.play(shell, self.found(plan, "org/a"), task("sglang_model", failed))
        assert shell.run("models", "pull", "-i", "hosts.yml") == 1
        assert "org/a stands still." in shell.err
        assert "failed" in shell.out

    def test_it_needs_a_deployment(self, shell: Shell) -> None:
        shell.inventory("one")
        (shell.home / "deployment.yaml").unlink()
        assert shell.run("models", "pull", "-i", "hosts.yml") == 7
        assert "There is no deployment file" in shell.err


def test_ls(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("models_ls", task("sglang_model", models()))
    assert shell.run("models", "ls", "-i", "hosts.yml") == 0
    first, second, left = shell.out.splitlines()[1:]
    assert first.split()[:8] == ["one", "org/a", "cccccccccccc", "main", "15.0", "GB", "whole", "sglang-a"]
    assert "4.2 GB missing" in second
    assert "left by downloads" in left
    (host,) = shell.json("models", "ls", "-i", "hosts.yml")["hosts"]
    assert host == {"host": "one", "hubs": ["/data/hub"], "models": [MODEL]}


def test_ls_needs_no_deployment(shell: Shell) -> None:
    shell.inventory("one")
    (shell.home / "deployment.yaml").unlink()
    shell.playbook("models_ls", task("sglang_model", {"sglang_ops": {"kind": "models", "models": []}}))
    assert shell.run("models", "ls", "-i", "hosts.yml") == 0
    assert "empty" in shell.out


class TestVerify:
    """Checksums."""

    def play(self, shell: Shell, **result: Any) -> None:
        shell.inventory("one")
        shell.playbook("models_verify", task("sglang_model", result))

    def test_all_right(self, shell: Shell) -> None:
        self.play(shell, **models(checked_bytes=15_000_000_000, unnamed=["org/a: config.json"]))
        assert shell.run("models", "verify", "-i", "hosts.yml", "org/a") == 0
        assert "one: 1 model, 15.0 GB read, all right." in shell.out
        assert "1 without a checksum, not looked at: org/a: config.json" in shell.out

    def test_a_bad_file_is_named_with_the_command_to_type_next(self, shell: Shell) -> None:
        self.play(shell, failed=True, msg="Wrong content: …", **models(bad=[BAD]))
        assert shell.run("models", "verify", "-i", "hosts.yml", "org/a") == 1
        assert "model-2.safetensors" in shell.out
        assert "its SHA-256 is 0" in shell.out
        assert "Next: sglang-ops models verify -i hosts.yml org/a --repair" in shell.err
        result = shell.json("models", "verify", "-i", "hosts.yml")
        assert (result["ok"], result["exit_code"], result["hosts"][0]["bad"]) == (False, 1, [BAD])

    def test_after_a_repair_the_next_is_a_pull(self, shell: Shell) -> None:
        self.play(shell, changed=True, **models(bad=[BAD], repaired=True))
        assert shell.run("models", "verify", "-i", "hosts.yml", "--repair") == 0
        assert "1 file wrong, deleted." in shell.out
        assert "Next: sglang-ops models pull -i hosts.yml" in shell.err

    def test_a_model_that_is_not_there(self, shell: Shell) -> None:
        self.play(shell, failed=True, msg="org/b is not in the cache of this host (/data/hub).", exit_hint=7)
        assert shell.run("models", "verify", "-i", "hosts.yml", "org/b") == 7
        assert "org/b is not in the cache" in shell.err


class TestPrune:
    """Removing."""

    REMOVED = ({"repo": "org/a", "hub": "/data/hub", "commits": [COMMIT], "bytes": 15_000_000_000},)

    def play(self, shell: Shell, *removed: dict[str, Any]) -> None:
        shell.inventory("one")
        shell.playbook("models_prune", task("sglang_model", models(removed=list(removed)) | {"changed": bool(removed)}))

    def test_without_a_terminal_it_wants_yes(self, shell: Shell) -> None:
        self.play(shell, *self.REMOVED)
        assert shell.run("models", "prune", "-i", "hosts.yml") == 7
        assert "Add --yes, or --check." in shell.err
        found = shell.json("models", "prune", "-i", "hosts.yml")
        assert (found["ok"], found["exit_code"]) == (False, 7)

    def test_check_mode_shows_what_and_how_much(self, shell: Shell) -> None:
        self.play(shell, *self.REMOVED)
        assert shell.run("models", "prune", "-i", "hosts.yml", "--check") == 0
        assert "would free" in shell.out
        assert "15.0 GB" in shell.out
        result = shell.json("models", "prune", "-i", "hosts.yml", "--check")
        assert (result["check"], result["hosts"][0]["freed_bytes"]) == (True, 15_000_000_000)

    def test_diff_shows_the_lines_that_go(self, shell: Shell) -> None:
        shell.inventory("one")
        diff = {"before": "org/a cccccccccccc: 15.0 GB\n", "after": ""}
        shell.playbook("models_prune", task("sglang_model", models(removed=[]) | {"changed": True, "diff": diff}))
        assert shell.run("models", "prune", "-i", "hosts.yml", "--check", "--diff") == 0
        assert "-org/a cccccccccccc: 15.0 GB" in shell.out

    def test_yes_removes(self, shell: Shell) -> None:
        self.play(shell, *self.REMOVED)
        assert shell.run("models", "prune", "-i", "hosts.yml", "--yes") == 0
        assert "freed" in shell.out
        assert "would" not in shell.out

    def test_nothing_to_remove(self, shell: Shell) -> None:
        self.play(shell)
        assert shell.run("models", "prune", "-i", "hosts.yml", "--yes") == 0
        assert "Nothing to remove" in shell.out

    def test_the_options_reach_the_host(self, shell: Shell) -> None:
        shell.inventory("one")
        echo = task("sglang_model", models(removed=[], unnamed="{{ sglang_ops_models.keep }}"))
        shell.playbook("models_prune", echo)
        assert shell.run("models", "prune", "-i", "hosts.yml", "--yes", "--keep", "org/x", "--shared") == 0
        (event,) = [
            json.loads(line)
            for line in (shell.last_run() / "events.ndjson").read_text().splitlines()
            if '"runner_on_ok"' in line
        ]
        assert event["event_data"]["res"]["sglang_ops"]["unnamed"] == ["org/x"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["models", "ls"], "--inventory"),
        (["models", "ls", "-i", "nowhere"], "There is no inventory 'nowhere'."),
        (["models", "pull", "-i", "hosts.yml", "-c", "nowhere.yaml"], "nowhere.yaml"),
        (["models", "pull", "-i", "hosts.yml", "-e", "nonsense"], "neither KEY=VALUE"),
        (["models", "verify", "-i", "hosts.yml", "--limit", "nobody"], "No host in the inventory matches 'nobody'."),
        (["models", "prune", "-i", "hosts.yml", "--yes", "--keep"], "--keep"),
        (["models", "purge"], "No such command 'purge'"),
        (["models", "ls", "-i", "hosts.yml", "--repair"], "--repair"),
    ],
)
def test_bad_input_is_one_message(words: list[str], says: str, shell: Shell) -> None:
    shell.inventory("one")
    for verb in VERBS:
        shell.playbook(f"models_{verb}", task("sglang_model", models()))
    assert shell.run(*words) == 7
    assert says in shell.err
    assert shell.err.count("Error: ") == 1
    assert "Traceback" not in shell.err
