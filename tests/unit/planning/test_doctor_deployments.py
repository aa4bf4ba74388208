"""What `doctor` says of a host about the deployments that it is to serve."""

from __future__ import annotations

from typing import Any

import pytest
from examinations import GPUS, HEALTH, NO_DRIVER, NVIDIA, seen
from situations import COMMIT, DIGEST, HUB, IMAGE, deployment

from sglang_ops.planning import ResolvedImage, Secrets, Wanted
from sglang_ops.planning.doctor import diagnose
from sglang_ops.planning.doctor_containers import split
from sglang_ops.planning.doctor_gpus import cuda_of


def test_the_driver_is_judged_by_the_image() -> None:
    old = {"gpus": [gpu | {"driver": "570.86"} for gpu in GPUS]}
    for tag, fits in (("v0.5.23", False), ("v0.5.23-cu130", False), ("v0.5.23-cu129-runtime", True)):
        wanted = deployment(image=f"lmsysorg/sglang:{tag}")
        found = diagnose(seen(deployments=(wanted,), facts=old))
        assert [item.check for item in found.problems] == ([] if fits else ["driver-version"])
    assert "CUDA 13 of lmsysorg/sglang:v0.5.23-cu130" in diagnose(
        seen(deployments=(deployment(image="lmsysorg/sglang:v0.5.23-cu130"),), facts=old)).problems[0].detail


def test_the_gpu_is_judged_by_the_image() -> None:
    for capability, tag, fits in (("7.0", "v0.5.23", False), ("7.0", "v0.5.23-cu129", True), ("7.5", "v0.5.23", True),
                                  ("10.0", "v0.5.23", True), ("[N/A]", "v0.5.23", True)):
        volta = {"nvidia": {**NVIDIA, "health": {1: HEALTH[1] | {"capability": capability}}}}
        found = diagnose(seen(deployments=(deployment(image=f"lmsysorg/sglang:{tag}"),), **volta))
        assert [item.check for item in found.problems] == ([] if fits else ["gpus"])
        assert fits or "GPU 1 has compute capability 7.0, which CUDA 13" in found.problems[0].detail


@pytest.mark.parametrize(
    ("image", "cuda"),
    [
        ("lmsysorg/sglang:v0.5.23", 13), ("lmsysorg/sglang:latest-runtime", 13), ("sglang:v0.5.23-cu130", 13),
        ("reg:5000/sglang:v0.5.23-cu129@" + DIGEST, 12), ("sglang:dev-cu12", 12), ("x/y:cu118", 11),
        ("sglang:v0.5.23-cpu", None), ("sglang:v0.5.23-rocm720-mi35x", None), ("x/own:1", None), ("reg:5000/own", None),
    ],
)  # fmt: skip
def test_cuda_by_the_tag(image: str, cuda: int | None) -> None:
    assert cuda_of(image) == cuda


def test_a_closed_port_is_a_warning_with_the_firewall_s_own_command() -> None:
    wanted = (deployment(port=8001),)
    for program, command in (("ufw", "ufw allow 8001/tcp"), ("firewalld", "--add-port=8001/tcp"),
                             ("iptables", "--dport 8001 -j ACCEPT")):
        (warning,) = diagnose(seen(deployments=wanted, firewall={"program": program, "open": [8000]})).warnings
        assert (warning.check, command in warning.remedy) == ("firewall", True)
    rules = {"program": "nftables", "chain": "inet filter input", "open": []}
    (warning,) = diagnose(seen(deployments=wanted, firewall=rules)).warnings
    assert "nft insert rule inet filter input tcp dport 8001 accept" in warning.remedy
    assert not diagnose(seen(deployments=wanted, firewall={"program": "ufw", "open": [8001]})).warnings


def problems(facts: dict[str, Any], **changes: Any) -> list[tuple[str, str, str]]:
    wanted = deployment(**changes)
    image = ResolvedImage(IMAGE.ref, IMAGE.digest_ref, 10**9, "0.5.23")
    found = diagnose(seen(deployments=(wanted,), facts=facts), [Wanted(wanted, image, Secrets())])
    return [(item.check, item.detail, item.remedy) for item in found.problems]


def test_what_the_deployment_needs_is_judged_by_the_plan() -> None:
    ((check, detail, remedy),) = problems({}, tensor_parallel_size=8)
    assert (check, "needs 8 GPUs" in detail, remedy.startswith("Lower tensor_parallel_size")) == ("gpus", True, True)
    assert "the host has 4 free of 4" in detail
    ((check, detail, remedy),) = problems({"listeners": [{"port": 8000, "pid": 7, "process": "nginx"}]})
    assert (check, detail, remedy[:7]) == ("port", "port 8000 is taken by nginx (pid 7)", "Stop it")
    small = [{"path": path, "free_bytes": 10**8, "device": 1} for path in ("/var/lib/docker", HUB)]
    ((check, detail, remedy),) = problems({"disks": small, "images": {}})
    assert (check, detail.startswith("the host has 0.1 GB free"), remedy[:10]) == ("disk", True, "Free space")
    gone = {"repo": "org/m", "hub": HUB, "error": "org/m is gated (401 from hub). Set HF_TOKEN in env_vars."}
    ((check, detail, remedy),) = problems({"models": [gone]})
    assert (check, detail.endswith("(401 from hub)"), remedy) == ("model", True, "Set HF_TOKEN in env_vars.")
    assert problems({"models": [{"repo": "org/m", "hub": HUB, "commit": COMMIT, "cached": True, "bytes": 5}]}) == []


def test_what_follows_from_the_host_s_own_fault_is_not_told_twice() -> None:
    assert [found[0] for found in problems(NO_DRIVER)] == ["driver"]
    assert [found[0] for found in problems({"cdi": []})] == ["cdi"]
    assert [found[0] for found in problems(NO_DRIVER | {"listeners": [{"port": 8000}]})] == ["driver", "port"]


def test_a_host_that_serves_without_gpus_is_not_asked_for_them() -> None:
    wanted = deployment(image="sglang:v0.5.23-cpu", extra_args="--device cpu")
    facts = {"gpus": [], "gpu_error": "nvidia-smi is not installed", "cdi": []}
    found = diagnose(seen(deployments=(wanted,), facts=facts, nvidia={"pci": []}), [Wanted(wanted, IMAGE)])
    assert not found.problems


def test_a_sentence_of_planning_becomes_detail_and_remedy() -> None:
    message = "a has 1.5 GB free, b needs 3.0 GB. Free space, or go. Then on."
    assert split(message) == ("a has 1.5 GB free, b needs 3.0 GB", "Free space, or go. Then on.")
    detail, remedy = split("sglang v0.5.23 is bad")
    assert (detail, "--limit" in remedy) == ("sglang v0.5.23 is bad", True)
