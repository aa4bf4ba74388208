"""A server that several hosts run together: stopped and started as one. Python 3.8, standard library.

Its members stop before one of them starts, so that none meets a rank of the release before. In between a host is at
rest; should whoever changes it die there, a timer of systemd starts what was there.
"""

from __future__ import annotations

import os

from ansible.module_utils import sglang_host_state as store
from ansible.module_utils.sglang_host_command import run

TRANSIENT = "/run/systemd/transient"


def shared(names):
    """Those of the services that other hosts run together with this one, each with its hosts."""
    gates = [(name, store.read_record(name, store.read_state(name)["release"]).get("gate") or {}) for name in names]
    return [{"name": name, "group": gate["group"]} for name, gate in gates if gate.get("group")]


def cut(names, left_out):
    """Why these services cannot be acted on without the hosts `left_out`, "" where they can."""
    for service in shared(names):
        missing = [host for host in service["group"] if host in left_out]
        if missing:
            return ("%s runs on %s together, and this run leaves out %s. Name all of them in --limit, or none."
                    % (service["name"], ", ".join(service["group"]), ", ".join(missing)))
    return ""


def timer(name):
    """Name of the timer, without suffix, that starts a service again."""
    return "sglang-ops-again-" + name


def arm(name, seconds):
    """Have the service started again after `seconds`, unless it is before."""
    disarm(name)
    run("systemd-run", "--quiet", "--collect", "--unit", timer(name), "--on-active", str(seconds),
        "--description", "Start %s again, should nobody else" % name, "systemctl", "start", name + ".service")


def disarm(name):
    """It has been started, or is to stay stopped."""
    if os.path.exists(os.path.join(TRANSIENT, timer(name) + ".timer")):
        run("systemctl", "stop", timer(name) + ".timer")
