"""Why a host cannot take the deployment: the value, the limit, what to change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One reason; `check` is a stable word that scripts may rely on."""

    check: str
    message: str
