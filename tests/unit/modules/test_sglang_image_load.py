"""The module that takes images from files: what it asks for, what it refuses, what it leaves behind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_facts as facts
from ansible.module_utils import sglang_host_loaded as loaded
from module_testing import load, run

module = load("sglang_image_load")
CONTENTS = (b"manifest", b"config", b"layer one", b"layer two")
DIGESTS = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in CONTENTS]
REF, DIGEST_REF = "docker.io/a/b:1", f"docker.io/a/b@{DIGESTS[0]}"
BLOBS = [
    {"digest": digest, "size": len(content), **({"diff_id": digest} if number > 1 else {})}
    for number, (digest, content) in enumerate(zip(DIGESTS, CONTENTS, strict=True))
]
IMAGE = {"ref": REF, "digest_ref": DIGEST_REF, "blobs": BLOBS}


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


class Host:
    """A host whose engine knows what was pulled."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.record = root, root / "images.json"
        self.incoming = root / "sglang-ops-incoming"
        self.pulled: list[str] = []
        self.there: set[str] = set()
        self.free = 10**12

        @contextmanager
        def redirected(_engine: str, _name: str, blobs: str) -> Iterator[None]:
            assert {path.name for path in Path(blobs).iterdir()} >= {DIGESTS[0][7:]}
            yield

        def pull(_engine: str, _ref: str, digest_ref: str, _size: int, report: Any) -> None:
            report("asking the registry")
            self.pulled.append(digest_ref)

        monkeypatch.setattr(module.engines, "observe", lambda _: engines.Current(data_root=str(root)))
        monkeypatch.setattr(module.images, "present", lambda _e, refs, _r: {ref: ref in self.known for ref in refs})
        monkeypatch.setattr(module.images, "pull", pull)
        monkeypatch.setattr(module.redirect, "redirected", redirected)
        monkeypatch.setattr(module.shutil, "which", lambda _: "/usr/bin/docker")
        monkeypatch.setattr(module, "free_bytes", lambda _: self.free)
        monkeypatch.setattr(module.loaded.names, "__defaults__", (str(self.record),))
        monkeypatch.setattr(module.loaded.remember, "__defaults__", (str(self.record),))

    @property
    def known(self) -> set[str]:
        return self.there | set(self.pulled)

    def arrive(self, *contents: bytes) -> None:
        self.incoming.mkdir(exist_ok=True)
        for content in contents:
            (self.incoming / f"{hashlib.sha256(content).hexdigest()}.part").write_bytes(content)


def test_what_is_to_be_sent(host: Host) -> None:
    left = run(module, images=[IMAGE])
    assert left.result["changed"]
    assert [item["name"] for item in left.result["send"]] == DIGESTS
    assert left.result["sglang_ops"]["items"] == [
        {"name": REF, "digest": DIGESTS[0], "bytes": sum(map(len, CONTENTS)), "action": "load"}
    ]
    assert not host.incoming.exists()
    assert not host.record.exists()


def test_layers_that_the_engine_has_are_not_sent(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.loaded, "layers_there", lambda *_: {DIGESTS[2]})
    left = run(module, images=[IMAGE])
    assert [item["name"] for item in left.result["send"]] == [DIGESTS[0], DIGESTS[1], DIGESTS[3]]


def test_taken_and_tidied_up(host: Host) -> None:
    host.arrive(*CONTENTS)
    left = run(module, images=[IMAGE], arrived=True)
    assert not left.failed, left.result
    assert host.pulled == [DIGEST_REF]
    assert not host.incoming.exists()
    assert loaded.names(str(host.record)) == {REF: DIGESTS[0]}
    again = run(module, images=[IMAGE], arrived=True)
    assert again.result["changed"] is False
    assert again.result["sglang_ops"]["items"][0]["action"] == "there"


def test_an_image_that_was_pulled_before_is_remembered_by_its_tag(host: Host) -> None:
    host.there.add(DIGEST_REF)
    left = run(module, images=[IMAGE])
    assert (left.result["changed"], left.result["send"]) == (True, [])
    assert run(module, images=[IMAGE], arrived=True).result["changed"]
    assert host.pulled == []
    assert not run(module, images=[IMAGE]).result["changed"]


def test_what_arrived_wrong_is_not_pulled(host: Host) -> None:
    host.arrive(*CONTENTS[:3])
    (host.incoming / f"{DIGESTS[3][7:]}.part").write_bytes(b"layer twx")
    left = run(module, images=[IMAGE], arrived=True)
    assert left.failed
    assert "was removed. Run it again" in left.result["msg"]
    assert host.pulled == []
    assert not host.record.exists()


@pytest.mark.parametrize("check", [True, False])
def test_refusals_come_before_anything_is_sent(host: Host, monkeypatch: pytest.MonkeyPatch, check: bool) -> None:
    host.free = 50
    left = run(module, check=check, images=[IMAGE])
    assert (left.failed, left.result["exit_hint"]) == (True, 7)
    assert "needs about 112 bytes (32 bytes compressed)" in left.result["msg"]
    host.free = 10**12
    foreign = {**IMAGE, "ref": "nvcr.io/a/b:1", "digest_ref": f"nvcr.io/a/b@{DIGESTS[0]}"}
    assert "sglang_server_registry_mirrors" in run(module, check=check, images=[foreign]).result["msg"]
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert "docker is not installed here" in run(module, check=check, images=[IMAGE]).result["msg"]
    assert not host.incoming.exists()


def test_check_mode_takes_nothing(host: Host) -> None:
    host.arrive(*CONTENTS)
    left = run(module, check=True, images=[IMAGE], arrived=True)
    assert left.result["changed"]
    assert host.pulled == []
    assert host.incoming.exists()


def test_facts_tell_of_loaded_images_that_are_still_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.remember({"docker.io/a/b:1": DIGESTS[0], "docker.io/a/gone:1": DIGESTS[1]}, str(host.record))
    monkeypatch.setattr(facts.loaded.digest_ref, "__defaults__", (str(host.record),))
    monkeypatch.setattr(facts.engines, "present", lambda _e, refs, _r: {ref: "gone" not in ref for ref in refs})
    asked = {"engine": "docker", "unresolved": ["a/b:1", "a/gone:1", "never/seen:1"]}
    assert facts.loaded_images(asked, "/var/lib/docker") == {"a/b:1": f"a/b@{DIGESTS[0]}"}
