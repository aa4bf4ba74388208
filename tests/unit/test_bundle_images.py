"""OCI image layouts: ours, those of others, and those that are not whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sglang_ops import bundle_images
from sglang_ops.bundle import Bundle, BundleError
from sglang_ops.bundle_images import Image, full_name, images
from sglang_ops.errors import UsageError

NAME = "docker.io/lmsysorg/sglang:v0.5.23"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def put(directory: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    path = directory / "blobs" / "sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return f"sha256:{digest}"


def image(directory: Path, architecture: str = "amd64", layers: tuple[bytes, ...] = (b"one", b"two")) -> str:
    """Write an image; returns the digest of its manifest."""
    diff_ids = [f"sha256:{hashlib.sha256(b'unpacked' + layer).hexdigest()}" for layer in layers]
    config = {"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    body = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "config": {"digest": put(directory, body), "size": len(body)},
        "layers": [{"digest": put(directory, layer), "size": len(layer)} for layer in layers],
    }
    return put(directory, json.dumps(manifest).encode())


def index(directory: Path, digest: str, **annotations: str) -> Path:
    entry = {"mediaType": MANIFEST, "digest": digest, "size": 1, "annotations": annotations}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def several(directory: Path, *architectures: str) -> str:
    """Write an index for several platforms; returns its digest. Only the first one's files are there."""
    entries = [
        {
            "mediaType": MANIFEST,
            "digest": image(directory, architecture) if number == 0 else f"sha256:{number:064x}",
            "size": 1,
            "platform": {"os": "linux", "architecture": architecture},
        }
        for number, architecture in enumerate(architectures)
    ]
    entries.append({"digest": f"sha256:{9:064x}", "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}})
    return put(directory, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode())


def read(directory: Path, *arguments: Any) -> tuple[Image, ...]:
    return images(Bundle.open(directory), *arguments)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("lmsysorg/sglang:v0.5.23", NAME),
        ("docker.io/lmsysorg/sglang:v0.5.23", NAME),
        ("busybox", "docker.io/library/busybox:latest"),
        (f"localhost:5000/a/b@sha256:{'5' * 64}", f"localhost:5000/a/b@sha256:{'5' * 64}"),
        (f"ghcr.io/a/b:v1@sha256:{'5' * 64}", "ghcr.io/a/b:v1"),
    ],
)
def test_names_in_full(image: str, name: str) -> None:
    assert full_name(image) == name


class TestReading:
    """What is in a layout, and what it is called."""

    def test_one_image(self, tmp_path: Path) -> None:
        digest = image(tmp_path)
        (found,) = read(index(tmp_path, digest, **{"org.opencontainers.image.ref.name": NAME}))
        assert (found.name, found.digest, found.platform) == (NAME, digest, "linux/amd64")
        assert [bool(blob.diff_id) for blob in found.blobs] == [False, False, True, True]  # manifest, config, layers
        assert found.size == sum(path.stat().st_size for path in (tmp_path / "blobs" / "sha256").iterdir())

    def test_of_several_platforms_only_the_wanted_one_need_be_there(self, tmp_path: Path) -> None:
        digest = several(tmp_path, "amd64", "arm64")
        (found,) = read(index(tmp_path, digest, **{"io.containerd.image.name": NAME}))
        assert found.digest == digest  # the index: what a tag stands for
        assert len(found.blobs) == 5
        with pytest.raises(BundleError, match=r"lacks blobs/sha256/0+1\."):
            read(tmp_path, None, "linux/arm64")
        with pytest.raises(BundleError, match=r"not to be had for linux/riscv64; it is for linux/amd64, linux/arm64"):
            read(tmp_path, None, "linux/riscv64")

    def test_another_platform_is_refused(self, tmp_path: Path) -> None:
        directory = index(tmp_path, image(tmp_path, "arm64"), **{"io.containerd.image.name": NAME})
        with pytest.raises(BundleError, match="image for linux/arm64, and linux/amd64 is wanted") as caught:
            read(directory)
        assert "--platform linux/arm64" in str(caught.value.fix)

    def test_a_layout_that_knows_only_a_tag_must_be_named(self, tmp_path: Path) -> None:
        directory = index(tmp_path, image(tmp_path), **{"org.opencontainers.image.ref.name": "v0.5.23"})
        with pytest.raises(BundleError, match="does not say which image") as caught:
            read(directory)
        assert "--as" in str(caught.value.fix)
        assert read(directory, "lmsysorg/sglang:v0.5.23")[0].name == NAME

    def test_a_name_fits_only_one_image(self, tmp_path: Path) -> None:
        digest = image(tmp_path)
        known = {name: bundle_images.entry(name, digest, MANIFEST, 1) for name in ("a/b:1", "a/b:2")}
        bundle_images.finish(tmp_path, known)
        assert [found.name for found in read(tmp_path)] == ["docker.io/a/b:1", "docker.io/a/b:2"]
        with pytest.raises(BundleError, match="holds 2 images"):
            read(tmp_path, NAME)

    def test_a_file_that_was_cut_off(self, tmp_path: Path) -> None:
        directory = index(tmp_path, image(tmp_path, layers=(b"a whole layer",)), **{"io.containerd.image.name": NAME})
        layer = hashlib.sha256(b"a whole layer").hexdigest()
        (tmp_path / "blobs" / "sha256" / layer).write_bytes(b"a who")
        with pytest.raises(BundleError, match=f"{layer} has 5 of 13 bytes"):
            read(directory)
        (tmp_path / "blobs" / "sha256" / layer).unlink()
        with pytest.raises(BundleError, match=f"{layer} is missing"):
            read(directory)

    @pytest.mark.parametrize("text", ["", "[]", "{", '"text"'])
    def test_a_damaged_list(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(BundleError, match=r"index\.json is damaged"):
            read(tmp_path)

    @pytest.mark.parametrize(
        ("manifest", "message"),
        [
            ({}, "not described as an image"),
            ({"config": {"digest": "sha256:../../../etc/passwd", "size": 1}, "layers": []}, "is no SHA-256 digest"),
            ({"config": {"digest": "sha512:" + "0" * 128, "size": 1}, "layers": []}, "is no SHA-256 digest"),
            ({"manifests": [{}]}, "not described as an image"),
        ],
    )
    def test_a_manifest_that_is_none_or_leads_elsewhere(
        self, tmp_path: Path, manifest: dict[str, Any], message: str
    ) -> None:
        digest = put(tmp_path, json.dumps(manifest).encode())
        with pytest.raises(BundleError, match=message):
            read(index(tmp_path, digest, **{"io.containerd.image.name": NAME}))

    def test_layers_that_nobody_counted(self, tmp_path: Path) -> None:
        config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}).encode()
        layers = [{"digest": put(tmp_path, b"layer"), "size": 5}]
        manifest = {"config": {"digest": put(tmp_path, config), "size": len(config)}, "layers": layers}
        with pytest.raises(BundleError, match="not described as an image"):
            read(index(tmp_path, put(tmp_path, json.dumps(manifest).encode()), **{"io.containerd.image.name": NAME}))

    def test_an_unfinished_one_says_so(self, tmp_path: Path) -> None:
        image(tmp_path)
        with pytest.raises(BundleError, match="is not finished"):
            read(tmp_path)

    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("Dear all")
        with pytest.raises(BundleError, match="holds no images"):
            read(tmp_path)


class TestWriting:
    """A layout under way."""

    def test_a_directory_with_other_things_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("Dear all")
        with pytest.raises(UsageError, match="is not empty and holds no images"):
            bundle_images.begin(tmp_path)

    def test_what_is_there_stays(self, tmp_path: Path) -> None:
        assert bundle_images.begin(tmp_path) == {}
        entry = bundle_images.entry(NAME, image(tmp_path), MANIFEST, 1)
        bundle_images.finish(tmp_path, {NAME: entry})
        assert bundle_images.begin(tmp_path) == {NAME: entry}


def test_sent_under_the_name_by_which_deploy_looks_for_it(tmp_path: Path) -> None:
    (found,) = read(index(tmp_path, image(tmp_path), **{"io.containerd.image.name": NAME}))
    plain, mirrored = found.as_sent({}), found.as_sent({"docker.io": "127.0.0.1:5990"})
    assert plain["digest_ref"] == f"docker.io/lmsysorg/sglang@{found.digest}"
    assert mirrored["ref"] == "127.0.0.1:5990/lmsysorg/sglang:v0.5.23"
    assert mirrored["digest_ref"] == f"127.0.0.1:5990/lmsysorg/sglang@{found.digest}"
