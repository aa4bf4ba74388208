"""What the gateway's host does about a server that left and never joined: the script that its timer starts."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

rejoin: Any = importlib.import_module("ansible.module_utils.sglang_host_rejoin")


class Handler(BaseHTTPRequestHandler):
    asked: list[tuple[str, str, str]]
    healthy: bool
    completion: bytes

    def do_GET(self) -> None:
        models = json.dumps({"data": [{"id": "m"}]}).encode() if self.path == "/v1/models" else b""
        self._answer(200 if type(self).healthy else 503, models)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/v1/completions":
            self._answer(200, type(self).completion)
            return
        type(self).asked.append((self.path, self.headers["Authorization"], body))
        self._answer(202)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Handler.asked, Handler.healthy, Handler.completion = [], True, b'{"choices": [{"text": "OK"}]}'
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def run(home: Path, port: int, state: str) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}"
    (home / "members.json").write_text(json.dumps({url: state, "http://other:1": "in"}))
    (home / "control-plane.key").write_text("k3y\n")
    words = [sys.executable, "-c", rejoin.SCRIPT, str(home), "127.0.0.1", str(port), url, ""]
    subprocess.run(words, check=True, capture_output=True, timeout=30)
    members: dict[str, str] = json.loads((home / "members.json").read_text())
    return {"own": members[url], "other": members["http://other:1"]}


def test_a_server_that_is_still_out_is_registered_with_the_hosts_own_key(tmp_path: Path, port: int) -> None:
    assert run(tmp_path, port, "out") == {"own": "in", "other": "in"}
    assert Handler.asked == [("/workers", "Bearer k3y", json.dumps({"url": f"http://127.0.0.1:{port}"}))]
    assert "k3y" not in rejoin.SCRIPT


@pytest.mark.parametrize("state", ["in", "drained"])
def test_who_has_joined_or_was_drained_is_left_alone(tmp_path: Path, port: int, state: str) -> None:
    assert run(tmp_path, port, state)["own"] == state
    assert Handler.asked == []


def test_a_server_that_does_not_answer_stays_out_and_is_asked_again_later(tmp_path: Path, port: int) -> None:
    Handler.healthy = False
    assert run(tmp_path, port, "out")["own"] == "out"
    assert Handler.asked == []


@pytest.mark.parametrize("completion", [b"<html>It works!</html>", b'{"choices": []}'])
def test_a_server_that_answers_nonsense_stays_out(tmp_path: Path, port: int, completion: bytes) -> None:
    Handler.completion = completion
    assert run(tmp_path, port, "out")["own"] == "out"
    assert Handler.asked == []


def test_a_timer_outlives_its_host_s_reboot_and_goes_with_the_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(rejoin.store, "UNITS", str(tmp_path))
    monkeypatch.setattr(rejoin, "PROGRAM", str(tmp_path / "rejoin.py"))
    monkeypatch.setattr(rejoin.systemd, "systemctl", lambda *words: asked.append(words) or "")
    gate = {"name": "sglang-m-gateway", "address": "127.0.0.1", "port": 30000}
    rejoin.arm(gate, ["http://a:1", "http://b:1"], 900)
    timers = sorted(path.name for path in tmp_path.glob("*.timer"))
    assert (len(timers), asked[-1]) == (
        2,
        ("enable", "--quiet", "--now", *map(rejoin_timer, ("http://a:1", "http://b:1"))),
    )
    assert "OnActiveSec=900\n" in (tmp_path / timers[0]).read_text()
    (line,) = [
        line for line in (tmp_path / timers[0].replace("timer", "service")).read_text().splitlines() if "ExecS" in line
    ]
    assert line.split()[1:4] == [rejoin.PROGRAM, "/var/lib/sglang-ops/services/sglang-m-gateway/gateway", "127.0.0.1"]
    rejoin.disarm(gate, ["http://a:1"])
    assert [path.name for path in tmp_path.glob("*.timer")] == [rejoin_timer("http://b:1")]
    asked.clear()
    rejoin.disarm(gate, ["http://a:1"])
    assert asked == [], "there is nothing to take away"


def rejoin_timer(url: str) -> str:
    return f"{rejoin.timer('sglang-m-gateway', url)}.timer"
