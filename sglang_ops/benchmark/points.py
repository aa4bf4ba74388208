"""What is measured: from the options of the command line to the arguments of SGLang's benchmark. Pure.

Random token ids, never random text: a tokenizer makes several times as many tokens of that. Every point has a seed of
its own, so that no prompt of one is in the prefix cache for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sglang_ops.errors import UsageError

MOST_POINTS = 50
MOST_PROMPTS = 100_000
RATE_SECONDS = 30  # how long requests come in at a rate, where their number is not given
GROUP = 8  # prompts that share a prefix
SHARED = 0.75  # of a prompt


class Data(StrEnum):
    """What the prompts have in common."""

    RANDOM = "random"
    SHARED_PREFIX = "shared-prefix"


@dataclass(frozen=True)
class Point:
    """One measurement. `request_rate` is in requests a second, None for as fast as `concurrency` allows."""

    name: str
    data: Data
    concurrency: int | None
    request_rate: float | None
    prompts: int
    arguments: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    *,
    data: Sequence[Data],
    concurrency: Sequence[int],
    rates: Sequence[float],
    input_len: int,
    output_len: int,
    prompts: int | None,
    seed: int,
) -> tuple[Point, ...]:
    """The points, in order. Lengths are in tokens. Raises UsageError."""
    loads: list[tuple[int | None, float | None]] = [(None, rate) for rate in rates] or [(n, None) for n in concurrency]
    if not loads or not data:
        raise UsageError("There is nothing to measure.", fix="Give --concurrency or --request-rate.")
    if len(loads) * len(data) > MOST_POINTS:
        raise UsageError(f"{len(loads) * len(data)} points are asked for, {MOST_POINTS} are the most.")
    found: list[Point] = []
    for kind in dict.fromkeys(data):
        for limit, rate in dict.fromkeys(loads):
            count = prompts or _prompts(limit, rate)
            load = f"{limit} at once" if limit else f"{rate:g}/s"
            arguments = [*_data(kind, count, input_len, output_len), "--seed", str(seed + len(found))]
            arguments += ["--max-concurrency", str(limit)] if limit else ["--request-rate", f"{rate:g}"]
            count = _whole_groups(count) if kind is Data.SHARED_PREFIX else count
            found.append(Point(f"{kind} {load}", kind, limit, rate, count, tuple(arguments)))
    return tuple(found)


def numbers(text: str, flag: str, kind: type[int] | type[float]) -> list[Any]:
    """A list such as 1,4,16 of numbers above zero. Raises UsageError."""
    found = []
    for word in text.split(","):
        try:
            value = kind(word)
        except ValueError:
            value = kind(0)
        if not 0 < value <= 100_000:
            what = "whole number" if kind is int else "number"
            raise UsageError(
                f"{flag} {text}: '{word}' is no {what} above 0, 100000 at most.", fix=f"Write {flag} 1,4,16."
            )
        found.append(value)
    return found


def _prompts(concurrency: int | None, rate: float | None) -> int:
    """Enough for a steady state: several rounds of all that run at once, or half a minute of a rate."""
    wanted = 4 * concurrency if concurrency else round((rate or 1) * RATE_SECONDS)
    return min(max(wanted, 16), MOST_PROMPTS)


def _data(kind: Data, count: int, input_len: int, output_len: int) -> list[str]:
    common = ["--tokenize-prompt"]
    if kind is Data.RANDOM:
        return [
            "--dataset-name", "random-ids", *common, "--num-prompts", str(count), "--random-input-len", str(input_len),
            "--random-output-len", str(output_len), "--random-range-ratio", "1",
        ]  # fmt: skip
    shared = max(1, round(input_len * SHARED))
    return [
        "--dataset-name", "generated-shared-prefix", *common, "--gsp-num-groups", str(_whole_groups(count) // GROUP),
        "--gsp-prompts-per-group", str(GROUP), "--gsp-system-prompt-len", str(shared),
        "--gsp-question-len", str(max(1, input_len - shared)), "--gsp-output-len", str(output_len),
        "--num-prompts", str(_whole_groups(count)),
    ]  # fmt: skip


def _whole_groups(count: int) -> int:
    return -(-count // GROUP) * GROUP
