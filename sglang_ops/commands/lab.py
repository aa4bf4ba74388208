"""`sglang-ops lab`: a fleet of real systemd hosts on this machine, to try things out and to test."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sglang_ops.commands import _options
from sglang_ops.commands._options import Output

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    help="Real systemd hosts on this machine, to try things on and to test; needs no GPU.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the lab; its hosts are NAME-1, NAME-2, …")]
HostArgument = Annotated[str, typer.Argument(help="A host of the lab, for example lab-1.", metavar="HOST")]
Hard = Annotated[bool, typer.Option("--hard", help="Pull the plug instead of shutting down in order.")]


@app.command()
def up(
    name: Name = "lab",
    hosts: Annotated[int, typer.Option(metavar="N", help="How many hosts.")] = 2,
    gpus: Annotated[int, typer.Option(metavar="N", help="How many pretended GPUs each host has.")] = 2,
    engine: Annotated[Literal["docker", "podman"], typer.Option(help="The engine that deploy brings.")] = "docker",
    system: Annotated[Literal["debian12", "debian13"], typer.Option("--os", help="What hosts run.")] = "debian13",
    server: Annotated[
        Literal["real", "simulator"], typer.Option(help="The real SGLang, on the CPU, or a stand-in for tests.")
    ] = "real",
    gateway: Annotated[
        bool, typer.Option("--gateway", help="Also a host NAME-gw without GPUs, with SGLang's router to run there.")
    ] = False,
) -> None:
    """Bring up a lab and print the path of its inventory. Needs root."""
    from sglang_ops.lab import lifecycle
    from sglang_ops.lab.settings import Shape

    shape = Shape(name=name, hosts=hosts, gpus=gpus, engine=engine, os=system, server=server, gateway=gateway)
    if lifecycle.is_up(shape):
        _say(f"lab {name} is already up: {shape}")
    else:
        lifecycle.check(shape)
        for line in lifecycle.intentions(shape):
            _say(line)
    lab = lifecycle.up(shape, log=_timed())
    typer.echo(lab.inventory)
    _say(f"next: sglang-ops deploy --inventory {lab.inventory}")


@app.command()
def status(
    name: Name = "lab",
    output: _options.OutputFormat = Output.TABLE,
) -> None:
    """Show a lab's hosts, and where its inventory, registry and model source are."""
    from sglang_ops.lab import lifecycle

    lab = lifecycle.status(name)
    if output is Output.JSON:
        typer.echo(json.dumps(asdict(lab), indent=2))
        return
    if not lab.hosts:
        typer.echo(f"there is no lab {name}")
        return
    typer.echo(f"lab {name}: {'running' if lab.running else 'not running'}")
    for host in lab.hosts:
        typer.echo(f"  {host.name:<18} {host.address:<15} {host.state:<8} {host.os}  {host.engine}")
    typer.echo(f"inventory     {lab.inventory}\nregistry      {lab.registry}\nmodel source  {lab.model_source}")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh(
    host: HostArgument,
    command: Annotated[list[str] | None, typer.Argument(help="A command for the host, after --.")] = None,
    name: Name = "lab",
) -> None:
    """Log in to a host, or run a command there."""
    from sglang_ops.lab import lifecycle, power

    lab, plan = lifecycle.load(name)
    power.find(plan, host)
    os.execvp("ssh", ["ssh", "-F", str(lab.ssh / "config"), host, *(command or [])])  # noqa: S606


@app.command()
def reboot(host: HostArgument, name: Name = "lab", hard: Hard = False) -> None:
    """Reboot a host and wait until it answers again. Needs root."""
    _switch(name, host, "reboot", hard=hard)


@app.command()
def poweroff(host: HostArgument, name: Name = "lab", hard: Hard = False) -> None:
    """Switch a host off. Needs root."""
    _switch(name, host, "off", hard=hard)


@app.command()
def poweron(host: HostArgument, name: Name = "lab") -> None:
    """Switch a host on and wait until it answers. Needs root."""
    _switch(name, host, "on")


@app.command()
def harness(
    name: Name = "lab",
    nvidia: Annotated[bool, typer.Option("--nvidia", help="NVIDIA's two, of its packages, instead.")] = False,
) -> None:
    """Put the image with the evaluation harness into a lab's registry; `evaluate` needs it. Needs root."""
    from sglang_ops.lab import harness as image
    from sglang_ops.lab import lifecycle, requirements

    requirements.check_root()
    plan = lifecycle.load(name)[1]
    for one in image.NVIDIA if nvidia else (image.UPSTREAM,):
        typer.echo(image.provide(plan, one, _timed()))


@app.command()
def down(
    name: Name = "lab",
    purge: Annotated[bool, typer.Option("--purge", help="Also remove what labs share: trees, images, models.")] = False,
) -> None:
    """End a lab and remove every trace of it but the shared cache. Needs root."""
    from sglang_ops.lab import lifecycle
    from sglang_ops.lab.settings import cache_root

    ended = lifecycle.down(name)
    _say(f"lab {name} is gone" if ended else f"there is no lab {name}")
    if purge:
        _say(f"{lifecycle.purge() / (1 << 30):.1f} GiB removed from {cache_root()}")
    elif cache_root().exists():
        _say(f"kept for the next lab: {cache_root()}; --purge removes it")


def _switch(name: str, host: str, position: str, *, hard: bool = False) -> None:
    from sglang_ops.lab import lifecycle, power

    lab, plan = lifecycle.load(name)
    power.switch(lab, plan, host, position, hard=hard)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _timed() -> Callable[[str], None]:
    """A log whose lines begin with the seconds since now."""
    import time

    started = time.monotonic()
    return lambda line: _say(f"{time.monotonic() - started:6.1f} s  {line}")
