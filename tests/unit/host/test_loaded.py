"""What a host remembers of loaded images, which layers it has, and how its engine is led to the files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_loaded as loaded
from ansible.module_utils import sglang_host_redirect as redirect
from ansible.module_utils.sglang_host_command import Output

DIGEST = "sha256:" + "5" * 64
LAYERS = [{"digest": f"sha256:{number:064x}", "diff_id": f"sha256:{number + 100:064x}"} for number in range(3)]


class TestNames:
    """Tags and the digests they were loaded with."""

    def test_remembered_by_full_names(self, tmp_path: Path) -> None:
        record = str(tmp_path / "images.json")
        images = [
            {"ref": "docker.io/lmsysorg/sglang:v1", "digest_ref": f"docker.io/lmsysorg/sglang@{DIGEST}"},
            {"ref": f"a.b/c@{DIGEST}", "digest_ref": f"a.b/c@{DIGEST}"},
        ]
        loaded.remember(loaded.change(loaded.names(record), images), record)
        assert loaded.names(record) == {"docker.io/lmsysorg/sglang:v1": DIGEST}
        assert loaded.digest_ref("lmsysorg/sglang:v1", record) == f"lmsysorg/sglang@{DIGEST}"  # as it was spelled
        assert loaded.digest_ref("lmsysorg/sglang:v2", record) is None

    def test_forgotten_once_a_registry_gave_it(self, tmp_path: Path) -> None:
        record = str(tmp_path / "images.json")
        loaded.remember({"docker.io/a/b:1": DIGEST, "docker.io/a/b:2": DIGEST}, record)
        loaded.forget("a/b:1", record)
        loaded.forget("never/loaded:1", record)
        assert loaded.names(record) == {"docker.io/a/b:2": DIGEST}


def docker_layers(root: Path, diff_ids: list[str]) -> None:
    """A chain of layers as docker keeps them."""
    chain = ""
    for number, diff_id in enumerate(diff_ids):
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else diff_id
        (root / "image/overlay2/layerdb/sha256" / chain[7:]).mkdir(parents=True)
        known = root / "image/overlay2/distribution/diffid-by-digest/sha256" / LAYERS[number]["digest"][7:]
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(diff_id)


class TestLayers:
    """Which layers need not be sent."""

    def test_docker_has_them_from_the_bottom_up(self, tmp_path: Path) -> None:
        assert loaded.layers_there("docker", str(tmp_path), LAYERS) == set()
        docker_layers(tmp_path, [LAYERS[0]["diff_id"], LAYERS[1]["diff_id"]])
        assert loaded.layers_there("docker", str(tmp_path), LAYERS) == {LAYERS[0]["digest"], LAYERS[1]["digest"]}
        assert loaded.layers_there("docker", str(tmp_path), LAYERS[1:]) == set()  # on another base it is of no use

    def test_podman_has_them_one_by_one(self, tmp_path: Path) -> None:
        assert loaded.layers_there("podman", str(tmp_path), LAYERS) == set()
        (tmp_path / "overlay-layers").mkdir()
        entries = [{"id": "a", "compressed-diff-digest": LAYERS[2]["digest"]}, {"id": "b"}]
        (tmp_path / "overlay-layers" / "layers.json").write_text(json.dumps(entries))
        assert loaded.layers_there("podman", str(tmp_path), LAYERS) == {LAYERS[2]["digest"]}
        (tmp_path / "overlay-layers" / "layers.json").write_text("[{")
        assert loaded.layers_there("podman", str(tmp_path), LAYERS) == set()


@pytest.mark.parametrize(
    ("engine", "name", "possible"),
    [
        ("docker", "lmsysorg/sglang:v1", True),
        ("docker", "docker.io/lmsysorg/sglang:v1", True),
        ("docker", "nvcr.io/nvidia/sglang:v1", False),
        ("docker", "127.0.0.1:5990/nvidia/sglang:v1", True),
        ("docker", "localhost:5990/nvidia/sglang:v1", True),
        ("podman", "nvcr.io/nvidia/sglang:v1", True),
    ],
)
def test_which_names_can_be_loaded(engine: str, name: str, possible: bool) -> None:
    why_not = redirect.refusal(engine, name)
    assert bool(why_not) is not possible
    assert possible or 'sglang_server_registry_mirrors: {"nvcr.io": "127.0.0.1:5990"}' in why_not


OURS = f"http://{redirect.ADDRESS}:1234/"


@pytest.mark.parametrize(
    ("before", "theirs", "after"),
    [
        (None, [], None),
        ('{"debug": true}', [], '{"debug": true}'),
        ('{"registry-mirrors": ["https://m"]}', ["https://m"], '{"registry-mirrors": ["https://m"]}'),
        (json.dumps({"registry-mirrors": [OURS]}), [], None),
        (json.dumps({"registry-mirrors": [OURS], "debug": True}), [], '{\n  "debug": true\n}\n'),
    ],
)
def test_what_a_killed_load_left_is_taken_away(before: str | None, theirs: list[str], after: str | None) -> None:
    assert redirect.without_ours(redirect.parsed(before), before) == (theirs, after)


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_configuration_that_cannot_be_read_is_left_alone(text: str) -> None:
    with pytest.raises(redirect.RedirectError, match=r"daemon\.json (is not valid|holds no)"):
        redirect.parsed(text)


class TestRedirect:
    """The engine's configuration while a load lasts, and afterwards."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def served(_blobs: str, address: str, port: int) -> Iterator[str]:
            yield f"{address}:{port or 1234}"

        self.file = tmp_path / "daemon.json"
        self.mirrors: list[str] = []
        self.written: list[str] = []
        self.rc = 0
        monkeypatch.setattr(redirect, "served", served)
        monkeypatch.setattr(redirect, "DAEMON_JSON", str(self.file))
        monkeypatch.setattr(redirect, "run", self.reload)
        monkeypatch.setattr(redirect, "_RELOAD_SECONDS", 0.3)
        monkeypatch.setattr(redirect.api, "get", lambda *_: {"RegistryConfig": {"Mirrors": self.mirrors}})

    def reload(self, *_: str) -> Output:
        """As dockerd does it: what the file does not name stays as it was."""
        self.written.append(self.file.read_text())
        told: dict[str, Any] = json.loads(self.written[-1])
        self.mirrors[:] = told.get("registry-mirrors", self.mirrors)
        return Output(self.rc, stderr="Job type reload is not applicable" if self.rc else "")

    @pytest.mark.parametrize("before", [None, '{"debug": true, "registry-mirrors": ["https://m/"]}\n'])
    def test_docker_has_a_mirror_as_long_as_it_lasts(self, before: str | None) -> None:
        if before:
            self.file.write_text(before)
        with redirect.redirected("docker", "lmsysorg/sglang", "/blobs"):
            assert self.mirrors == [OURS]
            assert json.loads(self.file.read_text()).get("debug") is (True if before else None)
        assert self.mirrors == (["https://m/"] if before else [])
        assert (self.file.read_text() if self.file.exists() else None) == before

    def test_and_loses_it_however_it_ends(self) -> None:
        with pytest.raises(SystemExit), redirect.redirected("docker", "lmsysorg/sglang", "/blobs"):
            raise SystemExit
        assert self.mirrors == []
        assert not self.file.exists()

    def test_a_daemon_that_does_not_take_it_over(self) -> None:
        self.rc = 1
        with (
            pytest.raises(redirect.RedirectError, match=r"does not take over registry-mirrors .*\(Job type reload"),
            redirect.redirected("docker", "lmsysorg/sglang", "/blobs"),
        ):
            pytest.fail("nothing may be pulled")
        assert not self.file.exists()

    def test_podman_has_a_configuration_of_its_own(self) -> None:
        with redirect.redirected("podman", "nvcr.io/nvidia/sglang", "/blobs"):
            text = Path(os.environ["CONTAINERS_REGISTRIES_CONF"]).read_text()
        assert text == f'[[registry]]\nprefix = "nvcr.io"\nlocation = "{redirect.ADDRESS}:1234"\ninsecure = true\n'
        assert "CONTAINERS_REGISTRIES_CONF" not in os.environ
        assert self.written == []

    def test_a_registry_on_the_loopback_is_served_where_it_is_looked_for(self) -> None:
        with redirect.redirected("docker", "127.0.0.1:5990/nvidia/sglang", "/blobs"):
            assert self.written == []
