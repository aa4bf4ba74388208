"""One model over several hosts: who belongs together, and what each is told."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sglang_ops.errors import PreflightError
from sglang_ops.planning import HostFacts, Settings, nodes
from sglang_ops.planning.facts import Listener, Service
from sglang_ops.planning.nodes import Group
from sglang_ops.rendering import render
from sglang_ops.spec import Deployment

HOSTS = ["a", "b", "c", "d"]
PAIR = Group({"a": "192.0.2.1", "b": "192.0.2.2"})


def deployment(**changes: Any) -> Deployment:
    made = {"served_model_name": "big", "hf_model_handle": "lab/big", "tensor_parallel_size": 2, "nodes": 2}
    return Deployment.model_validate(made | changes)


def facts(host: str, **changes: Any) -> HostFacts:
    return HostFacts(host=host, address=f"address-of-{host}", **changes)


def test_hosts_are_cut_into_groups_in_their_order() -> None:
    assert [nodes.group_of(deployment(), host, HOSTS, HOSTS) for host in HOSTS] == [
        ("a", "b"), ("a", "b"), ("c", "d"), ("c", "d"),
    ]


def test_a_remainder_is_refused() -> None:
    with pytest.raises(PreflightError) as refused:
        nodes.group_of(deployment(), "a", HOSTS[:3], HOSTS)
    assert refused.value.message == "sglang-big spreads over 2 hosts each (nodes), and 3 hosts are meant for it."
    assert "multiple of 2" in str(refused.value.fix)


def test_a_limit_that_cuts_a_group_is_refused() -> None:
    with pytest.raises(PreflightError, match="leaves out d"):
        nodes.group_of(deployment(), "c", HOSTS, ["a", "b", "c"])
    assert nodes.group_of(deployment(), "a", HOSTS, ["a", "b", "c"]) == ("a", "b")


def test_every_rank_is_told_its_place() -> None:
    first = nodes.placed(deployment(), PAIR, facts("a", interface="eno1"))
    second = nodes.placed(deployment(extra_args="--log-level info"), PAIR, facts("b", interface="eth7"))
    assert first.extra_args == ("--nnodes", "2", "--node-rank", "0", "--dist-init-addr", "192.0.2.1:18000")
    assert second.extra_args[:4] == ("--log-level", "info", "--nnodes", "2")
    assert (nodes.rank_of(first), nodes.rank_of(second)) == (0, 1)
    assert (nodes.leader(first), nodes.leader(second), nodes.leader(deployment(nodes=1))) == (*["192.0.2.1"] * 2, None)
    assert [first.env_vars[name].value for name in nodes.INTERFACES] == ["eno1", "eno1"]
    assert [second.env_vars[name].value for name in nodes.INTERFACES] == ["eth7", "eth7"]
    assert (PAIR.other("a"), PAIR.other("b")) == ("192.0.2.2", "192.0.2.1")


def test_the_file_chooses_the_interface_where_it_does() -> None:
    own = deployment(env_vars={"NCCL_SOCKET_IFNAME": "ib0"})
    made = nodes.placed(own, PAIR, facts("a", interface="eno1"))
    assert [made.env_vars[name].value for name in nodes.INTERFACES] == ["ib0", "eno1"]
    assert not set(nodes.INTERFACES) & set(nodes.placed(deployment(), PAIR, facts("a")).env_vars)


def test_ipv6_is_bracketed() -> None:
    made = nodes.placed(deployment(), Group({"a": "2001:db8::1", "b": "2001:db8::2"}), facts("a"))
    assert made.extra_args[-1] == "[2001:db8::1]:18000"
    assert nodes.leader(made) == "[2001:db8::1]"


def test_gpus_are_those_of_one_host() -> None:
    assert [deployment(tensor_parallel_size=16, nodes=count).gpus_needed for count in (1, 2, 4)] == [16, 8, 4]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tensor_parallel_size": 3}, "not divisible by 2 nodes"),
        ({"tensor_parallel_size": "auto"}, "auto plans one host"),
        ({"command": "python3 -m sglang.launch_server"}, "needs arguments of its own on every host"),
        ({"extra_args": "--node-rank 1"}, "--node-rank is set by the key nodes"),
        ({"nodes": 0}, "nodes"),
    ],
)
def test_what_cannot_be_is_refused_in_the_file(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        deployment(**changes)
    assert says in str(refused.value)


def test_the_meeting_port_is_free_or_our_own() -> None:
    first = nodes.placed(deployment(), PAIR, facts("a"))
    taken = facts("a", listeners=(Listener(port=18000, pid=7, process="nginx"),))
    (problem,) = nodes.check(first, taken, taken)
    assert problem.message.startswith("port 18000 on a, where the ranks would meet, is taken by nginx (pid 7).")
    ours = taken.model_copy(update={"services": (Service(name="sglang-big", state="active"),)})
    assert nodes.check(first, ours, ours) == []
    assert nodes.check(nodes.placed(deployment(), PAIR, facts("b")), taken, taken) == []
    assert nodes.meeting_port(deployment(port=60000)) == 50000


def test_what_may_keep_ranks_apart_is_told() -> None:
    known = nodes.placed(deployment(), PAIR, facts("a", interface="eno1"))
    assert list(nodes.warnings(known, facts("a", infiniband=True), Settings())) == []
    (limits,) = nodes.warnings(known, facts("a", infiniband=True), Settings(ulimits=("stack=67108864",)))
    assert "memlock=-1" in limits
    (interface,) = nodes.warnings(nodes.placed(deployment(), PAIR, facts("a")), facts("a"), Settings())
    assert "Set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME in env_vars" in interface
    assert list(nodes.warnings(deployment(nodes=1), facts("a", infiniband=True), Settings(ulimits=()))) == []


def test_infiniband_is_handed_in_where_it_is() -> None:
    assert nodes.flags(deployment(), facts("a", infiniband=True)) == nodes.INFINIBAND
    assert nodes.flags(deployment(), facts("a")) == ()
    assert nodes.flags(deployment(nodes=1), facts("a", infiniband=True)) == ()


def test_render_shows_the_first_host() -> None:
    (shown,) = render([deployment()])
    assert "--node-rank 0 --dist-init-addr HOST0:18000" in " ".join(shown.resolved.argv)
    assert any("HOST0 stands for" in warning for warning in shown.warnings)
