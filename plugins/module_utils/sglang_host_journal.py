"""journalctl's command and its JSON lines, for the module and for following. Python 3.8, standard library."""

from __future__ import annotations

import datetime
import json


def command(names):
    """The command that prints the journal of services as JSON, one entry a line."""
    fields = ["SYSLOG_IDENTIFIER=" + name for name in names] or ["SYSLOG_IDENTIFIER=sglang-none"]
    shape = ["--output", "json", "--output-fields", "MESSAGE,SYSLOG_IDENTIFIER"]
    return ["journalctl", "--quiet", "--no-pager", *shape, *fields]


def parse(output):
    """(lines, cursor after the last line or ""); a line is {"service", "time", "text"}, time in ISO 8601."""
    lines, cursor = [], ""
    for row in output.splitlines():
        if not row.startswith("{"):
            continue
        entry = json.loads(row)
        cursor = entry["__CURSOR"]
        text = entry.get("MESSAGE") or ""
        if isinstance(text, list):  # journald gives bytes that are no UTF-8 as a list of numbers
            text = bytes(text).decode("utf-8", "replace")
        stamp = datetime.datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, datetime.timezone.utc)
        lines.append({"service": entry.get("SYSLOG_IDENTIFIER", ""), "text": text,
                      "time": stamp.isoformat(timespec="milliseconds")})
    return lines, cursor
