"""Whether the server still is the one that the run began with: two models are never scored as one."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .task import write
from .upstream import Stalled

MARK = "replaced.json"  # written by whoever changes the service, before it changes
KNOWN = "identity.json"
_LOOK_SECONDS = 20.0  # between two looks at a server that has never been away
_MODEL = ("model_path", "tokenizer_path", "weight_version", "preferred_sampling_params")

Get = Callable[[str], tuple[int, str]]


class Replaced(Stalled):
    """Another release, or another model, answers now."""


class Identity:
    """What each server said of its model when the run began, kept over the lives of the run."""

    def __init__(self, directory: Path) -> None:
        self._mark, self._file = directory / MARK, directory / KNOWN
        self._known: dict[str, Any] = _kept(self._file)
        self._lock = threading.Lock()  # of what is known: every thread of the proxy looks
        self._looked: dict[str, float] = {}
        self.changed = ""  # what is another, once something is

    def marked(self) -> str:
        """What was deployed over a server of the run, "" where nothing was."""
        if not self._mark.exists():
            return ""
        mark = json.loads(self._mark.read_text())
        became = f"release {mark['release']}" if mark.get("release") else "none"
        self.changed = f"{mark['service']} was release {mark['before']} and became {became} during the run"
        return self.changed

    def check(self, server: str, get: Get, was_away: bool) -> None:
        """Called with every answer, before it is kept. Raises Replaced."""
        if self.marked():
            raise Replaced(self.changed)
        if not was_away and time.monotonic() - self._looked.get(server, float("-inf")) < _LOOK_SECONDS:
            return
        self._looked[server] = time.monotonic()
        told = described(get)
        if not told:
            return
        with self._lock:
            known = self._known.get(server)
            if known is None:
                self._known[server] = known = told
                write(self._file, json.dumps(self._known))
        if known != told:
            changed = sorted(key for key in known.keys() | told.keys() if known.get(key) != told.get(key))
            shown = ", ".join(f"{key} {known.get(key)} → {told.get(key)}" for key in changed)
            self.changed = f"the server at {server} has another model than when the run began: {shown}"
            raise Replaced(self.changed)


def _kept(file: Path) -> dict[str, Any]:
    """What earlier lives knew; nothing where the file was cut off, as versions before wrote it in place."""
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def described(get: Get) -> dict[str, Any]:
    """What a server says of its model, {} where it does not."""
    told: dict[str, Any] = {}
    for path in ("/model_info", "/get_model_info"):
        found = _json(get, path)
        if found:
            told |= {key: found[key] for key in _MODEL if key in found}
            break
    for model in _json(get, "/v1/models").get("data") or []:
        told["served"] = [*told.get("served", []), model.get("id")]
        told["context"] = model.get("max_model_len")
    return told


def _json(get: Get, path: str) -> dict[str, Any]:
    try:
        status, text = get(path)
        found = json.loads(text) if status == 200 else {}
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    return found if isinstance(found, dict) else {}
