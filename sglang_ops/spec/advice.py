"""What is allowed in a deployment file but does not do what it seems to, or is better done otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sglang_ops.spec.cache import cache_of
from sglang_ops.spec.file import DeploymentFile
from sglang_ops.spec.known import fields
from sglang_ops.spec.model import Deployment
from sglang_ops.spec.section import NO_EFFECT, Section
from sglang_ops.spec.values import EnvValue, is_secret

_EXPANDED = re.compile(r"\$[A-Za-z_{(]|`")


def warnings(file: DeploymentFile) -> list[str]:
    """Every warning about `file`, each one line that names the key."""
    found = [*_without_effect(file, ""), *_bases(file)]
    for name, deployment in _named(file):
        found += [f"{name}{warning}" for warning in deployment_warnings(deployment)]
    environments = [file.evaluation.env_vars, *(task.env_vars for task in file.evaluation.tasks)]
    found += [f"evaluation: {warning}" for variables in environments for warning in _written_out(variables)]
    return list(dict.fromkeys(found))


def deployment_warnings(deployment: Deployment) -> Iterator[str]:
    """The warnings about one deployment, with what it inherits from its file."""
    if _moves(deployment.image):
        yield f"image {deployment.image} moves; each run pins the digest that it has then."
    yield from _written_out(deployment.env_vars)
    yield from cache_of(deployment, "/").warnings
    words = deployment.extra_args
    if any(word.partition("=")[0] in {"--api-key", "--admin-api-key"} for word in words):
        yield "--api-key in extra_args shows in the unit, in `ps` and in SGLang's own log. Write api_key: host:NAME."
    if any(_EXPANDED.search(word) for word in words):
        yield "extra_args: no shell expands $ and ` in it; the server gets them as they are."
    if deployment.command is not None:
        whole = deployment.command if isinstance(deployment.command, str) else " ".join(deployment.command)
        if not all(word in whole for word in words):
            yield "extra_args has no effect: command replaces the whole command. Write ${deployment.extra_args} in it."


def _named(file: DeploymentFile) -> Iterator[tuple[str, Deployment]]:
    several = len(file.services) > 1
    for deployment in file.services:
        yield f"{deployment.service_name}: " if several else "", deployment


def _moves(image: str) -> bool:
    """Whether the reference names no release: no digest, and no tag or `latest`."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@" not in image and (not tag or tag.startswith(("latest", "dev", "nightly")))


def _written_out(variables: dict[str, EnvValue]) -> Iterator[str]:
    for name, value in variables.items():
        if value.kind == "literal" and value.value and is_secret(name, value):
            instead = f"Write 'host:{name}' to take it from your environment instead."
            yield f"env_vars.{name} is written out in the file. {instead}"


def _without_effect(section: Section, path: str) -> Iterator[str]:
    """Keys of the launcher that the file sets to something and that do nothing here."""
    for name, field in fields(type(section)).items():
        attribute = next(key for key, known in type(section).model_fields.items() if known is field)
        value = getattr(section, attribute)
        where = f"{path}{name}"
        extra = field.json_schema_extra
        if isinstance(extra, dict) and NO_EFFECT in extra:
            if not _is_nothing(where, value):
                yield f"{where} has no effect here. {extra[NO_EFFECT]}".strip()
        elif isinstance(value, Section):
            yield from _without_effect(value, f"{where}.")
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, Section):
                    yield from _without_effect(item, f"{where}.{key}.")


def _is_nothing(where: str, value: Any) -> bool:
    """Not set, or set to what is the case anyway."""
    return value in (None, "", [], {}, (), "???") or (where == "execution.type" and value == "local")


def _bases(file: DeploymentFile) -> Iterator[str]:
    for entry in file.defaults:
        executor = entry.get("execution", "local") if isinstance(entry, dict) else "local"
        if executor != "local":
            yield f"defaults: execution {executor} has no effect here. The inventory says which hosts there are."
