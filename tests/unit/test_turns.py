"""In which order the services of a host change, and which go back together: sglang_ops/turns.py."""

from __future__ import annotations

from typing import Any

from sglang_ops.turns import asides, back, copies, leaving, returned, surging, tried, turns


def service(name: str, action: str = "restart", *, gateway: str = "g", model: str = "m", **more: Any) -> dict[str, Any]:
    behind = [{"host": "h", "service": gateway, "url": f"http://a/{name}"}] if gateway else []
    return {
        "name": name, "action": action, "gateways": behind, "gate": {"served_model_name": model},
        "release": "new", "deployed_stable": "old", **more,
    }  # fmt: skip


def names(groups: list[Any]) -> list[list[str]]:
    return [[item["name"] for item in group] for group in groups]


def test_replicas_behind_a_gateway_change_one_by_one() -> None:
    assert names(turns([service("a-1"), service("a-2"), service("b", gateway="")])) == [["b"], ["a-1"], ["a-2"]]


def test_what_does_not_run_is_started_together_and_first() -> None:
    services = [service("a-1"), service("a-2", "start"), service("a-3", "start"), service("a-4", "none")]
    assert names(turns(services)) == [["a-2", "a-3"], ["a-1"]]
    assert turns([service("a", "none")]) == []


def test_services_without_a_gateway_change_together() -> None:
    assert names(turns([service("a", gateway=""), service("b", gateway="")])) == [["a", "b"]]


def test_a_rollback_goes_the_same_way() -> None:
    services = [service("a-1"), service("a-2", "stop"), service("b", "stop", gateway="")]
    assert names(turns(services)) == [["b"], ["a-1"], ["a-2"]]


def test_one_that_answers_and_is_only_asked_again_stays_behind_its_gateway() -> None:
    services = [service("a", "check", healthy=True), service("b", "check", healthy=False), service("c")]
    assert [entry["url"] for entry in leaving(services)] == ["http://a/b", "http://a/c"]


def test_copies_that_changed_before_go_back_the_last_one_first() -> None:
    services = [service("a-1"), service("other", model="n"), service("a-2"), service("a-3")]
    assert [item["name"] for item in copies(services, 3)] == ["a-2", "a-1"]
    assert copies(services, 0) == []
    assert back(copies(services, 3)[0])["to"] == "old"


def test_a_copy_that_had_no_stable_release_stays() -> None:
    services = [service("a-1", "start", deployed_stable=None), service("a-2")]
    assert copies(services, 1) == []
    assert copies([service("a-1", "check"), service("a-2")], 1) == []


def test_hosts_of_a_group_see_the_same_turns() -> None:
    pair = {"group": ("a", "b")}
    first = [service("x", **pair), service("y", **pair)]
    second = [service("x", "start", gateway="", **pair), service("y", "check", gateway="", **pair)]
    assert names(turns(first)) == names(turns(second)) == [["x"], ["y"]]
    assert names(turns([*first, service("z", "start", gateway="", group=())])) == [["x", "y", "z"]]
    assert copies(first, 1) == []


def test_a_service_with_another_port_leaves_by_both_and_comes_back_by_the_old_one() -> None:
    old = {"host": "h", "service": "g", "url": "http://a/old"}
    moved = service("a", former=[old])
    assert [entry["url"] for entry in leaving([moved])] == ["http://a/a", "http://a/old"]
    assert returned([moved, service("b")]) == [old, *service("b")["gateways"]]


def test_second_servers_and_what_is_left_of_them() -> None:
    aside, image = {"name": "a-surge", "gateways": []}, {"image": "i", "image_digest": "d"}
    one = service("a", surge={"name": "a-surge"}, aside=aside, content={"model": {"commit": "c"}}, **image)
    assert (surging([one, service("b")]), asides([one, service("b")])) == ([{"name": "a-surge"}], [aside])
    (change,) = tried([one, service("b")], {"who": "me", "rollout": "r"})
    told = {"name": "a", "verb": "deploy", "release": "new", "model": "c"}
    assert change == {"who": "me", "rollout": "r", **told, **image}
