"""`images save|load` and `models export|import`: what is refused, and models carried over a local connection."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_ops import cli, sending

COMMIT = "c" * 40
WEIGHTS = os.urandom(6_000_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "deep/tokenizer.json": b"[]"}


class Here:
    """One user at one machine, which is its own host."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys
        self.hub = home / "host" / "hub"
        variables = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "sglang_server_hf_home": str(self.hub.parent),
        }
        (home / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "hosts": {"one": {}}}}))

    def run(self, *words: str) -> int:
        code = cli.run(words)
        self.out, self.err = self.capsys.readouterr()
        return code

    def json(self, *words: str) -> Any:
        self.code = self.run(*words, "--output", "json")
        assert self.out.startswith("{"), self.out + self.err
        return json.loads(self.out)

    def load(self) -> Any:
        return self.json("models", "import", "-i", "hosts.yml", "--from", "bundle")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SGLANG_OPS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("SGLANG_OPS_INVENTORY", "ANSIBLE_CONFIG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Here(tmp_path, capsys)


def cache(directory: Path) -> Path:
    """A model as huggingface_hub keeps it."""
    home = directory / "models--team--tiny"
    for name, content in FILES.items():
        large = name.endswith(".safetensors")
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        blob = home / "blobs" / (hashlib.sha256(content) if large else git).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = home / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return directory


def export(here: Here, to: str = "bundle") -> Any:
    place = here.home / "cache"
    if not place.exists():
        cache(place)
    return here.json("models", "export", "team/tiny", "--from-cache", "cache", "--to", to)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("images save --to out", "There is no deployment file here that names an image."),
        ("images save --to out -c nowhere.yaml", "nowhere.yaml"),
        ("images save UPPER/case --to out", "'UPPER/case' is not an image name."),
        ("images save a/b:1 --to out --mirror docker.io", "--mirror docker.io is not REGISTRY=HOST."),
        ("images save 127.0.0.1:9/a:1 --to out", "registry 127.0.0.1:9 cannot be reached"),
        ("images save a/b:1", "Missing option '--to'"),
        ("images load -i hosts.yml --from nowhere", "nowhere does not exist."),
        ("images load -i hosts.yml --from letters", "letters holds no images"),
        ("images load -i hosts.yml --from letters/a.txt", "is no tar archive"),
        ("images load -i nowhere --from letters", "There is no inventory 'nowhere'."),
        ("images load --from letters", "--inventory"),
        ("models export team/tiny --to out", "Where are the models?"),
        ("models export team/tiny --to out -i hosts.yml --from-cache letters", "exclude each other"),
        ("models export team/tiny --to out --from-cache nowhere", "nowhere is no directory."),
        ("models export ../tiny --to out -i hosts.yml", "'../tiny' is not a model."),
        ("models export team/tiny --to letters -i hosts.yml", "letters is not empty and holds no models."),
        ("models export team/tiny --to there.tar -i hosts.yml", "there.tar exists already."),
        ("models export -i hosts.yml --to out", "Missing argument"),
        ("models import -i hosts.yml --from letters", "letters holds no models"),
        ("models import -i hosts.yml", "Missing option '--from'"),
    ],
)
def test_refused_before_anything_begins(here: Here, words: str, message: str) -> None:
    (here.home / "letters").mkdir()
    (here.home / "letters" / "a.txt").write_text("Dear all")
    (here.home / "there.tar").touch()
    assert here.run(*shlex.split(words)) == 7
    assert message in here.err
    assert here.err.count("Error: ") == 1
    assert "Traceback" not in here.err
    assert not (here.home / "out").exists()
    assert not (here.home / "state").exists()


def test_exported_and_imported(here: Here) -> None:
    exported = export(here)
    assert [item["action"] for item in exported["items"]] == ["export"]
    assert [item["action"] for item in export(here)["items"]] == ["there"]
    foreseen = here.json("models", "import", "-i", "hosts.yml", "--from", "bundle", "--check")
    assert [item["action"] for item in foreseen["items"]] == ["import"]
    assert not here.hub.exists()
    imported = here.load()
    assert here.code == 0
    assert imported["items"][0]["sent"] == imported["items"][0]["bytes"] == sum(map(len, FILES.values()))
    snapshot = here.hub / "models--team--tiny" / "snapshots" / COMMIT
    assert {name: (snapshot / name).read_bytes() for name in FILES} == FILES
    assert (here.hub / "models--team--tiny" / "refs" / "main").read_text() == COMMIT
    again = here.load()
    assert again["hosts"] == [{"host": "one", "changed": 0, "module_executions": 2}]
    assert again["items"][0]["action"] == "there"


def test_as_one_file_and_for_people(here: Here) -> None:
    export(here, "all.tar")
    with tarfile.open("all.tar") as archive:
        assert "models.json" in archive.getnames()
    assert here.run("models", "import", "-i", "hosts.yml", "--from", "all.tar") == 0
    assert here.out.splitlines()[1].split() == ["one", "team/tiny", "ccccccccccccccccccc", "imported", "6.0", "MB"]
    assert here.run("models", "import", "-i", "hosts.yml", "--from", "all.tar") == 0
    assert "unchanged" in here.out


def test_the_cache_is_where_the_deployment_file_has_it(here: Here) -> None:
    export(here)
    elsewhere = here.home / "elsewhere"
    deployment = {
        "image": "lmsysorg/sglang:v0.5.23",
        "hf_model_handle": "team/tiny",
        "served_model_name": "tiny",
        "env_vars": {"HF_HOME": str(elsewhere)},
    }
    (here.home / "deployment.yaml").write_text(yaml.safe_dump({"deployment": deployment}))
    assert here.load()["ok"]
    assert (elsewhere / "hub" / "models--team--tiny" / "snapshots" / COMMIT / "config.json").read_bytes() == b"{}"
    assert not here.hub.exists()


def test_an_interrupted_import_goes_on(here: Here) -> None:
    export(here)
    blob = here.hub / "models--team--tiny" / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(WEIGHTS[:5_000_000])
    assert here.load()["items"][0]["sent"] == sum(map(len, FILES.values())) - 5_000_000
    assert blob.read_bytes() == WEIGHTS


def test_a_damaged_bundle_is_noticed_on_the_host(here: Here) -> None:
    export(here)
    name = hashlib.sha256(WEIGHTS).hexdigest()
    (here.home / "bundle" / "models--team--tiny" / "blobs" / name).write_bytes(b"x" + WEIGHTS[1:])
    failed = here.load()
    assert failed["exit_code"] == 1
    assert "the bundle is damaged" in failed["hosts"][0]["failure"]["cause"]
    assert not (here.hub / "models--team--tiny" / "snapshots").exists()


def test_a_model_that_nobody_has(here: Here) -> None:
    assert here.run("models", "export", "team/tiny", "-i", "hosts.yml", "--to", "bundle") == 1
    assert "No host has all files of team/tiny." in here.err
    (here.home / "empty").mkdir()
    assert here.run("models", "export", "team/tiny", "--from-cache", "empty", "--to", "out.tar") == 1
    assert "empty has not all files of team/tiny." in here.err
    assert not (here.home / "out.tar").exists()


def test_pieces_follow_the_speed_of_the_link() -> None:
    pace = sending.Pace()
    for _ in range(10):
        pace.note(pace.bytes, 0.01)
    assert pace.bytes == sending.LARGEST
    for _ in range(3):
        pace.note(pace.bytes, 100.0)
    assert pace.bytes == sending.SMALLEST
