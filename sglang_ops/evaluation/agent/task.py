"""What the tasks of every harness have in common: their environment, their commands, their clock, what they leave."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .store import Store


class Problem(Exception):
    """Why a task cannot be asked or scored, in one sentence."""


class Task(abc.ABC):
    """One task of the run. `item` is its part of job.json, `variables` its own environment."""

    def __init__(
        self, item: Mapping[str, Any], job: Mapping[str, Any], directory: Path, variables: Mapping[str, str]
    ) -> None:
        self.item, self.job, self.directory, self.variables = item, job, directory, variables
        self.name: str = item["name"]

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.update(self.variables)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    @property
    def data(self) -> Path:
        """The task's own data, if it was given some."""
        return self.directory / "data" / str(self.item.get("data") or self.name)

    @property
    def work(self) -> Path:
        """Where the harness finds its data and leaves its files."""
        return self.directory / "work" / self.name

    @abc.abstractmethod
    def check(self) -> dict[str, Any]:
        """Items, data, harness and primary metric of the task. Raises Problem."""

    @abc.abstractmethod
    def ask(self, proxy: str, store: Store) -> tuple[list[Any], Iterable[dict[str, Any]]]:
        """Ask and score all; what the harness said of each pass, and the lines of samples.jsonl."""

    def run(self, proxy: str, store: Store) -> None:
        """Ask and score every item; what is in the store is not asked. Nothing is done for a task that is over."""
        target = self.directory / "results" / self.name
        if (target / "samples.jsonl").exists():
            return
        started, clock = now(), time.monotonic()
        try:
            self._command("pre_cmd")
            raw, rows = self.ask(proxy, store)
        finally:
            self._command("post_cmd")
            store.spend(self.name, started, now(), time.monotonic() - clock)
        target.mkdir(parents=True, exist_ok=True)
        write(target / "harness.json", json.dumps({"results": raw, "timings": store.spent(self.name)}, default=str))
        write(target / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))

    def _command(self, name: str) -> None:
        for text in filter(None, self.item.get(name) or ()):
            subprocess.run(["/bin/sh", "-ec", text], check=True)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - for Python 3.10


def read(path: Path) -> dict[str, Any]:
    """A JSON file, {} where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def write(path: Path, text: str) -> None:
    """Write a file whole, by a rename, and see that the disk has it."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
