"""Stop servers without cutting requests, and within a time. Python 3.8, standard library.

SGLang answers what is in flight after SIGTERM, without a limit, and still takes new requests (sglang 0.5.23): so
whoever sends must stop first, and somebody must have a clock. A server behind gateways, which have let go of it by now,
is asked for its own counters until it is idle; then all are told to stop, and what has not ended in time is ended.
"""

from __future__ import annotations

import time

from ansible.module_utils import sglang_host_loads as loads
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.sglang_host_command import run

POLL_SECONDS = 0.5
QUIET_LOOKS = 2  # the counters are refreshed about once a second
GRACE_SECONDS = 20  # SGLang looks every five seconds whether it is idle, and needs some more to end
END_SECONDS = 8  # for a server that failed: it serves nobody, and one that hangs would never end by itself
GONE = ("inactive", "failed")


def idle(gate):
    """Whether the server says that nothing is in flight; one that does not say is taken to be idle."""
    counted = loads.now(gate, timeout=3)
    return not counted.get("running") and not counted.get("queued")


def wait_until_idle(gates, deadline, clock=time.monotonic, sleep=time.sleep):
    """Ask the servers described by `gates` until all are idle; False where `deadline` came first."""
    looks = {gate["name"]: 0 for gate in gates}
    while True:
        for gate in gates:
            looks[gate["name"]] = looks[gate["name"]] + 1 if idle(gate) else 0
        if all(count >= QUIET_LOOKS for count in looks.values()):
            return True
        if clock() >= deadline:
            return False
        sleep(POLL_SECONDS)


def stop(services, timeout):
    """Stop `services` ({"name", "engine", "gate", "gateways"}) together; `timeout` seconds for what is in flight.

    Returns {name: how it ended} of those that had to be ended with work left.
    """
    deadline = time.monotonic() + timeout
    behind = [service["gate"] for service in services if service["gateways"] and service["gate"]]
    cut = {}
    if behind and not wait_until_idle(behind, deadline):
        cut = {gate["name"]: "requests were in flight after %d s" % timeout for gate in behind if not idle(gate)}
    left = _ended(services, max(deadline, time.monotonic() + GRACE_SECONDS))
    return {**dict.fromkeys(left, "it did not end within %d s" % timeout), **cut}


def end(services):
    """Stop `services` ({"name", "engine"}) that have failed; the names of those that had to be killed."""
    return _ended(services, time.monotonic() + END_SECONDS)


def _ended(services, deadline):
    """Tell `services` to stop, and kill what has not ended by then: the names of those."""
    left = [service["name"] for service in services]
    systemd.systemctl("stop", "--no-block", *[name + ".service" for name in left])
    while left and time.monotonic() < deadline:
        shown = systemd.show(left)
        left = [name for name in left if systemd.state(shown.get(name, {})) not in GONE]
        if left:
            time.sleep(POLL_SECONDS)
    for service in services:
        if service["name"] in left:
            run(service["engine"], "kill", service["name"])
    return left
