"""journalctl's command and its JSON lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime

# The server's own lines, and what systemd says of its unit; not the container engine's chatter in the same unit.
_MATCH = 'set -- {names}; for name; do set -- "$@" "SYSLOG_IDENTIFIER=$name" + "UNIT=$name.service" +; shift; done'


def command(services: Sequence[str], *options: str) -> str:
    """The shell command that prints the journal of services as JSON, one entry a line; none named means all."""
    names = shlex.join(services) if services else "$(ls /var/lib/sglang-ops/services 2>/dev/null)"
    fields = "MESSAGE,SYSLOG_IDENTIFIER,UNIT"
    shown = shlex.join(["--quiet", "--no-pager", "--output", "json", "--output-fields", fields, *options])
    # Ansible may give the command a terminal, and journalctl would colour its JSON. The last `+` needs a match.
    return f'{_MATCH.format(names=names)}; SYSTEMD_COLORS=0 journalctl {shown} "$@" SYSLOG_IDENTIFIER=sglang-ops'


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
        service = (entry.get("UNIT") or entry.get("SYSLOG_IDENTIFIER") or "").removesuffix(".service")
        lines.append({"service": service, "time": stamp.isoformat(timespec="milliseconds"), "text": text})
    return lines, cursor
