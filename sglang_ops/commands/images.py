"""sglang-ops images: container images for hosts that reach no registry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_ops.commands import _bundle, _common, _options
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, UsageError

app = typer.Typer(
    help="Carry container images to hosts that reach no registry.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE", help="Images to save. Default: those of the deployment file.", show_default=False),
]
Configs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config", "-c", metavar="FILE", show_default=False, help="Deployment file. Default: ./deployment.yaml."
    ),
]
Platform = Annotated[str, typer.Option(metavar="OS/ARCH", help="What the hosts are.")]
Mirror = Annotated[
    list[str] | None,
    typer.Option(
        metavar="REGISTRY=HOST", show_default=False, help="Fetch images of REGISTRY from HOST, named as before."
    ),
]
Insecure = Annotated[
    list[str] | None,
    typer.Option("--insecure-registry", metavar="HOST", show_default=False, help="A registry without valid TLS."),
]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="IMAGE", show_default=False, help="The image's name, where the files do not say it."),
]


@app.command()
def save(
    to: _bundle.To,
    image: Images = None,
    config: Configs = None,
    platform: Platform = "linux/amd64",
    mirror: Mirror = None,
    insecure_registry: Insecure = None,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Save images as files, on a machine that reaches their registry. Needs no docker.

    Writes an OCI image layout, which skopeo and podman read too. What is there
    already is not fetched again; after an interruption it goes on where it was.
    """
    from sglang_ops.saving import save as save_images
    from sglang_ops.saving import shown

    started = time.monotonic()
    mirrors = dict(map(_pair, mirror or ()))
    names = list(image or ()) or _of_deployment(config)
    with _bundle.progress(quiet=output is Output.JSON) as report:
        saved = save_images(
            names, to, platform=platform, mirrors=mirrors, insecure=insecure_registry or (), report=report
        )
    rows = [(item.name, item.digest[:19], shown(item.fetched, item.bytes)) for item in saved]
    data: dict[str, Any] = {"to": str(to), "platform": platform, "images": [item.as_dict() for item in saved]}
    _bundle.tell(data, rows, ("image", "digest", "fetched"), started, json=output is Output.JSON)
    if output is not Output.JSON:
        _bundle.following(f"sglang-ops images load -i INVENTORY --from {to}")
    return ExitCode.DONE


@app.command()
def load(
    context: typer.Context,
    inventory: _options.Inventory,
    source: _bundle.From,
    as_name: As = None,
    platform: Platform = "linux/amd64",
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
    """Load saved images onto the hosts, over SSH alone.

    Sends what a host lacks and checks it there; deploy then finds the images by
    tag and by digest, with no registry to ask. A second run changes nothing.
    """
    from sglang_ops import bundle, bundle_images

    target = _common.Target.of(
        inventory,
        limit,
        forks=forks,
        verbose=verbose,
        extra_vars=extra_vars,
        ask_become_pass=ask_become_pass,
        lock_wait=lock_wait,
    )
    bundle_images.images(bundle.Bundle.open(source), as_name, platform)  # what is wrong with it is said here
    variables = {"path": str(source.absolute()), "name": as_name or "", "platform": platform}
    work = _bundle.Work("images_load", target, json=output is Output.JSON, check=check, diff=diff)
    return work.play(variables, context, ("host", "image", "digest", "result", "sent"))


def _pair(text: str) -> tuple[str, str]:
    registry, equals, host = text.partition("=")
    if not (registry and equals and host):
        raise UsageError(f"--mirror {text} is not REGISTRY=HOST.", fix="Write it like docker.io=mirror.example:5000.")
    return registry, host


def _of_deployment(config: list[Path] | None) -> list[str]:
    from sglang_ops import spec

    found = config or [path for path in [spec.find_deployment_file(None, ())] if path]
    if not found:
        fix = "Name images, or a deployment file with --config."
        raise UsageError("There is no deployment file here that names an image.", fix=fix)
    return [deployment.image for path in found for deployment in spec.load(path).services]
