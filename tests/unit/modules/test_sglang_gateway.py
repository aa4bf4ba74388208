"""What the module that speaks to routers decides, asks and remembers; the router is a real HTTP server here."""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils import sglang_host_state as store
from module_testing import load
from module_testing import run as leave

module = load("sglang_gateway")
A, B, C = "http://a:1", "http://b:1", "http://c:1"
NAME = "sglang-m-gateway"


@pytest.mark.parametrize(
    ("state", "listed", "members", "expected"),
    [
        ("joined", [], {}, ([A, B], [], {A: "in", B: "in"})),
        ("joined", [A, B], {A: "in", B: "in"}, ([], [], {A: "in", B: "in"})),
        ("left", [A, B, C], {}, ([], [A, B], {A: "out", B: "out"})),
        ("gone", [A, C], {A: "in"}, ([], [A], {A: None, B: None})),
        ("drained", [C], {A: "in"}, ([], [], {A: "drained", B: "drained"})),
        ("reconciled", [A, C], {A: "in", C: "in"}, ([B], [C], {C: None, A: "in", B: "in"})),
        ("reconciled", [A, B], {B: "drained"}, ([], [B], {A: "in"})),
        ("reconciled", [], {A: "out"}, ([A, B], [], {A: "in", B: "in"})),
    ],
)
def test_decision(
    state: str, listed: list[str], members: dict[str, str], expected: tuple[list[str], list[str], dict[str, Any]]
) -> None:
    decided = module.decide(state, [A, B], listed, members)
    assert (decided["add"], decided["remove"], decided["remember"]) == expected


def run(check: bool = False, **parameters: Any) -> dict[str, Any]:
    left = leave(module, check, **parameters)
    return left.result | {"failed": left.failed}


class Router(ThreadingHTTPServer):
    """A router that lists workers as healthy some questions after they were added."""

    def __init__(self, patience: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.workers: dict[str, int] = {}
        self.patience = patience
        self.keys: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: Router

    def log_message(self, *_args: Any) -> None:
        pass

    def answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self.answer(200, {"data": [{"id": "m"}]})
        if self.path == "/health":
            return self.answer(200, {})
        self.server.keys.add(self.headers["Authorization"])
        rows = []
        for url in self.server.workers:
            self.server.workers[url] += 1
            rows.append({"id": url[7:8], "url": url, "is_healthy": self.server.workers[url] > self.server.patience})
        return self.answer(200, {"workers": rows})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/workers":
            self.server.workers[body["url"]] = 0
            return self.answer(202, {})
        choice = {"message": {"content": "ok"}}
        return self.answer(200, {"choices": [choice], "usage": {"completion_tokens": 1}})

    def do_DELETE(self) -> None:
        self.server.workers = {url: seen for url, seen in self.server.workers.items() if url[7:8] != self.path[-1]}
        self.answer(202, {})


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    """A router with the release record of its gateway."""
    monkeypatch.setattr(store, "STATE", str(tmp_path))
    server = Router(patience=2)
    gate = {"kind": "gateway", "name": NAME, "release": "r1", "address": "127.0.0.1", "port": server.server_port}
    gate |= {"served_model_name": "m", "endpoints": {"chat": "/v1/chat/completions"}}
    store.write_release(NAME, "r1", "unit", {"kind": "gateway", "name": NAME, "gate": gate}, {})
    store.write_state(NAME, {"release": "r1", "stable": "r1"})
    gateways.prepare(NAME)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_join_waits_until_the_router_lists_a_healthy_server(router: Router) -> None:
    done = run(service=NAME, workers=[A])
    assert done["changed"]
    assert done["sglang_ops"]["workers"] == [{"url": A, "healthy": True}]
    assert gateways.members(NAME) == {A: "in"}
    assert router.keys == {"Bearer " + (Path(gateways.directory(NAME)) / "control-plane.key").read_text().strip()}
    assert not run(service=NAME, workers=[A])["changed"]


def test_server_that_died_since_its_gate_is_not_waited_for(router: Router) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = f"http://127.0.0.1:{listening.getsockname()[1]}"
    router.patience = 10**6
    began = time.monotonic()
    failed = run(service=NAME, workers=[free], timeout=60)
    assert (failed["failed"], failed["msg"]) == (True, f"{free} takes no connections any more")
    assert time.monotonic() - began < 20


def test_server_that_never_gets_healthy_fails_the_join_and_is_no_member(router: Router) -> None:
    router.patience = 10**6
    failed = run(service=NAME, workers=[A], timeout=1)
    assert failed["failed"]
    assert f"does not take for healthy {A} after 1 s" in failed["msg"]
    assert gateways.members(NAME) == {}


def test_leave_is_remembered_and_needs_no_router(router: Router) -> None:
    run(service=NAME, workers=[A, B])
    left = run(service=NAME, workers=[A], state="left")
    assert left["changed"]
    assert [row["url"] for row in left["sglang_ops"]["workers"]] == [B]
    router.shutdown()
    router.server_close()
    gone = run(service=NAME, workers=[B], state="drained")
    assert not gone["failed"]
    assert gateways.members(NAME) == {A: "out", B: "drained"}
    assert "does not answer" in run(service=NAME, workers=[A])["msg"]


def test_what_an_operator_drained_only_an_operator_brings_back(router: Router) -> None:
    run(service=NAME, workers=[A])
    run(service=NAME, workers=[A], state="drained")
    for state in ("left", "joined"):
        assert not run(service=NAME, workers=[A], state=state)["changed"]
        assert gateways.members(NAME) == {A: "drained"}
    assert run(service=NAME, workers=[A], state="undrained")["changed"]
    assert gateways.members(NAME) == {A: "in"}
    assert set(router.workers) == {A}


def test_check_mode_tells_and_changes_nothing(router: Router) -> None:
    told = run(service=NAME, workers=[A], check=True)
    assert told["changed"]
    assert told["diff"]["after"] == f"{A} in\n"
    assert not router.workers
    assert gateways.members(NAME) == {}


def test_reconciling_takes_what_answers_and_names_what_does_not(router: Router) -> None:
    here = f"http://127.0.0.1:{router.server_port}"
    router.workers[C] = 9
    done = run(service=NAME, workers=[here, "http://127.0.0.1:9"], state="reconciled")
    assert set(router.workers) == {here}
    assert gateways.members(NAME) == {here: "in"}
    assert ["http://127.0.0.1:9 is not registered" in text for text in done["sglang_ops"]["warnings"]] == [True]


def test_gateway_that_is_not_deployed() -> None:
    assert "Deploy first" in run(service="sglang-nowhere", workers=[A])["msg"]
    assert not run(service="sglang-nowhere", workers=[A], state="left")["changed"]


def test_hosts_that_leave_and_join_at_the_same_time_are_all_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "STATE", str(tmp_path))
    gateways.prepare(NAME)
    context = multiprocessing.get_context("fork")
    together = context.Barrier(8)

    def note(number: int) -> None:
        together.wait()
        for again in range(10):
            gateways.remember(NAME, {f"http://{number}:{again}": "out"})

    several = [context.Process(target=note, args=(number,)) for number in range(8)]
    for one in several:
        one.start()
    for one in several:
        one.join(60)
    assert len(gateways.members(NAME)) == 80
