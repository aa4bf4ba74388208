"""Which arguments an image takes: told by its tag, by another tag of the same digest, or by the image itself."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Lab

pytestmark = pytest.mark.lab

TIMES = {"restart_delay": 1, "soak": 0, "start_timeout": 120, "drain_timeout": 5}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))
KINDS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab]) -> Lab:
    return share_lab(hosts=1)


def tagged(lab: Lab, tag: str) -> str:
    """The lab's image under one more tag of the same digest."""
    image = lab.deployment["deployment"]["image"]
    host, _, rest = image.partition("/")
    path, _, known = rest.rpartition(":")
    url = f"http://{host}/v2/{path}/manifests"
    asked = urllib.request.Request(f"{url}/{known}", headers={"Accept": ", ".join(KINDS)})
    with urllib.request.urlopen(asked) as answer:
        body, kind = answer.read(), answer.headers["Content-Type"]
    request = urllib.request.Request(f"{url}/{tag}", body, {"Content-Type": kind})
    request.method = "PUT"
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201
    return f"{host}/{path}:{tag}"


def lists(lab: Lab) -> list[str]:
    return lab.ssh("ls /var/lib/sglang-ops/arguments 2>/dev/null").split()


def announced(result: dict[str, Any], word: str) -> list[str]:
    return [text for text in result["warnings"] if word in text]


def test_latest_is_the_release_that_has_its_digest(lab: Lab) -> None:
    config = lab.write("latest", image=tagged(lab, "latest"), extra_args="--disable-flashinfer")
    result = lab.deploy(config, *QUICK)
    assert result["ok"], result
    assert announced(result, "--attention-backend triton")
    assert not announced(result, "names no SGLang release")
    assert lists(lab) == []
    assert "--disable-flashinfer" not in lab.ssh("cat /etc/systemd/system/sglang-*.service")


def test_image_that_nothing_names_is_asked_before_anything_stops(lab: Lab) -> None:
    before = lab.json("status")["services"][0]
    config = lab.write("edge", image=tagged(lab, "edge"), extra_args="--no-such-flag 1")
    dry = lab.deploy(config, *QUICK, "--check")
    assert dry["exit_code"] == 0, dry
    assert announced(dry, "--no-such-flag is not an argument of SGLang 0.5.23. Remove it. The image is asked")
    assert announced(dry, "names no SGLang release")
    refused = lab.deploy(config, *QUICK)
    assert refused["exit_code"] == 7, refused
    assert "--no-such-flag is not an argument" in refused["hosts"][0]["failure"]["cause"]
    assert lab.json("status")["services"][0]["release"] == before["release"]


def test_what_it_says_is_kept_and_counts(lab: Lab) -> None:
    config = lab.write("edge", image=tagged(lab, "edge"), extra_args="--log-level error")
    result = lab.deploy(config, *QUICK)
    assert result["ok"], result
    (kept,) = lists(lab)
    listed = json.loads(lab.ssh(f"cat /var/lib/sglang-ops/arguments/{kept}"))
    assert listed["sglang"] == "0.5.23"
    assert not announced(result, "names no SGLang release")
    again = lab.deploy(config, *QUICK)
    assert (again["hosts"][0]["changed"], again["hosts"][0]["module_executions"]) == (0, 1)
    strict = lab.deploy(lab.write("strict", image=tagged(lab, "edge"), extra_args="--disable-flashinfer"), "--strict")
    assert strict["exit_code"] == 7
    assert "would not be passed as written" in strict["hosts"][0]["failure"]["cause"]
