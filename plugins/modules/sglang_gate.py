#!/usr/bin/python
"""Ask whether SGLang services really serve: once, or until they do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_gate
short_description: Ask whether SGLang services serve, layer by layer
description:
  - The layers are unit, port, ready, model, answer (a real completion), capacity (the KV cache holds a request of
    full length, where the record has C(tokens_needed)) and quiet (nothing restarts while soaking).
  - Waiting ends at once when a service crashes, not at the time-out.
  - A service that passes is marked as the stable release of the host. In check mode nothing is asked.
options:
  services:
    description: Gate records of the services to ask; an empty list means every service deployed on the host.
    type: list
    elements: dict
    default: []
  names:
    description: With an empty O(services), only the services of these names.
    type: list
    elements: str
    default: []
  wait:
    description: Wait for the answers as long as each record's C(start_timeout) allows, then soak.
    type: bool
    default: true
  features:
    description: What each service that serves shall show beyond that; each is a further layer.
    type: list
    elements: str
    choices: [json_schema, regex, vision]
    default: []
  failure:
    description:
      - The failed result that led to a rollback. The module then says what serves now, and always fails.
    type: dict
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Verify every service of the host once
  sglang_gate:
    wait: false
"""

RETURN = r"""
sglang_ops:
  description: For each service the layers asked and what they answered.
  returned: always
  type: dict
"""

import time

from ansible.module_utils import sglang_host_causes as causes
from ansible.module_utils import sglang_host_features as features
from ansible.module_utils import sglang_host_probe as probe
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_progress import Progress

POLL_SECONDS = 1.0
LOG_LINES = 30


def crashed(first, now):
    """Why a unit that was started counts as crashed, "" while it does not. Pure.

    `first` and `now` are systemd's properties at the start of the wait and at this moment.
    """
    state = systemd.state(now)
    code = now.get("ExecMainStatus", "0")
    if state in ("failed", "inactive"):
        result = now.get("Result", "")
        return "the unit is %s (%s, exit code %s)" % (state, result, code)
    if state == "restarting" or now.get("NRestarts", "0") != first.get("NRestarts", "0"):
        return "the server ended with exit code %s and systemd restarts it" % code
    if first.get("InvocationID") and now.get("InvocationID") != first.get("InvocationID"):
        return "the server was restarted by someone else while it was being checked"
    return ""


class Wait:
    """The wait for one service, fed with systemd's properties about once a second."""

    def __init__(self, gate, first):
        self.gate, self.first = gate, first
        self.started = time.monotonic()
        self.passed_at = None
        self.layers, self.why = [], ""

    def step(self, now):
        """True when the service has passed or failed for good."""
        waited = time.monotonic() - self.started
        self.why = crashed(self.first, now)
        if self.why:
            if self.passed_at is not None:
                self.layers = [item for item in self.layers if item["ok"]]
                self.why = "%s, %.0f s after it had passed" % (self.why, time.monotonic() - self.passed_at)
                self.layers.append(probe.layer("quiet", False, self.why))
            else:
                self.layers = [probe.layer("unit", False, self.why)]
            return True
        if self.passed_at is None:
            self.layers = probe.ask(self.gate, now)
            if all(item["ok"] for item in self.layers):
                self.passed_at = time.monotonic()
            elif final(self.layers[-1]):
                self.why = self.layers[-1]["detail"]
                return True
            elif waited > self.gate["start_timeout"]:
                last = self.layers[-1]
                limit = self.gate["start_timeout"]
                self.why = "not serving after %d s: %s: %s" % (limit, last["name"], last["detail"])
                return True
        if self.passed_at is None or time.monotonic() - self.passed_at < self.gate["soak"]:
            return False
        detail = "no restart in %d s" % self.gate["soak"] if self.gate["soak"] else "not asked (soak is 0)"
        self.layers.append(probe.layer("quiet", True, detail))
        return True

    @property
    def seconds(self):
        """From the start of the wait to the first time that every layer passed."""
        return (self.passed_at or time.monotonic()) - self.started

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


def wait_for(gates, progress):
    """[Wait] of each; returns when every service has passed or failed."""
    shown = systemd.show([gate["name"] for gate in gates])
    waits = [Wait(gate, shown.get(gate["name"], {})) for gate in gates]
    open_waits = list(waits)
    while open_waits:
        shown = systemd.show([wait.gate["name"] for wait in open_waits])
        open_waits = [wait for wait in open_waits if not wait.step(shown.get(wait.gate["name"], {}))]
        if open_waits:
            progress.report("; ".join(wait.detail() for wait in open_waits))
            time.sleep(POLL_SECONDS)
    return waits


def ask_once(gates):
    shown = systemd.show([gate["name"] for gate in gates])
    asked = []
    for gate in gates:
        layers = probe.ask(gate, shown.get(gate["name"], {}))
        failing = [item for item in layers if not item["ok"]]
        why = "%s: %s" % (failing[0]["name"], failing[0]["detail"]) if failing else ""
        asked.append((gate, layers, why, shown.get(gate["name"], {})))
    return asked


def with_features(wanted, gate, layers, why, properties):
    """What was asked of one service, and the features that it is to show after that."""
    shown = features.ask(gate, wanted, layers)
    failing = [item for item in shown if not item["ok"]]
    if failing and not why:
        why = "%s: %s" % (failing[0]["name"], failing[0]["detail"])
    return gate, layers + shown, why, properties


def outcome(gate, layers, why, properties):
    """The result for one service; the log is that of the start that was asked about."""
    ok = bool(layers) and all(item["ok"] for item in layers)
    log = [] if ok else systemd.journal(gate["name"], properties, LOG_LINES)
    cause = None if ok else causes.explain(why, log)
    return {"name": gate["name"], "release": gate["release"], "ok": ok, "layers": layers, "cause": cause, "log": log}


def deployed_gates(names, running=False):
    """Gate records of what is deployed here; with `running`, only of units that were started."""
    known = [name for name in store.names() if not names or name in names]
    shown = systemd.show(known) if running else {}
    gates = []
    for name in known:
        record = store.read_record(name, store.read_state(name)["release"])
        if record.get("gate") and shown.get(name, {}).get("ActiveState") != "inactive":
            gates.append(record["gate"])
    return gates


def after_rollback(failure, names, results):
    """The failure that is told after a rollback: what failed, why, and what serves now. Pure.

    `results` are the gate's for what was started again; a service without one serves nothing.
    """
    serving = {result["name"]: result["release"] for result in results if result["ok"]}
    told = {item["name"]: item for item in (failure.get("sglang_ops") or {}).get("services", []) if "ok" in item}
    cause = failure.get("msg") or "the deployment failed"
    log = (failure.get("sglang_ops") or {}).get("log", [])
    services = [
        dict(told.get(name) or {"name": name, "release": None, "ok": False, "layers": [], "cause": cause, "log": log},
             rolled_back_to=None if name in told and told[name]["ok"] else serving.get(name))
        for name in names
    ]
    if all(name in serving for name in names):
        back = ["%s serves release %s again" % (item["name"], serving[item["name"]])
                for item in services if item["rolled_back_to"]]
        hint, end = 3, "Rolled back: %s." % ", ".join(back)
    else:
        down = [name for name in names if name not in serving]
        hint, end = 4, "%s does not serve on this host." % ", ".join(down)
    return {"msg": "%s %s" % (cause, end), "changed": True, "exit_hint": hint,
            "sglang_ops": {"kind": "gate", "services": services}}


def remember(results, seconds):
    """A release that passed is the one to go back to; how long it took to serve tells the next plan."""
    for result in results:
        state = store.read_state(result["name"])
        if result["ok"] and state["release"] == result["release"] and state["stable"] != state["release"]:
            took = round(seconds[result["name"]])
            store.write_state(result["name"], dict(state, stable=state["release"], start_seconds=took))
            store.prune_releases(result["name"], keep={state["release"]})


def main():
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "wait": {"type": "bool", "default": True},
            "features": {"type": "list", "elements": "str", "default": [], "choices": sorted(features.FEATURES)},
            "failure": {"type": "dict"},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    if module.check_mode and module.params["wait"]:
        module.exit_json(changed=False, sglang_ops={"kind": "gate", "services": []}, msg="not verified (check mode)")
    gates = module.params["services"] or deployed_gates(module.params["names"], running=bool(module.params["failure"]))
    if module.params["wait"]:
        with Progress(module.params["progress_token"], step="gate") as progress:
            waits = wait_for(gates, progress)
        asked = [(wait.gate, wait.layers, wait.why, wait.first) for wait in waits]
    else:
        asked = ask_once(gates)
    results = [outcome(*with_features(module.params["features"], *item)) for item in asked]
    if module.params["wait"]:
        remember(results, {wait.gate["name"]: wait.seconds for wait in waits})
    if module.params["failure"]:
        module.fail_json(**after_rollback(module.params["failure"], module.params["names"], results))
    report = {"kind": "gate", "services": results}
    failed = [result for result in results if not result["ok"]]
    if failed and module.params["wait"]:
        causes_text = "; ".join("%s: %s" % (result["name"], result["cause"]) for result in failed)
        module.fail_json(msg=causes_text, changed=False, sglang_ops=report)
    module.exit_json(changed=False, sglang_ops=report)


if __name__ == "__main__":
    main()
