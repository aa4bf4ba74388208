"""Layers and manifests: the same content gives the same bytes, laid out as registries want it."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from sglang_ops.errors import OpsError
from sglang_ops.lab.images import oci


def make_tree(root: Path, *, names: tuple[str, ...] = ("b", "a/x", "a/y")) -> Path:
    root.mkdir()
    for name in names:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (root / "a" / "x").chmod(0o755)
    (root / "link").symlink_to("a/x")
    return root


@pytest.fixture
def layer(tmp_path: Path) -> oci.Layer:
    return oci.write_layer(make_tree(tmp_path / "tree"), tmp_path / "layer.tar")


def image(*layers: oci.Layer, tag: str = "v1") -> oci.Image:
    return oci.Image("some/name", tag, layers, {"PATH": "/bin", "A": "1"}, {"title": "test"})


def test_a_layer_does_not_depend_on_time_or_order(tmp_path: Path, layer: oci.Layer) -> None:
    other = make_tree(tmp_path / "other", names=("a/y", "a/x", "b"))
    os.utime(other / "b", (1, 1))
    assert oci.write_layer(other, tmp_path / "other.tar").digest == layer.digest
    (other / "b").write_text("changed")
    assert oci.write_layer(other, tmp_path / "changed.tar").digest != layer.digest


def test_a_layer_is_a_plain_tar(layer: oci.Layer) -> None:
    content = layer.path.read_bytes()
    assert (layer.digest, layer.size) == (f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    with tarfile.open(layer.path, "r:") as tar:
        members = {member.name: member for member in tar}
    assert sorted(members) == [".", "./a", "./a/x", "./a/y", "./b", "./link"]
    assert {member.mtime for member in members.values()} == {oci.EPOCH}
    assert (members["./a/x"].mode & 0o111, members["./b"].mode & 0o111, members["./link"].linkname) == (0o111, 0, "a/x")


def test_what_cannot_be_packed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match=r"tar could not pack .*absent"):
        oci.write_layer(tmp_path / "absent", tmp_path / "layer.tar")


def test_a_registry_finds_everything_by_digest(tmp_path: Path, layer: oci.Layer) -> None:
    storage = tmp_path / "storage"
    digest = oci.add_image(storage, image(layer))
    root = storage / "docker/registry/v2"

    def blob(digest: str) -> bytes:
        name = digest.removeprefix("sha256:")
        content = (root / "blobs/sha256" / name[:2] / name / "data").read_bytes()
        assert hashlib.sha256(content).hexdigest() == name
        return content

    repository = root / "repositories/some/name"
    assert (repository / "_manifests/tags/v1/current/link").read_text() == digest
    assert (repository / "_manifests/revisions/sha256" / digest.removeprefix("sha256:") / "link").read_text() == digest
    manifest = json.loads(blob(digest))
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    (described,) = manifest["layers"]
    assert described == {
        "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
        "size": layer.size,
        "digest": layer.digest,
    }
    assert blob(layer.digest) == layer.path.read_bytes()
    config = json.loads(blob(manifest["config"]["digest"]))
    assert config["rootfs"]["diff_ids"] == [layer.digest]
    assert config["config"]["Env"] == ["PATH=/bin", "A=1"]
    assert config["config"]["Labels"] == {"title": "test"}
    assert "Entrypoint" not in config["config"]
    for known in (layer.digest, manifest["config"]["digest"]):
        assert (repository / "_layers/sha256" / known.removeprefix("sha256:") / "link").read_text() == known


def test_images_are_deterministic_and_share_layers(tmp_path: Path, layer: oci.Layer) -> None:
    first = oci.add_image(tmp_path / "one", image(layer))
    assert oci.add_image(tmp_path / "two", image(layer)) == first
    oci.add_image(tmp_path / "one", image(layer, tag="v2"))
    tags = tmp_path / "one/docker/registry/v2/repositories/some/name/_manifests/tags"
    assert sorted(path.name for path in tags.iterdir()) == ["v1", "v2"]
    assert layer.path.stat().st_nlink == 3  # the file itself, and one name in each of the two storages


def test_a_layer_is_remembered(layer: oci.Layer) -> None:
    assert oci.layer_from(oci.layer_description(layer), layer.path) == layer
