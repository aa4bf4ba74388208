"""A hub that misbehaves in every way: one clear sentence, or a download that gets through, and never a bad model."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Lab, ops
from waiting import wait_until

pytestmark = pytest.mark.lab
REPO, WEIGHTS = "lab/tiny-llama", "model.safetensors"
SIZE = 221_096  # of the weights, in bytes
HOME = "/var/lib/faulty"


class Source:
    """The lab's model source, seen from its machine."""

    def __init__(self, lab: Lab) -> None:
        self.address = yaml.safe_load(lab.inventory.read_text())["all"]["vars"]["sglang_server_hf_endpoint"]

    def switch(self, *faults: dict[str, Any]) -> None:
        self._ask("PUT", f"/-/faults/{REPO}", json.dumps(faults).encode())

    def sent(self) -> int:
        return int(self._ask("GET", "/-/traffic").get(REPO, {"bytes": 0})["bytes"])

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(urllib.request.Request(self.address + path, body, method=method)) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = share_lab(hosts=1)
    assert made.deploy()["ok"]
    before = made.json("status")["services"]
    yield made
    after = made.json("status")["services"]
    assert [(row["release"], row["healthy"], row["restarts"]) for row in after] == [
        (row["release"], True, 0) for row in before
    ], "no fault of the hub touches what runs"


@pytest.fixture
def source(lab: Lab) -> Iterator[Source]:
    lab.ssh(f"rm -rf {HOME}; mkdir {HOME}")
    found = Source(lab)
    yield found
    found.switch()


def pull(lab: Lab) -> dict[str, Any]:
    """`models pull` into a cache of its own."""
    options = ["-i", str(lab.inventory), "-e", f"sglang_server_hf_home={HOME}", "--output", "json"]
    result: dict[str, Any] = json.loads(ops("models", "pull", *options, env=lab.env).stdout)
    return result


def blobs(lab: Lab) -> list[str]:
    return lab.ssh(f"ls {HOME}/hub/models--lab--tiny-llama/blobs").split()


def intact(lab: Lab) -> bool:
    """Whether the cached weights are, byte for byte, those of a host that met no fault."""
    weights = f"hub/models--lab--tiny-llama/snapshots/*/{WEIGHTS}"
    told = lab.ssh(f"sha256sum {HOME}/{weights} /var/lib/sglang-ops/huggingface/{weights}")
    digests = [line.split()[0] for line in told.splitlines()]
    return len(digests) == 2 and len(set(digests)) == 1


REFUSED = [
    ({"on": "api", "status": 404, "code": "RepoNotFound"}, "lab/tiny-llama does not exist at http"),
    ({"path": WEIGHTS, "status": 401, "code": "GatedRepo"}, "is gated (401 from http"),
    ({"path": WEIGHTS, "status": 403, "code": "GatedRepo"}, "is gated (403 from http"),
    ({"path": WEIGHTS, "status": 429, "retry_after": 600}, "for now (429), and asks to wait 600 s. Try again later"),
    ({"on": "api", "status": 500}, "answers 500 when asked for lab/tiny-llama. Try again later, or set HF_ENDPOINT"),
]


@pytest.mark.parametrize(("fault", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refusal_is_told_before_anything_is_touched(
    lab: Lab, source: Source, fault: dict[str, Any], says: str
) -> None:
    source.switch(fault)
    result = pull(lab)
    (host,) = result["hosts"]
    assert says in host["failure"]["cause"]
    assert (result["exit_code"], host["changed"]) == (7, 0)
    assert lab.ssh(f"ls {HOME}") == ""


def test_faults_that_pass_are_survived_one_after_the_other(lab: Lab, source: Source) -> None:
    source.switch(
        {"path": WEIGHTS, "status": 500, "times": 2},
        {"path": WEIGHTS, "status": 429, "retry_after": 1, "times": 1},
        {"path": WEIGHTS, "cut_at": 0.5, "times": 1},
        {"path": WEIGHTS, "corrupt": True, "times": 1},
    )
    before = source.sent()
    result = pull(lab)
    assert result["ok"], result
    assert intact(lab)
    # Half of it, all of it but corrupt (hf goes on after a cut in parts of 10 MB, so here anew), and then all of it.
    assert 2.5 * SIZE <= source.sent() - before < 2.6 * SIZE
    assert pull(lab)["hosts"][0]["changed"] == 0


def test_a_shard_that_stays_corrupt_is_named_and_not_kept(lab: Lab, source: Source) -> None:
    source.switch({"path": WEIGHTS, "corrupt": True})
    result = pull(lab)
    cause = result["hosts"][0]["failure"]["cause"]
    assert f"{REPO} arrives corrupt, twice: {WEIGHTS} should be " in cause
    assert "and its SHA-256 is" in cause
    assert result["exit_code"] == 1
    assert len(blobs(lab)) == 4, "the other files stay"
    source.switch()
    before = source.sent()
    assert pull(lab)["ok"]
    assert intact(lab)
    assert SIZE <= source.sent() - before < 1.01 * SIZE, "nothing but the weights was fetched again"


def test_a_file_that_is_refused_in_the_middle_is_told_apart(lab: Lab, source: Source) -> None:
    source.switch({"path": "tokenizer.json", "status": 403, "code": "GatedRepo"})
    result = pull(lab)
    assert "is gated (403 from http" in result["hosts"][0]["failure"]["cause"]
    source.switch()
    assert pull(lab)["ok"]


def play(lab: Lab, tmp_path: Path, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """The module `sglang_model` alone, with parameters that the command line does not have."""
    image = lab.ssh("docker image inspect --format '{{index .RepoDigests 0}}' $(docker image ls -q)").strip()
    model = {"repo": REPO, "hub": f"{HOME}/hub", "endpoint": Source(lab).address, "image": image}
    task = {"name": "Fetch", "sglang_model": {"models": [model], **arguments}}
    book = tmp_path / "play.yml"
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "become": True, "tasks": [task]}]))
    ansible = str(Path(sys.executable).with_name("ansible-playbook"))
    command = [ansible, "-i", str(lab.inventory), str(book), "-e", f"@{lab.folder}/deployment.yaml"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_download_that_hangs_at_eighty_percent_is_begun_anew(lab: Lab, source: Source, tmp_path: Path) -> None:
    source.switch({"path": WEIGHTS, "hang_at": 0.8, "times": 1})
    done = play(lab, tmp_path, stall_seconds=3)
    assert done.returncode == 0, done.stdout
    assert intact(lab)


def test_a_download_that_hangs_for_ever_ends(lab: Lab, source: Source, tmp_path: Path) -> None:
    source.switch({"path": WEIGHTS, "hang_at": 0.8})
    done = play(lab, tmp_path, stall_seconds=3)
    assert "stands still: no data for 3 s, twice. Check the network" in done.stdout
    assert not [name for name in blobs(lab) if "incomplete" in name]
    assert lab.ssh("docker ps -aq --filter name=sglang-ops-fetch") == ""


def test_a_disk_that_fills_meanwhile(lab: Lab, source: Source) -> None:
    lab.ssh(f"mount -t tmpfs -o size=200m none {HOME}")
    source.switch({"path": WEIGHTS, "bytes_per_second": 25_000})
    filling = threading.Thread(target=fill, args=(lab,))
    filling.start()
    result = pull(lab)
    filling.join()
    cause = result["hosts"][0]["failure"]["cause"]
    assert f"{REPO} does not fit into {HOME}/hub: the disk is full. Free space there, then run this again" in cause
    source.switch()
    short = pull(lab)
    assert "Free space, or set HF_HOME in env_vars to a larger disk." in short["hosts"][0]["failure"]["cause"]
    assert short["exit_code"] == 7
    lab.ssh(f"rm {HOME}/filling")
    assert pull(lab)["ok"]
    assert intact(lab)
    lab.ssh(f"umount {HOME}")


def fill(lab: Lab) -> None:
    """Take the last of the room as soon as the download is under way."""
    wait_until(lambda: "incomplete" in lab.ssh(f"ls {HOME}/hub/models--lab--tiny-llama/blobs 2>&1"), what="a download")
    lab.ssh(f"dd if=/dev/zero of={HOME}/filling bs=64k 2>&1")
