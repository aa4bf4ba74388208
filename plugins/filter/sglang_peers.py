"""Which hosts of a play shall share what others lack, and which can have compiled kernels from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.fleet import fleet
from sglang_ops.peers import receivers, seeds


def sglang_seeds(names: list[str], hostvars: Any, batch: list[str], port: int) -> list[str]:
    """Of the hosts `names`, those that need nothing themselves and have what a host of `batch` lacks."""
    return seeds(fleet(hostvars, names, batch, int(port)))


def sglang_receivers(names: list[str], hostvars: Any, batch: list[str], port: int) -> list[str]:
    """Of the hosts `names`, those that can have compiled kernels from another one."""
    return receivers(fleet(hostvars, names, batch, int(port)))


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"sglang_seeds": sglang_seeds, "sglang_receivers": sglang_receivers}
