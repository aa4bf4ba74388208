"""Who gets a model from whom: from the plans of a play's hosts alone."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from sglang_ops import fleet, peers
from sglang_ops.peers import Host, Kernels, Model
from sglang_ops.registered import RESULT

M = Model("lab/tiny", "c" * 40, "/hub")
N = Model("lab/other", "d" * 40, "/hub")


def lacking(*names: str, models: tuple[Model, ...] = (M,)) -> list[Host]:
    return [Host(name, f"{name}.lan", 7437, missing=models) for name in names]


def holding(*names: str, models: tuple[Model, ...] = (M,)) -> list[Host]:
    return [Host(name, f"{name}.lan", 7437, holds=models) for name in names]


def named(name: str, hosts: list[Host], model: Model = M) -> list[str]:
    return [host.name for host in peers.sources(name, model.key, hosts)]


def test_one_host_alone_is_told_nothing() -> None:
    assert peers.part_of("a", lacking("a")) == {}
    assert peers.part_of("a", [*lacking("a"), *holding("b", models=(N,))]) == {}


def test_the_first_asks_the_hub_and_each_other_the_one_before_it() -> None:
    hosts = lacking("a", "b", "c", "d")
    assert [named(host.name, hosts) for host in hosts] == [[], ["a"], ["b", "a"], ["c", "b", "a"]]
    assert peers.seeds(hosts) == []


def test_a_late_host_knows_a_few_before_it_and_the_origin() -> None:
    hosts = lacking(*"abcdefgh")
    assert named("h", hosts) == ["g", "f", "e", "a"]


def test_a_host_that_has_the_model_begins_the_chain() -> None:
    hosts = [*lacking("a", "b"), *holding("s", "t", "u")]
    assert named("a", hosts) == ["s", "t"]
    assert named("b", hosts) == ["a", "s", "t"]
    assert peers.seeds(hosts) == ["s", "t"]
    told = peers.part_of("s", hosts)
    assert told == {
        "name": "s", "port": 7437, "follow": [], "hosts": ["a", "b"],
        "holds": [{"repo": M.repo, "commit": M.commit, "hub": M.hub}], "kernels": [], "compiled": [],
    }  # fmt: skip
    assert peers.part_of("u", hosts) == {}


def test_the_last_of_a_chain_serves_nobody() -> None:
    hosts = lacking("a", "b")
    assert peers.part_of("a", hosts)["hosts"] == ["b"]
    last = peers.part_of("b", hosts)
    assert last["hosts"] == []
    assert last["follow"] == [
        {"repo": M.repo, "commit": M.commit, "turn": 1, "sources": [{"name": "a", "address": "a.lan", "port": 7437}]}
    ]


def test_a_host_that_lacks_one_model_and_has_another_serves_both_with_one_server() -> None:
    hosts = [Host("a", "a", 7437, missing=(N,), holds=(M,)), *lacking("b", models=(M, N))]
    assert peers.seeds(hosts) == []  # it starts its server with its own download
    told = peers.part_of("a", hosts)
    assert told["hosts"] == ["b"]
    assert [item["repo"] for item in told["holds"]] == [M.repo]
    followed = peers.part_of("b", hosts)["follow"]
    assert [(item["repo"], [each["name"] for each in item["sources"]]) for item in followed] == [
        (M.repo, ["a"]),
        (N.repo, ["a"]),
    ]


def test_another_commit_is_another_model() -> None:
    hosts = [*lacking("a"), *lacking("b", models=(Model(M.repo, "e" * 40, "/hub"),))]
    assert peers.part_of("b", hosts) == {}


def test_a_host_with_two_caches_that_lacks_it_in_one_is_no_holder() -> None:
    hosts = [Host("a", "a", 7437, missing=(M,), holds=(Model(M.repo, M.commit, "/other"),)), *lacking("b")]
    assert named("a", hosts) == []
    assert named("b", hosts) == ["a"]


K = Kernels("abababababab-NVIDIA-H200-lab-tiny", "0123456789ab", "/jit/abababababab-NVIDIA-H200-lab-tiny", ("triton",))


def starting(*names: str, kernels: Kernels = K) -> list[Host]:
    return [Host(name, f"{name}.lan", 7437, kernels=(kernels,)) for name in names]


def serving(*names: str, kernels: Kernels = K) -> list[Host]:
    return [Host(name, f"{name}.lan", 7437, compiled=(kernels,)) for name in names]


class TestKernels:
    """Compiled kernels come straight from hosts that run with them."""

    def test_nobody_has_them_so_nothing_is_done(self) -> None:
        hosts = starting("a", "b")
        assert peers.seeds(hosts) == []
        assert peers.receivers(hosts) == []
        assert peers.part_of("a", hosts) == {}

    def test_those_who_have_them_are_told_who_asks(self) -> None:
        hosts = [*starting("a"), *serving("s")]
        assert peers.seeds(hosts) == ["s"]
        assert peers.receivers(hosts) == ["a"]
        given = {"key": K.key, "path": K.path, "parts": ["triton"]}
        assert peers.part_of("s", hosts)["compiled"] == [given]
        assert peers.part_of("s", hosts)["hosts"] == ["a"]
        asked = peers.part_of("a", hosts)
        assert asked["kernels"] == [given | {"sources": [{"name": "s", "address": "s.lan", "port": 7437}]}]
        assert asked["hosts"] == []

    @pytest.mark.parametrize("other", [replace(K, key="x"), replace(K, machine="another processor")])
    def test_another_image_gpu_model_or_processor_is_no_source(self, other: Kernels) -> None:
        assert peers.receivers([*starting("a"), *serving("s", kernels=other)]) == []

    def test_where_it_lies_does_not_matter(self) -> None:
        hosts = [*starting("a"), *serving("s", kernels=replace(K, path="/nvme/jit/x"))]
        assert peers.part_of("a", hosts)["kernels"][0]["path"] == K.path
        assert peers.part_of("s", hosts)["compiled"][0]["path"] == "/nvme/jit/x"

    def test_two_hosts_give_and_the_load_is_spread(self) -> None:
        hosts = [*starting(*"abcd"), *serving("s", "t", "u")]
        first = [peers.part_of(name, hosts)["kernels"][0]["sources"][0]["name"] for name in "abcd"]
        assert sorted(first) == ["s", "s", "t", "t"]
        assert sorted(peers.seeds(hosts)) == ["s", "t"]

    def test_a_host_that_gets_a_model_serves_its_kernels_with_the_same_server(self) -> None:
        hosts = [Host("s", "s.lan", 7437, missing=(M,), compiled=(K,)), *starting("a")]
        assert peers.seeds(hosts) == []
        assert [item["key"] for item in peers.part_of("s", hosts)["compiled"]] == [K.key]


@given(st.lists(st.sampled_from(["lacks", "holds", "nothing"]), min_size=1, max_size=12))
def test_nobody_waits_in_a_circle(what: list[str]) -> None:
    """Sources come before a host, or have the model: so somebody always gets bytes, and all of them in the end."""
    hosts = [
        Host(str(number), str(number), 7437, (M,) if word == "lacks" else (), (M,) if word == "holds" else ())
        for number, word in enumerate(what)
    ]
    from_hub = 0
    for number, host in enumerate(hosts):
        found = [int(each.name) for each in peers.sources(host.name, M.key, hosts)] if host.missing else []
        assert all(what[each] == "holds" or each < number for each in found)
        assert number not in found
        from_hub += bool(host.missing) and not found
        for each in found:
            assert host.name in peers.part_of(str(each), hosts)["hosts"], "asked, and not serving"
    assert from_hub == (1 if "lacks" in what and "holds" not in what else 0)


def planned(**plan: Any) -> dict[str, Any]:
    return {RESULT: {"sglang_ops": {"kind": "plan", "plan": plan}}}


MODEL = {"repo": M.repo, "commit": M.commit, "hub": M.hub, "image": "i", "endpoint": ""}


class TestFleet:
    """From Ansible's variables to hosts."""

    def test_hosts_without_a_plan_are_left_out(self) -> None:
        hostvars = {"a": planned(models=[MODEL]), "b": {}, "c": {RESULT: {"unreachable": True}}}
        assert fleet.fleet(hostvars, list(hostvars), list(hostvars), 7437) == [Host("a", "a", 7437, missing=(M,))]

    def test_an_earlier_batch_has_by_now_what_it_lacked(self) -> None:
        hostvars = {"a": planned(models=[MODEL]), "b": planned(models=[MODEL])}
        found = fleet.fleet(hostvars, ["a", "b"], ["b"], 7437)
        assert found == [Host("a", "a", 7437, holds=(M,)), Host("b", "b", 7437, missing=(M,))]
        assert peers.seeds(found) == ["a"]

    def test_addresses(self) -> None:
        hostvars = {
            "a": planned(holds=[MODEL]),
            "b": planned(holds=[MODEL]) | {"ansible_host": "10.0.0.2"},
            "c": planned(holds=[MODEL]) | {"ansible_host": "10.0.0.3", "sglang_server_peer_address": "192.168.7.3"},
        }
        found = fleet.fleet(hostvars, list(hostvars), [], 7437)
        assert [host.address for host in found] == ["a", "10.0.0.2", "192.168.7.3"]

    def test_a_host_may_have_a_port_of_its_own_or_none(self) -> None:
        hostvars = {
            "a": planned(models=[MODEL]) | {"sglang_server_peer_port": 0},
            "b": planned(models=[MODEL]) | {"sglang_server_peer_port": "8000"},
            "c": planned(models=[MODEL]),
        }
        found = fleet.fleet(hostvars, list(hostvars), list(hostvars), 7437)
        assert [(host.name, host.port) for host in found] == [("b", 8000), ("c", 7437)]
        assert peers.part_of("a", found) == {}

    def test_compiled_kernels(self) -> None:
        item = {"key": K.key, "machine": K.machine, "path": K.path, "parts": ["triton"]}
        hostvars = {"a": planned(kernels=[item]), "b": planned(compiled=[item])}
        (one, other) = fleet.fleet(hostvars, ["a", "b"], ["a", "b"], 7437)
        assert (one.kernels, other.compiled) == ((K,), (K,))

    def test_what_the_module_is_told(self, tmp_path: Path) -> None:
        variables = {
            "hostvars": {"a": planned(models=[MODEL]), "b": planned(models=[MODEL])},
            "ansible_play_hosts": ["a", "b"],
            "ansible_play_batch": ["a", "b"],
        }
        told = fleet.told_to("b", variables, {"port": 7437}, tmp_path)
        assert (told["port"], told["address"], told["hosts"]) == (7437, "", [])
        assert told["identity"] == fleet.told_to("a", variables, {"port": 7437}, tmp_path)["identity"]
        assert fleet.told_to("b", variables, {"port": 0}, tmp_path) == {}

    def test_the_secret_is_the_owners_alone(self, tmp_path: Path) -> None:
        fleet.identity(tmp_path)
        assert stat.S_IMODE((tmp_path / "sglang-ops-peers.pem").stat().st_mode) == 0o600

    def test_every_run_has_another_secret_that_clocks_cannot_spoil(self) -> None:
        one, other = peers.identity(), peers.identity()
        assert one != other
        certificate = x509.load_pem_x509_certificate(one[one.index("-----BEGIN CERT") :].encode())
        assert certificate.not_valid_before_utc.year == 2000
        assert certificate.not_valid_after_utc.year > 2900
