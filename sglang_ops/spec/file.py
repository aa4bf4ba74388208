"""The whole deployment file, and the services that it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from sglang_ops.spec.gateway import Gateway
from sglang_ops.spec.launcher import Evaluation, Execution, Export, Target
from sglang_ops.spec.model import Deployment, slug
from sglang_ops.spec.problems import SpecErrors, SpecProblem
from sglang_ops.spec.rollout import Rollout
from sglang_ops.spec.section import Section, no_effect, subsection
from sglang_ops.spec.values import EnvVars, Mistake

_SERVED = "sglang"


def _named(raw: Any) -> Any:
    """`deployments: {llama: {…}}`: the key is the default of `name`."""
    if not isinstance(raw, dict):
        return raw
    return {
        key: {"name": slug(str(key)) or None} | value if isinstance(value, dict) else value
        for key, value in raw.items()
    }


class DeploymentFile(Section):
    """The whole file: one `deployment`, or several `deployments` by name, and the launcher's other sections."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True)

    defaults: Annotated[tuple[Any, ...], BeforeValidator(lambda raw: () if raw is None else raw)] = Field(
        (), description="The launcher's list of base files; only `deployment: sglang` has a meaning here."
    )
    env_vars: EnvVars = Field(
        default_factory=dict, description="Environment of every container; the sections' own variables win."
    )
    single: Deployment | None = Field(None, alias="deployment", description="The model that is served.")
    several: Annotated[dict[str, Deployment], BeforeValidator(_named)] | None = Field(
        None, alias="deployments", min_length=1, description="Several models by name, instead of `deployment`."
    )
    gateway: Gateway | None = Field(
        None, description="Beside a single `deployment`: its gateway, as deployment.gateway says it."
    )
    rollout: Rollout = subsection(Rollout, "How a change goes from host to host, and when it stops.")
    execution: Execution = subsection(Execution, "How and where the launcher runs things.")
    evaluation: Annotated[Evaluation, BeforeValidator(lambda raw: {} if raw == [] else raw)] = subsection(
        Evaluation, "What is evaluated once the server serves."
    )
    target: Target = subsection(Target, "What the launcher evaluates when it deploys nothing.")
    auxiliary_deployments: Any = no_effect("The launcher's helper models.", "Write them under `deployments:`.")
    export: Export = subsection(Export, "The launcher's exporters.")

    @field_validator("defaults")
    @classmethod
    def _engine(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        for position, entry in enumerate(entries):
            engine = entry.get("deployment", _SERVED) if isinstance(entry, dict) else _SERVED
            if engine != _SERVED:
                message = f"asks for {engine!r}, and this tool serves with SGLang only."
                raise Mistake(message, str(position), "deployment", fix=f"Write `deployment: {_SERVED}`.")
        return entries

    @property
    def deployment(self) -> Deployment:
        """The deployment of a file with one. Raises SpecErrors for a file with several."""
        if len(self._written) > 1:
            problem = SpecProblem("deployments", None, f"names {self.names}, and one is needed.")
            raise SpecErrors("the deployment file", [problem])
        return self._complete(self._written[0])

    @cached_property
    def services(self) -> tuple[Deployment, ...]:
        """Every deployment with what it inherits: mounts, environment (top level, execution, own; last wins)."""
        return tuple(replica for deployment in self._written for replica in self._complete(deployment).replicas)

    @property
    def _written(self) -> list[Deployment]:
        return [self.single] if self.single else list((self.several or {}).values())

    @property
    def paths(self) -> tuple[str, ...]:
        """Where in the file each of `services` stands."""
        keys = ["deployment"] if self.single else [f"deployments.{key}" for key in self.several or {}]
        counts = [len(self._complete(deployment).replicas) for deployment in self._written]
        return tuple(key for key, count in zip(keys, counts, strict=True) for _ in range(count))

    @property
    def names(self) -> str:
        """The services in words, for messages."""
        return " and ".join(deployment.service_name for deployment in self.services)

    def _complete(self, deployment: Deployment) -> Deployment:
        inherited = self.env_vars | self.execution.env_vars.deployment
        own = {mount.source: mount for mount in deployment.mounts}
        mounts = {mount.source: mount for mount in self.execution.mounts.deployment} | own
        return deployment.model_copy(
            update={
                "env_vars": inherited | deployment.env_vars,
                "mounts": tuple(mounts.values()),
                "gateway": deployment.gateway or self.gateway,
            }
        )

    def conflicts(self) -> Iterator[SpecProblem]:
        """What is wrong between keys that are right each for itself."""
        if self.gateway and self.single is None:
            fix = "Move it into the deployment that it is for."
            yield SpecProblem("gateway", None, "stands beside several deployments.", fix)
        if self.gateway and self.single and self.single.gateway:
            yield SpecProblem("gateway", None, "is there twice.", "Remove it here, or in `deployment`.")
        owners: dict[str, str] = {}
        for key, deployment in zip(self.paths, self.services, strict=True):
            first = owners.setdefault(deployment.service_name, key)
            if first != key:
                message = f"is called {deployment.service_name} as {first} is."
                yield SpecProblem(key, None, message, "Give one of them another `name`.")
            yield from _mount_conflicts(key, deployment)


def one_of_the_two(data: Mapping[str, Any]) -> Iterator[SpecProblem]:
    """A file has `deployment` or `deployments`, and not both."""
    given = [key for key in ("deployment", "deployments") if data.get(key) is not None]
    if len(given) == 2:
        fix = "Move the one under `deployments:` with a name of its own."
        yield SpecProblem("deployment", None, "cannot stand beside `deployments`.", fix)
    if not given:
        yield SpecProblem("deployment", None, "is missing.", "Add `deployment:` and the model to serve.")


def _mount_conflicts(key: str, deployment: Deployment) -> Iterator[SpecProblem]:
    owners = {"/checkpoint": "checkpoint_path"} if deployment.checkpoint_path else {}
    owners |= {"/cache": "cache_path"} if deployment.cache_path else {}
    for mount in deployment.mounts:
        target = mount.target.rstrip("/")
        owner = owners.setdefault(target, mount.source)
        if owner != mount.source:
            yield SpecProblem(f"{key}.mounts", None, f"{mount.source} and {owner} are both mounted at {target}.")


def check_names(deployments: Iterable[Deployment]) -> None:
    """Refuse deployments of several files whose services have the same name. Raises SpecErrors."""
    seen: set[str] = set()
    problems = []
    for deployment in deployments:
        name = deployment.service_name
        if name in seen:
            problems.append(SpecProblem("name", None, f"{name} is there twice.", "Give one of them another `name`."))
        seen.add(name)
    if problems:
        raise SpecErrors("the deployment files", problems)
