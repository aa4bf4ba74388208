"""The run folder: what one invocation did, kept for people and for `history`.

``<state>/runs/<YYYYmmdd-HHMMSS>-<verb>-<4 hex>/`` (0700) holds

* ``run.json``       who, when, which verb, which inventory; written first, so that a killed run shows too
* ``events.ndjson``  Ansible's events, without module arguments
* ``ansible.log``    everything Ansible printed
* ``progress.ndjson`` what long steps reported while they ran
* ``config.yaml``    the deployment as it was resolved, secrets as references
* ``result.json``    the result, as ``--output json`` prints it

Secrets: the values known to the caller are replaced in everything that is written here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

from sglang_ops import identity

KEPT_CHANGES = 200  # newest runs kept of the verbs that change hosts
KEPT_READS = 50  # and of those that only look: a status every minute must not push the deploys out
READS = frozenset({"plan", "status", "logs", "verify", "history", "lock_status", "rollout_status"})
HIDDEN = "(hidden)"
SHORTEST_SECRET = 6  # shorter values would blacken ordinary words
EVENT_KEYS = ("event", "created", "counter")
DATA_KEYS = (
    "host",
    "remote_addr",
    "play",
    "task",
    "task_path",
    "resolved_action",
    "role",
    "res",
    "duration",
    "ignore_errors",
    "changed",
    "dark",
    "failures",
    "ignored",
    "ok",
    "processed",
    "rescued",
    "skipped",
)


def state_dir() -> Path:
    """$SGLANG_OPS_STATE, else sglang-ops in the XDG state directory."""
    own = os.environ.get("SGLANG_OPS_STATE")
    if own:
        return Path(own).absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sglang-ops"


@dataclass(frozen=True)
class RunRecord:
    """One line of `history`. `exit_code` is None while the run lasts, or if it was killed."""

    run: str
    verb: str
    started: str
    who: str
    inventory: tuple[str, ...]
    hosts: int | None = None
    exit_code: int | None = None
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RunFolder:
    """An open run folder. Use it as a context manager."""

    def __init__(self, path: Path, hidden: Iterable[str] = ()) -> None:
        self.path = path
        self._hidden = sorted({text for text in hidden if len(text) >= SHORTEST_SECRET}, key=len, reverse=True)
        self._events: TextIO = self._open("events.ndjson")
        self._log: TextIO = self._open("ansible.log")
        self._open("progress.ndjson").close()

    @classmethod
    def create(cls, verb: str, inventory: Sequence[str], hidden: Iterable[str] = ()) -> RunFolder:
        """Make the folder of a new run and drop the oldest ones."""
        now = datetime.now(UTC).astimezone()
        root = state_dir() / "runs"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = root / f"{now:%Y%m%d-%H%M%S}-{verb}-{secrets.token_hex(2)}"
        path.mkdir(mode=0o700)
        _prune(root, keep=path)
        folder = cls(path, hidden)
        record = RunRecord(path.name, verb, now.isoformat("T", "seconds"), identity.user(), tuple(inventory))
        folder.write_json("run.json", {key: value for key, value in record.as_dict().items() if value is not None})
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()
        self._log.close()
        if self.progress.exists():  # written by Ansible's side, which knows nothing of the hidden values
            self._write("progress.ndjson", self.progress.read_text(encoding="utf-8", errors="replace"))

    @property
    def log(self) -> Path:
        return self.path / "ansible.log"

    @property
    def progress(self) -> Path:
        return self.path / "progress.ndjson"

    def hide(self, values: Iterable[str]) -> None:
        """More secrets that must never be written here."""
        longest_first = {*self._hidden, *(text for text in values if len(text) >= SHORTEST_SECRET)}
        self._hidden = sorted(longest_first, key=len, reverse=True)

    def rewind(self) -> None:
        """Forget what was recorded so far: a watch keeps only its last look."""
        for file in (self._events, self._log):
            file.seek(0)
            file.truncate()

    def record(self, event: Mapping[str, Any]) -> None:
        """Keep one event of ansible-runner."""
        data = event.get("event_data") or {}
        kept: dict[str, Any] = {key: event[key] for key in EVENT_KEYS if key in event}
        kept["event_data"] = {key: data[key] for key in DATA_KEYS if key in data}
        result = kept["event_data"].get("res")
        if isinstance(result, dict):
            kept["event_data"]["res"] = {key: value for key, value in result.items() if key != "invocation"}
        self._events.write(self._clean(json.dumps(kept, default=str, ensure_ascii=False)) + "\n")
        text = str(event.get("stdout") or "")
        if text:
            self._log.write(self._clean(text) + "\n")

    def write_json(self, name: str, data: Any) -> None:
        self._write(name, json.dumps(data, indent=2, default=str, ensure_ascii=False) + "\n")

    def write_yaml(self, name: str, data: Any) -> None:
        self._write(name, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))

    def _write(self, name: str, text: str) -> None:
        with self._open(name) as file:
            file.write(self._clean(text))

    def _open(self, name: str) -> TextIO:
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="replace")  # whole lines, at once

    def _clean(self, text: str) -> str:
        for value in self._hidden:
            text = text.replace(value, HIDDEN)
            text = text.replace(json.dumps(value, ensure_ascii=False)[1:-1], HIDDEN)
        return text


def history() -> Iterator[RunRecord]:
    """Every kept run, newest first."""
    root = state_dir() / "runs"
    for path in sorted(root.glob("*-*-*-*"), reverse=True) if root.is_dir() else ():
        record = _read(path / "run.json")
        if not record:
            continue
        result = _read(path / "result.json")
        yield replace(
            RunRecord(**{**record, "inventory": tuple(record["inventory"])}),
            exit_code=result.get("exit_code"),
            seconds=result.get("seconds"),
            hosts=result.get("host_count"),
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _prune(root: Path, keep: Path) -> None:
    runs = sorted((path for path in root.iterdir() if path.is_dir() and path != keep), reverse=True)
    reads = [path for path in runs if _verb(path) in READS]
    changes = [path for path in runs if _verb(path) not in READS]
    for path in [*reads[KEPT_READS - 1 :], *changes[KEPT_CHANGES - 1 :]]:
        shutil.rmtree(path, ignore_errors=True)


def _verb(path: Path) -> str:
    return path.name.split("-")[2] if path.name.count("-") >= 3 else ""
