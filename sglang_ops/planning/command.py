"""The command inside the container and the container around it."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_ops.planning.settings import ResolvedImage, Settings
from sglang_ops.planning.systemd import command, quote
from sglang_ops.spec import Deployment, cache_of

# Where the launcher mounts a local checkpoint.
CHECKPOINT = "/checkpoint"
SECRETS_IN_CONTAINER = "/run/sglang-ops/secrets.env"
# planning/with_key.py, which lies beside the unit of a service with an API key.
WITH_KEY = "/run/sglang-ops/with_key.py"
# Never handed to the server: host GPU numbers mean nothing inside, where the devices are renumbered.
_NOT_PASSED = {"CUDA_VISIBLE_DEVICES"}
# Characters by which a shell does more than split words.
_NEEDS_SHELL = re.compile(r"[$`&|;<>(){}*?\[\]~#!\n]")
# First words that are no program: assignments, and what a shell does itself.
_SHELLS_OWN = re.compile(r"\w+=|(exec|cd|export|set|ulimit|umask|source|\.|if|for|while|test|true|false)\Z")
# What SGLang's own arguments follow.
_SERVERS = {"sglang.launch_server", "serve"}


@dataclass(frozen=True)
class Mount:
    """A bind mount; `source` is the host's path."""

    source: str
    target: str
    read_only: bool = False

    def flag(self) -> str:
        fields = ["type=bind", f"source={self.source}", f"target={self.target}"]
        fields += ["readonly"] if self.read_only else []
        # --mount takes one CSV record: a field with a comma or a quote is quoted, quotes are doubled.
        quoted = [f'"{field.replace(chr(34), chr(34) * 2)}"' if set(field) & set(',"') else field for field in fields]
        return ",".join(quoted)


@dataclass(frozen=True)
class ModelSource:
    """Where the weights come from: a hub repository at a commit, or a directory on the host."""

    repo: str | None = None
    commit: str | None = None
    directory: str | None = None

    def arguments(self) -> tuple[str, ...]:
        if self.repo is None:
            return ("--model-path", CHECKPOINT)
        revision = ("--revision", self.commit) if self.commit else ()
        return ("--model-path", self.repo, *revision)


def server_argv(deployment: Deployment, source: ModelSource) -> tuple[str, ...]:
    """The command in the container: `pre_cmd`, then the server in the same shell's place."""
    server = _server(deployment, source)
    if deployment.pre_cmd is None:
        return server
    return ("bash", "-c", f'set -e\n{deployment.pre_cmd}\nexec "$@"', "bash", *server)


def _server(deployment: Deployment, source: ModelSource) -> tuple[str, ...]:
    """SGLang's command line: what the launcher renders, plus the revision and minus defaults."""
    if deployment.command is not None:
        return command_words(deployment.command)
    extra = deployment.extra_args
    host = () if option(extra, "--host") else ("--host", "0.0.0.0")  # noqa: S104 (clients are remote)
    pipeline = deployment.pipeline_parallel_size
    model = source.arguments()
    if option(extra, "--revision"):
        model = model[:2]
    start = ("-m", "sglang.launch_server") if deployment.api_key is None else (WITH_KEY, "sglang.launch_server")
    return (
        "python3",
        *start,
        *model,
        *host,
        *("--port", str(deployment.port)),
        *("--served-model-name", deployment.served_model_name),
        *("--tp-size", str(deployment.tensor_parallel_size)),
        *("--dp-size", str(deployment.data_parallel_size)),
        *(("--pp-size", str(pipeline)) if pipeline > 1 else ()),
        *extra,
    )


def command_words(command: str | Sequence[str]) -> tuple[str, ...]:
    """A `command` of the file ready for exec: split where no shell is needed for it, else handed to one."""
    if not isinstance(command, str):
        return tuple(command)
    if not _NEEDS_SHELL.search(command):
        with contextlib.suppress(ValueError):
            words = tuple(shlex.split(command))
            if words and not _SHELLS_OWN.match(words[0]):
                return words
    return ("bash", "-c", command)


def arguments(deployment: Deployment) -> tuple[str, ...]:
    """The words that the user gives SGLang: `extra_args`, or what follows its name in `command`."""
    if deployment.command is None:
        return deployment.extra_args
    words = command_words(deployment.command)
    starts = [position for position, word in enumerate(words) if word in _SERVERS]
    return words[starts[0] + 1 :] if starts else ()


def option(arguments: Sequence[str], name: str) -> str | None:
    """Value of the last `name VALUE` or `name=VALUE` among `arguments`."""
    found = None
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
        elif argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def container_environment(
    deployment: Deployment, settings: Settings, source: ModelSource, secret: Sequence[str]
) -> dict[str, str]:
    """Variables that may stand in the unit; secrets go by file, GPU numbers not at all."""
    cache = cache_of(deployment, settings.hf_home)
    environment = dict(cache.environment)
    if source.repo:
        # The weights are in place before the start, so the server needs no network and no token.
        environment["HF_HUB_OFFLINE"] = "1"
    for name, value in deployment.env_vars.items():
        passed = name not in _NOT_PASSED and name not in cache.withheld and name not in cache.environment
        if passed and name not in secret and value.kind == "literal":
            environment[name] = value.value
    return environment


def hub_cache(deployment: Deployment, settings: Settings) -> str:
    """The host's directory of hub models: what HF_HUB_CACHE means for a program on the host."""
    return cache_of(deployment, settings.hf_home).host_hub


def mounts(deployment: Deployment, settings: Settings, source: ModelSource) -> tuple[Mount, ...]:
    bound = [*cache_of(deployment, settings.hf_home).mounts, *deployment.mounts]
    checkpoint = (Mount(source.directory, CHECKPOINT, read_only=True),) if source.directory else ()
    return (*(Mount(item.source, item.target, item.read_only) for item in bound), *checkpoint)


def exec_start(
    *,
    engine: str,
    engine_path: str,
    image: ResolvedImage,
    devices: Sequence[str],
    environment: dict[str, str],
    bind: Sequence[Mount],
    argv: Sequence[str],
    secrets_file: str | None,
    settings: Settings,
) -> str:
    """The Exec line that runs the container in the foreground, one flag a line."""
    binds = list(bind)
    if secrets_file:
        binds.append(Mount(secrets_file, SECRETS_IN_CONTAINER, read_only=True))
        argv = ("sh", "-c", f'. {SECRETS_IN_CONTAINER} && exec "$@"', "sh", *argv)
    # systemd already restarts; conmon would only log a second time what the journal has.
    log_driver = "none" if engine == "docker" else "passthrough"
    flags: list[tuple[str, ...]] = [
        ("--network", "host"),
        ("--ipc", "host"),
        ("--log-driver", log_driver),
        *[("--ulimit", limit) for limit in settings.ulimits],
        *_pairs(devices),
        *[("--env", f"{name}={value}") for name, value in sorted(environment.items())],
        *[("--mount", mount.flag()) for mount in binds],
        *[(argument,) for argument in settings.container_args],
        ("--entrypoint", argv[0]),
    ]
    return command(
        [
            (engine_path, "run", "--rm", "--name", "%N", "--init", "--pull", "never"),
            *[[quote(word) for word in flag] for flag in flags],
            (image.digest_ref,),
            *[[quote(word) for word in group] for group in _arguments(argv[1:])],
        ]
    )


def _pairs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + 2]) for start in range(0, len(words), 2)]


def _arguments(argv: Sequence[str]) -> list[list[str]]:
    """Group an option with the values that follow it."""
    groups: list[list[str]] = []
    for word in argv:
        if groups and not word.startswith("--"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups
