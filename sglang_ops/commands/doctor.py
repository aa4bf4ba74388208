"""sglang-ops doctor"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from sglang_ops.commands import _common, _deployment, _doctor_view, _options, _views, provision
from sglang_ops.commands._options import Output
from sglang_ops.diagnosed import Diagnosed
from sglang_ops.errors import UsageError
from sglang_ops.mending import Mending, mendings
from sglang_ops.runs import RunFolder

Fix = Annotated[
    bool, typer.Option("--fix", help="Name the playbook that mends what was found, and run it if you say so.")
]
NoReboot = Annotated[bool, typer.Option("--no-reboot", help="With --fix: do not reboot hosts.")]


def doctor(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    fix: Fix = False,
    no_reboot: NoReboot = False,
    yes: _options.Yes = False,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Say whether each host is fit to serve: every problem at once, with its remedy.

    Looks at every host once and changes nothing: SSH and sudo, the system, GPUs
    and their driver, the container engine, storage, network, and what the
    deployment needs. Without a deployment file only the hosts are judged.
    Ends with 0 where all are fit, 7 where one is not, 6 where one could not be reached.
    """
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, extra_vars=extra_vars, ask_become_pass=ask_become_pass
    )
    json = output is Output.JSON
    if fix and not yes and not _common.interactive():
        raise UsageError("doctor --fix asks before it changes anything, and there is no terminal.", fix="Add --yes.")
    changes = _deployment.overrides(target.extra, override)
    with (
        _deployment.find(config, inventory, limit, changes) as source,
        _common.run_folder("doctor", target) as folder,
    ):
        if source:
            folder.hide(source.secrets())
            folder.write_yaml("config.yaml", source.redacted())
        look = _Look(target, folder, source, _common.again(context), json=json)
        result = look.run()
        wanted = mendings(result.hosts) if fix else ()
        if not wanted:
            return look.show(result)
        if not json:
            look.show(result)
        if not _agreed(wanted, target, yes=yes):
            return look.show(result) if json else result.exit_code
        for mending in wanted:
            _mend(mending, target, no_reboot=no_reboot)
        return look.show(look.run())


class _Look:
    """One look at all hosts, and what is said about it."""

    def __init__(
        self,
        target: _common.Target,
        folder: RunFolder,
        source: _deployment.Source | None,
        again: str,
        *,
        json: bool,
    ) -> None:
        self.target, self.folder, self.again, self.json = target, folder, again, json
        self.variables = source.variables if source else {}

    def run(self) -> Diagnosed:
        # Quiet: the result says it all.
        self.played = _common.play("doctor", self.target, self.folder, self.variables, quiet=True)
        return Diagnosed.from_run(self.played.state, interrupted=self.played.interrupted)

    def show(self, result: Diagnosed) -> int:
        _common.keep(self.folder, result.as_dict(), hosts=len(result.hosts), seconds=self.played.seconds)
        if self.json:
            _common.print_json(result.as_dict())
        elif self.played.interrupted:
            _views.interrupted(_common.stderr(), self.played.state, self.again)
        else:
            _doctor_view.show(_common.stdout(), result)
            if not result.ok:
                _views.following([self.again], _common.stderr())
        return result.exit_code


def _agreed(wanted: tuple[Mending, ...], target: _common.Target, *, yes: bool) -> bool:
    """Name what would be run, and ask."""
    err = _common.stderr()
    err.print("\nplaybooks/provision.yml mends:")
    for mending in wanted:
        command = replace(target, limit=None).command("provision", *_words(mending))
        err.print(f"  {', '.join(mending.checks)}: {command}", soft_wrap=True, markup=False)
    return yes or _common.confirm("Run this now?")


def _words(mending: Mending) -> list[str]:
    only = [word for part in mending.parts for word in ("--only", part)]
    return ["--limit", ",".join(mending.hosts), *only]


def _mend(mending: Mending, target: _common.Target, *, no_reboot: bool) -> None:
    """Run provision on the hosts; failures show in what it prints, and in the look that follows."""
    hosts = replace(target, limit=",".join(mending.hosts))
    with _common.run_folder("provision", hosts) as folder:
        wanted = provision.variables(mending.parts, "25%", no_reboot=no_reboot)
        again = hosts.command("provision", *_words(mending))
        work = provision.Work(hosts, folder, again, wanted, json=False, out=_common.stderr())
        work.show(work.run(check=False))
