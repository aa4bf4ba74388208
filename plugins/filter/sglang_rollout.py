"""How many hosts change at a time, in which order, and when no further batch may begin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import groups, registered, rollout
from sglang_ops.planning import together


class FilterModule:
    """What Ansible looks for; the decisions are in sglang_ops/rollout.py."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {
            "sglang_batches": rollout.sizes_for,
            "sglang_batches_back": rollout.sizes_back,
            "sglang_in_turn": rollout.in_turn,
            "sglang_pulled": groups.pulled_by_mates,
            "sglang_grouped": together.grouped,
            "sglang_stops": rollout.stops_for,
            "sglang_paused": rollout.paused_for,
            "sglang_moved": rollout.moved_for,
            "sglang_turns_before": rollout.turns_before,
            "sglang_returning": rollout.returning,
            "sglang_stayed": rollout.stayed,
        }
        return registered.cheaply(found)
