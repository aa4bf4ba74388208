"""Features asked of a real HTTP server: what is sent, which answers pass, and how the others are told."""

from __future__ import annotations

import base64
import json
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import sglang_host_features as features

from sglang_ops.commands import verify

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"fruit": "apple", "grams": 150, "colour": "red"}
CHAT = "/my/chat"


class Server(BaseHTTPRequestHandler):
    """Answers every chat with `text`; keeps what it was asked."""

    text: str | None
    reason: str
    status: int
    model_info: dict[str, tuple[int, dict[str, Any]]]
    asked: list[tuple[str, dict[str, Any]]]

    def do_GET(self) -> None:
        self._answer(*self.model_info.get(self.path, (404, {})))

    def do_POST(self) -> None:
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        choice = {"message": {"content": self.text}, "finish_reason": self.reason}
        reply = {"choices": [choice], "usage": {"completion_tokens": 9}}
        self._answer(self.status, reply if self.status == 200 else {"message": "Failed to compile regex grammar"})

    def _answer(self, status: int, body: object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Ask one feature of a server that answers in the given way; returns the layer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    gate = {
        "address": "127.0.0.1", "port": server.server_port, "served_model_name": "m",
        "endpoints": {"chat": CHAT, "completions": "/v1/completions", "health": "/health"},
    }

    def one(name: str, text: str | None = None, **options: Any) -> dict[str, Any]:
        Server.asked, Server.text = [], text
        Server.reason, Server.status = options.get("reason", "stop"), options.get("status", 200)
        Server.model_info = options.get("model_info", {})
        (layer,) = features.ask(gate, [name], [{"name": "answer", "ok": True, "detail": ""}])
        assert layer["name"] == name
        return dict(layer)

    yield one
    server.shutdown()
    server.server_close()


def test_the_schema_is_sent_and_the_answer_checked(ask: Ask) -> None:
    layer = ask("json_schema", json.dumps(GOOD))
    assert layer["ok"], layer
    ((path, body),) = Server.asked
    assert path == CHAT
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, features.MOST_TOKENS)
    assert body["response_format"]["json_schema"]["schema"] == features.SCHEMA


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Apples are fruit.", "it is no JSON: Apples are fruit."),
        ("", "it is no JSON"),
        ("[]", "it is no object"),
        ('{"fruit": "apple"}', "it has the keys fruit, not fruit, grams, colour"),
        (json.dumps(GOOD | {"more": 1}), "it has the keys colour, fruit, grams, more"),
        (json.dumps(GOOD | {"fruit": 1}), "fruit is no string"),
        (json.dumps(GOOD | {"fruit": "a" * 17}), "fruit is longer than 16 characters"),
        (json.dumps(GOOD | {"grams": "150"}), "grams is no integer"),
        (json.dumps(GOOD | {"grams": True}), "grams is no integer"),
        (json.dumps(GOOD | {"grams": 1000}), "grams is not within 0 and 999"),
        (json.dumps(GOOD | {"colour": "blue"}), "colour is none of red, green, yellow"),
    ],
)
def test_answers_of_another_form_fail(ask: Ask, text: str, says: str) -> None:
    layer = ask("json_schema", text)
    assert not layer["ok"]
    assert says in layer["detail"]


@pytest.mark.parametrize(("text", "ok"), [("ABC-0123", True), ("ABC-0123.", False), ("An apple", False), (None, False)])
def test_the_expression_must_match_as_a_whole(ask: Ask, text: str | None, ok: bool) -> None:
    layer = ask("regex", text)
    assert layer["ok"] is ok
    assert features.REGEX in layer["detail"]
    assert Server.asked[0][1]["regex"] == features.REGEX


@pytest.mark.parametrize("name", ["json_schema", "regex"])
def test_an_answer_that_was_cut_is_told_as_such(ask: Ask, name: str) -> None:
    layer = ask(name, '{"fruit"', reason="length")
    assert not layer["ok"]
    assert layer["detail"] == 'the answer was cut at 1024 tokens (finish_reason length): {"fruit"'


def test_a_server_that_refuses_is_quoted(ask: Ask) -> None:
    layer = ask("regex", status=400)
    assert layer["detail"] == f'{CHAT} answers 400: {{"message": "Failed to compile regex grammar"}}'


def test_an_image_is_sent_as_a_data_url(ask: Ask) -> None:
    layer = ask("vision", " Red.\n", model_info={"/model_info": (200, {"has_image_understanding": True})})
    assert (layer["ok"], layer["detail"]) == (True, "says of a red square: Red.")
    text, image = Server.asked[0][1]["messages"][0]["content"]
    assert "colour" in text["text"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert pixels(base64.b64decode(data)) == {(56, 56): {(255, 0, 0)}}


def test_a_model_without_sight_is_named_and_not_asked(ask: Ask) -> None:
    layer = ask("vision", "Red.", model_info={"/model_info": (200, {"has_image_understanding": False})})
    assert (layer["ok"], layer["detail"]) == (False, "m takes no images (has_image_understanding is false)")
    assert Server.asked == []


def test_earlier_releases_tell_under_another_name_or_not_at_all(ask: Ask) -> None:
    assert not ask("vision", "Red.", model_info={"/get_model_info": (200, {"has_image_understanding": False})})["ok"]
    assert ask("vision", "Red.", model_info={"/get_model_info": (200, {})})["ok"]


def test_silence_is_no_sight(ask: Ask) -> None:
    assert ask("vision", " ")["detail"] == "the answer to a red square is empty"


def test_a_service_that_does_not_serve_is_not_asked() -> None:
    layers = [{"name": "unit", "ok": True, "detail": ""}, {"name": "port", "ok": False, "detail": "refused"}]
    told = features.ask({}, ["regex", "vision"], layers)
    assert [(layer["name"], layer["ok"]) for layer in told] == [("regex", False), ("vision", False)]
    assert {layer["detail"] for layer in told} == {"not asked, because port failed"}


def test_everybody_knows_the_same_features() -> None:
    specs = yaml.safe_load((ROOT / "roles/sglang_health/meta/argument_specs.yml").read_text())
    option = specs["argument_specs"]["main"]["options"]["sglang_health_features"]
    module = (ROOT / "plugins/modules/sglang_gate.py").read_text()
    documented = yaml.safe_load(re.search(r'DOCUMENTATION = r"""(.*?)"""', module, re.DOTALL)[1])  # type: ignore[index]
    assert list(features.FEATURES) == option["choices"] == documented["options"]["features"]["choices"]
    assert list(verify.FEATURES) == option["choices"]


def pixels(image: bytes) -> dict[tuple[int, int], set[tuple[int, ...]]]:
    """The size of a PNG without filters, and the colours in it; checks every chunk's sum."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(image):
        (length,) = struct.unpack_from(">I", image, at)
        kind, data = image[at + 4 : at + 8], image[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", image, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + length
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [raw[start + 1 : start + 1 + width * 3] for start in range(0, len(raw), width * 3 + 1)]
    assert len(rows) == height
    return {(width, height): {tuple(row[x : x + 3]) for row in rows for x in range(0, len(row), 3)}}
