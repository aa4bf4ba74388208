"""`rollback` and `rollout`: the real playbooks and roles, on hosts that say what a test lets them say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Shell

ROOT = Path(__file__).resolve().parents[2]
# Stands in for every action of our own that reaches a host: notes who was asked what, and says what the host's
# variable `said` has for it.
ACTION = """
import json
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        what = " ".join(filter(None, [self._task.action, self._task.args.get("do") or self._task.args.get("state")]))
        said = self._templar.template(task_vars.get("said") or {}).get(what, {})
        with open(task_vars["calls"], "a") as calls:
            calls.write(json.dumps([what, task_vars["inventory_hostname"], self._task.args]) + "\\n")
        if said.get("unreachable"):
            raise AnsibleConnectionFailure("no route to host")
        return {"changed": False, **said}
"""
OWN = ("lock", "rollout", "service", "gate", "gateway")
Said = dict[str, dict[str, Any]]


class Fleet:
    """Hosts by name with what each says to `ACTION what`."""

    def __init__(self, shell: Shell, **hosts: Said) -> None:
        self.shell = shell
        self._calls = shell.home / "calls"
        folder = shell.content / "plugins"
        (folder / "action").mkdir(exist_ok=True)
        for name in OWN:
            (folder / "action" / f"sglang_{name}.py").write_text(ACTION)
            (folder / "modules" / f"sglang_{name}.py").unlink(missing_ok=True)
        for path, source in (("roles", "roles"), ("plugins/filter", "plugins/filter")):
            (shell.content / path).symlink_to(ROOT / source)
        for verb in ("rollback", "rollout"):
            (shell.content / "playbooks" / f"{verb}.yml").symlink_to(ROOT / "playbooks" / f"{verb}.yml")
        self.say(**hosts)

    def say(self, **hosts: Said) -> None:
        common = {"ansible_connection": "local", "ansible_become": False, "calls": str(self._calls)}
        made = {name: {"said": said} for name, said in hosts.items()}
        (self.shell.home / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": common, "hosts": made}}))

    def run(self, verb: str, *words: str) -> int:
        self._calls.unlink(missing_ok=True)
        return self.shell.run(*verb.split(), "-i", "hosts.yml", *words)

    def asked(self, what: str) -> list[str]:
        """The hosts that were asked this in the last run, in the inventory's order."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return sorted({host for said, host, _ in map(json.loads, lines) if said == what})

    def told(self, what: str = "") -> list[tuple[str, dict[str, Any]]]:
        """What the hosts were asked in the last run (this alone, if it is named) with its arguments, in that order."""
        lines = map(json.loads, self._calls.read_text().splitlines())
        return [(said, arguments) for said, _, arguments in lines if what in ("", said)]


def looked(release: str, *, waits: bool, history: tuple[dict[str, Any], ...] = (), **record: Any) -> dict[str, Any]:
    """What a host says of its one service."""
    open_one = {
        "service": "sglang-tiny",
        "id": "r1",
        "who": "bob@vm",
        "started": 0,
        "ref": "i:1",
        "image": "i@sha256:1",
    }
    service = {
        "name": "sglang-tiny",
        "release": release,
        "stable": release,
        "history": list(history),
        "rollout": {**open_one, "paused": None, **record} if waits else None,
    }
    return {"sglang_ops": {"kind": "rollout", "services": [service]}}


DEPLOYED = {"time": 5, "release": "new", "before": "old", "verb": "deploy", "rollout": "r1", "result": "stable"}
GOES_BACK = {"name": "sglang-tiny", "release": "old", "to": "old", "deployed_release": "new", "action": "restart"}
FORGOTTEN = {"sglang_rollout forget": {"sglang_ops": {"kind": "rollout", "unfinished": []}}}
SERVES: Said = {
    "sglang_service rolled_back": {
        "changed": True,
        "sglang_ops": {"kind": "service", "services": [{"name": "sglang-tiny", "release": "old", "action": "restart"}]},
    },
    "sglang_gate": {
        "sglang_ops": {"kind": "gate", "services": [{"name": "sglang-tiny", "ok": True, "release": "old"}]}
    },
}


def target(*services: dict[str, Any]) -> dict[str, Any]:
    return {"sglang_ops": {"kind": "target", "services": [{**item, "gate": {}, "gateways": []} for item in services]}}


def changed(**said: dict[str, Any]) -> Said:
    """A host that a roll-out has changed."""
    look = looked("new", waits=False, history=(DEPLOYED,))
    return {"sglang_rollout look": look, "sglang_rollout target": target(GOES_BACK), **SERVES, **FORGOTTEN, **said}


def waiting(**said: dict[str, Any]) -> Said:
    """A host that it has not reached."""
    look = looked("old", waits=True)
    return {"sglang_rollout look": look, "sglang_rollout target": target(), **FORGOTTEN, **said}


UNREACHABLE = {"unreachable": True}
LOCKED = {"failed": True, "msg": "b is locked by bob@vm", "exit_hint": 5, "sglang_ops": {"kind": "lock"}}
REFUSED = {
    "failed": True,
    "msg": "The image of release old of sglang-tiny is gone from this host.",
    "exit_hint": 7,
    "sglang_ops": {"kind": "target", "services": []},
}
DOWN = {
    "failed": True,
    "msg": "sglang-tiny: the server ended",
    "sglang_ops": {"kind": "gate", "services": [{"name": "sglang-tiny", "ok": False, "cause": "the server ended"}]},
}
NO_START = {
    "failed": True,
    "changed": True,
    "msg": "systemctl start sglang-tiny.service failed: exit code 1",
    "sglang_ops": {"kind": "service", "services": [{"name": "sglang-tiny", "ok": False, "log": ["a line"]}], "log": []},
}


def test_undo_goes_back_and_then_forgets_the_roll_out_everywhere(shell: Shell) -> None:
    fleet = Fleet(shell, a=changed(), b=waiting())
    assert fleet.run("rollout undo") == 0, shell.err
    assert fleet.asked("sglang_service rolled_back") == ["a"]
    assert fleet.asked("sglang_rollout forget") == ["a", "b"]
    assert "on record" not in shell.err


@pytest.mark.parametrize(
    ("canary", "other", "code", "went_back"),
    [
        ({"sglang_rollout target": REFUSED}, {}, 7, []),
        ({"sglang_rollout target": UNREACHABLE}, {}, 6, []),
        ({}, {"sglang_rollout target": UNREACHABLE}, 6, ["a"]),
        ({"sglang_rollout target": target()}, {"sglang_lock": LOCKED}, 5, []),  # nothing has changed yet
    ],
)
def test_undo_that_did_not_reach_every_host_forgets_nothing(
    canary: Said, other: Said, code: int, went_back: list[str], shell: Shell
) -> None:
    fleet = Fleet(shell, a=changed(**canary), b=waiting(**other), c=waiting())
    assert fleet.run("rollout undo") == code, shell.err
    assert fleet.asked("sglang_service rolled_back") == went_back
    assert fleet.asked("sglang_rollout forget") == []
    assert ("keep the roll-out on record" in shell.err) is (code != 5)
    assert "Nothing to take back" not in shell.err


def test_undo_stops_at_the_first_batch_that_fails_and_forgets_nothing(shell: Shell) -> None:
    fleet = Fleet(shell, a=changed(sglang_gate=DOWN), b=changed(), c=waiting())
    assert fleet.run("rollout undo", "--batch", "1") == 4
    assert "keep the roll-out on record" in shell.err
    assert fleet.asked("sglang_service rolled_back") == ["a"]
    assert fleet.asked("sglang_rollout forget") == []


def test_rollback_locks_before_it_chooses_and_forgets_no_roll_out(shell: Shell) -> None:
    fleet = Fleet(shell, a=changed(), b=changed(sglang_lock=LOCKED))
    assert fleet.run("rollback") == 5
    assert fleet.asked("sglang_rollout target") == []
    fleet.say(a=changed(), b=changed())
    assert fleet.run("rollback") == 0, shell.err
    assert fleet.asked("sglang_service rolled_back") == ["a", "b"]
    assert fleet.asked("sglang_rollout forget") == []


GONE: Said = {f"sglang_rollout {do}": UNREACHABLE for do in ("look", "pause", "resume")}


def test_status_names_the_hosts_that_cannot_be_asked(shell: Shell) -> None:
    fleet = Fleet(shell, a=changed(), b=GONE)
    assert fleet.run("rollout status") == 6
    assert "No roll-out is unfinished on the hosts that answered." in shell.err
    assert "b could not be reached" in shell.err
    fleet.say(a=changed(), b=GONE, c=waiting())
    found = json.loads(shell.out) if fleet.run("rollout status", "--output", "json") == 6 else {}
    assert [failure["host"] for failure in found["failures"]] == ["b"]
    assert (found["ok"], found["rollouts"][0]["waiting"]) == (False, ["c"])
    assert fleet.run("history", "--releases") == 6
    assert "b could not be reached" in shell.err


def test_pause_says_whom_it_told(shell: Shell) -> None:
    paused = {"sglang_rollout pause": {"sglang_ops": {"kind": "rollout", "unfinished": [{"service": "sglang-tiny"}]}}}
    none = {"sglang_rollout pause": {"sglang_ops": {"kind": "rollout", "unfinished": []}}}
    fleet = Fleet(shell, a=none, b=paused, c=GONE)
    assert fleet.run("rollout pause") == 6
    assert "Paused. Not changed yet, or changing now: b. Not told: c." in shell.out
    assert "c could not be reached" in shell.err
    fleet.say(a=none, c=GONE)
    assert fleet.run("rollout pause") == 6
    assert "Nothing was paused: no roll-out is unfinished on the hosts that answered. Not told: c." in shell.out
    assert "Next: sglang-ops rollout resume" not in shell.err
    fleet.say(a=none)
    assert fleet.run("rollout pause") == 7


@pytest.mark.parametrize("verb", ["undo", "resume"])
def test_that_no_roll_out_is_unfinished_is_said_only_where_all_hosts_say_so(verb: str, shell: Shell) -> None:
    fleet = Fleet(shell, a=changed(), b=GONE)
    assert fleet.run(f"rollout {verb}", "--output", "json") == 6
    assert json.loads(shell.out)["failures"][0]["host"] == "b"
    assert fleet.asked("sglang_rollout target") == fleet.asked("sglang_rollout resume") == []
    fleet.say(a=changed())
    assert fleet.run(f"rollout {verb}") == 7
    assert "No roll-out is unfinished on these hosts." in shell.err


def test_a_batch_that_is_none_is_refused_before_a_host_is_asked(shell: Shell) -> None:
    fleet = Fleet(shell, a=changed(), b=waiting())
    for verb in ("rollback", "rollout undo"):
        assert fleet.run(verb, "--batch", "0") == 7
        assert "--batch: 0 is no number of hosts." in shell.err
        assert fleet.asked("sglang_rollout look") == []


def test_a_server_that_does_not_start_after_going_back_needs_hands(shell: Shell) -> None:
    fleet = Fleet(shell, a=changed(**{"sglang_service rolled_back": NO_START}), b=changed())
    assert fleet.run("rollback", "--batch", "1") == 4
    assert "a failed at rollback:\n  systemctl start sglang-tiny.service failed: exit code 1" in shell.err
    assert "a line" in shell.err
    assert "Once you know the cause, put right by:" in shell.err
    assert "  sglang-ops rollback -i hosts.yml --limit a\n" in shell.err
    assert fleet.asked("sglang_service rolled_back") == ["a"]


def test_resume_keeps_the_flags_of_its_deploy_and_touches_its_own_services(shell: Shell) -> None:
    options = {"batch": 1, "auto_rollback": False, "soak": 60}
    look = looked("old", waits=True, options=options, paused={"who": "x", "since": 1, "why": "asked for"})
    let = {"sglang_rollout resume": {"sglang_ops": {"kind": "rollout", "unfinished": []}}}
    fleet = Fleet(shell, a={"sglang_rollout look": look, **let})
    shell.playbook(
        "plan", {"ansible.builtin.debug": {"msg": "planned {{ sglang_ops_rollout.options | to_json(sort_keys=true) }}"}}
    )
    shell.playbook(
        "deploy",
        {"ansible.builtin.debug": {"msg": "deployed {{ sglang_ops_rollout.options | to_json(sort_keys=true) }}"}},
    )
    assert fleet.run("rollout resume", "--soak", "5", "-v") == 0, shell.err
    assert "As the roll-out began: --batch 1 --no-rollback." in shell.err
    said = shell.err.replace('\\"', '"')
    for done in ("planned", "deployed"):
        assert f'{done} {{"auto_rollback": false, "batch": 1, "soak": 5}}' in said
    assert [arguments["names"] for _, arguments in fleet.told("sglang_rollout resume")] == [["sglang-tiny"]]
    assert fleet.run("rollout status") == 2
    assert "with --batch 1 --soak 60 --no-rollback" in shell.out


def test_resume_does_not_deploy_where_a_host_was_not_told(shell: Shell) -> None:
    look = {"sglang_rollout look": looked("old", waits=True)}
    let = {"sglang_rollout resume": {"sglang_ops": {"kind": "rollout", "unfinished": []}}}
    fleet = Fleet(shell, a={**look, **let}, b={**look, "sglang_rollout resume": UNREACHABLE})
    shell.playbook("plan", {"ansible.builtin.debug": {"msg": "planned"}})
    shell.playbook("deploy", {"ansible.builtin.debug": {"msg": "deployed"}})
    assert fleet.run("rollout resume", "-v") == 6
    assert "b could not be reached" in shell.err
    assert "deployed" not in shell.err


def test_resume_refuses_the_file_of_another_service(shell: Shell) -> None:
    fleet = Fleet(shell, a={"sglang_rollout look": looked("old", waits=True)})
    config = yaml.safe_load((shell.home / "deployment.yaml").read_text())
    config["deployment"]["served_model_name"] = "other"
    (shell.home / "other.yaml").write_text(yaml.safe_dump(config))
    assert fleet.run("rollout resume", "-c", "other.yaml") == 7
    assert "The roll-out that is unfinished is of sglang-tiny; the file has sglang-other." in shell.err
    assert fleet.asked("sglang_rollout resume") == []


def test_copies_that_changed_before_the_one_that_failed_go_back_one_by_one(shell: Shell) -> None:
    fleet = Fleet(shell, a={})
    entry = {"host": "a", "service": "sglang-tiny-gateway"}
    one, two, three = (
        {
            "name": f"sglang-tiny-{number}",
            "deployed_stable": "old",
            "release": "new",
            "gateways": [{**entry, "url": f"http://a:800{number}"}],
        }
        for number in (1, 2, 3)
    )
    rollout = {"rejoin": 700, "drain_timeout": 9, "change": {"who": "me"}}
    given = {
        "__sglang_server_plan": {"rollout": rollout},
        "__sglang_server_now": [three],
        "__sglang_server_members": three["gateways"],
        "__sglang_server_copies": [two, one],
    }
    role = {"name": "sglang_server", "tasks_from": "copies.yml"}
    shell.playbook("verify", {"ansible.builtin.include_role": role, "vars": given})
    assert fleet.run("verify") == 0, shell.err
    (asked, first), (joined, _), *turns = fleet.told()
    assert (asked, first["names"], joined) == ("sglang_gate", ["sglang-tiny-3"], "sglang_gateway joined")
    for name, (left, away), (back, done), (gate, seen), (again, home) in zip(
        ("sglang-tiny-2", "sglang-tiny-1"), *(turns[step::4] for step in range(4)), strict=True
    ):
        assert (left, again) == ("sglang_gateway left", "sglang_gateway joined")
        assert (away["rejoin"], away["workers"]) == (700, home["workers"])
        assert away["workers"] == [f"http://a:800{name[-1]}"]
        assert (back, done["drain_timeout"], done["change"]) == ("sglang_service rolled_back", 9, {"who": "me"})
        assert [(item["name"], item["to"]) for item in done["services"]] == [(name, "old")]
        assert (gate, seen["names"]) == ("sglang_gate", [name])
