"""Evaluations on a host: where a run lies, what the server allows, how far it is. Python 3.8, standard library.

/var/lib/sglang-ops/evaluations/<run>/job.json       what is evaluated, no secrets
/var/lib/sglang-ops/evaluations/<run>/secrets.json   mode 0600
/var/lib/sglang-ops/evaluations/<run>/status.json    how far it is; the rest is the container's
/var/lib/sglang-ops/evaluations/.<run>.<token>/      a run that is being written; it gets its name once it is whole
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time

from ansible.module_utils import sglang_host_lock as lock
from ansible.module_utils import sglang_host_probe as probe
from ansible.module_utils import sglang_host_rollout as rollouts
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.sglang_host_command import free_bytes

ROOT = "/var/lib/sglang-ops/evaluations"
LEAST_BYTES = 200 * 1000 * 1000  # answers and data of a run
MOST_AT_ONCE = 64  # requests, where the file does not say how many: more only wait in the server's queue
ENDED = ("done", "refused", "stalled", "replaced", "failed", "stopped", "cancelled")
THERE = (
    "There is a run %s on this host. `sglang-ops evaluate resume %s` goes on with it; "
    "--name gives a new one another name."
)
BESIDE = ("models", "images")  # verbs that change a host, but no service


class Refused(Exception):
    """Why the run cannot begin, in one sentence; nothing was touched. `hint` is the exit code."""

    def __init__(self, text, hint=7):
        super().__init__(text)
        self.hint = hint


def directory(run):
    return os.path.join(ROOT, run)


def runs():
    """Names of the runs on this host, the newest first."""
    try:
        names = [name for name in os.listdir(ROOT) if not name.startswith(".")]
    except FileNotFoundError:
        return []
    found = [name for name in names if os.path.isfile(os.path.join(ROOT, name, "job.json"))]
    return sorted(found, key=lambda name: os.path.getmtime(os.path.join(ROOT, name, "job.json")), reverse=True)


def read(run, name):
    """A JSON file of a run, {} where there is none."""
    text = store.read_text(os.path.join(directory(run), name))
    return json.loads(text) if text else {}


def status(run):
    """{"run", "state", "service", "done", "total", …} of one run, as people are told."""
    job, told = read(run, "job.json"), read(run, "status.json")
    properties = systemd.show([job["unit"]]).get(job["unit"], {})
    state = told.get("state", "starting")
    if os.path.exists(os.path.join(directory(run), "cancelled")):
        state = "cancelled"
    elif state not in ("done", "refused") and systemd.state(properties) in ("inactive", "failed"):
        ended = state if state in ENDED else "failed"
        state = "starting" if systemd.queued(properties) else ended  # after a reboot, while the engine starts
    elif state in ENDED and state not in ("done", "refused"):
        state = "starting"  # systemd is about to begin the next life
    keys = ("why", "problems", "tasks", "done", "total", "rate", "seconds_left", "requests", "concurrency", "updated")
    return dict(
        {key: told.get(key) for key in keys},
        run=run,
        state=state,
        service=job["service"],
        unit=job["unit"],
        shards=job["tasks"][0]["shards"],
        created=job.get("created"),
        names=[t["name"] for t in job["tasks"]],
        model=job["server"]["model"],
    )


def data(run):
    """{task: hash of its data} as this host has checked it; tasks whose data only the harness reads are left out."""
    known = read(run, "checked.json").get("tasks") or {}
    found = {name: (one.get("dataset") or {}).get("sha256") for name, one in known.items()}
    return {name: sha256 for name, sha256 in found.items() if sha256}


def line(told):
    """How far a run is, in a few words: ifeval 120/541, 3.2/s, 2m10s left. Pure."""
    if told["state"] in ("starting", "checking"):
        return "checking data and scorers"
    current = [(name, task) for name, task in (told.get("tasks") or {}).items() if task["done"] < task["total"]]
    shown = ["%s %d/%d" % (name, task["done"], task["total"]) for name, task in current[:1]]
    shown = shown or ["%s of %s answered, scoring" % (told.get("done"), told.get("total"))]
    if told.get("rate"):
        shown.append("%.1f/s" % told["rate"])
    if told.get("seconds_left"):
        minutes, seconds = divmod(int(told["seconds_left"]), 60)
        shown.append("%s left" % ("%dm%02ds" % (minutes, seconds) if minutes else "%ds" % seconds))
    failed = sum(task.get("failed", 0) for task in (told.get("tasks") or {}).values())
    return ", ".join(shown + (["%d failed" % failed] if failed else []))


def unchanging(records):
    """Raises Refused while somebody changes these services, or has not come to an end with it."""
    holder = lock.current()
    if holder and not (holder.get("verb") or "").startswith(BESIDE):
        raise Refused(
            "%s is at work on this host (%s). Evaluate once that is done."
            % (holder.get("who") or "somebody", " ".join(filter(None, [holder.get("verb"), holder.get("run")]))),
            hint=5,
        )
    for record in records:
        begun = rollouts.read(record["name"])
        if begun:
            paused = (begun.get("paused") or {}).get("why")
            raise Refused(
                "A roll-out of %s has not finished here%s: other hosts may serve another release. "
                "See `sglang-ops rollout status`." % (record["name"], " (paused: %s)" % paused if paused else "")
            )


def same_releases(job):
    """Raises Refused where the job's services are not those any more with which it began."""
    for name, began in (job.get("releases") or {}).items():
        now = store.read_state(name)["release"]
        if now != began:
            raise Refused(
                "the run began with release %s of %s, and now %s is deployed: two models are not scored as one. "
                "Begin a new run, or go back with `sglang-ops rollback --to %s`." % (began, name, now or "none", began)
            )


def services(job):
    """Release records of the job's deployment here: the service of its name, else its replicas; `only` names some.

    Replicas serve the same model name; a deployment that merely ends in a number does not. Of hosts that serve a model
    together only the first (rank 0) answers requests.
    """
    deployment, served, only = job["deployment"], job["model"], job.get("only")
    replica = re.compile(r"%s-\d+\Z" % re.escape(deployment))
    known = store.names()
    names = [deployment] if deployment in known else [name for name in known if replica.match(name)]
    names = [name for name in names if not only or name in only]
    records = [store.read_record(name, store.read_state(name)["release"]) for name in names]
    gates = [(one, one.get("gate") or {}) for one in records]
    return [one for one, gate in gates if gate.get("served_model_name") == served and not gate.get("rank")]


def key_of(job):
    """The key that the servers of a job ask for, "" where they ask for none."""
    keys = (probe.api_key(record["gate"]) for record in services(job))
    return next(filter(None, keys), "")


def serving(records, api_key):
    """Ask each service the gate's questions; [layers] of each. Raises Refused with the first that is not answered."""
    shown = systemd.show([record["name"] for record in records])
    asked = {}
    for record in records:
        gate = dict(record["gate"], api_key=api_key)
        layers = probe.ask(gate, shown.get(record["name"], {}))
        asked[record["name"]] = layers
        if not layers[-1]["ok"]:
            raise Refused(
                "%s does not serve: %s: %s. See `sglang-ops verify`."
                % (record["name"], layers[-1]["name"], layers[-1]["detail"])
            )
    return asked


def offered(layers):
    """The endpoints that answered, of chat and completions. Pure."""
    detail = next((layer["detail"] for layer in layers if layer["name"] == "answer"), "")
    return ["completions"] if "no chat template" in detail else ["chat", "completions"]


def capacity(gate):
    """(requests that run at once, tokens of context) as the server says; None where it does not."""
    running = context = None
    try:
        ranks = json.loads(probe.get(gate, "/v1/loads", 10)[1])["loads"]
        running = sum(int(rank["max_running_requests"]) for rank in ranks)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        models = json.loads(probe.get(gate, "/v1/models", 10)[1])["data"]
        context = min(int(model["max_model_len"]) for model in models)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return running, context


def fit(tasks, running, context, endpoints):
    """The tasks as this server can take them, requests at once, and what was changed. Pure. Raises Refused."""
    warnings, fitted = [], []
    wanted = max(int(task["parallelism"] or min(running or MOST_AT_ONCE, MOST_AT_ONCE)) for task in tasks)
    most = min(wanted, running) if running else wanted
    if most < wanted:
        warnings.append("%d requests at once, as the server runs no more (parallelism is %d)" % (most, wanted))
    for task in tasks:
        if task["endpoint_type"] not in endpoints:
            raise Refused(
                "%s needs %s, which the server does not offer: the model has no chat template."
                % (task["name"], task["endpoint_type"])
            )
        generation = dict(task["generation"])
        tokens = generation.get("max_gen_toks")
        if tokens and context and tokens >= context:
            if not task["usual"]:
                raise Refused(
                    "%s: max_new_tokens %d does not fit the server's context of %d tokens. Write at most %d."
                    % (task["name"], tokens, context, context // 2)
                )
            generation["max_gen_toks"] = context // 2
            warnings.append(
                "%s: answers of at most %d tokens instead of %d, half of the server's context"
                % (task["name"], context // 2, tokens)
            )
        fitted.append(dict(task, generation=generation, parallelism=min(int(task["parallelism"] or most), most)))
    return fitted, most, warnings


def prepared(job, api_key):
    """The job with what only the host knows, and warnings. Raises Refused."""
    records = services(job)
    if not records:
        raise Refused("%s is not deployed here: deploy it first, or --limit the hosts." % job["deployment"])
    free = free_bytes(ROOT)
    if free < LEAST_BYTES:
        raise Refused(
            "%s has %d MB free, a run needs %d MB. Make room." % (ROOT, free // 1000000, LEAST_BYTES // 1000000)
        )
    if not job.get("gate"):  # a roll-out's own evaluation is part of it
        unchanging(records)
    layers = serving(records, api_key)
    gates = [dict(record["gate"], api_key=api_key) for record in records]
    known = [capacity(gate) for gate in gates]
    running = sum(item[0] for item in known) if all(item[0] for item in known) else None
    context = min(item[1] for item in known) if all(item[1] for item in known) else None
    endpoints = offered(layers[records[0]["name"]])
    tasks, most, warnings = fit(job["tasks"], running, context, endpoints)
    gate, content = gates[0], records[0]["content"]
    filled = dict(
        job,
        tasks=tasks,
        concurrency=most,
        service=records[0]["name"],
        model=gate["served_model_name"],
        endpoints=gate["endpoints"],
        patience=gate["start_timeout"],
        created=time.time(),
        warnings=warnings,
        releases={record["name"]: record["release"] for record in records},
        upstreams=[{"address": item["address"], "port": item["port"]} for item in gates],
        server={
            "image_digest": records[0]["image_digest"],
            "argv": content["argv"],
            "model": content["model"],
            "release": records[0]["release"],
        },
    )
    return filled, warnings


def forget(run):
    shutil.rmtree(directory(run), ignore_errors=True)
