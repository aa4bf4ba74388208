"""In which order the hosts of a run are locked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import lock_order, registered


class FilterModule:
    """What Ansible looks for; the decisions are in sglang_ops/lock_order.py."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return registered.cheaply({"sglang_lock_order": lock_order.ordered, "sglang_locking": lock_order.locking})
