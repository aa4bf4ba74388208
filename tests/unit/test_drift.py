"""Hosts that are not as they were left, or not alike."""

from __future__ import annotations

from typing import Any

from sglang_ops.drift import Drift, drift
from sglang_ops.planning.status import status


def row(host: str, release: str = "a", **more: Any) -> dict[str, Any]:
    return {"host": host, "name": "sglang-m", "release": release, **more}


def test_alike_is_no_drift() -> None:
    assert drift([row("h1"), row("h2")], ["h1", "h2"]) == ()
    assert drift([row("h1", "a"), row("h2", "b")], ["h1", "h2"]) == ()  # nobody can tell which is right
    assert drift([row("h1")], ["h1", "h2"]) == ()  # one of two hosts: as well meant so


def test_a_host_that_lacks_it_or_runs_another_release_is_named() -> None:
    rows = [row("h1"), row("h2"), row("h3", "b")]
    assert drift(rows, ["h1", "h2", "h3", "h4"]) == (
        Drift("h4", "sglang-m", "is not deployed here, and is on 3 other hosts"),
        Drift("h3", "sglang-m", "runs release b, and 2 hosts run a"),
    )


def test_what_a_host_says_of_itself() -> None:
    service = {"name": "m", "release": "a", "unit": "x", "released_unit": "y", "probe": {"ok": True, "layers": []}}
    record = {"id": "r", "who": "me", "started": 1, "paused": None, "file": {"port": 1}}
    (shown,) = status({"services": [service | {"rollout": record}]}, [])
    assert (shown["changed_by_hand"], "file" in shown["rollout"]) == ("its unit was changed by hand", False)
    assert [item.what for item in drift([shown | {"host": "h"}], ["h"])] == [
        "its unit was changed by hand",
        "waits for a roll-out that me began",
    ]
    paused = shown | {"host": "h", "changed_by_hand": "", "rollout": record | {"paused": {"who": "you"}}}
    assert drift([paused], ["h"])[0].what == "waits for a roll-out that you paused"


def test_a_host_that_left_its_group_is_named() -> None:
    pair = {"group": ["h1", "h2"]}
    both = [row("h1", "a", **pair), row("h2", "b", **pair)]
    assert drift(both, ["h1", "h2"]) == ()
    what = "is not deployed here, and h1 would serve it together with this host"
    assert drift(both[:1], ["h1", "h2"]) == (Drift("h2", "sglang-m", what),)
    assert drift(both[:1], ["h1"]) == ()  # h2 did not answer, and is named as such
    moved = [both[0], row("h2", "b", group=["h2", "h3"]), row("h3", "c", group=["h2", "h3"])]
    assert [item.host for item in drift(moved, ["h1", "h2", "h3"])] == ["h2"]


def test_a_server_that_is_in_no_inventory_any_more_is_named() -> None:
    known = {"url": "http://192.0.2.1:8000", "stranger": False}
    gone = {"url": "http://192.0.2.9:8000", "stranger": True}
    front = {"host": "gw", "service": "sglang-m-gateway", "workers": [known, gone]}
    (named,) = drift([row("h1")], ["h1"], [front])
    what = "still has http://192.0.2.9:8000, which no host of the inventory is"
    assert named == Drift("gw", "sglang-m-gateway", what)
    assert drift([row("h1", endpoint=gone["url"])], ["h1"], [front, {**front, "workers": None}]) == ()
