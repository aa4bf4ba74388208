#!/usr/bin/python
"""Take servers out of a gateway, and bring them back in. Runs on the gateway's host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_gateway
short_description: Say which servers a gateway sends requests to
description:
  - A server that leaves gets no new requests at once and ends those that it has.
  - A server that joins is asked until the router lists it as healthy, and answers a completion through the router.
  - What was said last survives a restart of the router and a reboot of its host.
  - The router's control key stays on the host. Check mode asks, and changes nothing.
options:
  service:
    description: The gateway, as C(status) names it.
    type: str
    required: true
  state:
    description:
      - V(gone) is V(left) for good.
      - V(joined) and V(left) leave alone what an operator has drained; V(undrained) is V(joined) for that, too.
      - V(reconciled) registers each of O(workers) that answers and that no operator has drained, and takes out
        all others.
    type: str
    choices: [joined, left, drained, undrained, reconciled, gone]
    default: joined
  workers:
    description: URLs of the servers.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that the router may take until it lists the servers as healthy.
    type: int
    default: 60
  rejoin:
    description:
      - With V(left), seconds after which servers that have not joined by then are registered again by the gateway's
        own host, once they answer; V(0) leaves them out. It bounds what a controller that dies leaves behind.
    type: int
    default: 0
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Send a server no more requests
  sglang_gateway:
    service: sglang-llama-gateway
    state: left
    workers: ["http://10.0.0.11:8000"]
"""

RETURN = r"""
sglang_ops:
  description: The servers that the gateway has afterwards.
  returned: always
  type: dict
"""

import time

from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils import sglang_host_probe as probe
from ansible.module_utils import sglang_host_rejoin as rejoin
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_gateway import GatewayError, GatewayGone

HEALTH_TIMEOUT = 25  # SGLang's /health is silent for up to 20 s under load
LEAVING = {"left": "out", "drained": "drained", "gone": None}  # by state, what is remembered of a server
SETTLING_SECONDS = 5  # a removal is carried out in the background, within a moment


def decide(state, workers, listed, members):
    """{"add", "remove", "remember"}: pure, so that check mode and the change cannot disagree.

    `listed` are the URLs that the router knows, `members` what it was told of each before.
    """
    if state in ("joined", "undrained"):
        return {"add": [url for url in workers if url not in listed], "remove": [],
                "remember": dict.fromkeys(workers, "in")}
    if state in LEAVING:
        return {"add": [], "remove": [url for url in workers if url in listed],
                "remember": dict.fromkeys(workers, LEAVING[state])}
    wanted = [url for url in workers if members.get(url) != "drained"]
    gone = sorted((set(listed) | set(members)) - set(workers))
    stray = sorted(url for url in listed if url in workers and url not in wanted)
    return {"add": [url for url in wanted if url not in listed],
            "remove": [url for url in gone if url in listed] + stray,
            "remember": dict(dict.fromkeys(gone), **dict.fromkeys(wanted, "in"))}


def changed(decided, members):
    """Whether anything would be different afterwards."""
    return bool(decided["add"] or decided["remove"]) or any(
        members.get(url) != state for url, state in decided["remember"].items())


def join(router, new, urls, timeout):
    """Register the `new` ones and wait until the router lists all of `urls` as healthy. Raises GatewayError.

    They have passed their gate: one that takes no connections any more has died, and is not waited for.
    """
    for url in new:
        router.add(url)
    dead = []

    def over(listed):
        waiting = [url for url in urls if not listed.get(url, {}).get("is_healthy")]
        dead[:] = [url for url in waiting if not gateways.listens(url)]
        return not waiting or bool(dead)

    listed = router.wait(over, timeout)
    missing = [url for url in urls if not listed.get(url, {}).get("is_healthy")]
    if dead:
        raise GatewayError("%s takes no connections any more" % ", ".join(dead))
    if missing:
        word = "does not list" if missing[0] not in listed else "does not take for healthy"
        raise GatewayError("%s %s %s after %d s. See its log: sglang-ops logs --service %s"
                           % (router.gate["name"], word, ", ".join(missing), timeout, router.gate["name"]))

def leave(router, urls):
    """Take the servers out. Raises GatewayError where the router keeps one."""
    listed = router.workers()
    for url in urls:
        if url in listed:
            router.remove(listed[url])
    listed = router.wait(lambda now: not set(urls) & set(now), SETTLING_SECONDS)
    kept = sorted(set(urls) & set(listed))
    if kept:
        raise GatewayError("%s still lists %s" % (router.gate["name"], ", ".join(kept)))


def through(gate):
    """A completion through the gateway, as a client asks for one. Raises GatewayError."""
    failing = [layer for layer in probe.through(gate) if not layer["ok"]]
    if failing:
        raise GatewayError("%s: %s: %s" % (gate["name"], failing[0]["name"], failing[0]["detail"]))


def silent(urls):
    """{URL: why} of the servers that do not answer, and so are not registered."""
    asked = {url: gateways.ask(url, "/health", HEALTH_TIMEOUT) for url in urls}
    return {url: "%s is not registered: /health %s" % (url, status or text)
            for url, (status, text) in asked.items() if status != 200}


def without(decided, urls):
    """The decision, less what it does about these servers."""
    return {"add": [url for url in decided["add"] if url not in urls], "remove": decided["remove"],
            "remember": {url: state for url, state in decided["remember"].items() if url not in urls}}


def apply(router, decided, urls, timeout):
    """Do it: who leaves is noted before, who joins after it is so. Raises GatewayError."""
    gone = {url: state for url, state in decided["remember"].items() if state != "in"}
    name = router.gate["name"]
    gateways.remember(name, gone)
    if decided["remove"]:
        leave(router, decided["remove"])
    if urls:
        join(router, decided["add"], urls, timeout)
        through(router.gate)
    gateways.remember(name, {url: state for url, state in decided["remember"].items() if state == "in"})


def main():
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "required": True},
            "state": {"type": "str", "default": "joined",
                      "choices": ["joined", "left", "drained", "undrained", "reconciled", "gone"]},
            "workers": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
            "rejoin": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    name, state, urls = (module.params[key] for key in ("service", "state", "workers"))
    started = time.monotonic()
    gate, members = gateways.gate_of(name), gateways.members(name)
    if state in ("joined", "left"):
        urls = [url for url in urls if members.get(url) != "drained"]
    leaving = state in LEAVING
    if not gate and module.check_mode:
        module.exit_json(changed=not leaving, sglang_ops={"kind": "gateway", "service": name, "workers": []})
    if not gate and not leaving:
        module.fail_json(msg="%s is not deployed here. Deploy first." % name)
    router = gateways.Router(gate) if gate else None
    listed = known(module, router, state) if router else {}
    decided = decide(state, urls, listed, members)
    unable = silent(decided["add"]) if state == "reconciled" else {}
    decided = without(decided, unable)
    report = {"kind": "gateway", "service": name, "state": state, "rejoin": module.params["rejoin"],
              "warnings": sorted(unable.values())}
    result = {"changed": bool(router) and changed(decided, members),
              "diff": {"before": shown(members), "after": shown(dict(members, **decided["remember"]))}}
    if router and not module.check_mode:
        try:
            if state == "left" and module.params["rejoin"]:
                rejoin.arm(gate, urls, module.params["rejoin"])
            apply(router, decided, [] if leaving else decided["add"] if state == "reconciled" else urls,
                  module.params["timeout"])
            if urls and not (state == "left" and module.params["rejoin"]):
                rejoin.disarm(gate, urls)
            listed = router.workers() if listed or not leaving else {}
        except GatewayError as error:
            module.fail_json(msg=str(error), changed=True, **failed(state))
    report["workers"] = [{"url": url, "healthy": bool(worker.get("is_healthy"))}
                         for url, worker in sorted(listed.items())]
    module.exit_json(sglang_ops=dict(report, seconds=round(time.monotonic() - started, 2)), **result)


def known(module, router, state):
    """The servers that the router lists, by URL; none where it does not run, which is no obstacle to leaving it.

    One that runs and does not say may well go on sending requests: its servers must not stop.
    """
    name, leaving = router.gate["name"], state in ("left", "drained")
    try:
        return router.workers()
    except GatewayError as error:
        gone = isinstance(error, GatewayGone)
        if not module.check_mode and not (gone and leaving):
            remedy = "Start it: sglang-ops restart" if gone else "See its log: sglang-ops logs"
            module.fail_json(msg="%s. %s --service %s" % (error, remedy, name), **failed(state))
    return {}


def failed(state):
    """A server that serves behind no gateway needs hands, unless the way back joins it after all."""
    report = {"kind": "gateway", "state": state, "failed": True, "service": "", "workers": [], "warnings": []}
    return {"sglang_ops": dict(report, exit_hint=4) if state == "joined" else report}


def shown(members):
    """The members for a diff."""
    return "".join("%s %s\n" % item for item in sorted(members.items()) if item[1])


if __name__ == "__main__":
    main()
