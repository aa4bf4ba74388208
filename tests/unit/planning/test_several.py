"""Several deployments on one host: GPUs and ports are given out once, and in a fair order."""

from __future__ import annotations

from typing import Any

from situations import IMAGE, deployed, deployment, host

from sglang_ops.planning import HostFacts, HostPlan, Settings, Wanted, plan
from sglang_ops.spec import Deployment


def several(facts: HostFacts, *deployments: Deployment) -> HostPlan:
    return plan([Wanted(item, IMAGE) for item in deployments], facts, Settings())


def one(name: str, port: int, **changes: Any) -> Deployment:
    return deployment(served_model_name=name, port=port, **changes)


def gpus(made: HostPlan) -> dict[str, tuple[int, ...]]:
    return {service.name: service.gpus for service in made.services}


def test_each_gets_its_own_gpus_in_the_order_of_the_file() -> None:
    made = several(host(gpus=4), one("a", 8000, tensor_parallel_size=2), one("b", 8001))
    assert gpus(made) == {"sglang-a": (0, 1), "sglang-b": (2,)}
    assert [step.step for step in made.steps] == ["start", "start"]


def test_who_names_gpus_gets_them_whatever_the_order() -> None:
    named = one("b", 8001, env_vars={"CUDA_VISIBLE_DEVICES": "0"})
    assert gpus(several(host(gpus=2), one("a", 8000), named)) == {"sglang-a": (1,), "sglang-b": (0,)}


def test_who_has_gpus_keeps_them_when_another_comes() -> None:
    first = several(host(gpus=2), one("b", 8001))
    again = several(host(gpus=2, services=[deployed(first)]), one("a", 8000), one("b", 8001))
    assert gpus(again) == {"sglang-a": (1,), "sglang-b": (0,)}
    assert [service.action for service in again.services] == ["start", "none"]


def test_gpus_that_a_service_leaves_are_free_for_the_next() -> None:
    first = several(host(gpus=2), one("a", 8000, tensor_parallel_size=2))
    there = deployed(first)
    busy = [{"index": index, "uuid": f"GPU-{index}", "memory_used_mib": 70000} for index in range(2)]
    again = several(host(gpus=2, services=[there]).model_copy(update={"gpus": host(gpus=2).gpus}),
                    one("a", 8000, env_vars={"CUDA_VISIBLE_DEVICES": "1"}), one("b", 8001))
    assert gpus(again) == {"sglang-a": (1,), "sglang-b": (0,)}
    held = several(HostFacts.model_validate(host(services=[there]).model_dump() | {"gpus": busy}),
                   one("a", 8000, env_vars={"CUDA_VISIBLE_DEVICES": "1"}), one("b", 8001))
    assert gpus(held) == {"sglang-a": (1,), "sglang-b": (0,)}


def test_same_port_twice_is_refused_by_name() -> None:
    made = several(host(), one("a", 8000), one("b", 8000))
    assert "port 8000" in made.errors[0].message
    assert "belongs to sglang-a" in made.errors[0].message


def test_two_services_may_swap_ports() -> None:
    both = [one("a", 8000), one("b", 8001)]
    first = several(host(), *both)
    services = [deployed(HostPlan("gpu-1", services=(service,))) for service in first.services]
    listeners = [{"port": port, "pid": 1, "process": "python3"} for port in (8000, 8001)]
    swapped = several(host(services=services, listeners=listeners), one("a", 8001), one("b", 8000))
    assert swapped.errors == ()
    assert [service.action for service in swapped.services] == ["restart", "restart"]


def test_too_few_for_all_names_who_has_them() -> None:
    made = several(host(gpus=2), one("a", 8000, tensor_parallel_size=2), one("b", 8001))
    assert "sglang-a uses GPU 0, 1" in made.errors[0].message


def test_sharing_needs_the_consent_of_both() -> None:
    alone = several(host(gpus=1), one("a", 8000), one("b", 8001, share_gpus=True))
    assert [problem.check for problem in alone.errors] == ["gpus"]
    fraction = "--mem-fraction-static 0.4"
    both = several(host(gpus=1), one("a", 8000, share_gpus=True, extra_args=fraction),
                   one("b", 8001, share_gpus=True, extra_args=fraction))
    assert gpus(both) == {"sglang-a": (0,), "sglang-b": (0,)}


def test_models_that_two_share_are_fetched_once_and_counted_once() -> None:
    missing = [{"repo": "org/m", "hub": "/var/lib/sglang-ops/huggingface/hub", "commit": "c" * 40, "bytes": 500}]
    disks = [{"path": "/var/lib/docker", "free_bytes": 10**12, "device": 1},
             {"path": "/var/lib/sglang-ops/huggingface/hub", "free_bytes": 700, "device": 2}]
    made = several(host(models=missing, disks=disks), one("a", 8000), one("b", 8001))
    assert made.errors == ()
    assert [step.step for step in made.steps] == ["model", "start", "start"]


def test_host_that_no_deployment_is_meant_for_is_left_alone() -> None:
    made = several(host(engine={"name": "docker", "pending": ["install docker.io"]}))
    assert (made.steps, made.errors, made.services) == ((), (), ())
