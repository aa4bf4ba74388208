"""sglang-ops models export, models import: models for hosts that reach no hub."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_ops.commands import _bundle, _common, _deployment, _options
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, OpsError, UsageError

Models = Annotated[
    list[str], typer.Argument(metavar="REPO[@REVISION]", help="Models as the deployment file names them.")
]
Hub = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        show_default=False,
        help="The cache on the hosts. Default: where the deployment file has it, else sglang_server_hf_home and /hub.",
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--inventory",
        "-i",
        metavar="SOURCE",
        envvar="SGLANG_OPS_INVENTORY",
        help="Inventory file, directory, script or list 'host1,host2': the first host that has a model gives it.",
        rich_help_panel=_options.ANSIBLE,
        show_default=False,
    ),
]
FromCache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", show_default=False, help="Take them from this machine's own cache instead (…/hub)."),
]


def export(
    context: typer.Context,
    model: Models,
    to: _bundle.To,
    inventory: Hosts = None,
    from_cache: FromCache = None,
    config: _options.Configs = None,
    hub: Hub = None,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    extra_vars: _options.ExtraVars = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Write models as files: from the first host that has them, or from this machine's cache.

    Checksums are verified on arrival; what is there already is not fetched
    again, and after an interruption it goes on where it was.
    """
    from sglang_ops import bundle, bundle_models

    wanted = [dict(zip(("repo", "revision"), bundle_models.split(handle), strict=True)) for handle in model]
    target = _target(inventory, from_cache, limit, forks, verbose, extra_vars, ask_become_pass)
    if to.suffix == ".tar" and to.exists():
        raise UsageError(f"{to} exists already.", fix="Remove it, or name another file with --to.")
    bundle_models.check_place(to)
    json = output is Output.JSON
    work = _bundle.Work("models_export", target, json=json)
    directory = bundle.staging(to)
    place = str(from_cache.absolute()) if from_cache else hub or ""
    variables = {"path": str(directory.absolute()), "hub": place, "models": wanted}
    judge = _judge([item["repo"] for item in wanted], from_cache)
    headers = ("host", "model", "commit", "result", "fetched")
    with _deployment.find(config, inventory or (), limit, {}) if inventory else nullcontext() as found:
        code = work.play(variables, context, headers, judge, source=found)
    if code != ExitCode.DONE:
        return code
    with _bundle.progress(quiet=json) as report:
        bundle.finish(to, directory, report)
    if not json:
        _bundle.following(f"sglang-ops models import -i INVENTORY --from {to}")
    return ExitCode.DONE


def import_(
    context: typer.Context,
    inventory: _options.Inventory,
    source: _bundle.From,
    config: _options.Configs = None,
    hub: Hub = None,
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
    """Bring exported models into the cache of the hosts, over SSH alone.

    Sends what a host lacks and checks it there; deploy then asks no hub. A
    second run changes nothing.
    """
    from sglang_ops import bundle, bundle_models

    target = _common.Target.of(
        inventory,
        limit,
        forks=forks,
        verbose=verbose,
        extra_vars=extra_vars,
        ask_become_pass=ask_become_pass,
        lock_wait=lock_wait,
    )
    bundle_models.models(bundle.Bundle.open(source))  # what is wrong with it is said here
    variables = {"path": str(source.absolute()), "hub": hub or ""}
    work = _bundle.Work("models_import", target, json=output is Output.JSON, check=check, diff=diff)
    with _deployment.find(config, inventory, limit, {}) as found:
        return work.play(variables, context, ("host", "model", "commit", "result", "sent"), source=found)


def _target(
    inventory: Sequence[str] | None,
    from_cache: Path | None,
    limit: str | None,
    forks: int | None,
    verbose: int,
    extra_vars: Sequence[str] | None,
    ask_become_pass: bool,
) -> _common.Target:
    if from_cache and inventory:
        raise UsageError("--from-cache and --inventory exclude each other.", fix="Give one of them.")
    if from_cache and not from_cache.is_dir():
        raise UsageError(f"{from_cache} is no directory.", fix="Name the one that holds models--… directories.")
    if not (from_cache or inventory):
        raise UsageError("Where are the models?", fix="Name the hosts with --inventory, or a cache with --from-cache.")
    local = [] if inventory else _here()
    return _common.Target.of(
        inventory or ["localhost,"],
        limit,
        forks=forks,
        verbose=verbose,
        extra_vars=[*local, *(extra_vars or ())],
        ask_become_pass=ask_become_pass,
    )


def _here() -> list[str]:
    """What makes Ansible work on this machine, as the user who runs this."""
    return ["ansible_connection=local", "ansible_become=false", f"ansible_python_interpreter={sys.executable}"]


def _judge(repos: Sequence[str], cache: Path | None) -> Callable[[Sequence[Any]], None]:
    def judge(items: Sequence[Any]) -> None:
        missing = [repo for repo in repos if not any(item.name == repo and item.digest for item in items)]
        if missing:
            where = f"{cache} has not" if cache else "No host has"
            fix = "Fetch it first: sglang-ops models pull, or hf download."
            raise OpsError(f"{where} all files of {', '.join(missing)}.", fix=fix)

    return judge
