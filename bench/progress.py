"""What a bench says while it is at work."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

Say = Callable[[str], None]


def teller(console: Console) -> Say:
    """Prints what it is given, in rich's markup, with the seconds since now before it."""
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.0f} s[/]  {text}", soft_wrap=True)

    return say
