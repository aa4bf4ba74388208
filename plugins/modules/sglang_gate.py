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
  phase:
    description:
      - V(all) waits, soaks and remembers the release as stable. Where requests come only through a gateway, V(gate)
        waits, then the service is admitted, and V(soak) watches it under that traffic and remembers it.
      - Where hosts serve a model together, V(soak) comes with O(keep=false), and V(kept) remembers it once all passed.
    type: str
    choices: [all, gate, soak, kept]
    default: all
  keep:
    description: Whether what passes is remembered as the stable release of the host.
    type: bool
    default: true
  finish:
    description: Whether a roll-out that waits for a service is over there once this passes.
    type: bool
    default: true
  passed:
    description: With V(soak) what V(gate) said of the services, with V(kept) what V(soak) said.
    type: list
    elements: dict
    default: []
  quality:
    description:
      - A question with a known answer (C(prompt), C(expect), C(max_tokens)) for what serves; empty is none.
      - Or a C(verdict) with its C(why), from the action plugin of the same name, where C(policy) had it evaluate.
    type: dict
    default: {}
  paused:
    description: With V(kept), the mark of a roll-out that V(soak) left in doubt.
    type: dict
  rolled_back:
    description: With O(failure), whether the services were put back before.
    type: bool
    default: true
  touched:
    description: With O(failure), whether anything had been changed on the services of this host.
    type: bool
    default: true
  untouched:
    description:
      - With O(failure), the change of each service that was not begun, because a second server beside it failed; for
        the history. The service itself serves as before.
    type: list
    elements: dict
    default: []
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
from ansible.module_utils import sglang_host_quality as quality
from ansible.module_utils import sglang_host_rollout as rollouts
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_progress import Progress
from ansible.module_utils.sglang_host_wait import wait_for

LOG_LINES = 30


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
    return {"name": gate["name"], "release": gate["release"], "ok": ok, "layers": layers, "cause": cause, "log": log,
            **({"beside": gate["beside"]} if gate.get("beside") else {})}


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


def first_failed(failure):
    """The failed result itself, or of a loop that of its first item which failed."""
    return next((item for item in failure.get("results") or [] if item.get("failed")), failure)


def after_rollback(failure, names, results, rolled_back=True, untouched=False):
    """The failure that is told after a rollback: what failed, why, and what serves now. Pure.

    `results` are the gate's for what was started again; a service without one serves nothing. With `untouched`, what
    failed was a second server beside each, or what comes before a server stops.
    """
    failure = first_failed(failure)
    serving = {result["name"]: result["release"] for result in results if result["ok"] and rolled_back}
    told = {item["name"]: item for item in (failure.get("sglang_ops") or {}).get("services", []) if "ok" in item}
    told.update({item["beside"]: dict(item, name=item["beside"]) for item in told.values() if item.get("beside")})
    cause = failure.get("msg") or "the deployment failed"
    log = (failure.get("sglang_ops") or {}).get("log", [])
    services = [
        dict(told.get(name) or {"name": name, "release": None, "ok": False, "layers": [], "cause": cause, "log": log},
             rolled_back_to=None if name in told and told[name]["ok"] else serving.get(name))
        for name in names
    ]
    if not rolled_back:
        hint, end = 4, "auto_rollback is false: %s stays as it is, behind no gateway." % ", ".join(names)
    elif untouched and all(name in serving for name in names):
        hint, end = 3, "Nothing else changed: %s." % ", ".join(
            "%s goes on with release %s" % (name, serving[name]) for name in names)
    elif all(name in serving for name in names):
        back = ["%s serves release %s again" % (item["name"], serving[item["name"]])
                for item in services if item["rolled_back_to"]]
        hint, end = 3, "Rolled back: %s." % ", ".join(back)
    else:
        down = [name for name in names if name not in serving]
        hint, end = 4, "%s does not serve on this host." % ", ".join(down)
    stop = "" if cause.endswith((".", "!", "?")) else "."
    return {"msg": "%s%s %s" % (cause, stop, end), "changed": True, "exit_hint": hint,
            "sglang_ops": {"kind": "gate", "services": services}}


def remember(results, seconds, paused, finish=True):
    """A release that passed is the one to go back to; how long it took to serve tells the next plan.

    A roll-out that this host leaves in doubt is paused on it, for whoever looks next; who only restarts what serves
    does not `finish` it.
    """
    for result in results:
        name, state = result["name"], store.read_state(result["name"])
        if not result["ok"] or state["release"] != result["release"]:
            continue
        owner = result.get("beside", name)
        record = rollouts.read(owner)
        if paused and record:
            rollouts.write(owner, dict(record, paused=paused))
        elif finish:
            rollouts.finish(name)
        rollouts.result(name, result["release"], "stable")
        if state["stable"] != state["release"]:
            store.write_state(name, dict(state, stable=state["release"], start_seconds=round(seconds[name])))
            before = rollouts.last_stable(name, state)
            store.prune_releases(name, keep={state["release"], before})


def judge(gate, layers, asked):
    """The layer `quality` of a service that serves, and the mark of a pause where that is inconclusive."""
    if not asked or gate.get("rank") or not all(item["ok"] for item in layers):
        return [], None
    word, why = quality.verdict(gate, asked)
    detail = "%s: %s" % (word, why)
    paused = {"who": "rollout.gate", "since": round(time.time()), "why": detail}
    return [probe.layer("quality", word != quality.NO_GO, detail)], paused if word == quality.INCONCLUSIVE else None


def judged(waits, asked):
    """What was asked of each service, quality included, and the mark of a pause, if one of them is in doubt."""
    found, paused = [], None
    for wait in waits:
        layers, mark = judge(wait.gate, wait.layers, asked)
        if layers and not layers[0]["ok"]:
            wait.why = "quality: %s" % layers[0]["detail"]
        paused = paused or mark
        found.append((wait.gate, wait.layers + layers, wait.why, wait.first))
    return found, paused


def told(results, phase, paused):
    """The report."""
    report = {"kind": "gate", "services": results, "phase": phase}
    return dict(report, paused=paused) if paused else report


def main():
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "wait": {"type": "bool", "default": True},
            "phase": {"type": "str", "choices": ["all", "gate", "soak", "kept"], "default": "all"},
            "keep": {"type": "bool", "default": True},
            "finish": {"type": "bool", "default": True},
            "paused": {"type": "dict"},
            "passed": {"type": "list", "elements": "dict", "default": []},
            "quality": {"type": "dict", "default": {}},
            "rolled_back": {"type": "bool", "default": True},
            "touched": {"type": "bool", "default": True},
            "untouched": {"type": "list", "elements": "dict", "default": []},
            "features": {"type": "list", "elements": "str", "default": [], "choices": sorted(features.FEATURES)},
            "failure": {"type": "dict"},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    if module.check_mode and module.params["wait"]:
        module.exit_json(changed=False, sglang_ops={"kind": "gate", "services": []}, msg="not verified (check mode)")
    phase, paused, touched = (module.params[name] for name in ("phase", "paused", "touched"))
    if phase == "kept":
        results = module.params["passed"]
        remember(results, {result["name"]: result["seconds"] for result in results}, paused)
        module.exit_json(changed=False, sglang_ops=told(results, phase, paused))
    gates = module.params["services"] or deployed_gates(module.params["names"], running=bool(module.params["failure"]))
    if module.params["wait"]:
        with Progress(module.params["progress_token"], step="gate") as progress:
            waits = wait_for(gates, progress, phase, module.params["passed"])
        asked, paused = judged(waits, module.params["quality"])
    else:
        asked = ask_once(gates)
    results = [outcome(*with_features(module.params["features"], *item)) for item in asked]
    if module.params["wait"] and (phase == "gate" or not module.params["keep"]):
        starts = {wait.gate["name"]: {"seconds": wait.seconds, "invocation": wait.first.get("InvocationID"),
                                      "restarts": wait.first.get("NRestarts", "0")} for wait in waits}
        results = [dict(result, **starts[result["name"]]) for result in results]
    elif module.params["wait"] and touched:
        remember(results, {wait.gate["name"]: wait.seconds for wait in waits}, paused, module.params["finish"])
    if module.params["failure"]:
        for change in module.params["untouched"]:
            rollouts.note(change["name"], dict(change, before=store.read_state(change["name"])["release"]))
            rollouts.result(change["name"], change["release"], "failed")
        module.fail_json(**after_rollback(module.params["failure"], module.params["names"], results,
                                          module.params["rolled_back"] or not touched,
                                          bool(module.params["untouched"]) or not touched))
    report = told(results, phase, paused)
    failed = [result for result in results if not result["ok"]]
    if failed and module.params["wait"]:
        causes_text = "; ".join("%s: %s" % (result["name"], result["cause"]) for result in failed)
        module.fail_json(msg=causes_text, changed=False, sglang_ops=report)
    module.exit_json(changed=False, sglang_ops=report)


if __name__ == "__main__":
    main()
