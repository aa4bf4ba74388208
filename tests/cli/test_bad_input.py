"""Bad input: one clear message, the right exit code, nothing started, nothing recorded."""

from __future__ import annotations

import json

import pytest
from conftest import Shell, task


@pytest.fixture(autouse=True)
def nothing_may_run(shell: Shell) -> None:
    canary = shell.home / "touched"
    shell.playbook("deploy", {"ansible.builtin.file": {"path": str(canary), "state": "touch", "mode": "0600"}})
    yield
    assert not canary.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-i", "nowhere"], "There is no inventory 'nowhere'."),
        (["-i", "empty"], "The inventory 'empty' is empty."),
        (["-i", "comments"], "The inventory 'comments' is empty."),
        (["-i", "directory"], "The inventory directory 'directory' is empty."),
        (["-i", ","], "names no host"),
        (["-i", "broken.yml"], "did not find expected ',' or ']'"),
        (["-i", "hosts.yml", "-i", "nowhere"], "There is no inventory 'nowhere'."),
        (["-i", "hosts.yml", "-i", "broken.yml"], "broken.yml cannot be read"),
        (["-i", "hosts.yml", "--limit", "nobody"], "No host in the inventory matches 'nobody'."),
        (["-i", "hosts.yml", "--limit", "one,nobody"], "No host in the inventory matches 'nobody'."),
        (["-i", "nobody.yml"], "No hosts matched"),
        (["-i", "hosts.yml", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["-i", "hosts.yml", "--config", "list.yaml"], "must be a YAML mapping"),
        (["-i", "hosts.yml", "-e", "deployment.port=99999"], "deployment.port"),
        (["-i", "hosts.yml", "-e", "nonsense"], "neither KEY=VALUE, nor JSON, nor @FILE"),
        (["-i", "hosts.yml", "-e", "@nowhere"], "cannot be read: No such file"),
        (["-i", "hosts.yml", "-e", "wrong.name=1"], "wrong.name"),
        (["-i", "hosts.yml", "-e", "deployment=text"], "must be a mapping"),
        (["-i", "hosts.yml", "--forks", "0"], "--forks"),
        (["-i", "hosts.yml", "--nonsense"], "--nonsense"),
        ([], "--inventory"),
    ],
)
def test_it_is_refused_in_one_message(words: list[str], message: str, shell: Shell) -> None:
    shell.inventory("one", "two")
    (shell.home / "empty").touch()
    (shell.home / "comments").write_text("---\n# nothing yet\n")
    (shell.home / "directory").mkdir()
    (shell.home / "broken.yml").write_text("all: [unclosed\n")
    (shell.home / "nobody.yml").write_text("all: {hosts: {}}\n")
    (shell.home / "list.yaml").write_text("- deployment\n")
    assert shell.run("deploy", *words) == 7
    assert message in shell.err
    assert shell.err.count("Error: ") == 1
    assert "Traceback" not in shell.err
    assert shell.out == ""


def test_a_file_called_hosts_is_the_inventory_and_not_a_host(shell: Shell) -> None:
    shell.inventory("one").rename(shell.home / "hosts")
    shell.playbook("deploy", task("sglang_plan", {"sglang_ops": {"kind": "plan", "plan": {}}}))
    assert [host["host"] for host in shell.json("deploy", "-i", "hosts")["hosts"]] == ["one"]


def test_programs_get_the_error_as_json(shell: Shell) -> None:
    found = shell.json("deploy", "-i", "nowhere")
    assert (found["ok"], found["exit_code"], shell.code) == (False, 7, 7)
    assert "nowhere" in found["error"]["message"]
    assert shell.err == ""


def test_an_unreachable_host_is_named_with_the_reason_and_the_others_go_on(shell: Shell) -> None:
    shell.inventory("one")
    inventory = {"all": {"hosts": {"one": {"ansible_connection": "local"}, "gone": {"ansible_host": "127.0.0.1"}}}}
    inventory["all"]["hosts"]["gone"]["ansible_port"] = 1
    (shell.home / "hosts.yml").write_text(json.dumps(inventory))
    shell.playbook("deploy", task("sglang_plan", {"sglang_ops": {"kind": "plan", "plan": {}}}))
    found = shell.json("deploy", "-i", "hosts.yml")
    assert (shell.code, found["exit_code"]) == (6, 6)
    hosts = {host["host"]: host for host in found["hosts"]}
    assert hosts["gone"]["failure"]["cause"] == "nothing listens on 127.0.0.1 port 1 (connection refused)"
    assert "failure" not in hosts["one"]
    assert hosts["one"]["module_executions"] == 1


def test_a_verb_that_needs_a_service_does_not_guess(shell: Shell) -> None:
    shell.inventory("one")
    (shell.home / "deployment.yaml").unlink()
    shell.playbook("stop", task("sglang_service"))
    assert shell.run("stop", "-i", "hosts.yml") == 7
    assert "Which service?" in shell.err
    assert "--service" in shell.err


def test_remove_without_a_terminal_wants_yes(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("remove", task("sglang_service"))
    assert shell.run("remove", "-i", "hosts.yml", "--purge") == 7
    assert "--yes" in shell.err


def test_without_any_deployment_it_says_where_it_looked(shell: Shell) -> None:
    shell.inventory("one")
    (shell.home / "deployment.yaml").unlink()
    assert shell.run("deploy", "-i", "hosts.yml") == 7
    assert "neither ./deployment.yaml, nor one beside the inventory, nor a variable 'deployment'" in shell.err
