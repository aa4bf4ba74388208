"""Every answer of a run, kept at once and for good: what is here is never asked again."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    task TEXT, repeat INTEGER, digest TEXT, occurrence INTEGER, answer TEXT NOT NULL,
    failed INTEGER NOT NULL, empty INTEGER NOT NULL, reasoning_only INTEGER NOT NULL,
    PRIMARY KEY (task, repeat, digest, occurrence)
);
CREATE TABLE IF NOT EXISTS spent (task TEXT PRIMARY KEY, started TEXT, ended TEXT, seconds REAL NOT NULL);
"""


@dataclass(frozen=True)
class Key:
    """One question of a run: the `occurrence`-th time that a request body with this digest is seen in a pass."""

    task: str
    repeat: int
    digest: str
    occurrence: int


@dataclass(frozen=True)
class Answer:
    """What came of a question. `failed` is why nothing came; latency in seconds, of the attempt that answered.

    `prompt` is a digest of what was asked, without the parameters; `host` who answered, where there are several.
    """

    response: dict[str, Any] | None = None
    failed: str | None = None
    latency: float | None = None
    attempts: int = 1
    prompt: str = ""
    host: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The first choice's message; a completion's text in the same form."""
        choice = self._choice
        message: dict[str, Any] = choice.get("message") or {"content": choice.get("text")}
        return message

    @property
    def content(self) -> str | None:
        text = self.message.get("content")
        return text if isinstance(text, str) else None

    @property
    def reasoning(self) -> str | None:
        text = self.message.get("reasoning_content")
        return text if isinstance(text, str) and text else None

    @property
    def finish_reason(self) -> str | None:
        return self._choice.get("finish_reason")

    @property
    def usage(self) -> dict[str, Any]:
        return (self.response or {}).get("usage") or {}

    @property
    def is_empty(self) -> bool:
        return not self.failed and not (self.content or "").strip() and not self.reasoning

    @property
    def is_reasoning_only(self) -> bool:
        return not self.failed and not (self.content or "").strip() and bool(self.reasoning)

    @property
    def _choice(self) -> dict[str, Any]:
        choices = (self.response or {}).get("choices") or [{}]
        return choices[0] if isinstance(choices[0], dict) else {}


class Store:
    """The answers of a run in one SQLite file; any thread may use it."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")  # a host that loses power keeps its answers
        self._connection.executescript(_SCHEMA)

    def get(self, key: Key) -> Answer | None:
        found = self._run(
            "SELECT answer FROM answers WHERE task=? AND repeat=? AND digest=? AND occurrence=?", *_columns(key)
        )
        return Answer(**json.loads(found[0][0])) if found else None

    def put(self, key: Key, answer: Answer) -> None:
        text = json.dumps({field.name: getattr(answer, field.name) for field in fields(answer)})
        flags = (bool(answer.failed), answer.is_empty, answer.is_reasoning_only)
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *_columns(key), text, *flags)

    def of_task(self, task: str) -> Iterator[tuple[Key, Answer]]:
        rows = self._run("SELECT task, repeat, digest, occurrence, answer FROM answers WHERE task=?", task)
        for *columns, text in rows:
            yield Key(*columns), Answer(**json.loads(text))

    def count(self, task: str) -> dict[str, int]:
        """done, failed, empty, reasoning_only: how many answers of a task there are, and of which kinds."""
        columns = "COUNT(*), COALESCE(SUM(failed), 0), COALESCE(SUM(empty), 0), COALESCE(SUM(reasoning_only), 0)"
        (counts,) = self._run(f"SELECT {columns} FROM answers WHERE task=?", task)  # noqa: S608 - columns are ours
        return dict(zip(("done", "failed", "empty", "reasoning_only"), counts, strict=True))

    def forget_failed(self) -> None:
        """Drop what failed for good, so that it is asked once more."""
        self._run("DELETE FROM answers WHERE failed")

    def spend(self, task: str, started: str, ended: str | None, seconds: float) -> None:
        """Add working time to a task; the first start is kept."""
        self._run(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT(task) DO UPDATE SET "
            "ended=excluded.ended, seconds=seconds+excluded.seconds",
            task, started, ended, seconds,
        )  # fmt: skip

    def spent(self, task: str) -> dict[str, Any]:
        rows = self._run("SELECT started, ended, seconds FROM spent WHERE task=?", task)
        return dict(zip(("started", "ended", "seconds"), rows[0], strict=True)) if rows else {}

    def _run(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def _columns(key: Key) -> tuple[Any, ...]:
    return tuple(asdict(key).values())
