"""The proxy between harness and server: what is asked how often, what is kept, and what the harness is told."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.evaluation.agent.proxy import Proxy, Route, digest, for_harness, prompt_digest
from sglang_ops.evaluation.agent.store import Answer, Key, Store
from sglang_ops.evaluation.agent.upstream import Server, Speed, Stalled, Upstream

Reply = Callable[[dict[str, Any], int], tuple[int, Any]]
ROUTE = Route("/v1/chat/completions", timeout=5, max_retries=2)


def completion(text: str | None, reasoning: str | None = None, tokens: int = 3) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "reasoning_content": reasoning}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": tokens}}


def body(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8}


class Stub:
    """A server that answers as `reply` says, which gets the body and how often this body has come."""

    def __init__(self, reply: Reply, port: int = 0) -> None:
        self.seen: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.most = self.now = 0
        lock, stub = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = asked["messages"][0]["content"]
                with lock:
                    stub.seen[text] += 1
                    stub.keys.add(self.headers.get("Authorization"))
                    stub.now += 1
                    stub.most = max(stub.most, stub.now)
                status, answer = reply(asked, stub.seen[text])
                with lock:
                    stub.now -= 1
                if status == 0:
                    self.connection.close()
                    return
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def stub() -> Iterator[Callable[[Reply], Stub]]:
    made: list[Stub] = []

    def make(reply: Reply) -> Stub:
        made.append(Stub(reply))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_ops.evaluation.agent.upstream._SHORTEST", 0.01)


def upstream(*ports: int, capacity: int = 4, patience: float = 5, key: str | None = None) -> Upstream:
    return Upstream([Server("127.0.0.1", port) for port in ports], capacity=capacity, patience=patience, api_key=key)


def proxy(path: Path, asked: Upstream, stalled: list[str] | None = None) -> Proxy:
    return Proxy(Store(path / "a.sqlite"), asked, {"t": ROUTE}, (stalled if stalled is not None else []).append)


def test_an_answer_is_asked_for_once_whatever_life_the_run_is_in(tmp_path: Path, stub: Any) -> None:
    server = stub(lambda asked, nth: (200, completion(f"answer {nth}")))
    first = proxy(tmp_path, upstream(server.port))
    assert [first.answer("t", 0, body("a")).content for _ in range(2)] == ["answer 1", "answer 2"], (
        "two items, one prompt"
    )
    assert first.answer("t", 1, body("a")).content == "answer 3", "another repeat is another question"
    later = proxy(tmp_path, upstream(server.port))
    later.begin("t", 0)
    assert [later.answer("t", 0, body("a")).content for _ in range(2)] == ["answer 1", "answer 2"]
    assert server.seen == {"a": 3}
    later.begin("t", 0)
    assert later.answer("t", 0, body("a")).content == "answer 1", "a new pass begins with the first"


def test_a_request_that_fails_for_good_costs_its_item_and_nothing_else(tmp_path: Path, stub: Any) -> None:
    def reply(asked: dict[str, Any], nth: int) -> tuple[int, Any]:
        text = asked["messages"][0]["content"]
        return {"bad": (400, {"message": "no"}), "flaky": (500, {}) if nth < 3 else (200, completion("late"))}.get(
            text, (503, {})
        )

    server = stub(reply)
    front = proxy(tmp_path, upstream(server.port))
    refused = front.answer("t", 0, body("bad"))
    assert refused.failed
    assert "status 400" in refused.failed
    assert front.answer("t", 0, body("flaky")).attempts == 3
    hopeless = front.answer("t", 0, body("hopeless"))
    assert hopeless.failed
    assert hopeless.attempts == 3
    assert server.seen == {"bad": 1, "flaky": 3, "hopeless": 3}, "what the server refuses is not asked again"
    store = Store(tmp_path / "a.sqlite")
    assert store.count("t") == {"done": 3, "failed": 2, "empty": 0, "reasoning_only": 0}
    store.forget_failed()
    assert store.count("t")["done"] == 1


def test_answers_without_content_are_counted_and_scored_as_no_answer(tmp_path: Path, stub: Any) -> None:
    replies = {"null": completion(None), "thought": completion(None, "hm"), "blank": completion("  ")}
    server = stub(lambda asked, nth: (200, replies[asked["messages"][0]["content"]]))
    front = proxy(tmp_path, upstream(server.port))
    for text in replies:
        told = for_harness(front.answer("t", 0, body(text)), chat=True)
        assert not told["choices"][0]["message"]["content"].strip()
    assert Store(tmp_path / "a.sqlite").count("t") == {"done": 3, "failed": 0, "empty": 2, "reasoning_only": 1}


def test_the_key_is_the_proxys_and_no_more_is_asked_at_once_than_the_server_takes(tmp_path: Path, stub: Any) -> None:
    def reply(asked: dict[str, Any], nth: int) -> tuple[int, Any]:
        time.sleep(0.05)
        return 200, completion("ok")

    server = stub(reply)
    front = proxy(tmp_path, upstream(server.port, capacity=2, key="sk-canary"))
    front.start()

    def ask(number: int) -> None:
        data = json.dumps(body(f"q{number}")).encode()
        with urllib.request.urlopen(f"{front.url}/t/0/v1/chat/completions", data=data) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "ok"

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    front.stop()
    assert server.keys == {"Bearer sk-canary"}
    assert server.most == 2
    assert b"sk-canary" not in (tmp_path / "a.sqlite").read_bytes()


def test_a_server_that_restarts_is_waited_for(stub: Any) -> None:
    first = Stub(lambda asked, nth: (0, None))
    asking = upstream(first.port, patience=30)
    found: list[Answer] = []
    thread = threading.Thread(target=lambda: found.append(asking.ask("/", body("a"), timeout=5, max_retries=50)))
    thread.start()
    while not first.seen:
        time.sleep(0.01)
    first.stop()
    time.sleep(1.2)
    second = Stub(lambda asked, nth: (200, completion("back")), first.port)
    thread.join(20)
    second.stop()
    assert found[0].content == "back"


def test_a_server_that_stays_away_stalls_the_run_instead_of_failing_every_item(tmp_path: Path) -> None:
    gone = Stub(lambda asked, nth: (200, {}))
    gone.stop()
    stalled: list[str] = []
    front = proxy(tmp_path, upstream(gone.port, patience=0.5), stalled)
    with pytest.raises(Stalled, match="has not answered for"):
        front.answer("t", 0, body("a"))
    assert Store(tmp_path / "a.sqlite").count("t")["done"] == 0


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(113, "No route to host")])
def test_a_host_without_power_stalls_the_run_too(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing refuses the connection there, and nothing was asked: no item is lost to it."""

    def connect(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("socket.create_connection", connect)
    monkeypatch.setattr("http.client.socket.create_connection", connect)
    front = proxy(tmp_path, upstream(9, patience=0.5))
    with pytest.raises(Stalled, match="has not answered for"):
        front.answer("t", 0, body("a"))
    assert Store(tmp_path / "a.sqlite").count("t")["done"] == 0


def test_an_answer_may_take_longer_than_a_connection(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(asked: dict[str, Any], nth: int) -> tuple[int, Any]:
        time.sleep(0.3)
        return 200, completion("late")

    monkeypatch.setattr("sglang_ops.evaluation.agent.upstream.CONNECT_SECONDS", 0.1)
    assert upstream(stub(reply).port).ask("/", body("a"), timeout=5, max_retries=0).content == "late"


def test_replicas_share_the_requests_and_one_that_is_gone_is_passed_over(stub: Any) -> None:
    def reply(asked: dict[str, Any], nth: int) -> tuple[int, Any]:
        time.sleep(0.05)
        return 200, completion("ok")

    servers = [stub(reply), stub(reply)]
    asking = upstream(*(server.port for server in servers))
    threads = [
        threading.Thread(target=asking.ask, args=("/", body(f"q{number}")), kwargs={"timeout": 5, "max_retries": 1})
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(server.seen.total() >= 2 for server in servers)
    servers[0].stop()
    assert asking.ask("/", body("after"), timeout=5, max_retries=5).content == "ok"


def test_time_outs_fit_the_servers_speed() -> None:
    speed = Speed()
    assert speed.seconds(1000) is None
    speed.quiet = 100.0
    assert speed.seconds(1000) == 100, "ten times as long as one quiet answer took"
    speed.note(200, 10.0)
    speed.note(2, 10.0)  # too short to tell
    assert speed.seconds(1000) == 200, "four times as long as the slowest lately"


def test_a_slow_answer_gets_its_time_although_the_time_out_is_short(stub: Any) -> None:
    def reply(asked: dict[str, Any], nth: int) -> tuple[int, Any]:
        time.sleep(0.6)
        return 200, completion("slow", tokens=8)

    server = stub(reply)
    asking = upstream(server.port)
    assert asking.ask("/", body("a"), timeout=0.2, max_retries=0).failed == "no answer within 0 s"
    asking.speed.quiet = 20.0
    assert asking.ask("/", body("a"), timeout=0.2, max_retries=0).content == "slow"


def test_digests_do_not_depend_on_order_and_prompts_not_on_parameters() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert prompt_digest({**body("a"), "temperature": 1}) == prompt_digest(body("a")) != prompt_digest(body("b"))


def test_working_time_adds_up_over_lives(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    store.spend("t", "first", "x", 2.0)
    store.spend("t", "second", "y", 3.0)
    assert store.spent("t") == {"started": "first", "ended": "y", "seconds": 5.0}
    store.put(Key("t", 0, "d", 0), Answer(response=completion("x")))
    assert [answer.content for _, answer in store.of_task("t")] == ["x"]
