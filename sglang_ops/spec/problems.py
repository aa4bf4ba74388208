"""What can be wrong with a deployment file, as data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sglang_ops.errors import PreflightError


@dataclass(frozen=True)
class SpecProblem:
    """One mistake: where it is (dotted path, 1-based line), what it is, what to write instead."""

    path: str
    line: int | None
    message: str
    fix: str | None = None

    def __str__(self) -> str:
        where = self.path or "file"
        line = f" (line {self.line})" if self.line else ""
        fix = f" {self.fix}" if self.fix else ""
        return f"{where}{line}: {self.message}{fix}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class SpecErrors(PreflightError):
    """The deployment file cannot be used; `errors` lists every mistake found, not only the first."""

    def __init__(self, source: str, errors: Sequence[SpecProblem]) -> None:
        self.source = source
        self.errors = list(errors)
        count = "a mistake" if len(errors) == 1 else f"{len(errors)} mistakes"
        super().__init__("\n".join([f"{source} has {count}:", *(f"  {error}" for error in errors)]))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """`Did you mean 'x'?` for the closest known word, or None when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else None
