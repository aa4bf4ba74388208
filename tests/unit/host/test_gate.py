"""The gate: each layer against a real HTTP server, crashes told from starts, rollbacks told truthfully."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_causes as causes
from ansible.module_utils import sglang_host_probe as probe
from test_service import module

gate_module = module("sglang_gate")
wait_module = importlib.import_module("ansible.module_utils.sglang_host_wait")
ACTIVE = {"ActiveState": "active", "SubState": "running", "NRestarts": "0", "InvocationID": "i1"}
CHAT = {"choices": [{"message": {"content": "OK"}}], "usage": {"completion_tokens": 2}}
TEXT = {"choices": [{"text": "OK"}], "usage": {"completion_tokens": 2}}
GOOD: dict[str, tuple[int, Any]] = {
    "/ready": (200, {}),
    "/health": (200, {}),
    "/v1/models": (200, {"data": [{"id": "m"}]}),
    "/v1/chat/completions": (200, CHAT),
    "/v1/completions": (200, TEXT),
}


class Server(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, Any]]

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, {}))
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[dict[str, Any]]:
    Server.answers = dict(GOOD)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoints = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "health": "/health"}
    yield {
        "name": "sglang-m", "release": "r", "engine": "true", "address": "127.0.0.1", "port": server.server_port,
        "served_model_name": "m", "endpoints": endpoints, "start_timeout": 1, "soak": 0,
    }
    server.shutdown()
    server.server_close()


def test_every_layer_is_asked_in_order(gate: dict[str, Any]) -> None:
    layers = probe.ask(gate, ACTIVE)
    assert [(layer["name"], layer["ok"]) for layer in layers] == [
        ("unit", True), ("port", True), ("ready", True), ("model", True), ("answer", True),
    ]


@pytest.mark.parametrize(
    ("path", "answer", "failing", "says"),
    [
        ("/ready", (503, {}), "ready", "/ready 503"),
        ("/health", (503, {}), "ready", "/ready 200, /health 503"),
        ("/v1/models", (200, {"data": [{"id": "other"}]}), "model", "names other, not m"),
        ("/v1/models", (200, b"<html>"), "model", "not JSON"),
        ("/v1/chat/completions", (200, b"\xff\x00garbage"), "answer", "not JSON"),
        ("/v1/chat/completions", (200, {"choices": []}), "answer", "no completion"),
        ("/v1/completions", (200, TEXT | {"usage": {"completion_tokens": 0}}), "answer", "without a token"),
        ("/v1/completions", (500, {"error": "boom"}), "answer", "answers 500"),
    ],
)
def test_wrong_answers_fail_their_layer(
    gate: dict[str, Any], path: str, answer: tuple[int, Any], failing: str, says: str
) -> None:
    Server.answers[path] = answer
    last = probe.ask(gate, ACTIVE)[-1]
    assert (last["name"], last["ok"]) == (failing, False)
    assert says in last["detail"]


def test_servers_before_ready_existed_are_asked_for_health(gate: dict[str, Any]) -> None:
    del Server.answers["/ready"]
    layers = probe.ask(gate, ACTIVE)
    assert layers[2]["detail"] == "/health 200"


def test_model_without_chat_template_passes_on_its_completion(gate: dict[str, Any]) -> None:
    Server.answers["/v1/chat/completions"] = (400, {"message": "no chat template"})
    assert "has no chat template" in probe.ask(gate, ACTIVE)[-1]["detail"]


def test_of_several_hosts_only_the_first_is_asked_more_than_its_unit(gate: dict[str, Any]) -> None:
    assert [item["name"] for item in probe.ask({**gate, "rank": 1, "port": 9}, ACTIVE)] == ["unit"]
    assert len(probe.ask({**gate, "rank": 0}, ACTIVE)) > 1


def test_closed_port_and_stopped_unit(gate: dict[str, Any]) -> None:
    layers = probe.ask(gate | {"port": 1}, ACTIVE)
    assert (layers[-1]["name"], "refused" in layers[-1]["detail"]) == ("port", True)
    layers = probe.ask(gate, {"ActiveState": "failed"})
    assert layers == [{"name": "unit", "ok": False, "detail": "the unit is failed"}]


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({}, ""),
        ({"ActiveState": "activating", "SubState": "start-pre"}, ""),
        ({"ActiveState": "failed", "Result": "start-limit-hit", "ExecMainStatus": "1"}, "failed (start-limit-hit"),
        ({"SubState": "auto-restart", "ExecMainStatus": "2"}, "exit code 2"),
        ({"NRestarts": "1", "ExecMainCode": "1", "ExecMainStatus": "3"}, "exit code 3"),
        ({"NRestarts": "1", "ExecMainCode": "0", "ExecMainStatus": "0"}, "exit code 137"),  # the next one runs
        ({"InvocationID": "i2"}, "restarted by someone else"),
        ({"ActiveState": "inactive"}, "the unit is inactive"),
    ],
)
def test_crash_is_told_from_a_start(now: dict[str, str], says: str) -> None:
    why = wait_module.crashed(ACTIVE, ACTIVE | now, lambda: "137")
    assert (says in why) if says else why == ""


def test_crash_in_the_soak_names_the_quiet_layer(gate: dict[str, Any]) -> None:
    wait = wait_module.Wait(gate, ACTIVE, 60)
    assert wait.step(ACTIVE) is False
    assert wait.step(ACTIVE | {"NRestarts": "1"}) is True
    assert [layer["name"] for layer in wait.layers][-1] == "quiet"
    assert "after it had passed" in wait.why


def test_wrong_model_ends_the_wait_at_once_and_503_does_not(gate: dict[str, Any]) -> None:
    Server.answers["/v1/models"] = (200, {"data": [{"id": "other"}]})
    assert wait_module.Wait(gate, ACTIVE, 0).step(ACTIVE) is True
    Server.answers["/ready"] = (503, {})
    assert wait_module.Wait(gate | {"start_timeout": 60}, ACTIVE, 0).step(ACTIVE) is False


def test_without_rollback_a_failed_host_stays_as_it_is() -> None:
    serves = [{"name": "sglang-m", "release": "new", "ok": True}]  # what was bad may well answer
    told = gate_module.after_rollback({"msg": "quality: no-go"}, ["sglang-m"], serves, rolled_back=False)
    assert (told["exit_hint"], told["sglang_ops"]["services"][0]["rolled_back_to"]) == (4, None)
    assert "auto_rollback is false: sglang-m stays as it is" in told["msg"]


def test_soak_after_admission_begins_where_the_gate_ended(gate: dict[str, Any]) -> None:
    waited = wait_module.Wait(gate, ACTIVE, None)
    assert waited.step(ACTIVE) is True
    passed = {"layers": waited.layers, "seconds": 7, "invocation": "i1", "restarts": "0"}
    soaking = wait_module.Wait(gate, ACTIVE, 0, passed)
    assert soaking.step(ACTIVE) is True
    assert (soaking.layers[-1]["name"], soaking.seconds) == ("quiet", 7)
    again = wait_module.Wait(gate, ACTIVE | {"InvocationID": "i2"}, 60, passed)
    assert again.step(ACTIVE | {"InvocationID": "i2"}) is True  # it was started again between gate and soak
    assert not all(layer["ok"] for layer in again.layers)


def test_rollback_says_what_serves_now() -> None:
    told = {"name": "sglang-m", "ok": False, "log": ["x"]}
    failure = {"msg": "sglang-m: crashed.", "sglang_ops": {"services": [told]}}
    back = gate_module.after_rollback(failure, ["sglang-m"], [{"name": "sglang-m", "release": "old", "ok": True}])
    assert (back["exit_hint"], back["sglang_ops"]["services"][0]["rolled_back_to"]) == (3, "old")
    assert "release old again" in back["msg"]
    down = gate_module.after_rollback(failure, ["sglang-m"], [])
    assert (down["exit_hint"], down["sglang_ops"]["services"][0]["log"]) == (4, ["x"])
    assert "does not serve" in down["msg"]


def test_a_second_server_that_failed_is_told_of_the_first() -> None:
    told = {"name": "sglang-m-surge", "beside": "sglang-m", "ok": False, "log": ["x"]}
    failure = {"msg": "sglang-m-surge: crashed.", "sglang_ops": {"services": [told]}}
    serves = [{"name": "sglang-m", "release": "old", "ok": True}]
    said = gate_module.after_rollback(failure, ["sglang-m"], serves, untouched=True)
    assert (said["exit_hint"], said["sglang_ops"]["services"][0]["log"]) == (3, ["x"])
    assert said["msg"].endswith("Nothing else changed: sglang-m goes on with release old.")
    assert gate_module.after_rollback(failure, ["sglang-m"], [], untouched=True)["exit_hint"] == 4


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sglang serve: error: ambiguous option: --x could match --xa, --xb", "refuses the arguments: ambiguous"),
        ("launch_server.py: error: unrecognized arguments: --nope", "unrecognized arguments: --nope"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.92 GiB", "out of GPU memory"),
        ("ERROR: [Errno 98] error while attempting to bind", "port was taken"),
        ("docker: Error response from daemon: unresolvable CDI devices nvidia.com/gpu=7", "nvidia.com/gpu=7"),
        ("RuntimeError: something broke", "RuntimeError: something broke"),
    ],
)
def test_causes_are_read_from_the_log(line: str, says: str) -> None:
    assert says in causes.explain("it ended", ["noise", line, "more noise"])
    assert causes.explain("it ended", ["noise"]) == "it ended."


def test_phases_are_read_from_the_log() -> None:
    assert causes.phase(["Load weight begin. avail mem=139.09 GB"]) == "loading weights"
    assert causes.phase(["Load weight begin.", "KV Cache is allocated. #tokens: 9"]) == "KV cache allocated"
    assert causes.phase(["unrelated"]) == ""


def test_a_server_that_froze_in_its_soak_is_noticed_at_the_end(gate: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(wait_module, "BUSY_SECONDS", 0.2)
    wait = wait_module.Wait(gate, ACTIVE, 0.2)
    assert not wait.step(ACTIVE)
    Server.answers["/ready"] = (503, {})
    while not wait.step(ACTIVE):
        pass
    assert wait.why.startswith("ready: /ready 503, ")
    assert (wait.layers[-1]["name"], wait.layers[-1]["ok"]) == ("quiet", False)


def test_what_failed_first_is_told_also_of_a_loop_and_of_a_host_that_was_not_touched() -> None:
    failure = {"msg": "One or more items failed", "results": [{"msg": "fine"}, {"failed": True, "msg": "no answer"}]}
    told = gate_module.after_rollback(failure, ["a"], [{"name": "a", "release": "r1", "ok": True}], True, True)
    assert told["exit_hint"] == 3
    assert told["msg"] == "no answer. Nothing else changed: a goes on with release r1."


def test_a_member_that_answers_nothing_is_not_asked_for_quality(gate: dict[str, Any]) -> None:
    layers = [{"name": "unit", "ok": True, "detail": "active"}]
    asked = {"prompt": "2+2?", "expect": "4", "max_tokens": 4}
    assert gate_module.judge(gate | {"rank": 1}, layers, asked) == ([], None)


def test_what_a_whole_group_passed_is_kept_with_the_time_that_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    monkeypatch.setattr(gate_module.store, "read_state", lambda name: {"release": "new", "stable": "old"})
    monkeypatch.setattr(gate_module.store, "write_state", lambda name, state: kept.update(state))
    monkeypatch.setattr(gate_module.store, "prune_releases", lambda name, keep: None)
    for name in ("read", "finish", "result", "last_stable"):
        monkeypatch.setattr(gate_module.rollouts, name, lambda *_: None)
    result = {"name": "sglang-m", "release": "new", "ok": True, "seconds": 7.4}
    gate_module.remember([result], {"sglang-m": result["seconds"]}, None)
    assert (kept["stable"], kept["start_seconds"]) == ("new", 7)
    assert gate_module.told([result], "soak", {"who": "x"}) == {
        "kind": "gate", "services": [result], "phase": "soak", "paused": {"who": "x"},
    }  # fmt: skip


@pytest.mark.parametrize(("finish", "waits"), [(True, False), (False, True)])
def test_a_restart_does_not_end_a_roll_out_that_waits_for_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: bool, waits: bool
) -> None:
    monkeypatch.setattr(gate_module.store, "STATE", str(tmp_path))
    gate_module.store.write_state("m", {"release": "r1", "stable": "r1"})
    gate_module.rollouts.write("m", {"id": "waiting", "paused": {"who": "me"}})
    gate_module.remember([{"name": "m", "release": "r1", "ok": True}], {"m": 1.0}, None, finish)
    assert (gate_module.rollouts.read("m") is not None) is waits
