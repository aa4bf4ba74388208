#!/usr/bin/python
"""Start, watch, stop, resume and remove evaluations that run beside the servers of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_evaluation
short_description: Manage evaluations on a host, each a systemd unit
description:
  - An evaluation outlives the controller and reboots; what was answered is never asked again.
  - V(started) asks the gate's questions first and waits until data and scorers were checked; where one fails, nothing
    was asked of the model and nothing stays on the host.
  - V(described) asks the gate's questions and tells what the servers allow, for a run that is elsewhere.
  - V(waited) watches until the run has ended, V(collected) does not wait; both pack the results for the controller.
  - Supports check mode and returns the unit's diff.
options:
  state:
    description: What to do.
    type: str
    choices: [described, started, waited, collected, listed, cancelled, resumed, absent]
    required: true
  run:
    description: Name of the run; V(listed) takes all of the host without one.
    type: str
    default: ""
  job:
    description: What is evaluated, without secrets. For V(resumed) only what changes.
    type: dict
    default: {}
  unit:
    description: Text of the systemd unit.
    type: str
    default: ""
  files:
    description: Files of the run's directory, base64 by path.
    type: dict
    default: {}
  secrets:
    description: API key and environment of the harness, written to a file that only root can read.
    type: dict
    default: {}
  check_timeout:
    description: Seconds in which data and scorers must have been checked.
    type: int
    default: 900
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: What evaluations are there on the host
  sglang_evaluation:
    state: listed
"""

RETURN = r"""
sglang_ops:
  description: The runs with their state, and where results are packed.
  returned: always
  type: dict
"""

import base64
import json
import os
import time

from ansible.module_utils import sglang_host_evaluation as evaluation
from ansible.module_utils import sglang_host_evaluation_files as files
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_progress import Progress

POLL_SECONDS = 0.5


class Host:
    """Does the work, or only tells it in check mode."""

    def __init__(self, module):
        self.module, self.check = module, module.check_mode
        self.params = module.params
        self.run = module.params["run"]
        self.diff = []
        self.warnings = []

    def write(self, job):
        given = dict(self.params["secrets"])
        known = store.runtime_environment()
        wanted = given.pop("runtime", {})
        missing = [source for source in wanted.values() if source not in known]
        if missing:
            raise evaluation.Refused(
                "%s does not set %s. Add a line %s=…" % (store.RUNTIME_ENV, missing[0], missing[0])
            )
        given["environment"] = dict(given["environment"], **{name: known[wanted[name]] for name in wanted})

        def content(base):
            for name, encoded in self.params["files"].items():
                path = os.path.join(base, name)
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                with open(path, "wb") as stream:
                    stream.write(base64.b64decode(encoded))
            store.write_atomic(os.path.join(base, "unit"), self.params["unit"])
            store.write_atomic(os.path.join(base, "secrets.json"), json.dumps(given), mode=0o600)
            store.write_atomic(os.path.join(base, "job.json"), json.dumps(job, indent=1))

        try:
            files.put(evaluation.directory(self.run), content)
        except FileExistsError:
            raise evaluation.Refused(evaluation.THERE % (self.run, self.run)) from None

    def unit(self, name, text):
        path = store.unit_path(name)
        before = store.read_text(path)
        self.diff.append({"before_header": path, "after_header": path, "before": before or "", "after": text or ""})
        if self.check or before == text:
            return
        if text is None:
            os.unlink(path)
        else:
            store.write_atomic(path, text)
        systemd.systemctl("daemon-reload")

    def started(self, progress):
        job = self.params["job"]
        if os.path.exists(os.path.join(evaluation.directory(self.run), "job.json")):
            raise evaluation.Refused(evaluation.THERE % (self.run, self.run))
        self.params["secrets"]["api_key"] = self.params["secrets"].get("api_key") or evaluation.key_of(job)
        job, self.warnings = evaluation.prepared(job, self.params["secrets"]["api_key"])
        if not self.check:
            self.write(job)
        self.unit(job["unit"], self.params["unit"])
        if self.check:
            return {
                "run": self.run,
                "state": "planned",
                "service": job["service"],
                "concurrency": job["concurrency"],
                "names": [task["name"] for task in job["tasks"]],
                "model": job["server"]["model"],
            }
        self.begin(job["unit"])
        return self.checked(progress, fresh=True)

    def resumed(self, progress):
        """Go on: what failed for good is asked once more, and so is what `job` adds to the shards."""
        job = evaluation.read(self.run, "job.json")
        base = evaluation.directory(self.run)
        added = self.params["job"].get("shards") or []
        shards = job["tasks"][0]["shards"]
        for task in job["tasks"]:
            task["shards"] = shards + [shard for shard in added if shard not in shards]
        layers_of = evaluation.services(job)
        if not layers_of:
            raise evaluation.Refused("%s is not deployed here any more." % job["deployment"])
        evaluation.same_releases(job)
        evaluation.serving(layers_of, evaluation.read(self.run, "secrets.json").get("api_key"))
        now = evaluation.status(self.run)
        failed = any(task.get("failed") for task in (now["tasks"] or {}).values())
        if self.check or (now["state"] == "done" and not failed and not added):
            return now
        systemd.systemctl("stop", job["unit"] + ".service")
        store.write_atomic(os.path.join(base, "job.json"), json.dumps(job, indent=1))
        for name in ("cancelled", "finished", "status.json", "replaced.json"):
            if os.path.exists(os.path.join(base, name)):
                os.unlink(os.path.join(base, name))
        store.write_atomic(os.path.join(base, "again"), "")  # the container forgets what failed, and scores anew
        if store.read_text(store.unit_path(job["unit"])) is None:  # its start died between the two
            self.unit(job["unit"], store.read_text(os.path.join(base, "unit")))
        self.begin(job["unit"])
        return self.checked(progress, fresh=False)

    def begin(self, name):
        unit = name + ".service"
        systemd.systemctl("reset-failed", unit)
        systemd.systemctl("enable", "--quiet", unit)
        error = systemd.systemctl("start", unit)
        if error:
            log = systemd.journal(name, {})
            self.module.fail_json(
                msg="%s does not start: %s" % (name, error), sglang_ops={"kind": "evaluation", "runs": [], "log": log}
            )

    def checked(self, progress, fresh):
        """Wait until data and scorers were checked. Raises Refused; of a `fresh` run nothing is left behind then,
        of one that goes on everything: what was answered has cost hours."""
        deadline = time.monotonic() + self.params["check_timeout"]
        while True:
            now = evaluation.status(self.run)
            if now["state"] not in ("starting", "checking"):
                break
            if time.monotonic() > deadline:
                if fresh:
                    self.absent(now)
                raise evaluation.Refused(
                    "Data and scorers were not checked within %d s%s."
                    % (self.params["check_timeout"], "" if fresh else "; the run goes on without being watched")
                )
            progress.report(evaluation.line(now))
            time.sleep(POLL_SECONDS)
        if now["state"] == "refused":
            why = " ".join(now["problems"] or ["refused"])
            if fresh:
                self.absent(now)
                raise evaluation.Refused(why)
            raise evaluation.Refused(why + " Every answer is kept: `sglang-ops evaluate resume %s` goes on." % self.run)
        if now["state"] == "failed":
            log = systemd.journal(now["unit"], systemd.show([now["unit"]]).get(now["unit"], {}))
            self.module.fail_json(
                msg="The evaluation ended before it asked anything: %s" % (log[-1] if log else "its log is empty"),
                sglang_ops={"kind": "evaluation", "runs": [now], "log": log},
            )
        return dict(now, data=evaluation.data(self.run))

    def waited(self, progress):
        while True:
            now = evaluation.status(self.run)
            if now["state"] in evaluation.ENDED:
                return now
            progress.report(evaluation.line(now))
            time.sleep(POLL_SECONDS)

    def cancelled(self):
        now = evaluation.status(self.run)
        if not self.check and now["state"] not in ("done", "cancelled"):
            store.write_atomic(os.path.join(evaluation.directory(self.run), "cancelled"), "")
            systemd.systemctl("disable", "--quiet", "--now", now["unit"] + ".service")
        return dict(now, state=now["state"] if now["state"] == "done" else "cancelled")

    def absent(self, now):
        if not self.check:
            systemd.systemctl("disable", "--quiet", "--now", now["unit"] + ".service")
        if store.read_text(store.unit_path(now["unit"])) is not None:
            self.unit(now["unit"], None)
        if not self.check:
            evaluation.forget(self.run)
        return dict(now, state="removed")


def act(host, state, progress):
    """[run] after what was asked for."""
    if state == "listed":
        names = [name for name in evaluation.runs() if not host.run or name == host.run]
        return [evaluation.status(name) for name in names]
    if state == "described":
        key = host.params["secrets"].get("api_key") or evaluation.key_of(host.params["job"])
        job, host.warnings = evaluation.prepared(host.params["job"], key)
        told = {"run": host.run, "state": "described", "service": job["service"], "model": job["server"]["model"]}
        return [dict(told, job=job)]
    if state == "started":
        return [host.started(progress)]
    if host.run not in evaluation.runs():
        if state in ("waited", "collected"):  # its start never came here: others may have it, and these items
            return []
        raise evaluation.Refused("There is no run %s on this host." % host.run)
    if state == "resumed":
        return [host.resumed(progress)]
    if state == "absent":
        return [host.absent(evaluation.status(host.run))]
    if state == "cancelled":
        return [host.cancelled()]
    now = host.waited(progress) if state == "waited" else evaluation.status(host.run)
    return [dict(now, archive=files.pack(evaluation.directory(host.run)))]


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "required": True,
                "choices": ["described", "started", "waited", "collected", "listed", "cancelled", "resumed", "absent"],
            },
            "run": {"type": "str", "default": ""},
            "job": {"type": "dict", "default": {}},
            "unit": {"type": "str", "default": ""},
            "files": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "check_timeout": {"type": "int", "default": 900},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    host, state = Host(module), module.params["state"]
    with Progress(module.params["progress_token"], step="evaluation") as progress:
        try:
            found = act(host, state, progress)
        except evaluation.Refused as refused:
            module.fail_json(msg=str(refused), exit_hint=refused.hint, sglang_ops={"kind": "evaluation", "runs": []})
    changed = state in ("started", "resumed", "cancelled", "absent")
    module.exit_json(
        changed=changed, diff=host.diff, sglang_ops={"kind": "evaluation", "runs": found, "warnings": host.warnings}
    )


if __name__ == "__main__":
    main()
