"""sglang-ops provision"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console

from sglang_ops import rollout_run
from sglang_ops.commands import _common, _options, _provision_view, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.provisioned import Provisioned
from sglang_ops.runs import RunFolder


class Part(StrEnum):
    """What a host is made of, as far as this verb cares for it."""

    DRIVER = "driver"
    ENGINE = "engine"
    CACHE = "cache"


Only = Annotated[
    list[Part] | None,
    typer.Option("--only", help="Do only this part. May be given several times.", show_default=False),
]
NoReboot = Annotated[
    bool, typer.Option("--no-reboot", help="Say which hosts must be rebooted instead of rebooting them.")
]
Canary = Annotated[int, typer.Option("--canary", metavar="N", min=0, help="Hosts rebooted first, alone; 0 is none.")]
Batch = Annotated[
    str, typer.Option("--batch", metavar="N", help="Hosts rebooted at a time after that: a number, or 25%.")
]


def provision(
    context: typer.Context,
    inventory: _options.Inventory,
    only: Only = None,
    no_reboot: NoReboot = False,
    canary: Canary = 1,
    batch: Batch = "25%",
    yes: _options.Yes = False,
    detailed_exitcode: _options.DetailedExitcode = False,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    check: _options.Check = False,
    diff: _options.Diff = False,
    extra_vars: _options.ExtraVars = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Make bare GPU hosts ready to serve: driver, container engine, model cache.

    Installs the NVIDIA driver (held at its branch), a container engine with
    NVIDIA's container toolkit, and puts the Hugging Face cache on its storage.
    Hosts that need it are rebooted in batches: each leaves its gateways, its
    services finish the requests in flight, and it joins again once they serve.
    A second run changes nothing. On a terminal it shows what it would do and
    asks first; --yes skips that.
    """
    target = _common.Target.of(
        inventory,
        limit,
        forks=forks,
        verbose=verbose,
        extra_vars=extra_vars,
        ask_become_pass=ask_become_pass,
        lock_wait=lock_wait,
    )
    json = output is Output.JSON
    with _common.run_folder("provision", target) as folder:
        again = _common.again(context, "--check", "-C", "--diff", "-D", "--detailed-exitcode")
        work = Work(target, folder, again, variables(only, batch, canary, no_reboot=no_reboot), json=json, diff=diff)
        if check:
            return work.show(work.run(check=True), detailed_exitcode=detailed_exitcode)
        if not (yes or json) and _common.interactive():
            announced = work.run(check=True)
            if not announced.ok or not announced.pending:
                return work.show(announced)
            _provision_view.show(_common.stderr(), announced)
            if not _common.confirm("Go on?"):
                _common.stderr().print("Nothing was changed.")
                return work.keep(announced, ExitCode.ERROR)
        return work.show(work.run(check=False))


def variables(only: Sequence[str] | None, batch: str, canary: int = 1, *, no_reboot: bool) -> dict[str, Any]:
    """What tells the playbook the same as the flags. Raises PreflightError for a batch that is none."""
    chosen: dict[str, Any] = {"sglang_ops_parts": [str(part) for part in only]} if only else {}
    reboot = {"nvidia_driver_reboot": False} if no_reboot else {}
    size = rollout_run.checked({"batch": batch})["batch"]
    return {**chosen, **reboot, "sglang_ops_canary": canary, "sglang_ops_batch": size}


class Work:
    """One provisioning, in check mode or for real, and what is said about it."""

    def __init__(
        self,
        target: _common.Target,
        folder: RunFolder,
        again: str,
        wanted: dict[str, Any],
        *,
        json: bool,
        diff: bool = False,
        out: Console | None = None,
    ) -> None:
        self.target, self.folder, self.again, self.wanted = target, folder, again, wanted
        self.json, self.diff, self.out = json, diff, out or _common.stdout()

    def run(self, *, check: bool) -> Provisioned:
        self.played = _common.play(
            "provision", self.target, self.folder, self.wanted, quiet=self.json, check=check, diff=self.diff
        )
        return Provisioned.from_run(
            self.played.state,
            run=str(self.folder.path),
            seconds=self.played.seconds,
            check=check,
            interrupted=self.played.interrupted,
        )

    def keep(self, result: Provisioned, code: ExitCode) -> int:
        data = {**result.as_dict(), "exit_code": int(code)}
        _common.keep(self.folder, data, hosts=len(result.hosts), seconds=result.seconds)
        return code

    def show(self, result: Provisioned, *, detailed_exitcode: bool = False) -> int:
        code = result.exit_code
        if detailed_exitcode and result.ok and result.pending:
            code = ExitCode.PENDING
        self.keep(result, code)
        out, err = self.out, _common.stderr()
        if self.json:
            _common.print_json({**result.as_dict(), "exit_code": int(code)})
        elif not result.interrupted:
            for host, text in self.played.state.diffs:
                out.print(f"--- {host}\n{text}", markup=False, soft_wrap=True)
            _provision_view.show(out, result)
        if result.interrupted:
            _views.interrupted(err, self.played.state, self.again)
            return code
        _views.failures(err, self.played.state.failures, self.folder, self.target, self.again)
        if not self.json:
            err.print(f"Finished in {result.seconds:.1f} s.")
            if result.ok:
                _views.following([self._next(result)], err)
        return code

    def _next(self, result: Provisioned) -> str:
        return self.again if result.check and result.pending else self.target.command("doctor")
