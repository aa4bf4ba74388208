"""``bench.json``: what was measured, on which hosts and servers; reading, writing, comparing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_ops.evaluation.files import write_text
from sglang_ops.evaluation.results import ResultError

SCHEMA: Final = 1
FILE = "bench.json"
# Columns of tables: what SGLang's benchmark calls it, what it is here, whether more is better.
MEASURES = (
    ("request_throughput", "req/s", True),
    ("output_throughput", "out tok/s", True),
    ("total_throughput", "tok/s", True),
    ("median_ttft_ms", "TTFT p50 ms", False),
    ("p99_ttft_ms", "TTFT p99 ms", False),
    ("median_tpot_ms", "TPOT p50 ms", False),
    ("p99_tpot_ms", "TPOT p99 ms", False),
    ("median_e2e_latency_ms", "E2E p50 ms", False),
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Measured(_Part):
    """One point. `measured` holds the numbers of SGLang's benchmark under its names; times are in ms, rates per second.

    `error` says why there are none; `seconds` is how long the point took with the start of the program.
    """

    name: str
    data: str
    concurrency: int | None
    request_rate: float | None
    prompts: int
    arguments: tuple[str, ...]
    measured: dict[str, float | None]
    error: str | None
    seconds: float


class Server(_Part):
    """A server that was measured, and its points."""

    host: str
    service: str
    release: str
    image: str
    image_digest: str
    model: str
    server_arguments: tuple[str, ...]
    points: tuple[Measured, ...]


class Bench(_Part):
    """One run of `bench`."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    run: str
    who: str
    started: str
    seconds: float
    parameters: dict[str, Any]
    servers: tuple[Server, ...]


@dataclass(frozen=True)
class Change:
    """One measure of one point in two runs; `change` is a share of the first."""

    host: str
    point: str
    measure: str
    first: float
    second: float
    change: float
    better: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write(path: Path, bench: Bench) -> Path:
    """Write bench.json into the run's folder. Raises ResultError."""
    file = path / FILE
    write_text(file, json.dumps(bench.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n")
    return file


def locate(run: str, output_dir: Path) -> Path:
    """The folder of a run, given as a directory or by name. Raises ResultError."""
    for path in (Path(run), output_dir / run):
        if (path / FILE).is_file():
            return path
    raise ResultError(f"There is no {FILE} in {run}, nor in {output_dir / run}.", fix="Give a run's folder.")


def read(path: Path) -> Bench:
    """Read a run's folder. Raises ResultError."""
    file = path / FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{file} cannot be read as JSON: {error}.", fix="Measure again.") from error
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        raise ResultError(f"{file} has schema {data.get('schema')}, this version reads schema {SCHEMA}.")
    try:
        return Bench.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultError(f"{file} is wrong: {where}: {first['msg']}.", fix="Measure again.") from error


def compare(first: Bench, second: Bench, *, different_hosts: bool = False) -> tuple[Change, ...]:
    """The measures of the points that both have. Raises ResultError where the two measured something else."""
    for key in ("input_len", "output_len"):
        one, other = (bench.parameters.get(key) for bench in (first, second))
        if one != other:
            raise ResultError(
                f"{first.run} was measured with {key} {one}, {second.run} with {other}: they do not compare.",
                fix="Measure both with the same lengths.",
            )
    found = [
        Change(a.host, old.name, name, before, after, after / before - 1, after > before if more else after < before)
        for a, b in pairs(first.servers, second.servers, different_hosts=different_hosts)
        for old in a.points
        for new in b.points
        if _same(old, new)
        for name, _, more in MEASURES
        if (before := old.measured.get(name)) and (after := new.measured.get(name))
    ]
    if not found:
        raise ResultError(f"{first.run} and {second.run} have no point in common.", fix="Measure the same points.")
    return tuple(found)


def flags(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """A server's arguments as flags with their values; `--tp-size=2` is `--tp-size 2`."""
    found: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or not found:
            found.append(word.split("=", 1) if word.startswith("--") else [word])
        else:
            found[-1].append(word)
    return [tuple(flag) for flag in found]


def _same(old: Measured, new: Measured) -> bool:
    return (old.data, old.concurrency, old.request_rate) == (new.data, new.concurrency, new.request_rate)


def pairs(first: Sequence[Server], second: Sequence[Server], *, different_hosts: bool) -> list[tuple[Server, Server]]:
    """The servers that compare. Raises ResultError where there are none."""
    there = {server.host: server for server in second}
    found = [(server, there[server.host]) for server in first if server.host in there]
    if not found and different_hosts and len(first) == len(second) == 1:
        return [(first[0], second[0])]
    if not found:
        names = [", ".join(server.host for server in servers) or "no host" for servers in (first, second)]
        raise ResultError(
            f"The runs have no host in common: {names[0]}; {names[1]}.",
            fix="Measure both on one host, or compare one host with another by --different-hosts.",
        )
    return found
