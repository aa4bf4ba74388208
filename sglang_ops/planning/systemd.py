"""Text for systemd: quoting that keeps every byte, and the unit of a service.

Rules: systemd.service(5) "Command lines", systemd.syntax(7) "Quoting", systemd.unit(5) "Specifiers".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_PATH = re.compile(r'[%"\\]')
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "%": "%%", "$": "$$"}


def quote(argument: str) -> str:
    """One argument of an Exec line, such that the process receives exactly `argument`."""
    if _PLAIN.fullmatch(argument):
        return argument
    escaped = "".join(_ESCAPES.get(char) or _printable(char) for char in argument)
    return f'"{escaped}"'


def _printable(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 32 or ord(char) == 127 else char


def command(groups: Sequence[Sequence[str]]) -> str:
    """An Exec line over several lines, one group of arguments each, so that people and diffs can read it."""
    return " \\\n    ".join(" ".join(group) for group in groups)


def paths(names: Sequence[str]) -> str:
    """Printable paths for RequiresMountsFor=: no variables there, and a backslash just shields the next character."""
    return " ".join(name if _PLAIN.fullmatch(name) else f'"{_PATH.sub(_path_escape, name)}"' for name in names)


def _path_escape(match: re.Match[str]) -> str:
    return "%%" if match[0] == "%" else f"\\{match[0]}"


@dataclass(frozen=True)
class Unit:
    """What varies from service to service; everything else is the same for all. Times in seconds."""

    description: str
    engine: str
    engine_path: str
    exec_start: str
    mounts: tuple[str, ...]
    drain_timeout: int
    restart_delay: int

    def render(self) -> str:
        engine, path = self.engine, self.engine_path
        wants = f"Requires={engine}.service\n" if engine == "docker" else ""
        after = f" {engine}.service" if engine == "docker" else ""
        requires = f"RequiresMountsFor={paths(self.mounts)}\n" if self.mounts else ""
        # Quiet, because that there is no such container is the normal case and the journal is the server's.
        remove = f'-/bin/sh -c "exec {path} rm --force %N >/dev/null 2>&1"'
        prepare = remove
        if engine == "docker":  # a daemon that died while it started the server has its name taken for ever otherwise
            forget = f"{path} network disconnect --force host %N"
            prepare = f'-/bin/sh -c "{{ {path} rm --force %N; {forget}; }} >/dev/null 2>&1"'
        stop = f'-/bin/sh -c "exec {path} stop --time {self.drain_timeout} %N >/dev/null 2>&1"'
        return f"""\
# Written by sglang-ops; changes made here are replaced by the next deploy.
[Unit]
Description={self.description.replace("%", "%%")}
Wants=network-online.target
After=network-online.target{after}
{wants}{requires}\
# Five starts within an hour are a crash loop: the unit ends in `failed` instead of trying for ever.
StartLimitIntervalSec=3600
StartLimitBurst=5

[Service]
Type=exec
SyslogIdentifier=%N
ExecStartPre={prepare}
ExecStart={self.exec_start}
ExecStop={stop}
ExecStopPost={remove}
TimeoutStartSec=300
TimeoutStopSec={self.drain_timeout + 60}
# SGLang can exit 0 after a crash, so every exit that nobody asked for is a reason to start again.
Restart=always
RestartSec={self.restart_delay}
# After SIGTERM SGLang ends itself with SIGKILL once its requests are answered: 137 is a normal stop.
SuccessExitStatus=137 143
KillMode=mixed

[Install]
WantedBy=multi-user.target
"""
