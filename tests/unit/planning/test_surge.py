"""Whether a second server fits beside one that changes, and what it is: sglang_ops/planning/surge.py."""

from __future__ import annotations

from typing import Any

import pytest
from situations import IMAGE, deployment, host

from sglang_ops.planning import HostPlan, Secrets, Settings, Wanted, plan
from sglang_ops.planning.beside import port_beside, sharing_hosts
from sglang_ops.planning.service import ServicePlan
from sglang_ops.spec import Deployment

GIB = 2**30


def made(facts: Any, *deployments: Deployment, surge: str = "auto") -> HostPlan:
    wanted = [Wanted(item, IMAGE, Secrets(), ("edge",)) for item in deployments]
    return plan(wanted, facts, Settings.model_validate({"surge": surge}))


def behind(**changes: Any) -> tuple[Deployment, ...]:
    front = None if changes.pop("alone", False) else {"hosts": "edge"}
    return deployment(**({"gateway": front} if front else {}), **changes).replicas


def serving(planned: HostPlan, **changes: Any) -> list[dict[str, Any]]:
    """Facts of the services of a plan that was applied and answers."""
    return [
        {
            "name": service.name, "release": service.release, "stable": service.release, "unit": service.unit,
            "record": {
                "gpus": list(service.gpus), "port": service.port, "image": service.image, "content": service.content,
                "gateways": [dict(entry) for entry in service.gateways],
            },
            "state": "active", "probe": {"ok": True}, **changes,
        }
        for service in planned.services
    ]  # fmt: skip


def changed(gpus: int = 2, *, surge: str = "auto", more: dict[str, Any] | None = None, **keys: Any) -> HostPlan:
    """The plan for a host where a release serves and the next one is another by its environment."""
    running = serving(made(host(gpus=gpus), *behind(**keys)))
    facts = host(gpus=gpus, services=running, **(more or {}))
    return made(facts, *behind(**keys | {"env_vars": {**keys.get("env_vars", {}), "R": "2"}}), surge=surge)


def ways(planned: HostPlan) -> list[tuple[str, str]]:
    assert not planned.errors, planned.errors
    return [(service.way, service.way_why) for service in planned.services]


def test_a_free_gpu_is_enough() -> None:
    (service,) = changed(gpus=2).services
    assert (service.way, service.way_why, service.outage) == ("surge", "GPU 1 free beside it", "none")
    second = service.surge
    assert isinstance(second, ServicePlan)
    assert (second.name, second.kind, second.port, second.gpus) == ("sglang-m-surge", "surge", 9000, (1,))
    assert second.gateways == ({"host": "edge", "service": "sglang-m-gateway", "url": "http://192.0.2.1:9000"},)
    assert second.gate["beside"] == "sglang-m"
    assert "--port 9000" in second.unit
    assert "nvidia.com/gpu=1" in second.unit
    assert service.aside == {"name": "sglang-m-surge", "gateways": [*second.gateways]}


def test_replicas_take_turns_with_the_same_free_gpu() -> None:
    planned = changed(gpus=3, data_parallel_size=2)
    assert [service.surge.gpus for service in planned.services if service.surge] == [(2,), (2,)]


@pytest.mark.parametrize(
    ("gpus", "keys", "why"),
    [
        (1, {}, "a second one needs 1 GPU, and 0 of 1 are free"),
        (3, {"tensor_parallel_size": 2}, "a second one needs 2 GPUs, and 1 of 3 are free"),
        (2, {"alone": True}, "no gateway is in front of it"),
        (2, {"env_vars": {"CUDA_VISIBLE_DEVICES": "0"}}, "CUDA_VISIBLE_DEVICES says its GPUs"),
        (2, {"extra_args": "--nccl-port 4000"}, "--nccl-port gives it a port of its own"),
        (2, {"data_parallel_size": 2}, "a second one needs 1 GPU, and 0 of 2 are free"),
    ],
)  # fmt: skip
def test_what_does_not_fit_stops_first(gpus: int, keys: dict[str, Any], why: str) -> None:
    planned = changed(gpus=gpus, **keys)
    assert set(ways(planned)) == {("stop-start", why)}
    assert all(service.surge is None for service in planned.services)


def test_never_is_never() -> None:
    assert ways(changed(surge="never")) == [("stop-start", "rollout.surge is never")]


def test_a_drained_host_has_no_need() -> None:
    assert ways(changed(more={"drained": True})) == [("stop-start", "its host is drained")]


@pytest.mark.parametrize("other", [{"memory_total_mib": 40000}, {"memory_used_mib": 9000}])
def test_gpus_that_others_use_or_that_are_smaller_are_not_free(other: dict[str, int]) -> None:
    whole = host(gpus=2, services=serving(made(host(gpus=2), *behind())))
    facts = whole.model_copy(update={"gpus": (whole.gpus[0], whole.gpus[1].model_copy(update=other))})
    assert ways(made(facts, *behind(env_vars={"R": "2"})))[0][0] == "stop-start"


@pytest.mark.parametrize(
    ("available", "held", "expected"),
    [
        (8 * GIB, 3 * GIB, ("surge", "8.0 GiB are free, 3.0 GiB in use by it")),
        (4 * GIB, 3 * GIB, ("stop-start", "4.0 GiB are free, 3.0 GiB in use by it, and 1.6 GiB stay free")),
        (8 * GIB, None, ("stop-start", "how much memory it takes is not known")),
    ],
)
def test_without_gpus_the_hosts_memory_decides(available: int, held: int | None, expected: tuple[str, str]) -> None:
    keys = {"extra_args": "--device cpu"}
    running = serving(made(host(gpus=0), *behind(**keys)), resident_bytes=held)
    memory = {"total": 32 * GIB, "available": available}
    facts = host(gpus=0, services=running, memory=memory)
    assert ways(made(facts, *behind(**keys, env_vars={"R": "2"}))) == [expected]


def test_a_taken_port_is_refused() -> None:
    planned = changed(more={"listeners": [{"port": 9000, "pid": 7, "process": "nginx"}]})
    (error,) = planned.errors
    assert error.check == "port"
    assert "port 9000 on gpu-1, on which a second sglang-m would serve" in error.message
    assert "is taken by nginx (pid 7). Free it, or deploy with --no-surge" in error.message


def test_a_port_of_another_service_is_refused() -> None:
    other = {"name": "sglang-z", "record": {"port": 9000, "gpus": []}, "state": "active"}
    running = serving(made(host(gpus=2), *behind()))
    planned = made(host(gpus=2, services=[*running, other]), *behind(env_vars={"R": "2"}))
    assert "belongs to sglang-z" in planned.errors[0].message


def test_nothing_surges_where_nothing_serves_or_changes() -> None:
    first = made(host(gpus=2), *behind())
    assert ways(first) == [("", "")]
    assert ways(made(host(gpus=2, services=serving(first)), *behind())) == [("", "")]


def left(planned: HostPlan) -> dict[str, Any]:
    """A second server that a change has left behind."""
    second = planned.services[0].surge
    assert second
    record = {
        "kind": "surge",
        "gpus": list(second.gpus),
        "port": second.port,
        "content": second.content,
        "gateways": [dict(entry) for entry in second.gateways],
    }
    return {"name": second.name, "release": second.release, "unit": second.unit, "record": record, "state": "active"}


def test_what_was_left_behind_is_taken_away() -> None:
    first, second = made(host(gpus=2), *behind()), left(changed())
    facts = host(gpus=2, services=[*serving(first), second])
    (service,) = made(facts, *behind()).services
    assert (service.action, service.healthy) == ("check", True)
    assert service.why == "a second server is left beside it from a change that did not end"
    assert service.aside == {"name": "sglang-m-surge", "gateways": second["record"]["gateways"]}


def test_a_second_server_that_serves_already_is_used() -> None:
    facts = host(gpus=2, services=[*serving(made(host(gpus=2), *behind())), left(changed())])
    (service,) = made(facts, *behind(env_vars={"R": "2"})).services
    assert service.way == "surge"
    assert service.surge
    assert (service.surge.gpus, service.surge.action) == ((1,), "check")


def test_another_port_is_told_to_the_gateways() -> None:
    running = serving(made(host(gpus=2), *behind()))
    (service,) = made(host(gpus=2, services=running), *behind(port=8100)).services
    assert [entry["url"] for entry in service.gateways] == ["http://192.0.2.1:8100"]
    assert [entry["url"] for entry in service.former] == ["http://192.0.2.1:8000"]


def test_the_port_beside() -> None:
    assert (port_beside(8000), port_beside(65000)) == (9000, 64000)


def test_servers_that_share_a_host_with_known_ones() -> None:
    urls = ["http://10.0.0.1:9000", "http://10.0.0.9:8000"]
    assert sharing_hosts(urls, ["http://10.0.0.1:8000"]) == {urls[0]}
