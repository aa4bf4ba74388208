"""Options that several verbs share, with the letters that Ansible's and kubectl's users have in their fingers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ANSIBLE = "Ansible options"
OUTPUT = "Output"


class Output(StrEnum):
    """How the result is written to stdout."""

    TABLE = "table"
    JSON = "json"


def _remember_output(context: typer.Context, value: Output) -> Output:
    """Lets `cli.main` write an error in the form that was asked for."""
    if isinstance(context.obj, dict):
        context.obj["json"] = value is Output.JSON
    return value


Inventory = Annotated[
    list[str],
    typer.Option(
        "--inventory",
        "-i",
        metavar="SOURCE",
        envvar="SGLANG_OPS_INVENTORY",
        help="Inventory file, directory, script or list 'host1,host2'. May be given several times.",
        rich_help_panel=ANSIBLE,
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        "--limit", "-l", metavar="PATTERN", help="Only the hosts that match this pattern.", rich_help_panel=ANSIBLE
    ),
]
Forks = Annotated[
    int | None,
    typer.Option(
        "--forks", "-f", metavar="N", min=1, help="Hosts worked on at a time. Default: 25.", rich_help_panel=ANSIBLE
    ),
]
Check = Annotated[
    bool,
    typer.Option("--check", "-C", help="Say what would be done and change nothing.", rich_help_panel=ANSIBLE),
]
Diff = Annotated[
    bool, typer.Option("--diff", "-D", help="Show the differences in files that change.", rich_help_panel=ANSIBLE)
]
ExtraVars = Annotated[
    list[str] | None,
    typer.Option(
        "--extra-vars",
        "-e",
        metavar="KEY=VALUE",
        help="Ansible variable, or deployment.KEY=VALUE for a key of the deployment file; also JSON or @FILE.",
        rich_help_panel=ANSIBLE,
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Show Ansible's output; -vvv for more.",
        rich_help_panel=ANSIBLE,
    ),
]
AskBecomePass = Annotated[
    bool,
    typer.Option("--ask-become-pass", "-K", help="Ask for the sudo password of the hosts.", rich_help_panel=ANSIBLE),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Deployment file. Default: ./deployment.yaml, then the one beside the inventory, then the variable "
        "'deployment' in the inventory.",
        show_default=False,
    ),
]
Configs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Deployment file; may be given several times. Default: ./deployment.yaml, then the one beside the "
        "inventory, then the variable 'deployment' in the inventory.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        metavar="KEY=VALUE",
        help="Key of the deployment file with its section, such as deployment.port=9000; ~KEY takes one away. May be "
        "given several times.",
        show_default=False,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse arguments that would be translated for the SGLang release.")
]
InterruptEvaluations = Annotated[
    bool,
    typer.Option(
        "--interrupt-evaluations", help="Replace servers whose model is being evaluated; that ends incomplete."
    ),
]
ServiceName = Annotated[
    str | None,
    typer.Option("--service", "-s", metavar="NAME", help="Service to act on, as 'status' names it."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LockWait = Annotated[
    int,
    typer.Option(
        "--lock-wait",
        metavar="SECONDS",
        min=0,
        help="Wait so long for somebody else who is at work on these hosts; 0 ends with 5 at once.",
    ),
]
DetailedExitcode = Annotated[
    bool, typer.Option("--detailed-exitcode", help="With --check: end with 2 when there is something to do.")
]
ROLLOUT = "Roll-out (the same as keys of `rollout:`)"
Canary = Annotated[
    int | None,
    typer.Option(metavar="N", help="Hosts that change first, alone; 0 is none.", rich_help_panel=ROLLOUT),
]
Batch = Annotated[
    str | None,
    typer.Option(metavar="N", help="Hosts at a time after that: a number, or 25%.", rich_help_panel=ROLLOUT),
]
MaxFailures = Annotated[
    int | None, typer.Option(metavar="N", help="Hosts that may fail after the canary.", rich_help_panel=ROLLOUT)
]
Soak = Annotated[
    int | None,
    typer.Option(metavar="SECONDS", help="How long a server must stay up to be stable.", rich_help_panel=ROLLOUT),
]
StartTimeout = Annotated[
    int | None, typer.Option(metavar="SECONDS", help="Until a server must serve.", rich_help_panel=ROLLOUT)
]
DrainTimeout = Annotated[
    int | None, typer.Option(metavar="SECONDS", help="For requests in flight.", rich_help_panel=ROLLOUT)
]
Rollback = Annotated[
    bool | None,
    typer.Option(
        "--rollback/--no-rollback",
        show_default=False,
        help="Bring a host that fails back to the release of before; or leave it as it is.",
        rich_help_panel=ROLLOUT,
    ),
]
Surge = Annotated[
    bool | None,
    typer.Option(
        "--surge/--no-surge",
        show_default=False,
        help="Start a second server beside one that changes, where it fits behind a gateway; or never.",
        rich_help_panel=ROLLOUT,
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        metavar="ORDER",
        help="inventory, reverse_inventory, sorted, reverse_sorted or shuffle.",
        rich_help_panel=ROLLOUT,
    ),
]
OutputFormat = Annotated[
    Output,
    typer.Option("--output", callback=_remember_output, help="Form of the result on stdout.", rich_help_panel=OUTPUT),
]
