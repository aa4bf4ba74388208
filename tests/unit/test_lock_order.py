"""Hosts are locked in one order for everybody, so that of two operators who overlap exactly one proceeds."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from sglang_ops import lock_order, lock_turns
from sglang_ops.grip import undisturbed
from sglang_ops.lock_turns import Turns


def test_the_order_is_that_of_names_with_numbers_by_value() -> None:
    assert lock_order.ordered(["gpu-10", "gpu-9", "a", "7", "gpu-1b", "gpu-1"]) == [
        "7", "a", "gpu-1", "gpu-1b", "gpu-9", "gpu-10",
    ]  # fmt: skip
    names = ["x1", "x01", "1x", "x", "", "10.0.0.9", "10.0.0.10"]
    shuffled = [lock_order.ordered(list(order)) for order in itertools.islice(itertools.permutations(names), 500)]
    assert all(order == shuffled[0] for order in shuffled)


def test_hosts_with_nothing_to_do_ask_for_no_lock() -> None:
    def planned(*steps: str) -> dict[str, Any]:
        return {lock_order.RESULT: {"sglang_ops": {"kind": "plan", "plan": {"steps": list(steps)}}}}

    back = {lock_order.RESULT: {"sglang_ops": {"kind": "target", "services": []}}}
    hostvars = {"b": planned("start"), "a": planned("image"), "done": planned(), "not-asked": {}, "stays": back}
    assert lock_order.locking(list(hostvars), hostvars) == ["a", "b", "not-asked"]


class Hosts:
    """Hosts as their kernels see them: one holder each, and everything takes its time."""

    def __init__(self, seed: int) -> None:
        self.holders: dict[str, str] = {}
        self.random = random.Random(seed)  # noqa: S311 - which operator is faster shall vary

    async def pause(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def take(self, who: str, host: str) -> dict[str, Any]:
        await self.pause()
        if self.holders.setdefault(host, who) == who:
            return {"held": who}
        return {"busy": self.holders[host]}


async def operate(hosts: Hosts, who: str, wanted: Sequence[str]) -> bool:
    """What the keeper does for an operator; whether all hosts are theirs. What they have they keep until the end."""
    turns = Turns()
    turns.plan(lock_order.ordered(wanted))

    async def lock(host: str) -> bool:
        turns.ask(host)
        await hosts.pause()
        if not await turns.mine(host):
            return False
        answer = await hosts.take(who, host)
        await turns.had(host, answer)
        return "held" in answer

    got = await asyncio.gather(*(lock(host) for host in hosts.random.sample(wanted, len(wanted))))
    return all(got)


@pytest.mark.parametrize("sets", [("1234", "1234"), ("12", "23"), ("13", "23"), ("123", "345"), ("12", "23", "13")])
def test_of_operators_who_overlap_exactly_one_proceeds(sets: tuple[str, ...]) -> None:
    async def race(seed: int) -> list[bool]:
        hosts = Hosts(seed)
        return list(await asyncio.gather(*(operate(hosts, f"operator {n}", one) for n, one in enumerate(sets))))

    for seed in range(300):
        assert sum(asyncio.run(race(seed))) == 1, f"seed {seed}"


def test_a_host_that_was_not_expected_has_its_turn_too() -> None:
    async def second_first() -> bool:
        turns = Turns()
        turns.plan(["a", "c"])
        for host in ("c", "b", "a"):
            turns.ask(host)
        waiting = asyncio.create_task(turns.mine("b"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await turns.had("a", {"held": {}})
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(second_first())


def test_a_host_that_never_asks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_turns, "STUCK_SECONDS", 0.05)

    async def last_alone() -> bool:
        turns = Turns()
        turns.plan(["a", "b", "c"])
        turns.ask("c")
        return await asyncio.wait_for(turns.mine("c"), 5)

    assert asyncio.run(last_alone())


@pytest.mark.parametrize(
    ("before", "alone"),
    [("boot1:3", True), ("boot1:4", False), ("boot2:0", True), ("boot2:1", False), ("boot2:3", False)],
)
def test_a_lock_that_somebody_had_in_between_is_not_taken_back(before: str, alone: bool) -> None:
    first = {"held": {"who": "me", "count": 3}, "before": "boot1:2"}
    assert undisturbed(first, {"held": {"who": "me"}, "before": before}) is alone
