"""Compiled kernels from host to host: a real server, real TLS, real directories."""

from __future__ import annotations

import io
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_kernels as kernels
from ansible.module_utils import sglang_host_peer_client as client
from ansible.module_utils import sglang_host_peer_kernels as bringing
from ansible.module_utils import sglang_host_peer_server as server
from ansible.module_utils import sglang_host_peer_trees as trees
from ansible.module_utils.sglang_host_progress import Progress

from sglang_ops import peers

IDENTITY = peers.identity()
KEY = "abababababab-NVIDIA-H200-lab-tiny"
PARTS = ["inductor", "triton"]
CONTENT = {"triton/ab/kernel.cubin": os.urandom(3_000_000), "triton/ab/kernel.json": b"{}", "inductor/x.so": b"elf"}


class Cache:
    """A host's directory of compiled kernels."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / KEY

    def put(self, name: str, content: bytes = b"x", mode: int = 0o644) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def fill(self) -> None:
        for name, content in CONTENT.items():
            self.put(name, content)

    def content(self) -> dict[str, bytes]:
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.path)): path.read_bytes() for path in files}

    @property
    def item(self) -> dict[str, Any]:
        return {"key": KEY, "path": str(self.path), "parts": PARTS}


@pytest.fixture
def theirs(tmp_path: Path) -> Cache:
    (tmp_path / "theirs").mkdir()
    return Cache(tmp_path / "theirs")


@pytest.fixture
def ours(tmp_path: Path) -> Cache:
    (tmp_path / "ours").mkdir()
    return Cache(tmp_path / "ours")


@pytest.fixture
def peer(theirs: Cache) -> Iterator[Any]:
    """A host that serves its cache."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    told = {"identity": IDENTITY, "address": "127.0.0.1", "port": port, "models": [], "hosts": ["b"],
            "compiled": [theirs.item]}  # fmt: skip
    with server.Server(told) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield client.Peer("a", "127.0.0.1", port, server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT))
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(client, "POLL_SECONDS", 0.01)


def bring(cache: Cache, *peers_: Any) -> tuple[dict[str, Any] | None, list[str]]:
    with Progress(None) as progress:
        brought, warnings = bringing.bring(cache.item, peers_, progress)
    assert [path.name for path in cache.path.parent.iterdir()] in ([KEY], []), "something was left beside it"
    return brought, warnings


def test_all_of_it_arrives_as_it_is_there(peer: Any, theirs: Cache, ours: Cache) -> None:
    theirs.fill()
    program = theirs.put("inductor/main", b"#!", 0o755)
    os.utime(program, ns=(1_700_000_000_123_456_789,) * 2)
    theirs.put("triton/empty", b"")
    brought, warnings = bring(ours, peer)
    assert warnings == []
    assert brought == {"key": KEY, "giver": "a", "files": 5, "bytes": sum(map(len, CONTENT.values())) + 2}
    assert ours.content() == theirs.content()
    found = (ours.path / "inductor/main").stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o755, 1_700_000_000_123_456_789)
    assert ours.path.stat().st_mode & 0o777 == 0o755


def test_what_is_true_of_one_server_only_and_locks_stay(peer: Any, theirs: Cache, ours: Cache) -> None:
    theirs.fill()
    theirs.put("sglang-tiny-gpu0/p2p.json")
    theirs.put("triton/lock")
    theirs.put("triton/ab/kernel.lock")
    assert bring(ours, peer)[0]
    assert ours.content() == CONTENT


def test_links_are_neither_followed_nor_sent(peer: Any, theirs: Cache, ours: Cache, tmp_path: Path) -> None:
    theirs.fill()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    (theirs.path / "triton/stolen").symlink_to(tmp_path / "secret")
    (theirs.path / "triton/below").symlink_to(tmp_path / "secrets")
    os.mkfifo(theirs.path / "triton/pipe")
    assert bring(ours, peer)[0]
    assert ours.content() == CONTENT


def test_a_part_that_is_a_link_is_not_followed(peer: Any, theirs: Cache, ours: Cache, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    theirs.put("inductor/x.so")
    (theirs.path / "triton").symlink_to(tmp_path / "secrets")
    assert bring(ours, peer)[0]
    assert ours.content() == {"inductor/x.so": b"x"}


def test_only_a_directory_without_files_is_replaced(peer: Any, theirs: Cache, ours: Cache) -> None:
    theirs.fill()
    (ours.path / "triton" / "ab").mkdir(parents=True)
    assert bringing.missing({"kernels": [ours.item]}) == [ours.item]
    assert bring(ours, peer)[0]
    assert ours.content() == CONTENT


def test_what_was_compiled_here_meanwhile_stays(peer: Any, theirs: Cache, ours: Cache) -> None:
    theirs.fill()
    ours.put("triton/own", b"own")
    assert bringing.missing({"kernels": [ours.item]}) == []
    brought, warnings = bring(ours, peer)
    assert brought is None
    assert "Directory not empty" in warnings[0]
    assert ours.content() == {"triton/own": b"own"}


def test_a_host_with_an_empty_cache_gives_nothing_and_nothing_is_wrong(peer: Any, theirs: Cache, ours: Cache) -> None:
    brought, warnings = bring(ours, peer)
    assert brought
    assert brought["files"] == 0
    assert warnings == []
    assert not ours.path.exists()


def test_a_host_that_cannot_give_them_is_named_and_the_next_is_asked(peer: Any, theirs: Cache, ours: Cache) -> None:
    theirs.fill()
    gone = client.Peer("gone", "127.0.0.1", 1, server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT))
    brought, warnings = bring(ours, gone, peer)
    assert brought
    assert brought["giver"] == "a"
    assert warnings == ["compiled kernels cannot be had from gone: it refuses connections"]


def test_without_any_the_server_compiles(ours: Cache) -> None:
    gone = client.Peer("gone", "127.0.0.1", 1, server.context(IDENTITY, ssl.PROTOCOL_TLS_CLIENT))
    brought, warnings = bring(ours, gone)
    assert brought is None
    assert warnings[-1] == "the server compiles its kernels at its first start, which takes minutes"


def test_another_key_is_not_served(peer: Any, theirs: Cache, ours: Cache) -> None:
    theirs.fill()
    item = ours.item | {"key": "../" + KEY}
    with Progress(None) as progress:
        brought, warnings = bringing.bring(item, [peer], progress)
    assert brought is None
    assert warnings[0] == "compiled kernels cannot be had from a: it does not have them"


def test_it_ends_in_time(peer: Any, theirs: Cache, ours: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs.fill()
    monkeypatch.setattr(bringing, "LONGEST_SECONDS", -1)
    brought, warnings = bring(ours, peer)
    assert brought is None
    assert "they take longer than" in warnings[0]
    assert not ours.path.exists()


def test_they_must_fit(peer: Any, theirs: Cache, ours: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs.fill()
    monkeypatch.setattr(bringing, "free_bytes", lambda _: 50_000_000)
    _, warnings = bring(ours, peer)
    assert f"they need 3 MB, and {ours.path} has 50 MB free" in warnings[0]


def stream(*parts: Any) -> io.BytesIO:
    """Lines of JSON for mappings, and bytes as they are."""
    lines = (part if isinstance(part, bytes) else json.dumps(part).encode() + b"\n" for part in parts)
    return io.BytesIO(b"".join(lines))


def file(path: str, content: bytes = b"x", **changes: Any) -> tuple[dict[str, Any], bytes, bytes]:
    import hashlib

    told = {"name": path, "size": len(content), "mode": 0o644, "time": 0} | changes
    return told, content, hashlib.sha256(content).hexdigest().encode()


HEAD = {"files": 1, "bytes": 100}
BAD = {
    "absolute": [HEAD, *file("/etc/x")],
    "above": [HEAD, *file("triton/../../x")],
    "another part": [HEAD, *file("sglang-tiny-gpu0/x")],
    "the part itself": [HEAD, *file("triton")],
    "no name": [HEAD, *file("triton/x", name=None)],
    "more than announced": [{"files": 1, "bytes": 1}, *file("triton/x", b"xxxx")],
    "checksum": [HEAD, *file("triton/x")[:2], b"0" * 64, {"end": 1}],
    "cut off in a file": [HEAD, *file("triton/x", size=3)],
    "cut off after a file": [HEAD, *file("triton/x")],
    "too few": [HEAD, *file("triton/x"), {"end": 2}],
    "twice": [HEAD, *file("triton/x"), *file("triton/x"), {"end": 2}],
    "nonsense": [b"<html>\n"],
    "nothing": [],
}


@pytest.mark.parametrize("parts", BAD.values(), ids=BAD.keys())
def test_what_is_not_as_announced_is_refused(tmp_path: Path, parts: list[Any]) -> None:
    (tmp_path / "to").mkdir()
    with pytest.raises((trees.Wrong, OSError)):
        trees.Arriving(stream(*parts), str(tmp_path / "to"), PARTS, lambda *_: None).write()
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "to")]
    assert outside == []


def test_a_file_that_shrinks_while_it_is_sent_ends_the_stream(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    large = cache.put("triton/large", bytes(3_000_000))
    got = bytearray()

    def write(part: bytes) -> None:
        got.extend(part)
        if len(got) > 1_000_000 and large.stat().st_size:
            os.truncate(large, 0)

    with pytest.raises(OSError, match="middle of a file"):
        trees.Tree(str(cache.path), PARTS).send(write)
    assert b'"end"' not in got


class TestHost:
    """What the facts module says."""

    def test_directories_that_hold_something(self, tmp_path: Path) -> None:
        for name in ("a/triton/x", ".b.arriving/triton/x", "c/triton/link"):
            (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / "a/triton/x").touch()
        (tmp_path / ".b.arriving/triton/x").touch()
        (tmp_path / "c/triton/link").symlink_to(tmp_path)
        (tmp_path / "empty" / "triton").mkdir(parents=True)
        assert kernels.filled(str(tmp_path)) == [str(tmp_path / "a"), str(tmp_path / "c")]
        assert kernels.filled(str(tmp_path / "none")) == kernels.filled("") == []

    def test_processors_are_told_apart_by_what_compilers_use(self) -> None:
        xeon = "processor\t: 0\nmodel name\t: Xeon 8480C\nflags\t\t: fpu avx512f amx_tile\n\nprocessor\t: 1\n"
        assert kernels.machine(xeon) == kernels.machine(xeon.replace("fpu", "fpu ibrs_enhanced"))
        assert kernels.machine(xeon) != kernels.machine(xeon.replace(" amx_tile", ""))
        assert kernels.machine(xeon) != kernels.machine(xeon.replace("8480C", "9554"))
        assert kernels.machine("") != kernels.machine(xeon)
