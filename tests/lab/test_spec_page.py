"""The spec page's complete example, byte for byte: rendered, validated, planned, tried and deployed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Lab, ops
from waiting import wait_until

pytestmark = pytest.mark.lab

PAGE = ROOT / "examples" / "complete.yaml"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
KINDS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
QUICK = ("-e", "sglang_server_soak=0", "-e", "sglang_server_drain_timeout=5")
TRANSLATED = "--attention-backend triton --sampling-backend pytorch"


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab]) -> Lab:
    return share_lab(hosts=1)


@pytest.fixture(scope="module")
def elsewhere(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The page's image and model, which the lab has under other names, where the lab's hosts can reach them."""
    registry = lab.deployment["deployment"]["image"].partition("/")[0]
    copy_image(registry, lab.deployment["deployment"]["image"].partition("/")[2], "lmsysorg/sglang")
    models = tmp_path_factory.mktemp("models")
    cache = Path(os.environ.get("SGLANG_OPS_LAB_CACHE", "/var/cache/sglang-ops/lab"))
    shutil.copytree(next(cache.glob("models/**/lab/tiny-llama")), models / MODEL)
    address = registry.rpartition(".")[0] + ".1"
    listening = ["--root", str(models), "--host", address, "--port", "8099", "--token", "x"]
    hub = subprocess.Popen(
        [sys.executable, "-m", "sglang_ops.lab.hub", *listening],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: connects(address, 8099), what="the hub")
    mirrors = {"sglang_server_registry_mirrors": {"docker.io": registry}, "sglang_server_hf_endpoint": f"http://{address}:8099"}
    yield ("-e", json.dumps(mirrors))
    hub.send_signal(signal.SIGTERM)
    hub.wait(10)


def connects(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def copy_image(registry: str, image: str, name: str) -> None:
    """An image of the registry under another name, as `latest`: its blobs are mounted, nothing is sent twice."""
    source, _, tag = image.rpartition(":")
    base = f"http://{registry}/v2"
    asked = urllib.request.Request(f"{base}/{source}/manifests/{tag}", headers={"Accept": ", ".join(KINDS)})
    with urllib.request.urlopen(asked) as answer:
        body, kind = answer.read(), answer.headers["Content-Type"]
    manifest = json.loads(body)
    for blob in [manifest["config"], *manifest["layers"]]:
        url = f"{base}/{name}/blobs/uploads/?mount={blob['digest']}&from={source}"
        with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST")) as answer:
            assert answer.status == 201
    put = urllib.request.Request(f"{base}/{name}/manifests/latest", body, {"Content-Type": kind}, method="PUT")
    with urllib.request.urlopen(put) as answer:
        assert answer.status == 201


def test_it_needs_no_host_to_be_rendered_and_validated() -> None:
    rendered = json.loads(ops("render", "--config", str(PAGE), "--output", "json").stdout)
    (service,) = rendered["services"]
    assert TRANSLATED in " ".join(service["argv"])
    assert service["devices"] == [f"nvidia.com/gpu={index}" for index in range(4)]
    validated = json.loads(ops("validate", "--config", str(PAGE), "--output", "json").stdout)
    assert validated["ok"]


def test_plan_check_and_deploy_agree(lab: Lab, elsewhere: tuple[str, ...]) -> None:
    planned = lab.json("plan", "--config", str(PAGE), *elsewhere, *QUICK)
    assert planned["ok"], planned
    announced = lab.deploy(PAGE, "--check", *elsewhere, *QUICK)
    assert announced["ok"], announced
    (host,) = planned["hosts"]
    said = [(step["step"], step["subject"]) for step in host["steps"]]
    assert said == [(step["step"], step["subject"]) for step in announced["steps"]]
    assert ("model", MODEL) in said
    result = lab.deploy(PAGE, *elsewhere, *QUICK)
    assert result["ok"], result
    (service,) = result["hosts"][0]["services"]
    assert service["gpus"] == [0, 1, 2, 3]
    # the first deploy learns the image's release only from the image: the argv stays what was planned
    unit = lab.ssh("cat /etc/systemd/system/sglang-llama-3-1-8b-instruct.service")
    assert all(word in unit for word in ("--attention-backend triton", "--sampling-backend pytorch", "0.8"))
    assert "--disable-flashinfer" not in unit
    assert f"models--{MODEL.replace('/', '--')}" in lab.ssh("ls /cache/huggingface/hub")
    (row,) = lab.json("status")["services"]
    assert (row["healthy"], row["name"]) == (True, "sglang-llama-3-1-8b-instruct")
    again = lab.deploy(PAGE, *elsewhere, *QUICK)
    assert (again["hosts"][0]["changed"], again["hosts"][0]["module_executions"]) == (0, 1)
