"""sglang-ops models: the models in the caches of hosts"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_ops.commands import _common, _deployment, _models_view, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.commands.models_transfer import export, import_
from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.held import Cached, Pulled

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.runs import RunFolder

app = typer.Typer(
    help="Bring models into the caches of hosts, list, verify and prune them.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(export)
app.command("import")(import_)

Repos = Annotated[list[str] | None, typer.Argument(metavar="REPO", help="Only these models.", show_default=False)]
Repair = Annotated[
    bool, typer.Option("--repair", help="Delete files with wrong content; the next pull fetches them again.")
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="REPO", help="A model that stays. May be given several times.", show_default=False),
]
Shared = Annotated[
    bool,
    typer.Option(
        "--shared", help="Also prune a cache that several hosts share. What services of other hosts use is not known."
    ),
]


@app.command()
def pull(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    detailed_exitcode: _options.DetailedExitcode = False,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    check: _options.Check = False,
    diff: _options.Diff = False,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Do what deploy would do up to the models: engine, image, models. Touches no service.

    Every file is compared with its checksum. What is whole is kept when a
    download is interrupted, and is not fetched again.
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
    with _deployment.opened("models_pull", target, config, override) as (source, folder):
        played = _common.play("models_pull", target, folder, source.variables, quiet=json, check=check, diff=diff)
        result = Pulled.from_run(
            played.state, run=str(folder.path), seconds=played.seconds, check=check, interrupted=played.interrupted
        )
        pending = detailed_exitcode and result.run.ok and bool(result.steps)
        code = ExitCode.PENDING if pending else result.run.exit_code
        _common.keep(
            folder, {**result.as_dict(), "exit_code": int(code)}, hosts=len(result.run.hosts), seconds=played.seconds
        )
        again = _common.again(context)
        err = _common.stderr()
        if json:
            _common.print_json({**result.as_dict(), "exit_code": int(code)})
        elif not played.interrupted:
            _tell_pulled(result, played, target)
        if played.interrupted:
            _views.interrupted(err, played.state, again)
        else:
            _views.failures(err, played.state.failures, folder, target, again)
        return code


def _tell_pulled(result: Pulled, played: _common.Played, target: _common.Target) -> None:
    out, err = _common.stdout(), _common.stderr()
    for host, text in played.state.diffs:
        out.print(f"--- {host}\n{text}", markup=False, soft_wrap=True)
    if result.run.check:
        _views.plan(out, result.run)
        if result.run.ok and not result.steps:
            out.print("Nothing to do: engine, images and models are there.")
    else:
        _models_view.pulled(out, result)
        for warning in result.run.warnings:
            out.print(f"Warning: {warning}", markup=False, soft_wrap=True)
    err.print(f"Finished in {played.seconds:.1f} s.")
    if result.run.ok and not result.run.check:
        _views.following([target.command("deploy")], err)


@app.command()
def ls(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """List the models in the caches: revision, size, whether they are whole, which services use them.

    Looks where deployed services have their caches, where the deployment file
    has it, if there is one, and in sglang_server_hf_home.
    """
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, extra_vars=extra_vars, ask_become_pass=ask_become_pass
    )
    work = _Work("ls", target, context, json=output is Output.JSON)
    with _deployment.find(config, inventory, limit, _deployment.overrides(target.extra, override)) as found, work:
        return work.show(work.run(found, {}), _models_view.listed)


@app.command()
def verify(
    context: typer.Context,
    inventory: _options.Inventory,
    repos: Repos = None,
    config: _options.Configs = None,
    repair: Repair = False,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    check: _options.Check = False,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Read every file of the models and compare it with the checksum that is its name.

    Ends with 1 where a file is wrong. It is left alone unless --repair is given.
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
    work = _Work("verify", target, context, json=output is Output.JSON)
    with _deployment.find(config, inventory, limit, _deployment.overrides(target.extra, override)) as found, work:
        result = work.run(found, {"repos": list(repos or []), "repair": repair}, check=check)
        bad = [host for host in result.hosts if host.bad]
        following = []
        if bad and not repair:
            following = [f"{_common.again(context)} --repair"]
        elif bad and not check:
            following = [_typed(target, "pull")]
        return work.show(result, _models_view.verified, following)


@app.command()
def prune(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    keep: Keep = None,
    shared: Shared = False,
    yes: _options.Yes = False,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    check: _options.Check = False,
    diff: _options.Diff = False,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Remove models that no deployed service uses, and what abandoned downloads have left. Asks first.

    What runs, what it would be rolled back to, and what the deployment file
    names stays. Refuses where something is being downloaded.
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
    if not (yes or check or _common.interactive()):
        raise UsageError("prune would remove models and there is no terminal to ask on.", fix="Add --yes, or --check.")
    work = _Work("prune", target, context, json=output is Output.JSON)
    asked = {"keep": list(keep or []), "shared": shared}
    with _deployment.find(config, inventory, limit, _deployment.overrides(target.extra, override)) as found, work:
        if check or not yes:
            announced = work.run(found, asked, check=True, diff=diff)
            if check or not announced.ok or not any(host.removed for host in announced.hosts):
                return work.show(announced, _models_view.pruned)
            _models_view.pruned(_common.stderr(), announced)
            if not _common.confirm("Remove them?"):
                _common.stderr().print("Nothing was changed.")
                return ExitCode.ERROR
        return work.show(work.run(found, asked, diff=diff), _models_view.pruned)


class _Work:
    """One look at the caches of hosts, or one change to them, and what is said about it."""

    def __init__(self, verb: str, target: _common.Target, context: typer.Context, *, json: bool) -> None:
        self.verb, self.target, self.json = verb, target, json
        self.again = _common.again(context)
        self._opened = _common.run_folder(f"models_{verb}", target)

    def __enter__(self) -> _Work:
        self.folder: RunFolder = self._opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def run(
        self, source: _deployment.Source | None, asked: dict[str, Any], *, check: bool = False, diff: bool = False
    ) -> Cached:
        if source:
            self.folder.hide(source.secrets())
        variables = {**(source.variables if source else {}), "sglang_ops_models": asked}
        verb = f"models_{self.verb}"
        self.played = _common.play(
            verb, self.target, self.folder, variables, quiet=self.json or self.verb == "ls", check=check, diff=diff
        )
        return Cached.from_run(self.played.state, check=check, interrupted=self.played.interrupted)

    def show(self, result: Cached, view: Callable[[Console, Cached], None], following: list[str] | None = None) -> int:
        data = result.as_dict(self.verb)
        _common.keep(self.folder, data, hosts=len(result.hosts), seconds=self.played.seconds)
        err = _common.stderr()
        if self.json:
            _common.print_json(data)
        if self.played.interrupted:
            _views.interrupted(err, self.played.state, self.again)
            return result.exit_code
        if not self.json:
            for host, text in self.played.state.diffs:
                _common.stdout().print(f"--- {host}\n{text}", markup=False, soft_wrap=True)
            view(_common.stdout(), result)
        _views.failures(err, result.failures, self.folder, self.target, self.again)
        _views.following(following or [], err)
        return result.exit_code


def _typed(target: _common.Target, verb: str) -> str:
    words = shlex.split(target.command(verb))
    return shlex.join([words[0], "models", *words[1:]])
