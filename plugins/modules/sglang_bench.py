#!/usr/bin/python
"""Measure the speed of a deployed SGLang server with SGLang's own benchmark."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_bench
short_description: Run SGLang's serving benchmark beside a deployed server
description:
  - Runs the benchmark of the server's own image in a container with the host's network, once for each point, against
    a service that serves. The container sees the model cache read only, needs no network and no GPU, and is gone
    afterwards.
  - Where hosts serve a model together, the first of them is measured; on the others nothing is run, and C(skipped)
    says so.
  - In check mode nothing is run.
options:
  names:
    description: The service to measure; it may be left out where the host has one.
    type: list
    elements: str
    default: []
  points:
    description: What to measure; each has C(name), C(prompts) and the C(arguments) of the benchmark.
    type: list
    elements: dict
    required: true
  timeout:
    description: Seconds that one point may take, with the start of the program.
    type: int
    default: 600
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Sixteen random prompts, four at once
  sglang_bench:
    points:
      - name: random 4 at once
        prompts: 16
        arguments: [--dataset-name, random-ids, --tokenize-prompt, --num-prompts, "16", --max-concurrency, "4"]
"""

RETURN = r"""
sglang_ops:
  description: The server, and for each point what was measured.
  returned: always
  type: dict
"""

import json
import os
import re
import shutil
import tempfile
import time

from ansible.module_utils import sglang_host_bench as bench
from ansible.module_utils import sglang_host_probe as probe
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_progress import Progress

LINES = 40
_COUNT = re.compile(r"(\d+)/(\d+) \[")


class Refused(Exception):
    """The service cannot be measured; nothing was done."""


class TooLong(Exception):
    """A point took longer than it may."""


def chosen(names, there):
    """The service to measure. Raises Refused. Pure."""
    for name in names:
        if name not in there:
            raise Refused("there is no service %s on this host, there is %s" % (name, ", ".join(there) or "none"))
    wanted = names or there
    if not wanted:
        raise Refused("no service is deployed on this host")
    if len(wanted) > 1:
        raise Refused("this host has %s. Name the one to measure with --service" % ", ".join(wanted))
    return wanted[0]


def serving(name):
    """The record of a service that serves. Raises Refused."""
    record = store.read_record(name, store.read_state(name)["release"])
    if not record:
        raise Refused("%s has no release record. Deploy it again" % name)
    layers = probe.ask(record["gate"], systemd.show([name]).get(name, {}), quick=True)
    if not layers[-1]["ok"]:
        raise Refused("%s does not serve: %s: %s" % (name, layers[-1]["name"], layers[-1]["detail"]))
    return record


def measure(record, binds, point, timeout, progress, prefix):
    """One point, measured in a container of its own."""
    directory = tempfile.mkdtemp(prefix="sglang-bench-")
    name = os.path.basename(directory)
    started, lines = time.monotonic(), []

    def on_line(line):
        count = _COUNT.search(line)
        if count:
            progress.report("%s: %s / %s requests" % (prefix, count.group(1), count.group(2)))
        else:
            lines[:] = [*lines[-LINES:], line[:400]]

    def on_tick():
        if time.monotonic() - started > timeout:
            raise TooLong

    error, numbers, kept = None, {}, ""
    try:
        progress.report("%s: starting" % prefix)
        key = probe.api_key(record["gate"])
        if key:
            store.write_atomic(os.path.join(directory, bench.KEY), key, mode=0o600)
        words = bench.command(record, binds, name, directory, point["arguments"])
        done = progress.run_child(words, on_line=on_line, on_tick=on_tick)
        numbers, kept = bench.read(store.read_text(os.path.join(directory, bench.OUTPUT)) or "")
        error = bench.why(point, numbers) or (None if done.ok else "it ended with exit code %d" % done.rc)
    except TooLong:
        error = "not done after %d s" % timeout
    except ValueError as problem:
        error = "%s: %s" % (problem, lines[-1] if lines else "it said nothing")
    finally:
        run(record["engine"], "rm", "--force", name)
        shutil.rmtree(directory, ignore_errors=True)
    return {
        "name": point["name"],
        "measured": numbers,
        "error": error,
        "raw": kept,
        "log": lines,
        "seconds": round(time.monotonic() - started, 2),
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "points": {"type": "list", "elements": "dict", "required": True},
            "timeout": {"type": "int", "default": 600},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    points, report = module.params["points"], {"kind": "bench"}
    try:
        name = chosen(module.params["names"], store.names())
        record = serving(name)
    except Refused as refused:
        module.fail_json(msg="%s." % refused, exit_hint=7, sglang_ops=report)
    if record["gate"].get("rank"):
        why = "%s answers no requests here: the first host of its group is measured" % name
        module.exit_json(changed=False, diff={"before": "", "after": ""}, sglang_ops=dict(report, skipped=why))
    content = record["content"]
    report.update(
        service=name,
        release=record["release"],
        image=content["image"],
        image_digest=record["image_digest"],
        model=record["gate"]["served_model_name"],
        server_arguments=bench.shown(content["argv"]),
        points=[],
    )
    if module.check_mode:
        module.exit_json(changed=False, diff={"before": "", "after": ""}, sglang_ops=report)
    inspected = run(record["engine"], "inspect", "--format", "{{json .Mounts}}", name)
    if not inspected.ok:
        module.fail_json(
            msg="%s knows no container %s: %s." % (record["engine"], name, inspected.error), sglang_ops=report
        )
    binds = bench.mounts(json.loads(inspected.stdout))
    with Progress(module.params["progress_token"], "bench") as progress:
        for number, point in enumerate(points, 1):
            prefix = "%d of %d, %s" % (number, len(points), point["name"])
            report["points"].append(measure(record, binds, point, module.params["timeout"], progress, prefix))
    module.exit_json(changed=False, sglang_ops=report)


if __name__ == "__main__":
    main()
