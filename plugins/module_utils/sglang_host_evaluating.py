"""Evaluations on this host as those see them who change its services. Python 3.8, standard library.

/var/lib/sglang-ops/evaluations/<run>/replaced.json   a service of the run got another release: the run ends
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd

ROOT = "/var/lib/sglang-ops/evaluations"
MARK = "replaced.json"


def _read(run, name):
    with contextlib.suppress(ValueError):
        return json.loads(store.read_text(os.path.join(ROOT, run, name)) or "{}")
    return {}


def unfinished():
    """{run: its job} of the evaluations that have not come to their end, at work or not."""
    try:
        names = sorted(name for name in os.listdir(ROOT) if not name.startswith("."))
    except FileNotFoundError:
        return {}
    open_ones = [name for name in names if not os.path.exists(os.path.join(ROOT, name, "finished"))]
    jobs = {name: _read(name, "job.json") for name in open_ones}
    return {name: job for name, job in jobs.items() if job.get("unit")}


def under_way():
    """Evaluations at work: {"run", "releases": {service: release}, "done", "total", "seconds_left"} of each."""
    jobs = unfinished()
    shown = systemd.show([job["unit"] for job in jobs.values()]) if jobs else {}
    found = []
    for run, job in jobs.items():
        if job.get("gate"):  # part of a roll-out that is over, or its controller gone
            continue
        if systemd.state(shown.get(job["unit"], {})) in ("inactive", "failed"):
            continue
        told = _read(run, "status.json")
        found.append(
            dict(
                {key: told.get(key) for key in ("done", "total", "seconds_left")},
                run=run,
                releases=job.get("releases") or {},
            )
        )
    return found


def replaced(services):
    """`services`, {name: release, None where it goes}, are about to change: runs that began with others end.

    Written before the old server stops: no answer of the new one is taken for one of the old.
    """
    for run, job in unfinished().items():
        for name, release in services.items():
            before = (job.get("releases") or {}).get(name)
            if before and before != release:
                mark = {"service": name, "before": before, "release": release, "time": time.time()}
                store.write_atomic(os.path.join(ROOT, run, MARK), json.dumps(mark))
