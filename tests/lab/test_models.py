"""`models pull`, `ls`, `verify` and `prune` on two hosts, at last with one cache for both of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Lab, ops
from waiting import wait_until

pytestmark = pytest.mark.lab
REPO, SIZE = "lab/tiny-llama", 221_096  # bytes of the weights
CACHE = "/var/lib/sglang-ops/huggingface/hub"
HOME = f"{CACHE}/models--lab--tiny-llama"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-mod", hosts=2, gpus=1, engine="docker", os="debian13", server="simulator")


def models(lab: Lab, verb: str, *words: str) -> dict[str, Any]:
    done = ops("models", verb, "-i", str(lab.inventory), *words, "--output", "json", env=lab.env)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def hub(lab: Lab, method: str, path: str, body: bytes | None = None) -> Any:
    address = yaml.safe_load(lab.inventory.read_text())["all"]["vars"]["sglang_server_hf_endpoint"]
    with urllib.request.urlopen(urllib.request.Request(address + path, body, method=method)) as answer:
        return json.load(answer)


@pytest.fixture
def slowly(lab: Lab) -> Iterator[Callable[[int], None]]:
    """Makes the hub take so many seconds for the weights."""

    def slow(seconds: int) -> None:
        fault = {"path": "model.safetensors", "bytes_per_second": SIZE // seconds}
        hub(lab, "PUT", f"/-/faults/{REPO}", json.dumps([fault]).encode())

    yield slow
    hub(lab, "DELETE", f"/-/faults/{REPO}")


def begin(lab: Lab, *words: str) -> subprocess.Popen[bytes]:
    """A pull in the background, far enough that the weights are under way on the first host."""
    command = [sys.executable, "-m", "sglang_ops", "models", "pull", "-i", str(lab.inventory), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | lab.env
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    find = "find / -xdev -path '*/models--*' -name '*.incomplete' 2>&1"
    wait_until(lambda: "incomplete" in lab.ssh(find), what="a download", every=0.3)
    return process


def test_a_dry_run_on_blank_hosts_announces_all_but_services(lab: Lab) -> None:
    announced = models(lab, "pull", "--check")
    assert announced["exit_code"] == 0
    assert {step["step"] for step in announced["steps"]} == {"engine", "image", "model"}
    assert "docker" not in lab.ssh("ls /usr/bin")


def test_pull_brings_everything_and_touches_no_service(lab: Lab) -> None:
    result = models(lab, "pull")
    assert result["ok"], result
    assert [[model["fetched"] for model in host["models"]] for host in result["hosts"]] == [[True], [True]]
    for host in lab.hosts:
        assert "simulator" in lab.ssh("docker images", host)
        assert lab.ssh("ls /etc/systemd/system | grep sglang", host) == ""
    again = models(lab, "pull")
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1), (0, 1)]
    assert models(lab, "pull", "--check")["steps"] == []


def test_ls_says_who_uses_what(lab: Lab) -> None:
    deployed = lab.deploy()
    assert deployed["ok"], deployed
    for host in models(lab, "ls")["hosts"]:
        ((revision,),) = [model["revisions"] for model in host["models"]]
        assert revision["used_by"] == ["sglang-tiny-llama"]
        assert (revision["complete"], revision["missing"], revision["refs"]) == (True, 0, ["main"])
        assert revision["bytes"] > SIZE


def test_verify_finds_a_changed_byte_and_repair_has_it_fetched_again(lab: Lab) -> None:
    weights = lab.ssh(f"readlink -f {HOME}/snapshots/*/model.safetensors").strip()
    lab.ssh(f"printf X | dd of={weights} bs=1 seek=200000 conv=notrunc")
    done = ops("models", "verify", "-i", str(lab.inventory), REPO, env=lab.env)
    assert done.returncode == 1
    (bad,) = [line.split() for line in done.stdout.splitlines() if "its SHA-256 is" in line]
    assert bad[:3] == [lab.hosts[0], REPO, "model.safetensors"]
    assert f"{lab.hosts[1]}: 1 model, 227 kB read, all right." in done.stdout
    assert done.stderr.splitlines()[-1] == f"Next: sglang-ops models verify -i {lab.inventory} {REPO} --repair"
    assert lab.ssh(f"ls {weights}").strip() == weights, "a bad file is not deleted unasked"
    assert models(lab, "verify", "--repair")["hosts"][0]["repaired"]
    assert models(lab, "ls")["hosts"][0]["models"][0]["revisions"][0]["missing"] == SIZE
    pulled = models(lab, "pull")
    assert [[model["fetched"] for model in host["models"]] for host in pulled["hosts"]] == [[True], [False]]
    assert all(row["healthy"] and row["restarts"] == 0 for row in lab.json("status")["services"])


def test_prune_removes_what_no_service_uses_and_nothing_else(lab: Lab) -> None:
    lab.ssh(f"mkdir /srv/precious && echo weights > /srv/precious/file && cp -a {HOME} {CACHE}/models--lab--old && "
            f"ln -s /srv/precious {CACHE}/models--lab--linked && "
            f"ln -s /srv/precious/file {CACHE}/models--lab--old/snapshots/extra.safetensors && "
            f"ln -sfn /srv/precious {CACHE}/models--lab--old/refs/elsewhere && "
            f"cp {HOME}/blobs/* {HOME}/blobs/left.0123abcd.incomplete; echo x > {HOME}/blobs/left.0123abcd.incomplete; "
            f"touch -d '1 day ago' {HOME}/blobs/left.0123abcd.incomplete")  # fmt: skip
    whole = lab.ssh(f"find {HOME} ! -name 'left*' ! -name blobs -printf '%p %s\\n' | sort")
    before = lab.ssh(f"find {CACHE} /srv/precious ! -path '*/.locks*' -printf '%p %s %T@\\n' | sort")
    announced = models(lab, "prune", "--check")
    assert lab.ssh(f"find {CACHE} /srv/precious ! -path '*/.locks*' -printf '%p %s %T@\\n' | sort") == before
    removed = {item["repo"]: item["bytes"] for item in announced["hosts"][0]["removed"]}
    assert set(removed) == {"lab/old", REPO}
    assert removed["lab/old"] > SIZE
    assert announced["hosts"][1]["removed"] == []
    done = models(lab, "prune", "--yes")
    assert done["hosts"][0]["removed"] == announced["hosts"][0]["removed"]
    assert lab.ssh(f"find {HOME} ! -name 'left*' ! -name blobs -printf '%p %s\\n' | sort") == whole
    assert lab.ssh(f"ls {HOME}/blobs").count("incomplete") == 0
    assert lab.ssh(f"cd {CACHE} && ls -d models--*").split() == ["models--lab--linked", "models--lab--tiny-llama"]
    assert lab.ssh("cat /srv/precious/file").strip() == "weights"
    assert models(lab, "prune", "--yes")["hosts"][0]["removed"] == []
    assert lab.json("restart", "--service", "tiny-llama")["ok"], "what a service uses is still there"


def test_a_download_under_way_is_seen_and_one_that_was_cut_off_is_completed(
    lab: Lab, slowly: Callable[[int], None]
) -> None:
    slowly(60)
    elsewhere = ("-e", "sglang_server_hf_home=/var/lib/elsewhere")
    process = begin(lab, "--limit", lab.hosts[0], *elsewhere)
    only = ("--limit", lab.hosts[0], *elsewhere)
    refused = models(lab, "prune", "--yes", *only)
    assert refused["exit_code"] == 5
    assert re.search(r"is locked by .+, models pull", refused["hosts"][0]["failure"]["cause"])
    claim = json.loads(lab.ssh("cat /var/lib/elsewhere/hub/.locks/.sglang-ops/models--*/*"))
    lab.ssh(f"kill -9 {claim['pid']}")  # of the module: it cleans nothing up, its container goes on
    assert process.wait(60) == 1
    rows = [model for model in models(lab, "ls", *only)["hosts"][0]["models"] if "elsewhere" in model["hub"]]
    assert [(row["revisions"][0]["complete"], row["revisions"][0]["missing"]) for row in rows] == [(False, SIZE)]
    assert "sglang-ops-fetch" in lab.ssh("docker ps")
    hub(lab, "DELETE", f"/-/faults/{REPO}")
    assert models(lab, "pull", *only)["ok"], "whoever had the claim is known to be gone"
    assert all(item["revisions"][0]["complete"] for item in models(lab, "ls", *only)["hosts"][0]["models"])
    assert "sglang-ops-fetch" not in lab.ssh("docker ps -a")


@pytest.fixture
def shared(lab: Lab, tmp_path: Path) -> Iterator[str]:
    """A cache that both hosts have, with the marks of the role hf_cache.

    One block device that is mounted twice is one file system for the kernel.
    """
    image = tmp_path / "shared.img"
    with image.open("wb") as stream:
        stream.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True)
    device = made.stdout.strip()
    for host in lab.hosts:
        node = f"mknod {device} b 7 {device.removeprefix('/dev/loop')}"
        mark = f"mkdir -p /srv/shared/.sglang-ops-hosts && touch /srv/shared/.sglang-ops-hosts/{host}"
        lab.ssh(f"{node} && mkdir /srv/shared && mount {device} /srv/shared && {mark}", host)
    yield "/srv/shared"
    for host in lab.hosts:
        lab.ssh(f"umount /srv/shared; rm {device}", host)
    subprocess.run(["losetup", "--detach", device], check=True)


def test_hosts_that_share_a_cache_take_turns(lab: Lab, shared: str, slowly: Callable[[int], None]) -> None:
    slowly(5)
    before = hub(lab, "GET", "/-/traffic")[REPO]["bytes"]
    result = models(lab, "pull", "-e", f"sglang_server_hf_home={shared}")
    assert result["ok"], result
    sent = hub(lab, "GET", "/-/traffic")[REPO]["bytes"] - before
    assert SIZE < sent < 1.1 * SIZE, "one of them fetched it"
    progress = (Path(result["run"]) / "progress.ndjson").read_text()
    assert "downloads it into this cache: " in progress
    sums = [lab.ssh(f"cat {shared}/hub/models--*/snapshots/*/* | sha256sum", host) for host in lab.hosts]
    assert sums[0] == sums[1] == lab.ssh(f"cat {HOME}/snapshots/*/* | sha256sum")
    assert lab.ssh(f"find {shared}/hub/.locks -path '*sglang-ops*' -type f") == "", "no claim is left"
