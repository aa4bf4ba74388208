"""Questions to systemd, many units in one call. Python 3.8, standard library."""

from __future__ import annotations

import json

from ansible.module_utils.sglang_host_command import run

_PROPERTIES = (
    "Id,ActiveState,SubState,Result,NRestarts,ExecMainCode,ExecMainStatus,InvocationID,ActiveEnterTimestampMonotonic,"
    "ExecMainStartTimestamp,Job"
)

# systemd's journal entry "Main process exited" (its sd-messages.h).
_PROCESS_EXITED = "98e322203f7a4ed290d09fe03c09fe15"

# A stop waits for the requests in flight; the unit itself has the shorter limit.
TIMEOUT_SECONDS = 24 * 3600
# SGLang prints its five hundred arguments in one line.
LINE_LENGTH = 400


def show(units):
    """{unit name without suffix: {property: value}} for `units`."""
    if not units:
        return {}
    output = run("systemctl", "show", "--property", _PROPERTIES, *[name + ".service" for name in units]).stdout
    found = {}
    for block in output.strip().split("\n\n"):
        properties = dict(line.partition("=")[::2] for line in block.splitlines())
        if properties.get("Id"):
            found[properties["Id"][: -len(".service")]] = properties
    return found


def state(properties):
    """One word for people: active, activating, restarting, failed, inactive."""
    if properties.get("SubState") == "auto-restart":
        return "restarting"
    return properties.get("ActiveState", "inactive")


def queued(properties):
    """Whether systemd is yet to do something with the unit, such as to start it once what it needs has started."""
    return properties.get("Job", "0") not in ("", "0")


def last_exit(unit):
    """The exit code or signal with which a unit's main process last ended, for one that runs again; "" if unknown."""
    told = run(
        "journalctl",
        "--quiet",
        "--no-pager",
        "--lines",
        "1",
        "--output",
        "json",
        "MESSAGE_ID=" + _PROCESS_EXITED,
        "UNIT=" + unit + ".service",
    ).stdout
    return str(json.loads(told).get("EXIT_STATUS", "")) if told.startswith("{") else ""


def journal(unit, properties, lines=30):
    """The last log lines of a container since its process was started, oldest first, cut to what a person reads."""
    since = properties.get("ExecMainStartTimestamp")
    output = run(
        "journalctl",
        "--quiet",
        "--no-pager",
        "--output",
        "cat",
        "--lines",
        str(lines),
        *(["--since", since] if since else []),
        "SYSLOG_IDENTIFIER=" + unit,
    ).stdout
    return [line[:LINE_LENGTH] for line in output.splitlines()[-lines:]]


def systemctl(*arguments, timeout=TIMEOUT_SECONDS):
    """Run systemctl; returns its error text, empty on success."""
    done = run("systemctl", *arguments, timeout=timeout)
    return "" if done.ok else done.error
