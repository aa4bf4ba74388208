"""Which hosts stop for a reboot, and how many at a time: sglang_ops/reboots.py."""

from __future__ import annotations

from typing import Any

from sglang_ops import reboots


def told(*groups: list[str], reboot: bool = False, failed: bool = False) -> dict[str, Any]:
    """What a host's variables hold once its driver is installed."""
    shared = [{"name": f"sglang-{'-'.join(group)}", "group": group} for group in groups]
    return {reboots.DRIVER: {"failed": failed, "sglang_ops": {"reboot": reboot, "shared": shared}}}


PAIR = ["a", "c"]
FLEET = {
    "a": told(PAIR), "b": told(reboot=True), "c": told(PAIR, reboot=True), "d": told(), "e": told(reboot=True),
    "front": {},
}  # fmt: skip


def test_a_host_that_serves_together_with_one_that_is_rebooted_stops_with_it() -> None:
    assert reboots.rebooting(list(FLEET), FLEET) == ["a", "c", "b", "e"]
    assert reboots.rebooting(["a", "d"], FLEET) == []
    assert reboots.rebooting([], {}) == []


def test_hosts_that_serve_together_are_in_one_batch() -> None:
    names = reboots.rebooting(list(FLEET), FLEET)
    assert reboots.batches(names, 1, "25%", FLEET) == [2, 1, 1]
    assert reboots.batches(names, 0, "2", FLEET) == [3, 1]
    assert reboots.batches([], 1, "25%", {}) == []


def test_a_host_whose_driver_could_not_be_installed_is_not_rebooted() -> None:
    assert reboots.rebooting(["a"], {"a": told(reboot=True, failed=True)}) == []
