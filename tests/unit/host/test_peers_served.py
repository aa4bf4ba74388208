"""Files from host to host: a real server, a real follower, real TLS between them, over the loopback."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_peer_client as client
from ansible.module_utils import sglang_host_peer_files as files
from ansible.module_utils import sglang_host_peer_server as server
from waiting import at_most

from sglang_ops import peers

IDENTITY = peers.identity()
LARGE, SMALL = os.urandom(3_000_000), b'{"model_type": "llama"}\n'
SHARD = hashlib.sha256(LARGE).hexdigest()
CONFIG = hashlib.sha1(b"blob %d\0" % len(SMALL) + SMALL, usedforsecurity=False).hexdigest()
EMPTY = hashlib.sha1(b"blob 0\0", usedforsecurity=False).hexdigest()
FILES = {CONFIG: len(SMALL), SHARD: len(LARGE), EMPTY: 0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Host:
    """A host's blobs and its server."""

    def __init__(self, folder: Path, *, identity: str = IDENTITY, pid: int | None = None) -> None:
        self.blobs = folder
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.sent = 0
        models = [{"blobs": str(folder), "files": FILES}]
        told = {"identity": identity, "address": "", "port": self.port, "models": models, "pid": pid}
        self.server = server.Server(told | {"hosts": ["a", "b"]})
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def put(self, blob: str, content: bytes, ending: str = "") -> Path:
        path = self.blobs / f"{blob}{ending}"
        path.write_bytes(content)
        return path

    def put_all(self) -> None:
        for blob, content in ((SHARD, LARGE), (CONFIG, SMALL), (EMPTY, b"")):
            self.put(blob, content)

    def peer(self, name: str = "host-1", identity: str = IDENTITY) -> Any:
        return client.Peer(name, "127.0.0.1", self.port, server.context(identity, ssl.PROTOCOL_TLS_CLIENT))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(name: str = "one", **options: Any) -> Host:
        made.append(Host(tmp_path / name, **options))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(client, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(server, "FRESH_SECONDS", 0.0)


def follower(folder: Path, patience: float = 5) -> Any:
    folder.mkdir(exist_ok=True)
    return client.Follower(str(folder), FILES, patience, lambda *_: None)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WHOLE = {SHARD: LARGE, CONFIG: SMALL, EMPTY: b""}


def test_a_whole_model_arrives_whole(make_host: Callable[..., Host], tmp_path: Path) -> None:
    host = make_host()
    host.put_all()
    got = follower(tmp_path / "to")
    got.follow(host.peer())
    assert got.whole
    assert content(tmp_path / "to") == WHOLE
    assert (tmp_path / "to" / SHARD).stat().st_mode & 0o777 == 0o644


def test_files_are_followed_while_they_grow(make_host: Callable[..., Host], tmp_path: Path) -> None:
    host = make_host(pid=os.getpid())
    growing = host.blobs / f"{SHARD}.1a2b3c4d.incomplete"
    arrived: list[int] = []

    def download() -> None:
        with growing.open("wb", buffering=0) as stream:
            for begin in range(0, len(LARGE), 300_000):
                stream.write(LARGE[begin : begin + 300_000])
                time.sleep(0.03)
                patience = time.monotonic() + 20
                while begin == 1_500_000 and got.have <= 300_000 and time.monotonic() < patience:
                    time.sleep(0.03)
                arrived.append(got.have)
        growing.rename(host.blobs / SHARD)
        host.put(CONFIG, SMALL)
        host.put(EMPTY, b"")

    got = follower(tmp_path / "to")
    thread = threading.Thread(target=download)
    thread.start()
    got.follow(host.peer())
    thread.join()
    assert content(tmp_path / "to") == WHOLE
    assert arrived[5] > 300_000, "nothing came before the file was whole"


def test_a_connection_that_was_unused_for_long_is_made_anew(
    make_host: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TIMEOUT_SECONDS", 0.3)
    host = make_host(pid=os.getpid())
    growing = host.put(SHARD, LARGE[:1_000_000], ".1a2b3c4d.incomplete")
    host.put(CONFIG, SMALL)
    got = follower(tmp_path / "to")
    thread = threading.Thread(target=got.follow, args=(host.peer(),))
    thread.start()
    time.sleep(1)
    assert got.have >= 1_000_000
    growing.write_bytes(LARGE)
    growing.rename(host.blobs / SHARD)
    host.put(EMPTY, b"")
    thread.join(10)
    assert content(tmp_path / "to") == WHOLE


def test_a_chain_of_hosts_hands_on_what_it_gets(make_host: Callable[..., Host], tmp_path: Path) -> None:
    """The middle host serves the very file that its own follower writes."""
    first, middle = make_host("first", pid=os.getpid()), make_host("middle", pid=os.getpid())
    first.put_all()
    partial = first.blobs / SHARD
    partial.unlink()
    half = first.put(SHARD, LARGE[:1_500_000], ".peer.incomplete")
    followers = [follower(middle.blobs), follower(tmp_path / "last")]
    threads = [
        threading.Thread(target=each.follow, args=(peer,))
        for each, peer in zip(followers, (first.peer(), middle.peer("middle")), strict=True)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while followers[1].have < 1_500_000 and time.monotonic() < until:
        time.sleep(0.02)
    assert not followers[0].whole
    assert followers[1].have >= 1_500_000, "the last host waits for what the middle one has"
    with half.open("ab") as stream:
        stream.write(LARGE[1_500_000:])
    half.rename(partial)
    for thread in threads:
        thread.join(10)
    assert content(middle.blobs) == content(tmp_path / "last") == WHOLE


def test_holes_are_not_served(make_host: Callable[..., Host]) -> None:
    host = make_host(pid=os.getpid())
    with (host.blobs / f"{SHARD}.0a0b0c0d.incomplete").open("wb") as stream:
        stream.write(LARGE[:1_000_000])
        stream.seek(2_000_000)
        stream.write(LARGE[2_000_000:])
    with contextlib.closing(host.peer().connect()) as connection:
        _, files = host.peer().state(connection)
    count, whole = files[SHARD]
    assert not whole
    assert 1_000_000 - 3 * server.BLOCK < count <= 1_000_000


def test_nobody_without_the_key_of_the_run_gets_anything(make_host: Callable[..., Host], tmp_path: Path) -> None:
    host = make_host()
    host.put_all()
    with pytest.raises(client.Lost):
        follower(tmp_path / "to").follow(host.peer(identity=peers.identity()))
    assert content(tmp_path / "to") == {}
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    heard = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", host.port), 5) as plain:
        secured = anonymous.wrap_socket(plain)
        secured.sendall(b"GET /state HTTP/1.1\r\nHost: x\r\n\r\n")
        heard = secured.recv(1000)
    assert heard == b""


def test_a_server_with_another_key_is_not_believed(make_host: Callable[..., Host], tmp_path: Path) -> None:
    host = make_host(identity=peers.identity())
    host.put_all()
    with pytest.raises(client.Lost):
        follower(tmp_path / "to").follow(host.peer())
    assert content(tmp_path / "to") == {}


@pytest.mark.parametrize("path", ["/blobs/../../etc/passwd", f"/blobs/{'f' * 64}", "/etc/passwd", "/"])
def test_only_files_of_the_models_are_served(make_host: Callable[..., Host], path: str) -> None:
    host = make_host()
    host.put("f" * 64, b"another model's")
    with contextlib.closing(host.peer().connect()) as connection:
        connection.request("GET", path, headers={"Range": "bytes=0-100"})
        answer = connection.getresponse()
        assert answer.status in (404, 416)
        assert answer.read() == b""


def test_the_next_host_continues_from_the_byte_that_is_there(make_host: Callable[..., Host], tmp_path: Path) -> None:
    first, second = make_host("first", pid=os.getpid()), make_host("second")
    first.put(SHARD, LARGE[:2_000_000], ".peer.incomplete")
    second.put_all()
    asked: list[str] = []
    original = second.peer().read

    got = follower(tmp_path / "to", patience=0.3)
    with pytest.raises(client.Lost, match="no data"):
        got.follow(first.peer())
    assert got.have == 2_000_000
    peer = second.peer("second")

    def spied(connection: Any, blob: str, begin: int, end: int) -> Any:
        asked.append(f"{blob[:4]} {begin}")
        return original(connection, blob, begin, end)

    peer.read = spied
    got.follow(peer)
    assert content(tmp_path / "to") == WHOLE
    assert f"{SHARD[:4]} 2000000" in asked
    assert f"{SHARD[:4]} 0" not in asked


def test_a_later_run_continues_too(make_host: Callable[..., Host], tmp_path: Path) -> None:
    host = make_host()
    host.put_all()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / f"{SHARD}.peer.incomplete").write_bytes(LARGE[:2_999_000])
    got = follower(tmp_path / "to")
    assert got.have == 2_999_000
    got.follow(host.peer())
    assert content(tmp_path / "to") == WHOLE


def test_a_host_that_ends_its_download_is_left_at_once(make_host: Callable[..., Host], tmp_path: Path) -> None:
    ended = subprocess.Popen(["sleep", "0.5"])
    host = make_host(pid=ended.pid)
    host.put(CONFIG, SMALL)
    began = time.monotonic()
    threading.Thread(target=ended.wait).start()  # nobody else takes leave of it
    with pytest.raises(client.Lost, match="ended its own download"):
        follower(tmp_path / "to", patience=60).follow(host.peer())
    assert time.monotonic() - began < 10
    assert content(tmp_path / "to")[CONFIG] == SMALL


def test_a_killed_server_is_noticed_in_the_middle_of_a_file(make_host: Callable[..., Host], tmp_path: Path) -> None:
    second = make_host("second")
    second.put_all()
    with TruncatingProxy(second.port) as proxy:
        got = follower(tmp_path / "to")
        context = server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT)
        with pytest.raises(client.Lost):
            got.follow(client.Peer("first", "127.0.0.1", proxy.port, context))
        assert not got.whole
        got.follow(second.peer("second"))
    assert content(tmp_path / "to") == WHOLE
    assert got.warnings == []


class TruncatingProxy:
    """Forwards a million bytes of TLS, then breaks every connection."""

    def __init__(self, to: int) -> None:
        self._to, self._left = to, 1_000_000
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> TruncatingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := one.recv(65536)) and self._left > 0:
                self._left -= len(data)
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_wrong_bytes_are_noticed_and_their_source_is_dropped(make_host: Callable[..., Host], tmp_path: Path) -> None:
    liar, honest = make_host("liar"), make_host("honest")
    liar.put_all()
    liar.put(SHARD, bytes(len(LARGE)))
    honest.put_all()
    got = follower(tmp_path / "to")
    with pytest.raises(client.Lost, match="wrong checksum"):
        got.follow(liar.peer("liar"))
    assert SHARD not in content(tmp_path / "to")
    got.follow(honest.peer("honest"))
    assert content(tmp_path / "to") == WHOLE
    assert got.warnings == [f"file {SHARD[:12]} came wrong from liar"]


def test_what_came_wrong_while_it_grew_is_taken_again_when_it_is_whole(
    make_host: Callable[..., Host], tmp_path: Path
) -> None:
    """The host before us got it wrong too, notices, and gets it anew: it stays our source."""
    host = make_host(pid=os.getpid())
    host.put(CONFIG, SMALL)
    host.put(EMPTY, b"")
    wrong = host.put(SHARD, bytes(len(LARGE)), ".peer.incomplete")
    got = follower(tmp_path / "to")
    thread = threading.Thread(target=got.follow, args=(host.peer(),))
    thread.start()
    until = time.monotonic() + 10
    while not got.warnings and time.monotonic() < until:
        time.sleep(0.01)
    wrong.write_bytes(LARGE)
    wrong.rename(host.blobs / SHARD)
    thread.join(10)
    assert content(tmp_path / "to") == WHOLE
    assert len(got.warnings) == 1


def test_a_port_that_nobody_opens_is_given_up_after_the_grace(tmp_path: Path) -> None:
    context = server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT)
    began = time.monotonic()
    with pytest.raises(client.Lost, match="refuses connections"):
        follower(tmp_path / "to").follow(client.Peer("gone", "127.0.0.1", free_port(), context))
    assert 0.4 < time.monotonic() - began < at_most(5)


def test_a_server_that_comes_a_little_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GRACE_SECONDS", 10)
    late, port = Host.__new__(Host), free_port()
    late.blobs = tmp_path / "late"
    late.blobs.mkdir()
    late.put_all()
    monkeypatch.setitem(globals(), "free_port", lambda: port)
    got = follower(tmp_path / "to")
    context = server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT)
    thread = threading.Thread(target=got.follow, args=(client.Peer("late", "127.0.0.1", port, context),))
    thread.start()
    time.sleep(0.3)
    Host.__init__(late, late.blobs)
    thread.join(10)
    late.close()
    assert content(tmp_path / "to") == WHOLE


def test_a_host_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.3)
    context = server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(client.Lost, match="does not answer"):
        follower(tmp_path / "to").follow(client.Peer("mute", "127.0.0.1", mute.getsockname()[1], context))


def test_a_full_disk_is_an_error_of_this_host(
    make_host: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host()
    host.put_all()

    def full(_self: Any, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.Part, "write", full)
    with pytest.raises(OSError) as caught:
        follower(tmp_path / "to").follow(host.peer())
    assert caught.value.errno == errno.ENOSPC


def test_two_processes_do_not_write_one_file(make_host: Callable[..., Host], tmp_path: Path) -> None:
    host = make_host()
    host.put_all()
    other = files.Part(str(tmp_path), SHARD, len(LARGE))
    other.open()
    with pytest.raises(files.Busy):
        follower(tmp_path).follow(host.peer())
    other.close()


def test_the_server_ends_when_nobody_asks(make_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.1)
    downloader = subprocess.Popen(["sleep", "1.5"])
    host = make_host(pid=downloader.pid)
    began = time.monotonic()
    threading.Thread(target=host.server.end_when_idle, daemon=True).start()
    downloader.wait()
    host.thread.join(5)
    assert not host.thread.is_alive()
    assert time.monotonic() - began > 1.4, "it ended while its host was still downloading"


def test_the_server_ends_when_all_who_may_ask_are_done(make_host: Callable[..., Host]) -> None:
    host = make_host()
    threading.Thread(target=host.server.end_when_idle, daemon=True).start()
    host.peer().done("a")
    host.thread.join(0.8)
    assert host.thread.is_alive()
    host.peer().done("b")
    host.thread.join(5)
    assert not host.thread.is_alive()


def test_the_program_runs_from_its_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host: nothing beside it, its key in a file that it removes, its end when nobody asks."""
    monkeypatch.setattr(client, "GRACE_SECONDS", 20)
    import sys

    from ansible.module_utils import sglang_host_peers

    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / CONFIG).write_bytes(SMALL)
    port = free_port()
    code = [(name, text.replace("IDLE_SECONDS = 60", "IDLE_SECONDS = 0.5")) for name, text in sglang_host_peers.PROGRAM]
    told = {
        "identity": IDENTITY, "address": "", "port": port, "pid": None, "code": code, "hosts": ["a"],
        "models": [{"blobs": str(tmp_path / "blobs"), "files": {CONFIG: len(SMALL)}}], "compiled": [],
    }  # fmt: skip
    handed = tmp_path / "handed"
    handed.write_text(json.dumps(told))
    process = subprocess.Popen([sys.executable, "-I", "-c", sglang_host_peers._BOOT, str(handed)])
    context = server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT)
    (tmp_path / "to").mkdir()
    got = client.Follower(str(tmp_path / "to"), {CONFIG: len(SMALL)}, 5, lambda *_: None)
    until = time.monotonic() + 5
    while handed.exists() and time.monotonic() < until:
        time.sleep(0.01)
    got.follow(client.Peer("host", "127.0.0.1", port, context))
    assert not handed.exists()
    assert got.whole
    assert process.wait(10) == 0


def test_an_answer_that_is_no_answer_is_the_end_of_a_source(tmp_path: Path) -> None:
    class Nonsense(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            pass

    host = Host(tmp_path / "nonsense")
    host.server.RequestHandlerClass = Nonsense
    original, server.Handler = server.Handler, Nonsense
    try:
        with pytest.raises(client.Lost, match="does not answer properly"):
            follower(tmp_path / "to").follow(host.peer())
    finally:
        server.Handler = original
        host.close()
