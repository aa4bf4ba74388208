"""Hosts that reach neither a registry nor the hub: what a connected machine saved is carried to them, and serves."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from conftest import Lab, ops

pytestmark = pytest.mark.lab

IMAGE = "lmsysorg/sglang:v0.5.23"  # of Docker Hub by its name; a mirror in the lab has it
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
PACKAGES = {"docker": "docker.io ca-certificates", "podman": "podman crun catatonit netavark ca-certificates"}
NOWHERE = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
INCOMING = {"docker": "/var/lib/docker", "podman": "/var/lib/containers/storage"}


@dataclass
class Site:
    """Two labs: in the first, host 1 is connected and host 2 is not; the one host of the second, for podman, is not."""

    docker: Lab
    files: Path
    digest: str = ""
    podman: Lab | None = None

    @property
    def registry(self) -> str:
        return str(self.docker.deployment["deployment"]["image"].partition("/")[0])

    @property
    def images(self) -> Path:
        return self.files / "images.tar"

    @property
    def models(self) -> Path:
        return self.files / "models"

    def cut_off(self, engine: str) -> tuple[Lab, str]:
        """A lab and its host without network."""
        if engine == "docker":
            return self.docker, self.docker.hosts[1]
        assert self.podman
        return self.podman, self.podman.hosts[0]


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(
        make_lab("t-air", hosts=2, engine="docker", os="debian12", server="simulator"),
        tmp_path_factory.mktemp("files"),
    )
    made.digest = publish(made.registry)
    with ThreadPoolExecutor() as pool:
        connected = pool.submit(made.docker.json, "models pull", "--limit", made.docker.hosts[0])
        pool.submit(isolate, made, "docker").result()
    assert connected.result()["ok"], connected.result()
    return made


@pytest.fixture(scope="module")
def podman(site: Site, make_lab: Callable[..., Lab]) -> Site:
    """The site with its second lab: the same again on another engine, and slow."""
    site.podman = make_lab("t-air-podman", hosts=1, engine="podman", os="debian13", server="simulator")
    isolate(site, "podman")
    return site


@pytest.fixture(params=["docker", pytest.param("podman", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "podman":
        request.getfixturevalue("podman")
    return str(request.param)


def publish(registry: str) -> str:
    """Have the lab's image as IMAGE too, for two platforms, as releases of SGLang are; returns the index's digest."""
    name, base = IMAGE.partition(":")[0], f"http://{registry}/v2"
    accept = {"Accept": MANIFEST}
    body = urlopen(Request(f"{base}/sglang-simulator/manifests/v0.5.23", headers=accept)).read()
    manifest = json.loads(body)
    for part in (manifest["config"], *manifest["layers"]):
        mount = f"{base}/{name}/blobs/uploads/?mount={part['digest']}&from=sglang-simulator"
        assert urlopen(Request(mount, method="POST", data=b"")).status == 201
    digest = put(base, name, body, MANIFEST)
    entries = [
        {"mediaType": MANIFEST, "digest": digest, "size": len(body), "platform": {"os": "linux", "architecture": cpu}}
        for cpu in ("arm64", "amd64")
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    return put(base, name, index, INDEX, "v0.5.23")


def put(base: str, name: str, body: bytes, kind: str, tag: str = "") -> str:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    url = f"{base}/{name}/manifests/{tag or digest}"
    assert urlopen(Request(url, method="PUT", data=body, headers={"Content-Type": kind})).status == 201
    return digest


def services(lab: Lab) -> str:
    """The address of a lab's registry and hub."""
    return str(lab.deployment["deployment"]["image"].partition(":")[0])


def isolate(site: Site, engine: str) -> None:
    """Install what provisioning would have, then take the ways to registry, hub and everywhere else away."""
    lab, host = site.cut_off(engine)
    packages = f"install -qy --no-install-recommends {PACKAGES[engine]}"
    install = f"apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get {packages}"
    cut = f"ip route add unreachable {services(lab)}; ip route del default"
    lab.ssh(f"({install}) >/dev/null 2>&1; {cut}", host, timeout=600)
    assert "unreachable" in lab.ssh(f"{engine} --version && ip route show {services(lab)}", host)
    lab.env |= NOWHERE


@pytest.fixture(scope="module")
def saved(site: Site) -> dict[str, Any]:
    mirror = ["--mirror", f"docker.io={site.registry}", "--insecure-registry", site.registry]
    done = ops("images", "save", IMAGE, *mirror, "--to", str(site.images), "--output", "json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def exported(site: Site) -> dict[str, Any]:
    arguments = ["lab/tiny-llama", "-i", str(site.docker.inventory), "--to", str(site.models), "--output", "json"]
    done = ops("models", "export", *arguments, env=site.docker.env)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def carry(lab: Lab, host: str, verb: str, *arguments: str) -> dict[str, Any]:
    """`images load` or `models import` on one host, and the JSON that came of it."""
    noun, verb = verb.split()
    fixed = ["-i", str(lab.inventory), "--limit", host, "--output", "json"]
    done = ops(noun, verb, *arguments, *fixed, env=lab.env)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_what_is_saved_is_the_index_and_one_platform(site: Site, saved: dict[str, Any]) -> None:
    (image,) = saved["images"]
    assert image["name"] == f"docker.io/{IMAGE}"
    assert image["digest"] == site.digest
    assert image["bytes"] > image["fetched"] > 50e6  # manifests are not counted as fetched
    listed = subprocess.run(["tar", "-tf", site.images], capture_output=True, text=True, check=True).stdout
    assert f"blobs/sha256/{site.digest[7:]}" in listed


def test_the_model_comes_from_the_host_that_has_it(site: Site, exported: dict[str, Any]) -> None:
    actions = {item["host"]: item["action"] for item in exported["items"]}
    assert actions == {site.docker.hosts[0]: "export", site.docker.hosts[1]: "absent"}
    listed = json.loads((site.models / "models.json").read_text())["models"]
    assert [model["repo"] for model in listed] == ["lab/tiny-llama"]


@pytest.mark.slow
@pytest.mark.usefixtures("podman")
def test_podman_reads_what_was_saved(site: Site, saved: dict[str, Any]) -> None:
    lab, host = site.cut_off("podman")
    config = str(lab.folder / "ssh" / "config")
    with site.images.open("rb") as stream:
        subprocess.run(["ssh", "-F", config, host, "cat > /tmp/saved.tar"], stdin=stream, check=True)
    pulled = lab.ssh(
        f"podman pull -q oci-archive:/tmp/saved.tar:docker.io/{IMAGE}; podman rmi -fa; rm /tmp/saved.tar", host
    )
    assert "Error" not in pulled


def test_without_network_it_is_loaded_and_serves(
    site: Site, saved: dict[str, Any], exported: dict[str, Any], engine: str
) -> None:
    lab, host = site.cut_off(engine)
    config = site.files / f"{engine}.yaml"
    config.write_text(yaml.safe_dump({"deployment": lab.deployment["deployment"] | {"image": IMAGE}}))
    refused = lab.deploy(config, "--limit", host)
    assert refused["exit_code"] == 7
    foreseen = carry(lab, host, "images load", "--from", str(site.images), "--check")
    assert [item["action"] for item in foreseen["items"]] == ["load"]
    assert carry(lab, host, "images load", "--from", str(site.images))["ok"]
    again = carry(lab, host, "images load", "--from", str(site.images))
    assert again["hosts"] == [{"host": host, "changed": 0, "module_executions": 2}]
    assert carry(lab, host, "models import", "--from", str(site.models), "--config", str(config))["ok"]
    by_tag = lab.deploy(config, "--limit", host)
    assert by_tag["ok"], by_tag
    assert any("loaded last" in warning for warning in by_tag["warnings"])
    assert lab.run("verify", "--limit", host).returncode == 0
    # Named by digest nobody need be asked, and it is the same release: what a connected deploy would give.
    config.write_text(config.read_text().replace(IMAGE, f"{IMAGE}@{site.digest}"))
    by_digest = lab.deploy(config, "--limit", host)
    assert by_digest["ok"], by_digest
    assert [item["changed"] for item in by_digest["hosts"]] == [0]
    left = lab.ssh(f"ls {INCOMING[engine]}; cat /etc/docker/daemon.json; docker info", host)
    assert "sglang-ops-incoming" not in left
    assert "127.83.71.76" not in left


@pytest.mark.slow
@pytest.mark.usefixtures("podman")
def test_an_interrupted_load_goes_on_and_a_spoilt_one_begins_anew(site: Site, saved: dict[str, Any]) -> None:
    lab, host = site.cut_off("podman")
    lab.run("remove", "--yes", "--service", "tiny-llama", "--limit", host)
    lab.ssh("podman rmi -fa", host)
    with subprocess.Popen(["tar", "-xOf", site.images, *_largest(site)], stdout=subprocess.PIPE) as tar:
        assert tar.stdout
        start = tar.stdout.read(30_000_000)
        tar.terminate()
    place = f"{INCOMING['podman']}/sglang-ops-incoming"
    part = f"{place}/{_largest(site)[0].rpartition('/')[2]}.part"
    lab.ssh(f"mkdir -p {place}", host)
    write = ["ssh", "-F", str(lab.folder / "ssh" / "config"), host, f"sudo tee {shlex.quote(part)} > /dev/null"]
    subprocess.run(write, input=b"x" + start[1:], check=True)
    spoilt = carry(lab, host, "images load", "--from", str(site.images))
    assert "was removed. Run it again" in spoilt["hosts"][0]["failure"]["cause"]
    mended = carry(lab, host, "images load", "--from", str(site.images))
    (item,) = mended["items"]
    assert mended["ok"]
    assert item["action"] == "load"
    assert item["sent"] < item["bytes"]  # what had come whole was not sent again


def _largest(site: Site) -> list[str]:
    lines = subprocess.run(["tar", "-tvf", site.images], capture_output=True, text=True, check=True).stdout.splitlines()
    return [max(lines, key=lambda line: int(line.split()[2])).split()[-1]]


@pytest.mark.slow
@pytest.mark.usefixtures("podman")
def test_what_podman_wrote_is_loaded_into_docker(site: Site, saved: dict[str, Any]) -> None:
    (lab, host), (target, cut_off) = site.cut_off("podman"), site.cut_off("docker")
    foreign = site.files / "foreign.tar"
    name = "docker.io/team/renamed:v1"
    lab.ssh(
        f"podman tag {IMAGE} {name} && podman save -q --format oci-archive -o /tmp/f.tar {name}; chmod 644 /tmp/f.tar",
        host,
    )
    with foreign.open("wb") as out:
        fetch = ["ssh", "-F", str(lab.folder / "ssh" / "config"), host, "cat /tmp/f.tar"]
        subprocess.run(fetch, stdout=out, check=True)
    answer = carry(target, cut_off, "images load", "--from", str(foreign))
    assert answer["ok"], answer
    (item,) = answer["items"]
    assert item["name"] == name
    assert f"team/renamed@{item['digest']}" in target.ssh(f"docker inspect {name}", cut_off)
