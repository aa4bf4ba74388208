"""Scripted answers: what a test wants to be answered to which prompt, for scores that are known beforehand.

The file that `SGLANG_SIMULATOR_ANSWERS` names has one JSON object a line:

    {"contains": "capital of France", "answer": "Paris", "reasoning": null, "seconds": 0.2, "status": 500, "times": 2}

The first line whose `contains` is in the prompt is taken. `answer: null` is an answer without content. With `status`,
the first `times` requests (all, without it) get that HTTP status instead. `seconds` is how long the answer takes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Scripted:
    """One line of the file; `times` counts down."""

    contains: str
    answer: str | None = None
    reasoning: str | None = None
    seconds: float = 0.0
    status: int = 200
    times: int | None = None

    def refusal(self) -> int | None:
        """The status to refuse this request with, None to answer it."""
        if self.status == 200 or self.times == 0:
            return None
        if self.times is not None:
            self.times -= 1
        return self.status


def load(path: str) -> list[Scripted]:
    """The answers of a file, none without one. Raises ValueError with the line that is none."""
    found = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines() if path else (), start=1):
        try:
            found.append(Scripted(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"SGLANG_SIMULATOR_ANSWERS: line {number} of {path}: {error}") from error
    return found
