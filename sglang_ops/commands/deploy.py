"""sglang-ops deploy"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import typer

from sglang_ops import rollout_run
from sglang_ops.action_inputs import ROLLOUT_VARIABLE
from sglang_ops.commands import _common, _deployment, _options, _rollout, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.result import Deployed
from sglang_ops.runs import RunFolder


def deploy(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    yes: _options.Yes = False,
    detailed_exitcode: _options.DetailedExitcode = False,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    canary: _options.Canary = None,
    batch: _options.Batch = None,
    max_failures: _options.MaxFailures = None,
    soak: _options.Soak = None,
    start_timeout: _options.StartTimeout = None,
    drain_timeout: _options.DrainTimeout = None,
    rollback: _options.Rollback = None,
    order: _options.Order = None,
    surge: _options.Surge = None,
    check: _options.Check = False,
    diff: _options.Diff = False,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    strict: _options.Strict = False,
    interrupt_evaluations: _options.InterruptEvaluations = False,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Bring a deployment onto the hosts and wait until it serves.

    Installs the container engine where it is missing, pulls the image and the
    model before anything stops, writes one systemd unit per server, starts it
    and asks it for a completion. A second run changes nothing. On a terminal it
    shows what it would do and asks first; --yes skips that.

    Where a release serves already, one host changes first, then a quarter of
    them at a time; a host that fails goes back to the release of before.
    """
    options = rollout_run.flags(
        canary=canary,
        batch=batch,
        max_failures=max_failures,
        soak=soak,
        start_timeout=start_timeout,
        drain_timeout=drain_timeout,
        rollback=rollback,
        order=order,
        surge=surge,
    )
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
    with _deployment.opened("deploy", target, config, override) as (source, folder):
        again = _common.again(context, "--check", "-C", "--diff", "-D", "--detailed-exitcode")
        work = Work(
            target, folder, source, again, {"options": options}, json=json, diff=diff, strict=strict,
            interrupt=interrupt_evaluations,
        )  # fmt: skip
        if check:
            return work.show(work.run(check=True), detailed_exitcode=detailed_exitcode)
        if not (yes or json) and _common.interactive():
            announced = work.run(check=True)
            if not announced.ok or not announced.pending:
                return work.show(announced)
            _views.plan(_common.stderr(), announced)
            if not _common.confirm("Go on?"):
                _common.stderr().print("Nothing was changed.")
                return work.keep(announced, ExitCode.ERROR)
        return work.show(work.run(check=False))


class Work:
    """One deploy, in check mode or for real, and what is said about it."""

    def __init__(
        self,
        target: _common.Target,
        folder: RunFolder,
        source: _deployment.Source,
        again: str,
        rollout: Mapping[str, Any],
        *,
        json: bool,
        diff: bool,
        strict: bool,
        interrupt: bool = False,
    ) -> None:
        self.target, self.folder, self.source, self.again = target, folder, source, again
        self.json, self.diff, self.strict, self.interrupt = json, diff, strict, interrupt
        self.rollout = {"run": folder.path.name, "started": int(time.time()), **rollout}

    def run(self, *, check: bool, playbook: str = "deploy") -> Deployed:
        variables = self.source.variables | _deployment.strictness(self.strict)
        variables[ROLLOUT_VARIABLE] = self.rollout
        if self.interrupt:
            variables["sglang_server_interrupt_evaluations"] = True
        self.played = _common.play(
            playbook, self.target, self.folder, variables, quiet=self.json, check=check, diff=self.diff
        )
        return Deployed.from_run(
            self.played.state,
            run=str(self.folder.path),
            seconds=self.played.seconds,
            check=check,
            interrupted=self.played.interrupted,
        )

    def keep(self, result: Deployed, code: ExitCode) -> int:
        data = {**result.as_dict(), "exit_code": int(code)}
        _common.keep(self.folder, data, hosts=len(result.hosts), seconds=result.seconds)
        return code

    def show(self, result: Deployed, *, detailed_exitcode: bool = False) -> int:
        code = result.exit_code
        if detailed_exitcode and result.ok and result.pending:
            code = ExitCode.PENDING
        self.keep(result, code)
        if self.json:
            _common.print_json({**result.as_dict(), "exit_code": int(code)})
        if result.interrupted:
            _views.interrupted(_common.stderr(), self.played.state, self.again)
        elif not self.json:
            self._tell(result)
        elif not result.ok:
            _views.failures(_common.stderr(), self.played.state.failures, self.folder, self.target, self.again)
        return code

    def _tell(self, result: Deployed) -> None:
        out, err = _common.stdout(), _common.stderr()
        for host, text in self.played.state.diffs:
            out.print(f"--- {host}\n{text}", markup=False, soft_wrap=True)
        if result.check:
            _views.plan(out, result)
            if result.ok and not result.pending:
                out.print(f"Nothing to do: {len(result.hosts)} hosts are as {self.source.origin} says.")
            elif result.ok:
                _views.following([self.again], err)
        else:
            _views.deployed(out, result)
        _views.failures(err, self.played.state.failures, self.folder, self.target, self.again)
        _rollout.summary(err, result, self.target, self.again)
        err.print(f"Finished in {result.seconds:.1f} s.")
        if result.ok and not result.check:
            endpoint = next((item.endpoint for host in result.hosts for item in host.services if item.endpoint), None)
            ask = [f"curl {endpoint}/v1/models"] if endpoint else []
            _views.following([self.target.command("status"), *ask], err)
