"""Runs one playbook through ansible-runner; nothing else imports that library.

What this module keeps from its callers, because ansible-runner would surprise them:

* a relative or string inventory is taken for a host of that name, and the run "succeeds": paths go in as a list
  of absolute ones (commands check before that they exist);
* files of an earlier run win over arguments: every run has its own private directory, removed at the end;
* the whole environment is written into that directory: the file goes as soon as Ansible has started;
* extra variables would show in ``ps``: they travel in a 0600 file;
* host key checking would be switched off;
* its own Ctrl-C kills ansible-playbook but not the workers, which call ``setsid``: see `_Interrupt`;
* its return code is 0 where no host matched: `sglang_ops.events` judges by what the hosts reported.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sglang_ops import content, packed, processes
from sglang_ops import private as private_directories
from sglang_ops.errors import OpsError

Event = dict[str, Any]

DEFAULT_FORKS = 25
CONTROL_PATH_LIMIT = 60  # of 104 bytes that a socket path may have; ssh adds a hash and 17 bytes of its own
PATHS = {
    "ANSIBLE_ROLES_PATH": "roles",
    "ANSIBLE_LIBRARY": "plugins/modules",
    "ANSIBLE_MODULE_UTILS": "plugins/module_utils",
    "ANSIBLE_ACTION_PLUGINS": "plugins/action",
    "ANSIBLE_FILTER_PLUGINS": "plugins/filter",
}


@dataclass(frozen=True)
class RunResult:
    """How ansible-playbook ended; what it did is in the events."""

    rc: int
    interrupted: bool
    seconds: float


def run(
    playbook: Path,
    inventory: Sequence[str],
    *,
    on_event: Callable[[Event], None],
    limit: str | None = None,
    forks: int | None = None,
    check: bool = False,
    diff: bool = False,
    extravars: Mapping[str, Any] | None = None,
    extravars_files: Sequence[Path] = (),
    verbosity: int = 0,
    become_password: str | None = None,
    env: Mapping[str, str] | None = None,
) -> RunResult:
    """Run `playbook` against `inventory` in the foreground, calling `on_event` for each event in order.

    The working directory stays the caller's, so that relative key and vault paths in an inventory mean what they
    mean to ``ansible-playbook``. The first Ctrl-C lets Ansible end by itself, the second kills it. An exception
    raised by `on_event` ends the run and is raised again here.
    """
    import ansible_runner  # noqa: PLC0415 - 0.2 s that --help and validate need not pay

    started = time.monotonic()
    interrupt = _Interrupt()
    failure: list[Exception] = []

    with private_directories.directory() as private, interrupt:

        def handle(event: Event) -> bool:
            if event.get("event") == "playbook_on_start":
                interrupt.attach(int(event["pid"]))
                _forget_secrets(private)
            if event.get("event") != "EOF" and not failure:
                try:
                    on_event(event)
                except Exception as error:  # noqa: BLE001 - inside ansible-runner it would leave Ansible running
                    failure.append(error)
                    interrupt.request()
            return False  # no event files: on_event keeps what is worth keeping

        options = [flag for flag, on in (("--check", check), ("--diff", diff)) if on]
        options += _variables(private, extravars or {}, extravars_files)
        options += _become(private, become_password)
        runner = ansible_runner.run(
            private_data_dir=str(private),
            project_dir=str(Path.cwd()),
            playbook=str(playbook.resolve()),
            inventory=[absolute(source) for source in inventory],
            limit=limit,
            forks=forks,
            cmdline=shlex.join(options) or None,
            verbosity=verbosity or None,
            envvars=_with_packed(private, environment()) | dict(env or {}),
            ident="run",
            quiet=True,
            suppress_env_files=True,
            fact_cache_type="memory",
            event_handler=handle,
            status_handler=_forget_environment,
            cancel_callback=lambda: False,  # keeps ansible-runner from installing signal handlers of its own
        )
    if failure:
        raise failure[0]
    return RunResult(254 if runner.rc is None else runner.rc, interrupt.requested, time.monotonic() - started)


def _with_packed(private: Path, env: dict[str, str]) -> dict[str, str]:
    """`env`, with the modules that are cheaper as one script found first."""
    modules = private / "modules"
    packed.write(modules)
    return env | {"ANSIBLE_LIBRARY": os.pathsep.join([str(modules), env["ANSIBLE_LIBRARY"]])}


def absolute(source: str) -> str:
    """An inventory source as Ansible takes it: an absolute path, or a host list such as ``gpu-1,gpu-2``."""
    return source if "," in source else str(Path(source).absolute())


def _variables(private: Path, extravars: Mapping[str, Any], files: Sequence[Path]) -> list[str]:
    sources = [file.absolute() for file in files]
    if extravars:
        sources.append(_write_secret(private / "secret-extravars.json", json.dumps(dict(extravars))))
    return [word for source in sources for word in ("--extra-vars", f"@{source}")]


def _become(private: Path, password: str | None) -> list[str]:
    if password is None:
        return []
    return ["--become-password-file", str(_write_secret(private / "secret-become", password))]


def _write_secret(path: Path, text: str) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _forget_secrets(private: Path) -> None:
    """Ansible has read them when it starts to play; a kill -9 of ours must not leave them behind."""
    for path in private.glob("secret-*"):
        path.unlink()


def _forget_environment(status: dict[str, Any], runner_config: Any) -> None:
    """ansible-runner has just written the environment, tokens and all, beside its artifacts; it never reads it."""
    if status["status"] == "running":
        Path(runner_config.artifact_dir, "command").unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """What is set on top of the user's environment; the user's own ANSIBLE_* stay where they do no harm."""
    root = content.root()
    scripts = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    env = {
        "ANSIBLE_CONFIG": os.path.abspath(os.environ.get("ANSIBLE_CONFIG", str(root / "ansible.cfg"))),  # noqa: PTH100
        "ANSIBLE_HOST_KEY_CHECKING": os.environ.get("ANSIBLE_HOST_KEY_CHECKING", "True"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": os.environ.get("ANSIBLE_SSH_CONTROL_PATH_DIR", str(_control_dir())),
        "ANSIBLE_FORKS": os.environ.get("ANSIBLE_FORKS", str(DEFAULT_FORKS)),
        "ANSIBLE_PIPELINING": os.environ.get("ANSIBLE_PIPELINING", "True"),
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
        "ANSIBLE_STDOUT_CALLBACK": "default",  # a missing user callback would end the run before it starts
        "ANSIBLE_NOCOLOR": "True",
        "MAX_EVENT_RES": "50000000",  # ansible-runner empties results above 700 kB, `logs` makes longer ones
        # Ansible refuses to start in a locale that is not installed, and we read what ssh says in English.
        "LC_ALL": "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8",
        "PATH": os.pathsep.join(dict.fromkeys([*scripts, *os.environ.get("PATH", os.defpath).split(os.pathsep)])),
    }
    for name, directory in PATHS.items():
        theirs = os.environ.get(name)
        env[name] = os.pathsep.join([str(root / directory), *([theirs] if theirs else [])])
    return env


def _control_dir() -> Path:
    """A directory for SSH's control sockets: outlives the run, is ours alone and has a short path."""
    home = Path.home() / ".ansible" / "cp"
    if len(str(home)) <= CONTROL_PATH_LIMIT:
        return home
    short = Path("/tmp") / f"sglang-ops-{os.getuid()}"  # noqa: S108 - checked below
    with suppress(FileExistsError):
        short.mkdir(mode=0o700)
    state = short.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise OpsError(
            f"{short}, where SSH's control sockets would go, belongs to someone else or is open to others.",
            fix="Set ANSIBLE_SSH_CONTROL_PATH_DIR to a short path of your own.",
        )
    return short


class _Interrupt:
    """Ctrl-C that leaves nothing running.

    ansible-playbook runs in a session of its own, so the terminal's SIGINT reaches only us. We pass it on, and
    Ansible ends its workers within half a second. Two holes are closed here: a worker that was just being forked
    misses the signal, and Ansible then waits for its module to end (so after a moment of grace, or at the second
    Ctrl-C, the whole tree is killed); and what the workers had started, ssh above all, may outlive them (so the
    rest of the tree goes when Ansible has gone).
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    GRACE_SECONDS = 0.7
    LOOK_SECONDS = 0.05

    def __init__(self) -> None:
        self.requests = 0
        self._pid: int | None = None
        self._bystanders: list[int] = []
        self._tree: dict[int, str] = {}
        self._previous: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True)

    @property
    def requested(self) -> bool:
        return self.requests > 0

    def __enter__(self) -> _Interrupt:
        self._bystanders = processes.children(os.getpid())
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._follower.is_alive():
            self._follower.join()
        if self.requested:
            processes.kill(self._tree | processes.in_sessions(self._tree))
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.request()

    def request(self) -> None:
        """Ask Ansible to end; asked again, make it."""
        self.requests += 1
        if self.requests == 1:
            self._tree = processes.tree(self._leaders())
            for pid in self._leaders():
                _interrupt(pid)
            self._follower.start()

    def attach(self, pid: int) -> None:
        """The process to end, known once Ansible has started; until then it is whatever child we have got."""
        self._pid = pid
        if self.requested:
            _interrupt(pid)

    def _leaders(self) -> list[int]:
        if self._pid:
            return [self._pid]
        return [pid for pid in processes.children(os.getpid()) if pid not in self._bystanders]

    def _follow(self) -> None:
        """Keep track of the tree while it falls, and fell what still stands when the grace is over."""
        deadline = time.monotonic() + self.GRACE_SECONDS
        while not self._ended.wait(self.LOOK_SECONDS):
            self._tree |= processes.tree(self._leaders())
            if self.requests > 1 or time.monotonic() > deadline:
                processes.kill(self._tree)


def _interrupt(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
