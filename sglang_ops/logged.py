"""What services have written to their logs, put together from all hosts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_ops.events import RunState


@dataclass(frozen=True)
class LogLine:
    """One line of a service's log; `time` is ISO 8601 with its offset."""

    host: str
    service: str
    time: str
    text: str


def log_lines(state: RunState) -> tuple[LogLine, ...]:
    """The lines of every host, in the order in which they were written."""
    found = [
        LogLine(host.name, str(line["service"]), str(line["time"]), str(line["text"]))
        for host in state.hosts.values()
        for line in host.result("logs").get("lines") or []
    ]
    return tuple(sorted(found, key=lambda line: line.time))
