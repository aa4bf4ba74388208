"""The memory of the host, and what a server without GPUs holds of it. Python 3.8, standard library."""

from __future__ import annotations

import os

from ansible.module_utils import sglang_host_probe as probe

HELD = ("RssAnon:", "RssShmem:")  # files that are mapped can be read again


def of_host():
    """{"total", "available"} in bytes, None where the kernel does not say."""
    found = _fields("/proc/meminfo", ("MemTotal:", "MemAvailable:"))
    return {"total": found[0], "available": found[1]} if len(found) == 2 else None


def of_server(port):
    """Bytes that the processes in the container of whoever listens on a TCP port hold; None where nobody does."""
    holder = probe.listener(port)
    group = _text("/proc/%d/cgroup" % holder[0]) if holder else ""
    if not group:
        return None
    members = [pid for pid in os.listdir("/proc") if pid.isdigit() and _text("/proc/%s/cgroup" % pid) == group]
    return sum(sum(_fields("/proc/%s/status" % pid, HELD)) for pid in members)


def _fields(path, names):
    """Values of the lines that begin with one of `names`, in bytes and in their order."""
    rows = [line.split() for line in _text(path).splitlines()]
    return [int(row[1]) * 1024 for row in rows if row and row[0] in names]


def _text(path):
    """The file's text, "" where the process has gone meanwhile."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""
