"""sglang-ops evaluate: quality measured beside the servers, results brought home."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sglang_ops.commands import _common, _deployment, _evaluation, _evaluation_view, _options
from sglang_ops.commands._evaluation_place import Place, base, of_file, written_directory
from sglang_ops.commands._options import Output
from sglang_ops.commands.evaluate_compare import compare
from sglang_ops.commands.evaluate_export import export
from sglang_ops.commands.evaluate_gate import gate
from sglang_ops.commands.evaluate_report import report
from sglang_ops.errors import ExitCode, UsageError

app = typer.Typer(
    help="Measure the quality of a deployed model where it runs, and bring the results home.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Inventory = Annotated[
    list[str] | None,
    typer.Option(
        "--inventory", "-i", metavar="SOURCE", envvar="SGLANG_OPS_INVENTORY", show_default=False,
        help="Inventory file, directory, script or list 'host1,host2'. May be given several times.",
        rich_help_panel=_options.ANSIBLE,
    ),
]  # fmt: skip
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", "-t", metavar="NAME", help="Only this task. May be given several times.", show_default=False
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--limit-samples", metavar="N", min=1, help="Only the first N items of each task.", show_default=False
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="RUN", help="Name of the run. Default: the time.", show_default=False)
]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the run has begun; it needs nobody to watch it.")]
OnEach = Annotated[
    bool, typer.Option("--each", help="Ask every host all items, to compare hosts, instead of sharing them out.")
]
Directory = Annotated[
    Path | None,
    typer.Option(
        "--output-dir", metavar="DIR", show_default=False,
        help="Where results are brought. Default: execution.output_dir of the file, else ./results.",
    ),
]  # fmt: skip
Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")]
AnyRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only this run.", show_default=False)]


@app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    inventory: Inventory = None,
    config: _options.Config = None,
    service: _options.ServiceName = None,
    task: Tasks = None,
    limit_samples: Samples = None,
    name: Name = None,
    detach: Detach = False,
    each: OnEach = False,
    output_dir: Directory = None,
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
    """Measure the quality of a deployed model where it runs, and bring the results home.

    Runs the tasks of the deployment file's `evaluation:` beside the servers
    that deploy has started. The run outlives this command: Ctrl-C only stops
    watching it. Several hosts share the items between them.
    """
    if context.invoked_subcommand:
        return ExitCode.DONE
    if not inventory:
        raise UsageError("Which hosts? There is no --inventory.", fix="Name one with -i.")
    from sglang_ops.commands import _evaluation_here
    from sglang_ops.evaluation import on_controller
    from sglang_ops.evaluation import run as runs

    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, extra_vars=extra_vars, ask_become_pass=ask_become_pass
    )
    changes = _deployment.overrides(target.extra, override)
    with _deployment.find([config] if config else None, inventory, limit, changes) as found:
        source = _deployment.require(found)
        file, deployment = _evaluation.chosen(source, service)
        made = runs.work(
            file, deployment,
            run=runs.check_name(name) if name else runs.new_name(datetime.now(UTC)),
            base=base(config, inventory),
            only=task or (), limit=limit_samples, repeat_on_hosts=each,
        )  # fmt: skip
        place = Place.of(output_dir, of_file(file.execution.output_dir, made.base), made.run, config)
        place.check(new=True)
        with _common.run_folder("evaluate", target) as folder:
            folder.hide(source.secrets() | runs.secret_values(file))
            if file.execution.on_controller:
                if detach or each:
                    wrong = "--detach" if detach else "--each"
                    raise UsageError(f"{wrong} is for runs on the hosts, and execution.type is local.")
                secrets = on_controller.secrets(file, deployment, made.base)
                here = _evaluation_here.Here(target, folder, context, place, json=output is Output.JSON)
                return here.start_here(source, made, secrets, check=check)
            work = _evaluation.Session(target, folder, context, place, json=output is Output.JSON)
            return work.start(source, made, detach=detach, check=check, diff=diff)


@app.command()
def tasks(
    pattern: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Only tasks with this in their name.")] = None,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """List the tasks that can be run, and what each needs. Needs no host."""
    from sglang_ops.evaluation import tasks as known

    found = [task for task in known.known() if (pattern or "") in task.name]
    if output is Output.JSON:
        _common.print_json(
            {
                "ok": True,
                "harness": known.HARNESS,
                "version": known.VERSION,
                "tasks": [_evaluation_view.described(task) for task in found],
                "groups": [
                    {"name": name, "tasks": list(members)}
                    for name, members in known.known_groups().items()
                    if (pattern or "") in name
                ],
            }
        )
    else:
        _evaluation_view.show_tasks(found if pattern else found[:40], len(found))
    return ExitCode.DONE


def _verb(do: str, summary: str) -> None:
    """Register a verb that acts on runs which are there."""

    def one(
        context: typer.Context,
        inventory: _options.Inventory,
        run: Run,
        config: _options.Config = None,
        output_dir: Directory = None,
        limit: _options.Limit = None,
        forks: _options.Forks = None,
        check: _options.Check = False,
        verbose: _options.Verbose = 0,
        ask_become_pass: _options.AskBecomePass = False,
        output: _options.OutputFormat = Output.TABLE,
    ) -> int:
        from sglang_ops.commands import _evaluation_here
        from sglang_ops.evaluation import on_controller

        target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
        place = Place.of(output_dir, written_directory(config, inventory), run, config)
        with _common.run_folder(f"evaluate_{do}", target) as folder:
            kind = _evaluation_here.Here if on_controller.known(run) else _evaluation.Session
            session = kind(target, folder, context, place, json=output is Output.JSON)
            return session.act(do, run, check=check)

    one.__doc__ = summary
    app.command(do)(one)


_verb("wait", "Watch a run until it has ended, and bring its results home.")
_verb("fetch", "Bring home what a run has scored so far, without waiting.")
_verb("resume", "Go on with a run: ask what is missing or failed, take over the items of hosts that are lost.")
_verb("cancel", "Stop a run; what was answered is kept, and resume goes on with it.")
_verb("rm", "Remove a run from the hosts; results that were brought home stay.")


@app.command()
def status(
    context: typer.Context,
    inventory: _options.Inventory,
    run: AnyRun = None,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Show how far runs are, host by host."""
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    with _common.run_folder("evaluate_status", target) as folder:
        session = _evaluation.Session(
            target, folder, context, Place.of(None, None, run or ""), json=output is Output.JSON
        )
        return session.listing(run)


app.command("ls")(status)


@app.command()
def logs(
    context: typer.Context,
    inventory: _options.Inventory,
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="Last lines to begin with.")] = 100,
    config: _options.Config = None,
    service: _options.ServiceName = None,
    limit: _options.Limit = None,
    verbose: _options.Verbose = 0,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Print what the harness of a run says."""
    from sglang_ops.commands import _evaluation_here
    from sglang_ops.commands.logs import logs as of_services
    from sglang_ops.evaluation import on_controller

    if on_controller.known(run):
        return _evaluation_here.logs(run, follow=follow, lines=lines)
    with _deployment.find([config] if config else None, inventory, limit, {}) as found:
        _, deployment = _evaluation.chosen(_deployment.require(found), service)
        unit = f"{deployment.service_name}-evaluation-{run}"
    return of_services(
        context, inventory, service=unit, follow=follow, lines=lines, limit=limit, verbose=verbose, output=output
    )


for verb in (report, compare, gate, export):
    app.command()(verb)
