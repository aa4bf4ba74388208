"""Evaluations on this machine (`execution: local`): the program that otherwise runs on hosts, asking their servers.

`<state>/evaluations/<run>/` holds what /var/lib/sglang-ops/evaluations/<run>/ holds on a host, its log, and a lock that
the program has as long as it lives, with its process id: the command that began it may be gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sglang_ops.errors import OpsError, PreflightError, UsageError
from sglang_ops.evaluation import harness, run_lock, tasks
from sglang_ops.evaluation.run import Work, environment
from sglang_ops.runs import state_dir
from sglang_ops.spec import Deployment, DeploymentFile

NAME = "controller"  # as the host of a run's files
PYTHON_VARIABLE = "SGLANG_OPS_HARNESS_PYTHON"
CONNECT_SECONDS = 5.0
LIVES = 5  # of a program that fails; what was answered is kept, so each begins where the last one ended
CANCEL_SECONDS = 30.0
_POLL_SECONDS = 0.5
_AT_WORK = ("starting", "checking", "running")
_REFUSED, _STALLED, _STOPPED = 7, 3, 143


def directory(run: str) -> Path:
    return state_dir() / "evaluations" / run


def known(run: str) -> bool:
    """Whether this machine has such a run."""
    return (directory(run) / "job.json").is_file()


def python() -> str:
    """A Python of this machine that has the harness. Raises PreflightError."""
    named = os.environ.get(PYTHON_VARIABLE)
    for candidate in [named] if named else [sys.executable, "python3"]:
        look = "import importlib.metadata as known; print(known.version('lm_eval'))"
        try:
            found = subprocess.run([candidate, "-c", look], capture_output=True, text=True, check=False)
        except OSError:
            continue
        if found.returncode == 0:
            return candidate
    raise PreflightError(
        f"execution.type is local, and {named or 'no Python of this machine'} has no lm_eval.",
        fix=f"python3 -m venv ~/lm-eval && ~/lm-eval/bin/pip install 'lm_eval[api,ifeval]=={tasks.VERSION}' && "
        f"export {PYTHON_VARIABLE}=~/lm-eval/bin/python",
    )


def secrets(file: DeploymentFile, deployment: Deployment, base: Path) -> dict[str, Any]:
    """What is secret about a run here, the servers' key among it. Raises UsageError for what only hosts know."""
    found = environment(file, deployment, base)
    key = deployment.api_key
    if key and key.kind != "runtime":
        found["api_key"] = os.environ.get(key.value) if key.kind == "host" else key.value
    theirs = "api_key" if key and key.kind == "runtime" else next(iter(found["runtime"]), None)
    if theirs:
        raise UsageError(f"{theirs} is a variable of the hosts (runtime:).", fix="Write host: for this machine's.")
    return found


def check(made: Work) -> list[str]:
    """What is to be said of a run here before it begins. Raises UsageError, PreflightError."""
    theirs = next((item["name"] for item in made.job["tasks"] if item["nvidia"]), None)
    if theirs:
        raise UsageError(
            f"{theirs} is run by NVIDIA's container, which runs on the hosts.",
            fix="Take execution.type: local away, or evaluation.harness: nvidia.",
        )
    if known(made.run):
        raise UsageError(
            f"There is a run {made.run} on this machine.", fix=f"`sglang-ops evaluate resume {made.run}`, or --name."
        )
    for mount in _data(made):
        if not Path(mount[0]).is_dir():
            raise UsageError(f"dataset_dir {mount[0]} is no directory of this machine.", fix="Correct it.")
    python()
    others = [mount.target for mount in made.mounts if not mount.target.startswith(f"{harness.IN_CONTAINER}/data/")]
    return [f"The mount {target} has no effect: nothing runs in a container here." for target in others]


def _data(made: Work) -> list[tuple[str, str]]:
    """Directories with data, and the names under which tasks look for them."""
    root = f"{harness.IN_CONTAINER}/data/"
    return [(one.source, one.target.removeprefix(root)) for one in made.mounts if one.target.startswith(root)]


def prepare(made: Work, described: Mapping[str, Mapping[str, Any]], secrets: Mapping[str, Any]) -> Path:
    """The run's directory, from what each host says of its servers. Raises PreflightError where one is out of reach."""
    upstreams = [{**server, "host": host} for host, job in sorted(described.items()) for server in job["upstreams"]]
    for server in upstreams:
        _reach(server)
    jobs = list(described.values())
    most = sum(int(job["concurrency"]) for job in jobs)
    items = []
    for place, first in enumerate(jobs[0]["tasks"]):
        same = [job["tasks"][place] for job in jobs]
        limits = [item["generation"]["max_gen_toks"] for item in same if "max_gen_toks" in item["generation"]]
        generation = {**first["generation"], **({"max_gen_toks": min(limits)} if limits else {})}
        wanted = made.job["tasks"][place]["parallelism"]
        items.append({**first, "generation": generation, "parallelism": min(int(wanted or most), most)})
    job = {**jobs[0], "tasks": items, "upstreams": upstreams, "concurrency": most, "host": NAME}
    above = directory(made.run).parent
    above.mkdir(mode=0o700, parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix=f".{made.run}.", dir=above))  # a run is there whole, or not at all
    try:
        _fill(base, made, job, secrets)
        return base.rename(directory(made.run))
    except BaseException as error:
        shutil.rmtree(base)
        if isinstance(error, OSError) and known(made.run):  # it has begun meanwhile
            raise UsageError(f"There is a run {made.run} on this machine.", fix="Give another --name.") from error
        raise


def _fill(base: Path, made: Work, job: Mapping[str, Any], secrets: Mapping[str, Any]) -> None:
    for name, path in made.files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, base / name)
    for source, name in _data(made):
        (base / "data").mkdir(exist_ok=True)
        (base / "data" / name).symlink_to(source)
    (base / "agent.pyz").write_bytes(harness.program())
    (base / "job.json").write_text(json.dumps(job, indent=1))
    with os.fdopen(os.open(base / "secrets.json", os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        json.dump(dict(secrets), stream)


def _reach(server: Mapping[str, Any]) -> None:
    try:
        socket.create_connection((server["address"], server["port"]), CONNECT_SECONDS).close()
    except OSError as error:
        raise PreflightError(
            f"{server['host']}: {server['address']}:{server['port']} does not answer this machine: {error}.",
            fix="Take execution.type: local away to evaluate on the hosts, or let the server listen on that address.",
        ) from error


def again(run: str) -> None:
    """Let a run go on: what failed is asked once more. Raises UsageError where it is at work."""
    with run_lock.held(directory(run)):
        base = directory(run)
        for name in ("finished", "cancelled", "status.json"):
            (base / name).unlink(missing_ok=True)
        (base / "again").touch()


def remove(run: str) -> None:
    """Remove a run. Raises UsageError where it is at work."""
    with run_lock.held(directory(run)):
        shutil.rmtree(directory(run))


def cancel(run: str) -> None:
    """End the program of a run, wherever it was begun. Raises OpsError where it does not end."""
    (directory(run) / "cancelled").touch()
    until = time.monotonic() + CANCEL_SECONDS
    while (pid := at_work(run)) is not None:
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGTERM)
        if time.monotonic() > until:
            raise OpsError(f"The program of the run {run} (process {pid}) has not ended in {CANCEL_SECONDS:.0f} s.")
        time.sleep(_POLL_SECONDS)


def at_work(run: str) -> int | None:
    """The process of a run that is at work, 0 where it is about to begin, None where there is none."""
    return run_lock.holder(directory(run))


def live(run: str, told: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Run until the run has ended; `told` gets its status now and then. KeyboardInterrupt leaves it to be resumed.

    Raises PreflightError with what was refused, UsageError where it is at work already. Nothing is left of a run that
    had not begun, everything of one that was to go on.
    """
    base = directory(run)
    goes_on = (base / "again").exists()
    with run_lock.held(directory(run)) as lock:
        for _ in range(LIVES):
            code = _life(run, lock, told)
            if code in (0, _REFUSED, _STALLED, _STOPPED) or (base / "cancelled").exists():
                break
        now = _told(run)
    if now["state"] == "refused":
        if not goes_on:
            remove(run)
        kept = f"Every answer is kept: `sglang-ops evaluate resume {run}` goes on."
        raise PreflightError(" ".join(now["problems"]), fix=kept if goes_on else "Nothing was asked.")
    return status(run) if now["state"] in ("done", "stalled", "stopped") else {**now, "state": "failed"}


def _life(run: str, lock: int, told: Callable[[Mapping[str, Any]], None]) -> int:
    """The program once, from start to end; it has the lock too, so that it is known to live without this process."""
    base = directory(run)
    job = json.loads((base / "job.json").read_text())
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if job["offline"] else {}
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1", **offline}
    with (
        (base / "log").open("ab") as log,
        subprocess.Popen(
            [python(), str(base / "agent.pyz"), str(base)],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            pass_fds=(lock,),
        ) as program,
    ):  # fmt: skip
        os.pwrite(lock, str(program.pid).encode(), 0)
        try:
            while program.poll() is None:
                told(_told(run))
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            program.send_signal(signal.SIGTERM)
            program.wait()
            raise
        finally:
            if program.poll() is not None:
                os.ftruncate(lock, 0)
    return program.returncode


def wait(run: str, told: Callable[[Mapping[str, Any]], None]) -> None:
    """Watch a run that another command has begun, until it has ended."""
    while at_work(run) is not None:
        told(_told(run))
        time.sleep(_POLL_SECONDS)


def status(run: str) -> dict[str, Any]:
    """As the program told it last, and whether it still is at work."""
    now, over = _told(run), at_work(run) is None
    if over and now["state"] in (*_AT_WORK, "stopped"):
        now["state"] = "cancelled" if (directory(run) / "cancelled").exists() else "stopped"
    return now


def _told(run: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((directory(run) / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "starting", "why": "", "problems": []}
    return found


def rows(run: str | None) -> list[dict[str, Any]]:
    """The runs of this machine, or one, as `evaluate status` shows those of hosts."""
    names = sorted(path.parent.name for path in directory("x").parent.glob("[!.]*/job.json"))
    return [_row(name) for name in names if run in (None, "", name)]


def _row(run: str) -> dict[str, Any]:
    job = json.loads((directory(run) / "job.json").read_text())
    names = [task["name"] for task in job["tasks"]]
    return {"host": NAME, "run": run, "service": job["deployment"], "names": names, **status(run)}


def line(now: Mapping[str, Any]) -> str:
    """How far it is, in a few words."""
    if now["state"] in ("starting", "checking"):
        return "checking data and scorers"
    left = f", {now['seconds_left']} s left" if now.get("seconds_left") else ""
    return f"{now['done']} of {now['total']} answered, {now['rate']:.1f}/s{left}"
