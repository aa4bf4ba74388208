"""Making a container engine ready, and with it the toolkit that gives it GPUs. Python 3.8, standard library.

`see` looks, `decide` (pure) plans, `apply` does it. Whatever needs the network comes before anything is changed; a
daemon.json with which docker does not start is taken back.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, field, replace

from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_engine_packages as supplies
from ansible.module_utils import sglang_host_toolkit as toolkits
from ansible.module_utils.sglang_host_command import NOT_FOUND, run
from ansible.module_utils.sglang_host_packages import PackageError, Packages
from ansible.module_utils.sglang_host_progress import Progress
from ansible.module_utils.sglang_host_state import read_text, write_atomic

READY_SECONDS = 90
WAITING = "/run/sglang-ops/docker-waiting.json"  # settings that this docker has not read yet
PID_FILE = "/run/docker.pid"  # written at every start of docker


class Failure(Exception):
    """The engine is not ready; the message says why and what to do."""


@dataclass(frozen=True)
class Wish:
    """`mode` of the toolkit: true, false, or auto for hosts with NVIDIA GPUs."""

    desired: engines.Desired
    origin: supplies.Origin = field(default_factory=supplies.Origin)
    mode: str = "false"
    toolkit: toolkits.Wanted = field(default_factory=toolkits.Wanted)


@dataclass(frozen=True)
class Seen:
    current: engines.Current
    shelf: supplies.Shelf
    toolkit: toolkits.Found | None = None  # only where it is wanted


@dataclass(frozen=True)
class Whole:
    """Everything to do."""

    supply: supplies.Supply
    engine: engines.EnginePlan
    toolkit: toolkits.ToolkitPlan
    notes: tuple = ()

    @property
    def refusal(self) -> str:
        return self.supply.refusal or self.engine.refusal or self.toolkit.refusal

    @property
    def repositories(self) -> tuple:
        return tuple(part.repository for part in (self.supply, self.toolkit) if part.repository)

    @property
    def changed(self) -> bool:
        return bool(self.engine.changed or self.supply.files or self.supply.hold or self.toolkit.steps)

    @property
    def steps(self) -> tuple:
        """What would be done, for people."""
        return (*("write " + path for path in sorted(self.supply.files)), *self.engine.steps,
                *(["hold " + ", ".join(self.supply.hold)] if self.supply.hold else []), *self.toolkit.steps)

    @property
    def diff(self) -> list:
        """What changes, in the form that `--diff` shows."""
        texts = [(path, "", text) for part in (self.supply, self.toolkit) for path, text in sorted(part.files.items())]
        texts = [(path, read_text(path) or before, text) for path, before, text in texts]
        if self.engine.after is not None:
            texts.append((self.engine.path, self.engine.before or "", self.engine.after))
        lists = {
            "packages": (*self.supply.packages, *self.toolkit.packages),
            "packages on hold": (*self.supply.hold, *self.toolkit.hold),
            "units": toolkits.UNITS if self.toolkit.enable else (),
            "CDI specification": ("written anew: %s" % self.toolkit.stale,) if self.toolkit.stale else (),
        }
        texts += [(name, "", "".join(item + "\n" for item in items)) for name, items in lists.items() if items]
        return [{"before_header": name, "after_header": name, "before": before, "after": after}
                for name, before, after in texts]


def see(wish: Wish) -> Seen:
    """Look at the host. Reads only."""
    now = current(wish.desired.engine)
    shelf = supplies.look(wish.desired.engine, now, wish.origin, manager_of)
    if wish.mode == "false" or (wish.mode == "auto" and not toolkits.has_gpus()):
        return Seen(now, shelf)
    manager = manager_of(shelf.family) if shelf.family else None
    return Seen(now, shelf, toolkits.observe(wish.toolkit, shelf.family, manager))


def current(engine: str) -> engines.Current:
    return replace(engines.observe(engine), waiting=waiting())


def manager_of(family, progress=None):
    return Packages(family, progress or Progress(None))


def decide(seen: Seen, wish: Wish) -> Whole:
    """What is to be done. Pure."""
    now, desired = seen.current, wish.desired
    toolkit, notes = toolkits.ToolkitPlan(), []
    if seen.toolkit:
        toolkit = toolkits.plan(seen.toolkit, wish.toolkit)
        desired = replace(desired, wants_cdi=True)
    if wish.origin.source == "docker" and not now.version:
        now = replace(now, candidates={})  # those are the distribution's, and this one will be newer
    supply = supplies.supply(desired.engine, now, wish.origin, seen.shelf)
    engine = engines.plan(now, desired, supply.packages)
    if seen.toolkit and desired.engine == "docker" and not engines.knows_cdi(now):
        notes.append("docker %s knows no CDI, which GPUs need. Set container_engine_source: docker, or "
                     "container_engine: podman." % engines.version_of(now, "docker"))
    if engine.pending:
        notes.append("%s in %s will take effect when docker starts the next time: it runs %d containers. "
                     "container_engine_restart: true restarts it at once." % (
                         ", ".join(engine.pending), engines.DAEMON_JSON, now.containers))
    return Whole(supply, engine, toolkit, (*supply.notes, *notes, *toolkit.notes))


def apply(whole: Whole, seen: Seen, wish: Wish, progress) -> Whole:
    """Do it; returns the plan that was carried out, which fresh package lists can refine. Raises Failure and
    PackageError.
    """
    family = seen.shelf.family
    manager = manager_of(family, progress) if family else None
    for repository in whole.repositories:
        add(manager, repository, family)
    unlisted = [part for part in (whole.supply, whole.toolkit) if part.packages and not part.repository]
    if unlisted:
        manager.refresh(force=bool(seen.shelf.elsewhere or whole.toolkit in unlisted))
    if whole.supply.packages:
        again = decide(see(wish), wish)
        if again.refusal:
            raise Failure(again.refusal)
        names = supplies.resolved(again.supply.packages, lambda name: supplies.versions(name, family))
        whole = replace(whole, engine=again.engine, supply=replace(whole.supply, packages=names))
    if whole.engine.changed or whole.supply.hold:
        make_ready(whole, wish, manager, progress)
    if whole.toolkit.steps:
        toolkits.install(whole.toolkit, manager)
        toolkits.renew(lambda: see(wish).toolkit)
    return whole


def add(manager, repository, family: str) -> None:
    """Add a package repository; one that does not work is taken back, as it would break every later update."""
    path = supplies.repositories.source_path(repository, family)
    before = read_text(path)
    try:
        manager.add(repository)
    except PackageError:
        put_back(path, before)
        raise


def make_ready(whole: Whole, wish: Wish, manager, progress) -> None:
    """Configuration, packages and service of the engine itself. Raises Failure and PackageError."""
    engine = whole.engine
    before = read_text(engine.path)
    try:
        configure(engine)
        if whole.supply.packages:
            manager.install(whole.supply.packages)
        if whole.supply.hold:
            manager.hold(whole.supply.hold)
        if whole.supply.packages:  # what has come may want more, and judges what is there
            engine = decide(see(wish), wish).engine
            validate(engine)
            configure(engine)
        if engine.service:
            progress.report("waiting for docker")
            tell(engine.service)
        wait_ready(wish)
    except (Failure, PackageError):
        if read_text(engine.path) != before:
            put_back(engine.path, before)
            if wish.desired.engine == "docker":
                run("systemctl", "reset-failed", "docker.service")
                run("systemctl", "start", "docker.service", timeout=READY_SECONDS)
        raise


def validate(engine: engines.EnginePlan) -> None:
    wrong = invalid(replace(engine, after=engine.after or read_text(engine.path)))
    if wrong:
        raise Failure(wrong)


def configure(engine: engines.EnginePlan) -> None:
    if engine.after is not None:
        remember(engine.pending)
        write_atomic(engine.path, engine.after)


def put_back(path: str, text) -> None:
    if text is not None:
        write_atomic(path, text)
    elif os.path.exists(path):
        os.unlink(path)


def invalid(engine: engines.EnginePlan) -> str:
    """What docker itself says against the new daemon.json, "" where it takes it or is too old (< 23) to be asked."""
    if engine.path != engines.DAEMON_JSON or engine.after is None:
        return ""
    with tempfile.NamedTemporaryFile("w", prefix="sglang-ops-", suffix=".json") as stream:
        stream.write(engine.after)
        stream.flush()
        told = run("dockerd", "--validate", "--config-file=" + stream.name)
    if told.ok or told.rc == NOT_FOUND or "unknown flag" in told.stderr:
        return ""
    why = told.error.rpartition(stream.name + ": ")[2]
    return "docker does not take the new %s: %s. Correct container_engine_daemon." % (engines.DAEMON_JSON, why)


def tell(word: str) -> None:
    """Start, restart, reload or enable docker."""
    if word in ("start", "enable"):
        commands = [("enable", "--quiet", "docker.service"), ("start", "docker.service")]
    else:
        commands = [(word, "docker.service")]
    for command in commands:
        done = run("systemctl", *command, timeout=READY_SECONDS)
        if not done.ok:
            why = complaint() or done.stderr.strip().split("\n")[0]
            raise Failure("systemctl %s says: %s See `journalctl -u docker` on the host." % (" ".join(command), why))


def complaint() -> str:
    """Why docker did not start, in its own words."""
    lines = run("journalctl", "--unit", "docker", "--lines", "50", "--output", "cat", "--no-pager").stdout.splitlines()
    told = [line for line in lines if "unable to configure" in line or "failed to start daemon" in line]
    return told[-1].rstrip(".") + "." if told else ""


def wait_ready(wish: Wish) -> None:
    """Until the engine is there with everything in effect. Raises Failure."""
    deadline = time.monotonic() + READY_SECONDS
    seen = see(wish)
    while True:
        lacking = decide(seen, wish)
        if not lacking.engine.changed and not lacking.refusal:
            return
        if time.monotonic() > deadline:
            missing = lacking.refusal or ", ".join(lacking.engine.steps)
            raise Failure("%s is not ready after %d s, still to do: %s. See `journalctl -u docker` on the host." % (
                wish.desired.engine, READY_SECONDS, missing))
        time.sleep(0.5)
        seen = replace(seen, current=current(wish.desired.engine))


def remember(settings: tuple) -> None:
    """Note what waits for docker's next start: nobody can ask docker for all that it has read."""
    if settings:
        write_atomic(WAITING, json.dumps({"docker": instance(), "settings": settings}) + "\n")


def waiting() -> tuple:
    told = json.loads(read_text(WAITING) or "{}")
    return tuple(told["settings"]) if told and told["docker"] == instance() else ()


def instance() -> str:
    """Tells one start of docker from the next."""
    with contextlib.suppress(OSError):
        return "%s %d" % ((read_text(PID_FILE) or "").strip(), os.stat(PID_FILE).st_mtime_ns)
    return ""
