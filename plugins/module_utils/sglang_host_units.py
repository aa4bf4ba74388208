"""Changes to the units of services, applied or, in check mode, only told. Python 3.8, standard library."""

from __future__ import annotations

import os

from ansible.module_utils import sglang_host_drain as drain
from ansible.module_utils import sglang_host_group as group
from ansible.module_utils import sglang_host_rollout as rollouts
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd


class Host:
    """Applies steps to the host, or only tells them in check mode."""

    def __init__(self, module):
        self.module = module
        self.check = module.check_mode
        self.change = module.params["change"]
        self.changed = False
        self.diffs = []
        self.reload = False

    def write_unit(self, name, before, after):
        self.changed = self.reload = True
        path = store.unit_path(name)
        self.diffs.append({"before_header": path, "after_header": path, "before": before or "", "after": after or ""})
        if self.check:
            return
        if after is None:
            os.unlink(path)
        else:
            store.write_atomic(path, after)

    def daemon_reload(self):
        if self.reload and not self.check:
            self.systemctl("daemon-reload")
        self.reload = False

    def systemctl(self, *arguments, timeout=systemd.TIMEOUT_SECONDS):
        self.changed = self.changed or arguments[0] not in ("daemon-reload", "reset-failed")
        error = "" if self.check else systemd.systemctl(*arguments, timeout=timeout)
        if arguments[0] == "stop" and error.endswith("not loaded."):
            return  # its unit is gone, and with its last process systemd has forgotten it
        if error and arguments[0] in ("start", "stop", "enable"):
            name = arguments[-1][: -len(".service")]
            log = systemd.journal(name, systemd.show([name]).get(name, {}))
            # What cannot go back has nothing left that would serve: it needs hands.
            down = [{"name": name, "ok": False, "log": log}] if self.module.params["state"] == "rolled_back" else []
            self.module.fail_json(msg="systemctl %s failed: %s" % (" ".join(arguments), error), changed=True,
                                  sglang_ops={"kind": "service", "services": down, "log": log})

    def record(self, name, release, stable):
        self.changed = True
        if not self.check:
            store.write_state(name, dict(store.read_state(name), release=release, stable=stable))

    def note(self, name, before, release, verb):
        """One more line in the history of the service."""
        if not self.check:
            found = store.read_record(name, release)
            model = (found.get("content") or {}).get("model") or {}
            change = dict(self.change, verb=verb, before=before, release=release, image=found.get("image"),
                          image_digest=found.get("image_digest"), model=model.get("commit") or model.get("repo"))
            open_one = rollouts.read(name) if verb == "deploy" else None
            if open_one:  # maybe begun by a run that has died
                change["rollout"] = open_one["id"]
            rollouts.note(name, change)

    def stop(self, services):
        """Stop servers, each as the release that runs is recorded: behind which gateways, answering where."""
        self.changed = self.changed or bool(services)
        if self.check or not services:
            return
        timeout = self.module.params["drain_timeout"]
        if timeout:
            for name, how in sorted(drain.stop(_running(services), timeout).items()):
                self.module.warn("%s was ended with work left: %s" % (name, how))
        for name in services:
            self.systemctl("stop", name + ".service")

    def end(self, services):
        """Stop servers that have failed, which need no more than a moment."""
        self.changed = self.changed or bool(services)
        if self.check or not services:
            return
        for name in drain.end(_running(services)):
            self.module.warn("%s hung and was killed" % name)
        for name in services:
            self.systemctl("stop", name + ".service")

    def start(self, name, gate=None):
        """Start a service; what hangs before the server itself is started has no longer than `gate` gives that."""
        unit = name + ".service"
        if not self.check:
            group.disarm(name)
        self.systemctl("reset-failed", unit)
        self.systemctl("enable", "--quiet", unit)
        self.systemctl("start", unit, timeout=(gate or {}).get("start_timeout") or systemd.TIMEOUT_SECONDS)


def _running(services):
    """What must be known of servers to stop them, as the release that runs is recorded."""
    found = {name: store.read_record(name, store.read_state(name)["release"]) for name in services}
    return [{"name": name, "engine": one.get("engine", "docker"), "gate": one.get("gate"),
             "gateways": one.get("gateways")} for name, one in found.items()]
