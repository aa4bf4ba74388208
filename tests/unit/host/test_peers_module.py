"""What the modules do with other hosts: a model arrives as huggingface_hub would lay it out, or the hub is asked."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_fetch as fetching
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils import sglang_host_peer_client as client
from ansible.module_utils import sglang_host_peer_files as files
from ansible.module_utils import sglang_host_peer_server as server
from ansible.module_utils import sglang_host_peers as sharing
from ansible.module_utils.sglang_host_command import Output
from ansible.module_utils.sglang_host_progress import Progress

from sglang_ops import peers

IDENTITY = peers.identity()
REPO, COMMIT = "lab/tiny", "c" * 40
SMALL, LARGE = b"{}\n", os.urandom(2_000_000)


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


CONTENT = {"config.json": SMALL, "sub/model.safetensors": LARGE}
BLOBS = {"config.json": git_name(SMALL), "sub/model.safetensors": hashlib.sha256(LARGE).hexdigest()}
FILES = [{"name": name, "size": len(content), "blob": BLOBS[name]} for name, content in CONTENT.items()]
SOURCE = {"commit": COMMIT, "files": FILES, "all": True, "bytes": sum(map(len, CONTENT.values()))}


def model(hub: Path) -> dict[str, Any]:
    return {"repo": REPO, "revision": "main", "hub": str(hub)}


def have(hub: Path) -> None:
    """The model whole in a cache."""
    home = Path(models.directory(str(hub), REPO))
    (home / "blobs").mkdir(parents=True)
    for name, content in CONTENT.items():
        (home / "blobs" / BLOBS[name]).write_bytes(content)
    sharing._link(str(home), SOURCE)
    models.remember(str(hub), REPO, "main", SOURCE)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a host that has the model, and serves what the module would have its server serve."""
    have(tmp_path / "theirs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    held = {"repo": REPO, "commit": COMMIT, "hub": str(tmp_path / "theirs")}
    told = {
        "identity": IDENTITY, "address": "127.0.0.1", "port": number, "pid": None, "hosts": ["b"],
        "models": [sharing._shelved(held, COMMIT, sharing._files(held))],
    }  # fmt: skip
    with server.Server(told) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield number
        running.shutdown()
        thread.join()


def asked(port: int, *names: str) -> dict[str, Any]:
    """The parameter `peers` of a follower."""
    sources = [{"name": name, "address": "127.0.0.1", "port": port} for name in names or ("a",)]
    turn = {"repo": REPO, "commit": COMMIT, "turn": 1, "sources": sources}
    return {
        "identity": IDENTITY, "port": port, "address": "", "name": "b", "hosts": [], "holds": [], "follow": [turn],
        "kernels": [], "compiled": [],
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(client, "POLL_SECONDS", 0.01)


def follow(told: dict[str, Any] | None, hub: Path, source: dict[str, Any] = SOURCE) -> tuple[bool, Any]:
    with Progress(None) as progress, sharing.sharing(told, [], 1) as shared:
        return shared.follow(model(hub), source, progress), shared


def test_a_model_from_a_peer_is_laid_out_as_the_hubs_tool_does(port: int, tmp_path: Path) -> None:
    whole, shared = follow(asked(port), tmp_path / "ours")
    assert whole
    assert shared.givers == {REPO: "a"}
    assert shared.warnings == []
    found = models.cached(str(tmp_path / "ours"), REPO, "main")
    assert (found["complete"], found["commit"], found["bytes"]) == (True, COMMIT, SOURCE["bytes"])
    snapshot = Path(found["path"])
    assert str((snapshot / "config.json").readlink()) == f"../../blobs/{BLOBS['config.json']}"
    assert str((snapshot / "sub/model.safetensors").readlink()) == f"../../../blobs/{BLOBS['sub/model.safetensors']}"
    assert (snapshot / "sub/model.safetensors").read_bytes() == LARGE


def test_huggingface_hub_finds_it_offline(port: int, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert follow(asked(port), tmp_path / "ours")[0]
    found = huggingface_hub.snapshot_download(REPO, cache_dir=tmp_path / "ours", local_files_only=True)
    assert (Path(found) / "config.json").read_bytes() == SMALL


def test_alone_nothing_is_started_and_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "serve", lambda *_: pytest.fail("a server was started"))
    whole, shared = follow(None, tmp_path / "ours")
    assert (whole, shared.warnings, shared.givers) == (False, [], {})
    assert not (tmp_path / "ours").exists()


def test_the_next_source_is_asked_and_the_one_that_failed_is_named(port: int, tmp_path: Path) -> None:
    told = asked(port, "gone", "a")
    told["follow"][0]["sources"][0]["address"] = "127.0.0.9"  # nobody listens there
    whole, shared = follow(told, tmp_path / "ours")
    assert whole
    assert shared.givers == {REPO: "a"}
    assert shared.warnings == [f"{REPO} cannot be had from gone (127.0.0.9:{port}): it refuses connections"]


def test_without_a_source_that_works_the_hub_is_asked_and_no_partial_file_is_left(tmp_path: Path) -> None:
    blobs = Path(models.blobs(str(tmp_path / "ours"), REPO))
    blobs.mkdir(parents=True)
    (blobs / f"{BLOBS['sub/model.safetensors']}{files.PARTIAL}").write_bytes(LARGE[:1000])
    (blobs / BLOBS["config.json"]).write_bytes(SMALL)
    whole, shared = follow(asked(1), tmp_path / "ours")
    assert not whole
    assert len(shared.warnings) == 1
    assert [path.name for path in blobs.iterdir()] == [BLOBS["config.json"]], (
        "what is whole is of use to the hub's tool"
    )


def test_what_is_in_the_cache_under_a_wrong_name_is_fetched_anew(port: int, tmp_path: Path) -> None:
    blobs = Path(models.blobs(str(tmp_path / "ours"), REPO))
    blobs.mkdir(parents=True)
    (blobs / BLOBS["sub/model.safetensors"]).write_bytes(bytes(len(LARGE)))
    assert follow(asked(port), tmp_path / "ours")[0]
    assert (blobs / BLOBS["sub/model.safetensors"]).read_bytes() == LARGE


def test_a_name_that_is_no_hash_cannot_be_checked_so_the_hub_is_asked(port: int, tmp_path: Path) -> None:
    odd = dict(SOURCE, files=[*FILES, {"name": "x", "size": 1, "blob": "W/etag"}])
    assert not follow(asked(port), tmp_path / "ours", odd)[0]


def test_a_cache_that_another_host_is_filling_is_left_to_it(port: int, tmp_path: Path) -> None:
    hub = tmp_path / "ours"
    have(hub)
    other = claims.Claim(str(hub), Path(models.directory(str(hub), REPO)).name)
    other.acquire()
    threading.Timer(0.5, other.release).start()
    whole, shared = follow(asked(port), hub)
    assert whole
    assert shared.givers == {}


def test_a_full_disk_says_what_to_do(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.Part, "write", full)
    with pytest.raises(fetching.FetchError, match="disk is full"):
        follow(asked(port), tmp_path / "ours")


OFFERED = {"repo": REPO, "commit": COMMIT, "revision": "main", "offered": 1}


class TestOutOfReach:
    """A hub that nobody reaches: a host that has the model says what belongs to it, and gives it."""

    def test_a_peer_says_what_the_hub_would(self, port: int) -> None:
        told = asked(port, "gone", "a")
        told["follow"][0]["sources"][0]["address"] = "127.0.0.9"
        found = sharing.listing(told, OFFERED)
        assert sorted(found.pop("files"), key=lambda file: str(file["name"])) == FILES
        assert found == {"commit": COMMIT, "all": True, "bytes": SOURCE["bytes"]}

    def test_the_model_comes_from_it(self, port: int, tmp_path: Path) -> None:
        wanted = OFFERED | {"hub": str(tmp_path / "ours")}
        source = sharing.listing(asked(port), wanted)
        with Progress(None) as progress, sharing.sharing(asked(port), [], 1) as shared:
            shared.require(wanted, source, progress)
        assert models.cached(wanted["hub"], REPO, "main")["complete"]

    def test_without_it_there_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(fetching.FetchError, match="out of reach, and a: it refuses connections"):
            sharing.listing(asked(1), OFFERED)
        with pytest.raises(fetching.FetchError, match="no host of the run offers it"):
            sharing.listing(None, OFFERED)
        with Progress(None) as progress, sharing.sharing(asked(1), [], 1) as shared:  # noqa: SIM117
            with pytest.raises(fetching.FetchError, match=r"no other host gave all of it .*refuses connections"):
                shared.require(OFFERED | {"hub": str(tmp_path)}, SOURCE, progress)

    @pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
    def test_names_that_lead_elsewhere_are_refused(self, port: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(client.Peer, "files", lambda *_: [FILES[0] | {"name": name}])
        with pytest.raises(fetching.FetchError):
            sharing.listing(asked(port), OFFERED)


class TestServe:
    """Starting the server; systemd itself is met in the lab."""

    def asked(self, port: int) -> dict[str, Any]:
        return asked(port) | {"hosts": ["c"], "follow": []}

    def test_a_port_that_is_taken_is_named_with_its_owner(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sharing, "run", lambda *_: Output(0))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            (warning,) = sharing.serve(self.asked(number))
        assert f"port {number} is taken by" in warning
        assert f"(pid {os.getpid()})" in warning
        assert "sglang_server_peer_port" in warning

    def test_the_key_is_in_no_argument_and_no_file_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[tuple[str, ...]] = []
        handed: list[str] = []

        def run(*argv: str, **_: object) -> Output:
            ran.append(argv)
            if argv[0] == "systemd-run":
                handed.append(Path(argv[-1]).read_text())
                assert Path(argv[-1]).stat().st_mode & 0o777 == 0o600
                return Output(1, stderr="Failed to start transient service unit")
            return Output(0)

        monkeypatch.setattr(sharing, "run", run)
        monkeypatch.setattr(sharing, "DIRECTORY", str(tmp_path))
        warnings = sharing.serve(self.asked(1))
        assert warnings == ["models are not shared: Failed to start transient service unit"]
        assert "BEGIN PRIVATE KEY" in handed[0]
        assert "PRIVATE KEY" not in str(ran)
        assert list(tmp_path.iterdir()) == []

    def test_what_is_being_fetched_is_served_with_what_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []
        monkeypatch.setattr(sharing, "serve", lambda told, coming, pid: seen.append((coming, pid)) or [])
        with sharing.sharing(self.asked(1), [(model(tmp_path), SOURCE)], 1):
            pass
        (((served,), pid),) = seen
        assert (served["blobs"], pid) == (models.blobs(str(tmp_path), REPO), os.getpid())
        assert served["files"] == {item["blob"]: item["size"] for item in FILES}

    def test_the_files_of_a_snapshot(self, tmp_path: Path) -> None:
        have(tmp_path)
        item = {"repo": REPO, "commit": COMMIT, "hub": str(tmp_path)}
        assert sorted(sharing._files(item), key=lambda file: str(file["name"])) == FILES


def test_the_sources_are_told_when_nothing_more_is_needed(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(server.Server, "forget", lambda _self, host: told.append(host))
    follow(asked(port), tmp_path / "ours")
    assert told == ["b"]
