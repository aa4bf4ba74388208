"""How a change went from host to host, from the events of a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sglang_ops.errors import ExitCode
from sglang_ops.events import HostState, RunState

_WORDS = {ExitCode.DONE: "done", ExitCode.ROLLED_BACK: "rolled-back", ExitCode.PENDING: "paused"}


@dataclass(frozen=True)
class Rolled:
    """`batches` are the hosts that had their turn, in its order; `waiting` those that were to change and had none.

    `paused` says by whom, since when (seconds since the epoch) and why; it is empty where nothing is paused.
    """

    result: str
    batches: tuple[tuple[str, ...], ...]
    waiting: tuple[str, ...]
    paused: Mapping[str, Any]
    seconds: float

    @classmethod
    def from_run(cls, state: RunState, seconds: float) -> Rolled | None:
        """None where no host was to change, or none could."""
        due = [host for host in state.hosts.values() if _changes(host)]
        changing = [host for host in due if _changes(host, "gateway")] or due  # gateways change before, by themselves
        if not changing or state.exit_code() in (ExitCode.REFUSED, ExitCode.LOCKED):
            return None
        batches: dict[str, list[str]] = {}
        for host in changing:
            if _touched(host):
                batches.setdefault(_batch(host), []).append(host.name)
        ordered = [tuple(batches[key]) for key in sorted(batches, key=lambda key: int(key or -1))]
        waiting = tuple(host.name for host in changing if not _touched(host))
        paused = next((mark for host in changing if (mark := _paused(host))), {})
        code = state.exit_code()
        word = "paused" if paused and code is ExitCode.DONE else _WORDS.get(code, "needs-hands")
        return cls(word, tuple(ordered), waiting, paused, round(seconds, 2))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _changes(host: HostState, but: str = "") -> bool:
    """Whether a service of the host changes, other than those of the kind `but`."""
    services = (host.result("plan").get("plan") or host.result("target")).get("services") or ()
    return any(item.get("action") != "none" and _kind(item) != but for item in services)


def _kind(item: Mapping[str, Any]) -> str:
    return str(item.get("kind") or (item.get("gate") or {}).get("kind") or "server")


def _touched(host: HostState) -> bool:
    return bool(host.results.get("service") or host.results.get("gate")) or (bool(_batch(host)) and bool(host.failure))


def _batch(host: HostState) -> str:
    return next((str(told["batch"]) for told in host.results.get("turn", ()) if told.get("batch")), "")


def _paused(host: HostState) -> Mapping[str, Any]:
    marks = [told.get("paused") for kind in ("turn", "gate") for told in host.results.get(kind, ())]
    return next((mark for mark in marks if mark), {})
