"""What a deployment becomes, seen without any host: the command in the container, the container, the unit.

Planning decides here as it does in a deploy, on a pretended host where every image and model is. What only a real
host can tell stays as the file says it: the image's reference instead of its digest, the model's revision instead
of its commit, references instead of secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sglang_ops import catalog
from sglang_ops.errors import PreflightError
from sglang_ops.planning.command import ModelSource, hub_cache
from sglang_ops.planning.draft import Draft
from sglang_ops.planning.facts import CdiSpec, Engine, Gpu, HostFacts, Model, ModelFiles
from sglang_ops.planning.gpus import on_cpu
from sglang_ops.planning.nodes import Group, placed
from sglang_ops.planning.plan import drafts
from sglang_ops.planning.questions import repository
from sglang_ops.planning.release import release_id
from sglang_ops.planning.service import Resolved, resolve
from sglang_ops.planning.settings import ResolvedImage, Secrets, Settings
from sglang_ops.planning.wanted import Wanted
from sglang_ops.spec import Deployment, EnvValue
from sglang_ops.spec.model import is_secret

HIDDEN = "(hidden)"
AUTO = (
    "tensor_parallel_size of {} is auto, and only the memory of a host's GPUs decides it. "
    "Choose one with -o deployment.tensor_parallel_size=N, or see what `sglang-ops plan` says."
)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^ ]+')
_ESCAPE = re.compile(r'((?:\\x[0-9a-f]{2})+)|\\([\\"ntr])|%%|\$\$')
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}


@dataclass(frozen=True)
class Rendered:
    """One service; everything else is derived from what planning decided."""

    resolved: Resolved
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.resolved.deployment.service_name

    @property
    def references(self) -> dict[str, str]:
        """Secrets that the server gets, by name: where their values are, or that they are hidden."""
        given = self.resolved.deployment.env_vars
        return {name: reference(given[name]) for name in sorted(self.resolved.fingerprints)}

    @property
    def borrowed(self) -> dict[str, str]:
        """Secrets that the environment of the machine has under another name, and that name."""
        given = self.resolved.deployment.env_vars
        names = {name: given[name].value for name in self.references if given[name].kind == "host"}
        return {name: source for name, source in names.items() if name != source}

    @property
    def unit(self) -> str:
        """The systemd unit. Its release is that of a host whose image has no digest, and so no real one."""
        return self.resolved.unit(release_id(self.resolved.content()))

    @property
    def container(self) -> list[list[str]]:
        """The unit's own `docker run` as arguments, an option and its values at a time; secrets by name only.

        It differs from the unit in what a shell needs otherwise: the container's name is written out, a missing
        image is pulled, secrets come from the environment instead of a file of the service, and podman logs nowhere
        (on a terminal it refuses `passthrough`).
        """
        engine = self.resolved.settings.container_engine
        open_handed = replace(self.resolved, engine_path=engine, fingerprints={})
        (program, *run), *flags = exec_groups(open_handed.unit(""))
        spoken = {"%N": self.name, "never": "missing"}
        groups = [[program, *(spoken.get(word, word) for word in run)]]
        for group in flags:
            if group[0] == "--entrypoint":
                groups += [["--env", name] for name in self.references]
            groups.append(["--log-driver", "none"] if group[0] == "--log-driver" else group)
        return groups

    @property
    def needs(self) -> str:
        """What must be there where `container` is run by hand."""
        repo = self.resolved.source.repo
        places = ", ".join(mount.source for mount in self.resolved.mounts)
        names = ", ".join(self.borrowed.get(name, name) for name in self.references)
        model = f", with {repo} fetched into the cache" if repo else ""
        return f"Needs on the host: {places}{model}." + (f" Needs in the shell: {names}." if names else "")

    def as_dict(self) -> dict[str, Any]:
        resolved = self.resolved
        flags = resolved.device_flags
        return {
            "name": self.name,
            "image": resolved.image.ref,
            "argv": list(resolved.argv),
            "env": dict(sorted((resolved.environment | self.references).items())),
            "mounts": [
                {"source": mount.source, "target": mount.target, "read_only": mount.read_only}
                for mount in resolved.mounts
            ],
            "devices": [value for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag == "--device"],
            "port": resolved.deployment.port,
            "endpoints": resolved.deployment.endpoints.model_dump(),
            "warnings": list(self.warnings),
        }


def render(
    deployments: Sequence[Deployment],
    *,
    gpus: int | None = None,
    release: str | None = None,
    engine: str = "docker",
    strict: bool = False,
) -> list[Rendered]:
    """The services of `deployments` on one host with `gpus` GPUs, by default as many as they need.

    Arguments are judged for `release`, by default that of the image's tag; `strict` refuses what would be translated.
    Raises PreflightError with every reason why the deployments cannot run together on such a host.
    """
    settings = Settings.model_validate({"container_engine": engine, "strict_arguments": strict, "asked": True})
    facts = pretended_host(deployments, settings, _gpus_wanted(deployments) if gpus is None else gpus)
    wanted = [Wanted(_first(item, facts), _image(item, release), _references(item)) for item in deployments]
    made = drafts(wanted, facts, settings)
    problems = [problem.message for item in made for problem in item.problems]
    problems += [AUTO.format(item.wanted.name) for item in made if item.deployment.tensor_parallel_size == "auto"]
    if problems:
        raise PreflightError("\n".join(dict.fromkeys(problems)))
    return [
        Rendered(resolve(_as_written(item), facts, settings), (*item.warnings, *_left_open(item.deployment)))
        for item in made
    ]


def pretended_host(deployments: Sequence[Deployment], settings: Settings, gpus: int) -> HostFacts:
    """A host with everything in place, nothing deployed, and GPUs of which only number and UUID are known."""
    named = [word for item in deployments for word in _named_gpus(item) if not word.isdecimal()]
    uuids = dict(zip(range(gpus), dict.fromkeys(named), strict=False))
    devices = "".join(f'  - name: "{index}"\n' for index in range(gpus))
    runtime = [value for item in deployments for value in item.env_vars.values() if value.kind == "runtime"]
    return HostFacts(
        host="a host with 1 GPU" if gpus == 1 else f"a host with {gpus} GPUs",
        address="127.0.0.1",
        gpus=tuple(Gpu(index=index, uuid=uuids.get(index, f"GPU-{index}")) for index in range(gpus)),
        gpu_error=None if gpus else "--gpus 0 was asked for",
        cdi=(CdiSpec(path="/etc/cdi/nvidia.yaml", text=f"kind: nvidia.com/gpu\ndevices:\n{devices}"),),
        engine=Engine(
            name=settings.container_engine,
            path=f"/usr/bin/{settings.container_engine}",
            version="99.0",
            running=True,
        ),
        models=tuple(_model(item, settings) for item in deployments if item.hf_model_handle),
        checkpoints={item.checkpoint_path: ModelFiles() for item in deployments if item.checkpoint_path},
        runtime={value.value: value.reference() for value in runtime},
    )


def reference(value: EnvValue) -> str:
    """How a secret is shown: where it is, never what it is."""
    return HIDDEN if value.kind == "literal" else value.reference()


def exec_groups(unit: str) -> list[list[str]]:
    """The arguments of ExecStart=, line by line, as systemd reads them but for its own specifiers."""
    groups: list[list[str]] = []
    for line in unit.partition("\nExecStart=")[2].split("\n"):
        groups.append([_read(word) for word in _WORD.findall(line.removesuffix(" \\"))])
        if not line.endswith(" \\"):
            break
    return groups


def _read(word: str) -> str:
    """The inverse of `planning.systemd.quote`."""

    def one(match: re.Match[str]) -> str:
        if match[1]:
            return bytes.fromhex(match[1].replace("\\x", "")).decode()
        return _PLAIN[match[2]] if match[2] else match[0][0]

    return _ESCAPE.sub(one, word[1:-1]) if word.startswith('"') else word


def _first(deployment: Deployment, facts: HostFacts) -> Deployment:
    """Of several hosts that serve the model together the first, HOST0."""
    if deployment.nodes == 1:
        return deployment
    others = {f"HOST{rank}": f"HOST{rank}" for rank in range(1, deployment.nodes)}
    return placed(deployment, Group({facts.host: "HOST0", **others}), facts)


def _image(deployment: Deployment, release: str | None) -> ResolvedImage:
    ref = deployment.image
    return ResolvedImage(ref, ref, release=release or catalog.release_of(ref) or "")


def _references(deployment: Deployment) -> Secrets:
    """Secrets without their values: what is hashed into the release is the reference."""
    secret = {name: value for name, value in deployment.env_vars.items() if is_secret(name, value)}
    return Secrets({name: reference(value) for name, value in secret.items() if value.kind != "runtime"})


def _model(deployment: Deployment, settings: Settings) -> Model:
    repo, revision = repository(deployment)
    return Model(repo=str(repo), revision=revision, hub=hub_cache(deployment, settings), commit=revision, cached=True)


def _as_written(made: Draft) -> Draft:
    """The hub's commit is not known here: only a revision that the file names stays."""
    if made.source.repo is None:
        return made
    named = made.source.commit if made.source.commit != "main" else None
    return replace(made, source=ModelSource(repo=made.source.repo, commit=named))


def _left_open(deployment: Deployment) -> Iterator[str]:
    """What is decided on each host only."""
    if deployment.nodes > 1:
        yield f"HOST0 stands for the first of {deployment.nodes} hosts; each has its own --node-rank."
    if deployment.hf_model_handle and deployment.checkpoint_path:
        yield f"where {deployment.hf_model_handle} is not to be had, {deployment.checkpoint_path} is served instead."


def _gpus_wanted(deployments: Sequence[Deployment]) -> int:
    """As many as all need together, or up to the highest number that one of them names."""
    needed = sum(0 if on_cpu(item) else item.gpus_needed for item in deployments)
    named = [int(word) + 1 for item in deployments for word in _named_gpus(item) if word.isdecimal()]
    uuids = {word for item in deployments for word in _named_gpus(item) if not word.isdecimal()}
    return max(needed, len(uuids), *named, 0)


def _named_gpus(deployment: Deployment) -> list[str]:
    named = deployment.env_vars.get("CUDA_VISIBLE_DEVICES")
    return [word.strip() for word in named.value.split(",") if word.strip()] if named else []
