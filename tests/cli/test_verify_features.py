"""`verify --features`: which names are taken, how they reach the role, what a failing feature does."""

from __future__ import annotations

import pytest
from conftest import Shell, task

LAYERS = [{"name": "answer", "ok": True, "detail": "8 tokens"}, {"name": "regex", "ok": False, "detail": "no match"}]
GATE = {"kind": "gate", "services": [{"name": "sglang-tiny", "release": "r", "ok": False, "layers": LAYERS}]}


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["--features", "regex, vision,regex"], "wanted: regex+vision."),
        (["--features", "json_schema", "--service", "tiny"], "wanted: json_schema."),
        ([], "wanted: inventory's own."),
    ],
)
def test_features_reach_the_role(words: list[str], seen: str, shell: Shell) -> None:
    shell.inventory("one", sglang_health_features=["inventory's own"])
    show = "wanted: {{ sglang_health_features | join('+') }}."
    shell.playbook("verify", {"ansible.builtin.debug": {"msg": show}})
    assert shell.run("verify", "-i", "hosts.yml", "-v", *words) == 0
    assert seen in shell.err


@pytest.mark.parametrize(
    ("features", "unknown"), [("json_schema,visoin", "visoin"), ("", ""), ("regex,", ""), ("Regex", "Regex")]
)
def test_unknown_features_are_refused_before_any_host_is_asked(features: str, unknown: str, shell: Shell) -> None:
    canary = shell.home / "touched"
    shell.playbook("verify", {"ansible.builtin.file": {"path": str(canary), "state": "touch", "mode": "0600"}})
    shell.inventory("one")
    assert shell.run("verify", "-i", "hosts.yml", "--features", features) == 7
    assert f"--features: '{unknown}' is not known." in shell.err
    assert "Write one or more of json_schema, regex, vision" in shell.err
    assert not canary.exists()
    assert shell.out == ""


def test_a_failing_feature_is_a_failing_check(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("verify", task("sglang_gate", {"sglang_ops": GATE}))
    found = shell.json("verify", "-i", "hosts.yml", "--features", "regex")
    assert (shell.code, found["ok"], found["exit_code"]) == (1, False, 1)
    assert found["checks"][-1] == {
        "host": "one", "service": "sglang-tiny", "name": "regex", "ok": False, "detail": "no match"
    }
