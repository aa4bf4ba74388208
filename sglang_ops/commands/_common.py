"""What every verb that talks to hosts does: check the inventory, open a run folder, play, keep the result."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console

from sglang_ops import content, inventory_check, progress, runner
from sglang_ops.commands import _overrides
from sglang_ops.errors import ExitCode, OpsError
from sglang_ops.events import RunState
from sglang_ops.runs import RunFolder

STEPS = {
    "deploy": ("plan", "engine", "image", "model", "start", "gate"),
    "restart": ("restart", "gate"),
    "models_pull": ("plan", "engine", "image", "model"),
    "evaluate": ("evaluation",),
    "provision": ("driver", "engine", "cache", "reboot"),
}
SERVICE_STEP = {"deploy": "start"}  # elsewhere the module sglang_service does what the verb says
WIDE = 240  # columns of a table that goes into a pipe
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|PRIVATE_KEY", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """The hosts of a run and how Ansible shall go about them."""

    inventory: tuple[str, ...]
    limit: str | None = None
    forks: int | None = None
    verbosity: int = 0
    extra: _overrides.ExtraVars = field(default_factory=_overrides.ExtraVars)
    become_password: str | None = None
    lock_wait: int = 0  # seconds

    @classmethod
    def of(
        cls,
        inventory: Sequence[str],
        limit: str | None,
        *,
        forks: int | None = None,
        verbose: int = 0,
        extra_vars: Sequence[str] | None = None,
        ask_become_pass: bool = False,
        lock_wait: int = 0,
    ) -> Target:
        """Check what the user gave before anything is started. Raises UsageError."""
        inventory_check.check(inventory)
        extra = _overrides.parse(extra_vars or ())
        password = getpass.getpass("sudo password of the hosts: ") if ask_become_pass else None
        return cls(tuple(inventory), limit, forks, verbose, extra, password, lock_wait)

    def command(self, verb: str, *words: str) -> str:
        """A command on the same hosts, for the user to type next."""
        hosts = [part for source in self.inventory for part in ("-i", source)]
        limit = ["--limit", self.limit] if self.limit and "--limit" not in words else []
        return shlex.join(["sglang-ops", *verb.split(), *hosts, *limit, *words])

    def secrets(self) -> set[str]:
        """Values that must not be kept: the sudo password, and what -e or the environment names like a secret."""
        named = {**os.environ, **self.extra.variables}
        found = {str(value) for name, value in named.items() if _SECRET_NAME.search(name)}
        return found | ({self.become_password} if self.become_password else set())


@dataclass(frozen=True)
class Played:
    """One playbook run: what happened on the hosts, and how it ended."""

    state: RunState
    seconds: float
    interrupted: bool

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.INTERRUPTED if self.interrupted else self.state.exit_code()


def play(
    verb: str,
    target: Target,
    folder: RunFolder,
    variables: Mapping[str, Any],
    *,
    quiet: bool,
    silent: bool = False,
    check: bool = False,
    diff: bool = False,
    on_line: Callable[[Mapping[str, Any]], None] | None = None,
) -> Played:
    """Run the playbook of `verb`. Raises OpsError where Ansible could not begin; host failures are results.

    `quiet` shows progress on a terminal only, `silent` not even there.
    """
    state = RunState(service_step=SERVICE_STEP.get(verb, verb), check=check)
    shown: progress.Reporter
    if on_line or silent:
        shown = progress.Reporter(state, folder.progress, on_line=on_line)
    elif target.verbosity:
        shown = progress.EchoReporter(stderr(), state, folder.progress)
    else:
        shown = progress.reporter(stderr(), state, folder.progress, STEPS.get(verb, ()), quiet=quiet)

    def on_event(event: dict[str, Any]) -> None:
        folder.record(event)
        shown.apply(event)

    with shown:
        done = runner.run(
            content.playbook(verb),
            target.inventory,
            on_event=on_event,
            limit=target.limit,
            forks=target.forks,
            check=check,
            diff=diff,
            extravars={
                **({"sglang_server_lock_wait": target.lock_wait} if target.lock_wait else {}),
                **target.extra.variables,
                **{key: value for key, value in variables.items() if value is not None},
            },
            extravars_files=target.extra.files,
            verbosity=target.verbosity,
            become_password=target.become_password,
            env={"SGLANG_OPS_PROGRESS": str(folder.progress)},
        )
    if not done.interrupted:
        state.require_hosts(target.limit)
    return Played(state, done.seconds, done.interrupted)


@contextmanager
def run_folder(verb: str, target: Target) -> Iterator[RunFolder]:
    """A run folder that also keeps how the run failed, if it does."""
    started = time.monotonic()
    with RunFolder.create(verb, target.inventory, target.secrets()) as folder:
        try:
            yield folder
        except (OpsError, KeyboardInterrupt) as error:
            code = error.exit_code if isinstance(error, OpsError) else ExitCode.INTERRUPTED
            keep(folder, error_result(error, code), hosts=0, seconds=time.monotonic() - started)
            raise


def keep(folder: RunFolder, result: Mapping[str, Any], *, hosts: int, seconds: float) -> None:
    """Write the result where `history` finds it."""
    folder.write_json("result.json", {**result, "host_count": hosts, "seconds": round(seconds, 2)})


def error_result(error: BaseException, code: ExitCode) -> dict[str, Any]:
    """The JSON form of an error that ended a command."""
    detail: dict[str, Any] = {"message": getattr(error, "message", str(error) or type(error).__name__)}
    detail["fix"] = getattr(error, "fix", None)
    return {"ok": False, "exit_code": int(code), "error": detail}


def service_unit(name: str) -> str:
    """`--service` as the unit is called: the prefix may be left out."""
    return name if name.startswith("sglang-") else f"sglang-{name}"


def only(service: str | None) -> dict[str, Any]:
    """The variable that narrows a playbook down to one service; without a name it takes all of a host."""
    return {"sglang_ops_services": [service_unit(service)]} if service else {}


def again(context: typer.Context, *drop: str) -> str:
    """The command line that the user typed, for typing it once more; `drop` names flags to leave out."""
    letters = "".join(flag[1] for flag in drop if not flag.startswith("--"))
    words = [word for word in context.obj["arguments"] if word not in drop]
    if letters:  # of bundled flags such as -CD only the others stay
        words = [re.sub(f"[{letters}]", "", word) if re.match(r"^-[CDKvy]+$", word) else word for word in words]
    return shlex.join(["sglang-ops", *words])


def interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask on stderr, because stdout is for data. Ctrl-C and end of input mean no."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


def print_json(data: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))


def stdout() -> Console:
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=WIDE if piped else None, highlight=False)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)
