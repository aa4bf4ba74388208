"""Where other hosts reach a host, as the inventory tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def address_of(host: str, variables: Mapping[str, Any]) -> str:
    """The address of the host of that name; `variables` are its own. A local one has only itself to talk to."""
    local = variables.get("ansible_connection") == "local"
    return "127.0.0.1" if local else str(variables.get("ansible_host") or host)
