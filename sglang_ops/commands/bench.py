"""sglang-ops bench"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sglang_ops import identity
from sglang_ops.benchmark.points import Data
from sglang_ops.commands import _common, _evaluate_runs, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.benchmark.points import Point
    from sglang_ops.benchmark.results import Bench, Change
    from sglang_ops.commands._common import Played
    from sglang_ops.runs import RunFolder

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SHOWN = ("request_throughput", "output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms")
NOISE = 0.05  # two runs of one configuration differ by as much

Inventory = Annotated[
    list[str] | None,
    typer.Option(
        "--inventory",
        "-i",
        metavar="SOURCE",
        envvar="SGLANG_OPS_INVENTORY",
        help="Inventory file, directory, script or list 'host1,host2'. May be given several times.",
        rich_help_panel=_options.ANSIBLE,
    ),
]
DataSets = Annotated[
    list[Data] | None, typer.Option("--data", help="What prompts have in common. May be given twice. Default: random.")
]
Concurrency = Annotated[
    str, typer.Option("--concurrency", metavar="LIST", help="Requests at once, one point for each number.")
]
Rate = Annotated[
    str | None,
    typer.Option("--request-rate", metavar="LIST", help="Instead: requests per second, one point for each number."),
]
InputLen = Annotated[int, typer.Option("--input-len", metavar="TOKENS", min=1, max=1_000_000, help="Of each prompt.")]
OutputLen = Annotated[int, typer.Option("--output-len", metavar="TOKENS", min=1, max=1_000_000, help="Of each answer.")]
Prompts = Annotated[
    int | None,
    typer.Option(
        "--prompts", metavar="N", min=1, max=100_000, help="Per point. Default: four rounds, or 30 s of the rate."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, max=2**31, help="Of the prompts. Default: new ones each run."),
]
Timeout = Annotated[int, typer.Option("--timeout", metavar="SECONDS", min=10, help="For one point.")]


@app.callback()
def bench(
    context: typer.Context,
    inventory: Inventory = None,
    service: _options.ServiceName = None,
    data: DataSets = None,
    concurrency: Concurrency = "1,4,16,64",
    request_rate: Rate = None,
    input_len: InputLen = 512,
    output_len: OutputLen = 128,
    prompts: Prompts = None,
    seed: Seed = None,
    timeout: Timeout = 600,
    output_dir: _evaluate_runs.OutputDir = None,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    check: _options.Check = False,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int | None:
    """Measure the speed of deployed servers with SGLang's own benchmark.

    It runs on each host in a container of the server's image, against the server as it is deployed; throughput and
    latencies come home as bench.json and as a page with plots. `bench compare A B` compares two runs.
    """
    if context.invoked_subcommand:
        return None
    if not inventory:
        raise UsageError("Missing option '--inventory' / '-i'.", fix="See sglang-ops bench --help")
    from sglang_ops.benchmark import points as planned

    start = secrets.randbelow(2**30) if seed is None else seed
    wanted = planned.plan(
        data=data or [Data.RANDOM],
        concurrency=planned.numbers(concurrency, "--concurrency", int),
        rates=planned.numbers(request_rate, "--request-rate", float) if request_rate else [],
        input_len=input_len,
        output_len=output_len,
        prompts=prompts,
        seed=start,
    )
    folder = output_dir or _evaluate_runs.default_output_dir()
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    parameters = {"input_len": input_len, "output_len": output_len, "seed": start, "timeout": timeout}
    json = output is Output.JSON
    started = datetime.now(UTC).astimezone().isoformat("T", "seconds")
    with _common.run_folder("bench", target) as run:
        variables = {
            "sglang_health_bench_points": [point.as_dict() for point in wanted],
            "sglang_health_bench_timeout": timeout,
            **_common.only(service),
        }
        played = _common.play("bench", target, run, variables, quiet=json, check=check)
        code = ExitCode.INTERRUPTED if played.interrupted else played.exit_code
        if check:
            return _checked(played, wanted, run, code, json=json)
        found = _bench(run, started, played, wanted, parameters)
        if not code and not found.servers:  # --limit left only such as answer no requests
            skipped = [str(host.result("bench").get("skipped") or "") for host in played.state.hosts.values()]
            raise UsageError(f"Nothing was measured. {'. '.join(filter(None, skipped))}.", fix="Name that host too.")
        if not code and any(point.error for server in found.servers for point in server.points):
            code = ExitCode.ERROR
        where = _keep(folder / found.run, found, played) if found.servers else None
        result = {
            "ok": not code, "exit_code": int(code), "output_dir": str(where) if where else None,
            **found.model_dump(mode="json", by_alias=True), "failures": _failures(played),
        }  # fmt: skip
        _common.keep(run, result, hosts=len(played.state.hosts), seconds=played.seconds)
        if json:
            _common.print_json(result)
            return code
        _common.stdout().print(_table(found))
        err = _common.stderr()
        _views.failures(err, played.state.failures, run, target, _common.again(context))
        if where:
            err.print(f"Report: {where / 'bench.html'}", soft_wrap=True)
        err.print(f"Finished in {played.seconds:.1f} s.")
        return code


First = Annotated[str, typer.Argument(metavar="A", help="The run to compare with: folder, or name.")]
Second = Annotated[str, typer.Argument(metavar="B", help="The run that is compared.")]
DifferentHosts = Annotated[
    bool, typer.Option("--different-hosts", help="Compare one host with another, where the runs have one each.")
]


@app.command()
def compare(
    first: First,
    second: Second,
    different_hosts: DifferentHosts = False,
    output_dir: _evaluate_runs.OutputDir = None,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Compare two configurations that were measured on the same host. Needs no host."""
    from sglang_ops.benchmark import results

    folder = output_dir or _evaluate_runs.default_output_dir()
    a, b = (results.read(results.locate(run, folder)) for run in (first, second))
    found = results.compare(a, b, different_hosts=different_hosts)
    if output is Output.JSON:
        _common.print_json({"ok": True, "first": a.run, "second": b.run, "changes": [one.as_dict() for one in found]})
        return ExitCode.DONE
    console = _common.stdout()
    console.print(f"A {a.run}\nB {b.run}\n", soft_wrap=True)
    for one, other in results.pairs(a.servers, b.servers, different_hosts=different_hosts):
        _arguments(console, one.server_arguments, other.server_arguments)
    _compared(console, found)
    return ExitCode.DONE


def _bench(
    run: RunFolder, started: str, played: Played, wanted: Sequence[Point], parameters: Mapping[str, Any]
) -> Bench:
    """What the hosts measured, with what was asked of them."""
    from sglang_ops.benchmark.results import Bench, Measured, Server

    servers = []
    for host in played.state.hosts.values():
        told = host.result("bench")
        if not told.get("points"):
            continue
        points = [
            Measured(
                **{key: value for key, value in asked.as_dict().items() if key != "data"},
                data=str(asked.data),
                **{key: seen[key] for key in ("measured", "error", "seconds")},
            )
            for asked, seen in zip(wanted, told["points"], strict=False)
        ]
        keys = ("service", "release", "image", "image_digest", "model", "server_arguments")
        servers.append(Server(host=host.name, points=tuple(points), **{key: told[key] for key in keys}))
    return Bench(
        run=run.path.name,
        who=identity.user(),
        started=started,
        seconds=round(played.seconds, 2),
        parameters=dict(parameters),
        servers=tuple(servers),
    )


def _keep(where: Path, found: Bench, played: Played) -> Path:
    """Write bench.json, the page, and what the benchmark itself wrote."""
    from sglang_ops.benchmark import page, results
    from sglang_ops.evaluation.files import write_text

    for host in played.state.hosts.values():
        for point in host.result("bench").get("points") or []:
            name = point["name"].replace("/", " per ").replace(" ", "-")
            write_text(where / "raw" / host.name / f"{name}.log", "\n".join(point["log"]) + "\n")
            if point["raw"]:
                write_text(where / "raw" / host.name / f"{name}.jsonl", point["raw"] + "\n")
    results.write(where, found)
    page.write(found, where / page.FILE)
    return where


def _checked(played: Played, wanted: Sequence[Point], run: RunFolder, code: int, *, json: bool) -> int:
    """What would be measured, and where."""
    hosts = [host.name for host in played.state.hosts.values() if host.result("bench").get("service")]
    result = {
        "ok": not code, "exit_code": int(code), "check": True, "hosts": hosts,
        "points": [point.as_dict() for point in wanted], "failures": _failures(played),
    }  # fmt: skip
    _common.keep(run, result, hosts=len(played.state.hosts), seconds=played.seconds)
    if json:
        _common.print_json(result)
        return code
    for failure in played.state.failures:
        _common.stderr().print(f"{failure.host}: {failure.cause}", soft_wrap=True, markup=False)
    for point in wanted:
        typer.echo(f"{', '.join(hosts) or 'no host'}: {point.name}, {point.prompts} prompts")
    return code


def _failures(played: Played) -> list[dict[str, Any]]:
    return [{"host": item.host, "step": item.step, "cause": item.cause} for item in played.state.failures]


def _table(found: Bench) -> Any:
    from sglang_ops.benchmark.results import MEASURES

    titles = {name: title for name, title, _ in MEASURES}
    table = _views.grid("host", "service", "point", "prompts", *(titles[name] for name in SHOWN), "")
    for column in table.columns[3:9]:
        column.justify = "right"
    for server in found.servers:
        for point in server.points:
            values = [point.measured.get(name) for name in SHOWN]
            shown = ["-" if value is None else f"{value:,.1f}" for value in values]
            error = Text(point.error or "", style="red")
            table.add_row(server.host, server.service, point.name, str(point.prompts), *shown, error)
    return table


def _compared(console: Console, found: Sequence[Change]) -> None:
    from sglang_ops.benchmark.results import MEASURES

    titles = {name: title for name, title, _ in MEASURES}
    table = _views.grid("host", "point", "measure", "A", "B", "change", "")
    for column in table.columns[3:6]:
        column.justify = "right"
    for change in found:
        alike = abs(change.change) < NOISE
        word = Text("") if alike else Text("better", "green") if change.better else Text("worse", "red")
        table.add_row(
            change.host, change.point, titles[change.measure], f"{change.first:,.1f}", f"{change.second:,.1f}",
            f"{change.change:+.1%}", word,
        )  # fmt: skip
    console.print(table)


def _arguments(console: Console, first: Sequence[str], second: Sequence[str]) -> None:
    """What one server was started with and the other was not."""
    from sglang_ops.benchmark.results import flags

    for name, ours, others in (("A", first, second), ("B", second, first)):
        theirs = flags(others)
        own = [" ".join(flag) for flag in flags(ours) if flag not in theirs]
        if own:
            console.print(f"only {name}: {' '.join(own)}", soft_wrap=True, markup=False)
