"""The reducer, fed with what ansible-runner really emitted (events/*.ndjson were recorded with ansible-core 2.19)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.errors import ExitCode, OpsError, UsageError
from sglang_ops.events import RunState

SAMPLES = Path(__file__).parent / "events"


def replay(name: str, **settings: Any) -> RunState:
    state = RunState(**settings)
    for line in (SAMPLES / f"{name}.ndjson").read_text().splitlines():
        state.apply(json.loads(line))
    return state


def event(
    name: str, result: dict[str, Any] | None = None, *, action: str = "sglang_gate", **data: Any
) -> dict[str, Any]:
    return {
        "event": name,
        "created": data.pop("created", "2026-11-22T10:00:00+00:00"),
        "event_data": {"host": "gpu-1", "resolved_action": action, "res": result or {}, **data},
    }


def feed(*events: dict[str, Any], **settings: Any) -> RunState:
    state = RunState(**settings)
    for item in [{"event": "playbook_on_start"}, *events, {"event": "playbook_on_stats", "event_data": {}}]:
        state.apply(item)
    return state


def test_executions_are_counted_per_item_and_attempt_and_not_on_the_controller() -> None:
    state = replay("mixed")
    # 3 loop items, 1 ignored failure, 3 attempts of `test`, 1 last command; neither set_fact nor what was skipped
    assert state.hosts["a"].executions == 3 + 1 + 3 + 1


def test_changes_are_tasks_and_not_items() -> None:
    # the loop and the two ignored failures report a change; so does Ansible's own recap
    recap = json.loads((SAMPLES / "mixed.ndjson").read_text().splitlines()[-1])["event_data"]["changed"]
    assert {name: host.changed for name, host in replay("mixed").hosts.items()} == recap


def test_an_ignored_failure_is_none_and_a_real_one_is() -> None:
    state = replay("mixed")
    assert state.hosts["a"].failure is None
    assert state.exit_code() is ExitCode.ERROR
    assert state.hosts["b"].failure is not None
    assert "'false' ended with 1" in state.hosts["b"].failure.cause


def test_a_refusal_of_the_driver_names_services_without_more() -> None:
    """What it says of services are names, not what became of them."""
    own = {"kind": "driver", "services": ["sglang-tiny.service"], "reboot": False}
    refused = {"failed": True, "msg": "driver 1 would be changed while sglang-tiny.service runs", "exit_hint": 7}
    state = feed(event("runner_on_failed", {**refused, "sglang_ops": own}, action="nvidia_driver"))
    assert state.exit_code() is ExitCode.REFUSED
    assert "sglang-tiny.service runs" in state.failures[0].cause


def test_a_swallowed_failure_counts() -> None:
    state = replay("rescued")
    assert state.exit_code() is ExitCode.ERROR
    assert {failure.host for failure in state.failures} == {"a", "b"}


def test_hidden_output_is_not_shown_and_still_counted() -> None:
    state = replay("no_log")
    assert state.hosts["a"].changed == 1
    assert state.failures[0].cause == "the task failed and its output is hidden, because it carries secrets"


def test_the_failed_item_of_a_loop_is_the_cause() -> None:
    assert "'false' ended with 1" in replay("loop_failed").failures[0].cause


def test_a_refused_argument_is_the_cause() -> None:
    assert replay("argument_spec").failures[0].cause == "missing required arguments: r_tp"


@pytest.mark.parametrize("sample", ["sudo_none", "sudo_asks"])
def test_without_sudo_nothing_was_touched(sample: str) -> None:
    state = replay(sample)
    assert "sudo asks for a password. Add -K" in state.failures[0].cause
    assert state.exit_code() is ExitCode.REFUSED


def test_a_missing_interpreter_names_the_variable() -> None:
    cause = replay("no_python").failures[0].cause
    assert "/opt/no/python3" in cause
    assert "ansible_python_interpreter" in cause


@pytest.mark.parametrize(
    ("sample", "host", "cause"),
    [
        ("refused", "dead", "nothing listens on 127.0.0.1 port 1 (connection refused)"),
        ("name_unknown", "gone", "the name no-such-host.invalid cannot be resolved. Check ansible_host"),
        ("no_route", "gpu-1", "there is no route to 198.18.0.77 (port 22)"),
        (
            "key_wrong",
            "gpu-1",
            "SSH refused the login (permission denied, publickey). Check ansible_user and ansible_ssh_private_key_file",
        ),
        ("key_missing", "gpu-1", "the SSH key /opt/no/key does not exist"),
        (
            "host_key_unknown",
            "gpu-1",
            "its SSH host key is not known here. Check it and accept it once: ssh 198.18.0.11",
        ),
        (
            "host_key_changed",
            "gpu-1",
            (
                "its SSH host key has changed: reinstalled, or someone is in between. "
                "To accept: ssh-keygen -f /srv/ops/wrong_known -R 198.18.0.11"
            ),
        ),
        ("one_unreachable", "dead", "nothing listens on 127.0.0.1 port 1 (connection refused)"),
    ],
)
def test_an_unreachable_host_is_named_with_ssh_s_reason(sample: str, host: str, cause: str) -> None:
    state = replay(sample)
    assert [(failure.host, failure.cause) for failure in state.failures] == [(host, cause)]
    assert state.exit_code() is ExitCode.UNREACHABLE


def test_the_other_hosts_of_an_unreachable_one_go_on() -> None:
    assert replay("one_unreachable").hosts["a"].executions == 1


@pytest.mark.parametrize("sample", ["limit_unmatched", "limit_partly_unmatched"])
def test_a_limit_that_matches_nothing_is_an_error_before_anything_runs(sample: str) -> None:
    with pytest.raises(UsageError, match="No host in the inventory matches 'zzz'"):
        replay(sample)


def test_no_host_matched_is_an_error_although_ansible_says_0() -> None:
    with pytest.raises(UsageError, match="No hosts matched"):
        replay("no_hosts").require_hosts(None)


def test_an_unparsable_inventory_says_where_and_why() -> None:
    with pytest.raises(UsageError, match=r"/srv/ops/bad.yml cannot be read: .*did not find expected") as caught:
        replay("inventory_unparsable").require_hosts(None)
    assert caught.value.exit_code is ExitCode.REFUSED


def test_a_broken_playbook_is_our_error_and_not_unreachable() -> None:
    with pytest.raises(OpsError, match=r"nosuch\.module") as caught:
        replay("playbook_wrong").require_hosts(None)
    assert caught.value.exit_code is ExitCode.ERROR


def test_a_run_that_happened_needs_no_excuse() -> None:
    replay("mixed").require_hosts(None)


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"msg": "no", "exit_hint": 7, "sglang_ops": {"kind": "plan", "plan": {}}}, ExitCode.REFUSED),
        ({"msg": "no", "sglang_ops": {"kind": "plan", "exit_hint": 5}}, ExitCode.LOCKED),
        ({"msg": "no", "sglang_ops": {"kind": "gate", "services": [{"ok": False}]}}, ExitCode.NEEDS_HANDS),
        (
            {"msg": "no", "sglang_ops": {"kind": "gate", "services": [{"ok": False, "rolled_back_to": "abc"}]}},
            ExitCode.ROLLED_BACK,
        ),
        ({"msg": "no"}, ExitCode.ERROR),
        ({"msg": "no", "exit_hint": 99}, ExitCode.ERROR),
    ],
)
def test_a_failure_has_the_exit_code_that_the_module_hints_at(result: dict[str, Any], code: ExitCode) -> None:
    assert feed(event("runner_on_failed", result)).exit_code() is code


def test_a_refusal_after_a_change_does_not_promise_that_nothing_was_touched() -> None:
    changed = event("runner_on_ok", {"changed": True, "sglang_ops": {"kind": "engine"}})
    refused = event("runner_on_failed", {"msg": "no", "exit_hint": 7, "sglang_ops": {"kind": "cache"}})
    assert feed(changed, refused).exit_code() is ExitCode.ERROR
    announced = RunState(check=True)
    for one in (changed, refused):
        announced.apply(one)
    assert announced.exit_code() is ExitCode.REFUSED


def test_every_reason_of_a_refusal_is_told() -> None:
    errors = [{"check": "port", "message": "port 8000 is taken"}, {"check": "gpus", "message": "4 asked, 2 there"}]
    result = {"msg": "refused", "exit_hint": 7, "sglang_ops": {"kind": "plan", "plan": {"errors": errors}}}
    assert feed(event("runner_on_failed", result)).failures[0].cause == "port 8000 is taken\n4 asked, 2 there"


def test_the_state_that_needs_a_person_most_decides() -> None:
    def failed(host: str, hint: int) -> dict[str, Any]:
        return event("runner_on_failed", {"msg": "x", "exit_hint": hint}, host=host)

    gone = event("runner_on_unreachable", {"msg": "x"}, host="gpu-9")
    assert feed(failed("gpu-1", 7), failed("gpu-2", 4), gone).exit_code() is ExitCode.NEEDS_HANDS
    assert feed(failed("gpu-1", 7), failed("gpu-2", 3), gone).exit_code() is ExitCode.UNREACHABLE
    assert feed(failed("gpu-1", 7), failed("gpu-2", 3)).exit_code() is ExitCode.ROLLED_BACK
    # "refused" promises that nothing was touched: a host that failed half-way breaks the promise
    assert feed(failed("gpu-1", 7), failed("gpu-2", 1)).exit_code() is ExitCode.ERROR


def test_the_end_of_a_rescue_does_not_hide_what_was_rescued() -> None:
    gate = {"msg": "crashed", "sglang_ops": {"kind": "gate", "services": [{"ok": False, "log": ["boom"]}]}}
    state = feed(
        event("runner_on_failed", gate),
        event("runner_on_failed", {"msg": "failed as said before"}, action="ansible.builtin.fail"),
    )
    assert (state.failures[0].cause, state.failures[0].log) == ("crashed", ("boom",))


def test_a_roll_back_reported_by_the_rescue_replaces_the_first_verdict() -> None:
    first = {"msg": "crashed", "sglang_ops": {"kind": "gate", "services": [{"ok": False}]}}
    after = {"msg": "crashed; 0a1b serves again", "exit_hint": 3, "sglang_ops": {"kind": "gate", "services": []}}
    assert feed(event("runner_on_failed", first), event("runner_on_failed", after)).exit_code() is ExitCode.ROLLED_BACK


def test_steps_follow_modules_and_roles_and_never_task_names() -> None:
    state = RunState(service_step="start")
    for action, role in (
        ("sglang_plan", ""),
        ("ansible.builtin.apt", "container_engine"),
        ("sglang_image", "sglang_server"),
        ("ansible.builtin.debug", "sglang_server"),
        ("sglang_service", "sglang_server"),
        ("sglang_gate", ""),
    ):
        state.apply(event("runner_on_start", action=action, role=role, task="gate, says the name"))
    assert state.hosts["gpu-1"].steps == ["plan", "engine", "image", "start", "gate"]


def test_a_progress_line_moves_the_host_and_a_new_step_forgets_the_old_detail() -> None:
    state = RunState()
    state.note({"host": "gpu-1", "step": "image", "detail": "412 / 700 MB"}, now=10.0)
    assert (state.hosts["gpu-1"].step, state.hosts["gpu-1"].detail) == ("image", "412 / 700 MB")
    state.note({"host": "gpu-1", "step": "gate"}, now=12.0)
    assert (state.hosts["gpu-1"].step, state.hosts["gpu-1"].detail) == ("gate", "")


def test_a_late_progress_line_does_not_take_a_host_back() -> None:
    state = RunState()
    for step in ("model", "start"):
        state.note({"host": "gpu-1", "step": step}, now=1.0)
    state.note({"host": "gpu-1", "step": "model", "detail": "9 / 9 MB"}, now=2.0)
    assert (state.hosts["gpu-1"].step, state.hosts["gpu-1"].detail) == ("start", "")


def test_seconds_run_from_the_first_to_the_last_event_of_a_host() -> None:
    state = feed(
        event("runner_on_start", created="2026-11-22T10:00:00+00:00"),
        event("runner_on_ok", created="2026-11-22T10:00:02.500000+00:00"),
    )
    assert state.hosts["gpu-1"].seconds == 2.5


def test_a_module_may_say_how_often_it_ran() -> None:
    assert feed(event("runner_on_ok", {"sglang_ops": {"kind": "gate", "executions": 3}})).hosts["gpu-1"].executions == 3


def test_the_same_events_give_the_same_state() -> None:
    assert replay("mixed") == replay("mixed")


def test_a_host_that_went_back_and_cannot_join_its_gateway_needs_hands_and_says_what_failed_first() -> None:
    went_back = {
        "msg": "garbage. Rolled back: s serves release a again.",
        "exit_hint": 3,
        "sglang_ops": {"kind": "gate"},
    }
    outside = {"failed": True, "msg": "gw does not answer", "sglang_ops": {"kind": "gateway", "exit_hint": 4}}
    looped = {"msg": "One or more items failed", "results": [outside]}
    state = feed(
        event("runner_on_failed", went_back),
        event("runner_on_failed", looped, action="sglang_gateway"),
    )
    (failure,) = state.failures
    assert failure.exit_code is ExitCode.NEEDS_HANDS
    assert failure.cause == f"{went_back['msg']} It did not join its gateway again: gw does not answer"
