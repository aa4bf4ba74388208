"""Caches of compiled kernels that hosts may hand to each other: which a host lacks, which it has to give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_ops.planning.facts import HostFacts
from sglang_ops.planning.jit import SHARED
from sglang_ops.planning.service import RUNNING, ServicePlan
from sglang_ops.planning.settings import Settings


def lacking(services: Sequence[ServicePlan], facts: HostFacts, settings: Settings) -> tuple[dict[str, Any], ...]:
    """Caches that services about to start would have to fill.

    Not one that a running server has mounted: it would go on writing into what was there before.
    """
    mounted = {service.record.get("jit") for service in facts.services if service.state in RUNNING}
    starting = dict.fromkeys(service.jit for service in services if service.jit and service.action in _STARTING)
    wanted = [path for path in starting if path not in mounted and path not in facts.kernels]
    return tuple(_cache(path, facts) for path in wanted if settings.peer_port)


def compiled(services: Sequence[ServicePlan], facts: HostFacts, settings: Settings) -> tuple[dict[str, Any], ...]:
    """Caches with something in them, of which a server here shows that they are good: it serves."""
    serving = {service.record.get("jit") for service in facts.services if service.probe.ok}
    named = dict.fromkeys(service.jit for service in services if service.jit in serving)
    return tuple(_cache(path, facts) for path in named if path in facts.kernels and settings.peer_port)


_STARTING = ("start", "restart")


def _cache(path: str, facts: HostFacts) -> dict[str, Any]:
    """What must be the same on both hosts (`key`, `machine`), and where it is; `parts` are what services share."""
    key = path.rpartition("/")[2]
    return {"key": key, "machine": facts.machine, "path": path, "parts": sorted(SHARED.values())}
