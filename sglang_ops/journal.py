"""journalctl's command and its JSON lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime


def command(services: Sequence[str], *options: str) -> str:
    """The shell command that prints the journal of services as JSON, one entry a line; none named means all."""
    units = [word for name in services or ["sglang-*"] for word in ("--unit", f"{name}.service")]
    shape = ["--output", "json", "--output-fields", "MESSAGE,SYSLOG_IDENTIFIER,UNIT,_SYSTEMD_UNIT"]
    # Ansible may give the command a terminal, and journalctl would colour its JSON.
    return "SYSTEMD_COLORS=0 " + shlex.join(["journalctl", "--quiet", "--no-pager", *shape, *units, *options])


def parse(output: str) -> tuple[list[dict[str, str]], str]:
    """(lines, cursor after the last one or ""); a line is {"service", "time", "text"}, time in ISO 8601."""
    lines: list[dict[str, str]] = []
    cursor = ""
    for row in output.split("\n"):
        if not row.startswith("{"):
            continue
        entry = json.loads(row)
        cursor = entry["__CURSOR"]
        text = entry.get("MESSAGE") or ""
        if isinstance(text, list):  # bytes that are no UTF-8 come as a list of numbers
            text = bytes(text).decode("utf-8", "replace")
        stamp = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
        unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or ""
        service = unit.removesuffix(".service")
        lines.append({"service": service, "time": stamp.isoformat(timespec="milliseconds"), "text": text})
    return lines, cursor
