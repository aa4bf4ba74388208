"""The wait until services serve, and stay up: a crash ends it at once. Python 3.8, standard library."""

from __future__ import annotations

import time

from ansible.module_utils import sglang_host_causes as causes
from ansible.module_utils import sglang_host_probe as probe
from ansible.module_utils import sglang_host_systemd as systemd

POLL_SECONDS = 1.0
BUSY_SECONDS = 30  # for which a server may be too busy to answer once more when its soak is over


def crashed(first, now, last_exit=lambda: ""):
    """Why a unit that was started counts as crashed, "" while it does not. Pure.

    `first` and `now` are systemd's properties at the start of the wait and at this moment; `last_exit` tells the exit
    code of the process before the one that runs now, which systemd itself forgets when it starts the next one.
    """
    state = systemd.state(now)
    code = now.get("ExecMainStatus", "0")
    if state in ("failed", "inactive"):
        result = now.get("Result", "")
        return "the unit is %s (%s, exit code %s)" % (state, result, code)
    if state == "restarting" or now.get("NRestarts", "0") != first.get("NRestarts", "0"):
        if now.get("ExecMainCode") == "0":  # it runs already
            code = last_exit() or code
        return "the server ended with exit code %s and systemd restarts it" % code
    if first.get("InvocationID") and now.get("InvocationID") != first.get("InvocationID"):
        return "the server was restarted by someone else while it was being checked"
    return ""


class Wait:
    """The wait for one service, fed with systemd's properties about once a second.

    `soak` is how many seconds it must stay up once it has passed; `passed`, what the gate said of it before.
    """

    def __init__(self, gate, first, soak, passed=None):
        self.gate, self.first, self.soak = gate, first, soak
        self.started = time.monotonic()
        self.passed_at = self.started if passed else None
        self.layers, self.why = list(passed["layers"]) if passed else [], ""
        self.took = passed["seconds"] if passed else 0
        if passed and passed.get("invocation"):
            self.first = dict(first, InvocationID=passed["invocation"], NRestarts=passed["restarts"])

    def step(self, now):
        """True when the service has passed or failed for good."""
        self.why = crashed(self.first, now, lambda: systemd.last_exit(self.gate["name"]))
        if self.why:
            if self.passed_at is not None:
                self.layers = [item for item in self.layers if item["ok"]]
                self.why = "%s, %.0f s after it had passed" % (self.why, time.monotonic() - self.passed_at)
                self.layers.append(probe.layer("quiet", False, self.why))
            else:
                self.layers = [probe.layer("unit", False, self.why)]
            return True
        if self.passed_at is None and self._asked(now):
            return True
        if self.passed_at is None or time.monotonic() - self.passed_at < (self.soak or 0):
            return False
        if self.soak:
            quick = self.gate.get("kind") != "gateway"  # a quick look blames a gateway for servers that are all away
            again = [item for item in probe.ask(self.gate, now, quick=quick) if not item["ok"]]
            if again:
                return self._serves_no_more(again[0])
        if self.soak is not None:
            detail = "no restart in %d s" % self.soak if self.soak else "not asked (soak is 0)"
            self.layers.append(probe.layer("quiet", True, detail))
        return True

    def _asked(self, now):
        """True when the service, which has not passed yet, has failed for good."""
        self.layers = probe.ask(self.gate, now)
        last, limit = self.layers[-1], self.gate["start_timeout"]
        if all(item["ok"] for item in self.layers):
            self.passed_at = time.monotonic()
        elif final(last):
            self.why = last["detail"]
        elif time.monotonic() - self.started > limit:
            self.why = "not serving after %d s: %s: %s" % (limit, last["name"], last["detail"])
        return bool(self.why)

    def _serves_no_more(self, failing):
        """True when a server that had passed, and is still up, has stopped answering for good."""
        since = time.monotonic() - self.passed_at
        if since < self.soak + BUSY_SECONDS and not final(failing):
            return False
        self.why = "%s: %s, %.0f s after it had passed" % (failing["name"], failing["detail"], since)
        self.layers.append(probe.layer("quiet", False, self.why))
        return True

    @property
    def seconds(self):
        """From the start of the wait to the first time that every layer passed."""
        return self.took or (self.passed_at or time.monotonic()) - self.started

    def detail(self):
        """What the wait is for, in a few words."""
        if self.passed_at is not None:
            return "soaking"
        if self.layers and self.layers[-1]["name"] == "port":
            phase = causes.phase(systemd.journal(self.gate["name"], self.first, 20))
            return phase or "starting"
        last = self.layers[-1] if self.layers else {"name": "unit", "detail": "starting"}
        return "waiting for %s: %s" % (last["name"], last["detail"])


def final(last):
    """Whether waiting longer cannot help: the server answers, and answers wrongly."""
    passing = (" answers 5", "in time")
    return last["name"] in ("model", "answer", "capacity") and not any(word in last["detail"] for word in passing)


def wait_for(gates, progress, phase="all", passed=()):
    """[Wait] of each; returns when every service has passed or failed."""
    shown = systemd.show([gate["name"] for gate in gates])
    before = {item["name"]: item for item in passed} if phase == "soak" else {}
    waits = []
    for gate in gates:
        soak = None if phase == "gate" else gate["soak"]
        waits.append(Wait(gate, shown.get(gate["name"], {}), soak, before.get(gate["name"])))
    open_waits = list(waits)
    while open_waits:
        shown = systemd.show([wait.gate["name"] for wait in open_waits])
        open_waits = [wait for wait in open_waits if not wait.step(shown.get(wait.gate["name"], {}))]
        if open_waits:
            progress.report("; ".join(wait.detail() for wait in open_waits))
            time.sleep(POLL_SECONDS)
    return waits
