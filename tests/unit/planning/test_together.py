"""Hosts that serve one model together: what the plan of one means for the others, and when a group goes no further."""

from __future__ import annotations

from typing import Any

import pytest
from situations import IMAGE, deployed, deployment, host

from sglang_ops import groups, registered
from sglang_ops.planning import Settings, Wanted, together
from sglang_ops.planning import plan as plan_host
from sglang_ops.planning.nodes import Group, placed
from sglang_ops.planning.together import Due, Mate

PAIR = ["a", "b"]


def plan(host: str, action: str, **more: Any) -> dict[str, Any]:
    service = {"name": "sglang-big", "kind": "server", "action": action, "group": PAIR}
    return {"host": host, "services": [service], **more}


def hostvars(**plans: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host: {registered.RESULT: {"sglang_ops": {"kind": "plan", "plan": made}}} for host, made in plans.items()}


@pytest.mark.parametrize(
    ("mine", "its", "pulls", "due"),
    [
        ("none", "none", False, Due("none", "")),
        ("none", "start", True, Due("restart", "b")),
        ("none", "restart", True, Due("restart", "b")),
        ("check", "restart", True, Due("restart", "b")),
        ("none", "check", True, Due("check", "b")),
        ("check", "check", False, Due("check", "b")),
        ("start", "restart", False, Due("restart", "b")),
        ("restart", "none", False, Due("none", "")),
    ],
)
def test_a_member_does_what_the_others_need(mine: str, its: str, pulls: bool, due: Due) -> None:
    plans = {"a": plan("a", mine), "b": plan("b", its)}
    assert together.due("sglang-big", PAIR, "a", plans) == due
    assert together.pulled("a", plans["a"], plans) is pulls
    assert groups.pulled_by_mates(plans["a"], hostvars(**plans)) is pulls


def test_a_member_without_a_model_yet_will_start() -> None:
    plans = {"a": plan("a", "none"), "b": {"host": "b", "services": [], "deferred": [{"check": "model"}]}}
    assert together.due("sglang-big", PAIR, "a", plans) == Due("restart", "b")


def test_a_host_alone_asks_nobody() -> None:
    alone = {"host": "a", "services": [{"name": "sglang-one", "action": "none", "group": ()}]}
    assert not groups.pulled_by_mates(alone, {})


def test_why_a_group_goes_no_further() -> None:
    done = {"sglang_ops": {"phase": "gate"}}
    assert list(together.lost([Mate("b", True, done)], "gate")) == []
    crashed = {"failed": True, "msg": "it crashed."}
    assert list(together.lost([Mate("b", True, crashed)], "gate")) == ["b failed (it crashed)"]
    assert list(together.lost([Mate("b", True, done)], "soak")) == ["b did not come that far"]
    assert list(together.lost([Mate("b", True, {})], "")) == ["b did not come that far"]
    assert list(together.lost([Mate("b", False, done)], "gate")) == ["b has dropped out"]


def test_a_group_is_held_by_a_member_that_failed_or_left_the_play() -> None:
    service = plan("a", "restart")["services"]
    known = {**hostvars(a=plan("a", "restart"), b=plan("b", "restart"))}
    known["b"]["said"] = {"failed": True, "msg": "no space"}
    variables = {"inventory_hostname": "a", "ansible_play_hosts": PAIR, "hostvars": known}
    assert groups.apart(service, "", ["said"], variables) == {"sglang-big": ["b failed (no space)"]}
    assert groups.apart(service, "", [], variables) == {}
    known["b"] |= {"said": {"failed": False}, groups.BACK: {"failed": True}}
    assert groups.apart(service, "", ["said"], variables) == {"sglang-big": ["b has dropped out"]}
    variables["ansible_play_hosts"] = ["a"]
    assert groups.apart(service, "", [], variables) == {"sglang-big": ["b has dropped out"]}


def test_a_group_stays_as_it_is_where_a_member_cannot_leave_its_gateways() -> None:
    service = plan("b", "restart")["services"]
    known: dict[str, Any] = {**hostvars(a=plan("a", "restart"), b=plan("b", "restart"))}
    variables = {"inventory_hostname": "b", "ansible_play_hosts": PAIR, "hostvars": known}
    assert groups.staying(service, variables) == {}, "nobody has gateways to leave"
    known["a"][groups.LEFT] = {"failed": False, "results": [{"changed": True}]}
    assert groups.staying(service, variables) == {}
    known["a"][groups.LEFT] = {"failed": True, "results": [{"changed": True}, {"failed": True, "msg": "it hangs."}]}
    assert groups.staying(service, variables) == {"sglang-big": ["a failed (it hangs)"]}
    known["a"][groups.LEFT] = {"failed": False, "results": []}
    variables["ansible_play_hosts"] = ["b"]
    assert groups.staying(service, variables) == {"sglang-big": ["a has dropped out"]}
    variables["hostvars"] = {"b": known["b"]}
    assert groups.staying(service, variables) == {"sglang-big": ["a has dropped out"]}, "no inventory has it any more"


def test_groups_keep_together_where_the_inventory_mixes_them() -> None:
    apart = {"host": "x", "services": [{"name": "sglang-one", "action": "start", "group": ()}]}
    known = hostvars(a=plan("a", "start"), x=apart, b=plan("b", "start"))
    assert groups.units(["a", "x", "b"], known) == [["a", "b"], ["x"]]


def in_pair(due: Due = together.NOTHING, **changes: Any) -> Wanted:
    spread = deployment(tensor_parallel_size=2, nodes=2)
    pair = Group({"gpu-1": "192.0.2.1", "gpu-2": "192.0.2.2"})
    facts = host(interface="eno1")
    return Wanted(placed(spread, pair, facts), IMAGE, group=pair.hosts, due=due, **changes)


def test_a_member_that_is_as_it_should_be_restarts_with_its_group() -> None:
    first = plan_host([in_pair()], host(interface="eno1"), Settings())
    assert first.services[0].gate["group"] == ["gpu-1", "gpu-2"]
    as_is = host(interface="eno1", services=[deployed(first)])
    assert plan_host([in_pair()], as_is, Settings()).steps == ()
    (service,) = plan_host([in_pair(Due("restart", "gpu-2"))], as_is, Settings()).services
    assert (service.action, service.release) == ("restart", first.services[0].release)
    assert service.why == "gpu-2, which serves it together with this host, starts"
    assert service.outage.startswith("requests in flight")
    (asked,) = plan_host([in_pair(Due("check", "gpu-2"))], as_is, Settings()).services
    assert (asked.action, asked.outage) == ("check", "none")


def test_the_container_has_what_crosses_hosts() -> None:
    facts = host(interface="ib0", infiniband=True)
    spread = in_pair()
    (service,) = plan_host([spread], facts, Settings()).services
    unit = service.unit.replace("\\\n    ", "")
    for words in (
        "--network host", "--ipc host", "--ulimit memlock=-1", "--device /dev/infiniband", "--cap-add IPC_LOCK",
        "--env NCCL_SOCKET_IFNAME=eno1", "--env GLOO_SOCKET_IFNAME=eno1", "--nnodes 2 --node-rank 0",
    ):  # fmt: skip
        assert words in unit
    alone = plan_host([Wanted(deployment(), IMAGE)], facts, Settings()).services[0]
    assert "/dev/infiniband" not in alone.unit
    assert alone.gate.get("group") is None
