"""Hosts that serve one model together: what the plan of one means for the others, and when a group goes no further."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ops import groups
from sglang_ops.planning import together
from sglang_ops.planning.together import Due, Mate

PAIR = ["a", "b"]


def plan(host: str, action: str, **more: Any) -> dict[str, Any]:
    service = {"name": "sglang-big", "kind": "server", "action": action, "group": PAIR}
    return {"host": host, "services": [service], **more}


def hostvars(**plans: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host: {groups.RESULT: {"sglang_ops": {"kind": "plan", "plan": made}}} for host, made in plans.items()}


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
    assert list(together.lost([Mate("b", True, {"failed": True, "msg": "it crashed"})], "gate")) == ["b: it crashed"]
    assert list(together.lost([Mate("b", True, done)], "soak")) == ["b did not come that far"]
    assert list(together.lost([Mate("b", True, {})], "")) == ["b did not come that far"]
    assert list(together.lost([Mate("b", False, done)], "gate")) == ["b has dropped out"]


def test_a_group_is_held_by_a_member_that_failed_or_left_the_play() -> None:
    service = plan("a", "restart")["services"]
    known = {**hostvars(a=plan("a", "restart"), b=plan("b", "restart"))}
    known["b"]["said"] = {"failed": True, "msg": "no space"}
    variables = {"inventory_hostname": "a", "ansible_play_hosts": PAIR, "hostvars": known}
    assert groups.apart(service, "", ["said"], variables) == {"sglang-big": ["b: no space"]}
    assert groups.apart(service, "", [], variables) == {}
    variables["ansible_play_hosts"] = ["a"]
    assert groups.apart(service, "", [], variables) == {"sglang-big": ["b has dropped out"]}


def test_groups_keep_together_where_the_inventory_mixes_them() -> None:
    apart = {"host": "x", "services": [{"name": "sglang-one", "action": "start", "group": ()}]}
    known = hostvars(a=plan("a", "start"), x=apart, b=plan("b", "start"))
    assert groups.units(["a", "x", "b"], known) == [["a", "b"], ["x"]]
    assert groups.in_order(["a", "x", "b", "gw"], ["x", "b", "a"], known) == ["a", "b", "x"]
    assert groups.in_order(["a", "b"], [], known) == []
