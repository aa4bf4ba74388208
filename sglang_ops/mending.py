"""Which of a host's problems `provision` mends, and by which of its parts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sglang_ops.diagnosed import Host
from sglang_ops.provisioned import PARTS

# By the check's name. What is not here needs a person: hardware, firmware, the deployment file, the network.
PART_OF = {
    "driver": "driver",
    "driver-mismatch": "driver",
    "driver-version": "driver",
    "fabric-manager": "driver",
    "kernel-headers": "driver",
    "nouveau": "driver",
    "persistence": "driver",
    "cdi": "engine",
    "engine": "engine",
    "toolkit": "engine",
}


@dataclass(frozen=True)
class Mending:
    """Parts to be provisioned on hosts, because of these checks."""

    hosts: tuple[str, ...]
    parts: tuple[str, ...]
    checks: tuple[str, ...]


def mendings(hosts: Iterable[Host]) -> tuple[Mending, ...]:
    """What to run for hosts that are not fit: those that need the same parts together."""
    alike: dict[tuple[str, ...], list[Host]] = {}
    for host in hosts:
        needed = {PART_OF[check] for check in _mendable(host)}
        if needed:
            alike.setdefault(tuple(part for part in PARTS if part in needed), []).append(host)
    return tuple(
        Mending(
            hosts=tuple(host.host for host in group),
            parts=parts,
            checks=tuple(dict.fromkeys(check for host in group for check in _mendable(host))),
        )
        for parts, group in alike.items()
    )


def _mendable(host: Host) -> list[str]:
    return [problem.check for problem in host.problems if problem.check in PART_OF]
