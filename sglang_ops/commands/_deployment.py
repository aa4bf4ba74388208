"""Which deployment a verb speaks of, and the one file in which Ansible's side reads it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sglang_ops import inventory_check, spec
from sglang_ops.commands._overrides import SECTION, merged
from sglang_ops.errors import UsageError
from sglang_ops.spec import model, yamlfile

_SECRET_FLAG = re.compile(r"^--[\w-]*(key|token|secret|password)[\w-]*$", re.IGNORECASE)
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Source:
    """A checked deployment. `path` is what Ansible reads, `origin` where the user wrote it."""

    path: Path
    origin: str
    file: spec.DeploymentFile

    @property
    def service(self) -> str:
        return self.file.deployment.service_name


@contextmanager
def find(
    config: Path | None, inventory: Sequence[str], limit: str | None, overrides: Mapping[str, Any]
) -> Iterator[Source | None]:
    """The deployment to work on, None where there is no file and the inventory has none. Raises SpecErrors.

    A deployment that is not a file as it stands (overridden by ``-e``, or kept in the inventory) is written to a
    private file for the time of the run.
    """
    path = spec.find_deployment_file(config, inventory_check.paths(inventory))
    if path is not None and not overrides:
        yield Source(path.absolute(), str(path), spec.load(path))
        return
    if path is not None:
        data, origin = yamlfile.read(path).data, f"{path} with -e"
    else:
        section = inventory_check.variable(inventory, SECTION, limit)
        if section is None and not overrides:
            yield None
            return
        data, origin = {SECTION: section or {}}, f"the variable '{SECTION}' in the inventory"
    data = merged(data, {SECTION: overrides} if overrides else {})
    with tempfile.TemporaryDirectory(prefix="sglang-ops-") as private:  # 0700
        copy = Path(private) / "deployment.yaml"
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yaml.safe_dump(data, file, sort_keys=False, allow_unicode=True)
        yield Source(copy, origin, spec.load_mapping(data, origin))


def require(source: Source | None) -> Source:
    if source is None:
        raise UsageError(
            "There is no deployment file: neither ./deployment.yaml, nor one beside the inventory, nor a variable "
            f"'{SECTION}' in the inventory.",
            fix="Name one with --config.",
        )
    return source


def redacted(file: spec.DeploymentFile) -> dict[str, Any]:
    """The deployment as it was resolved, for people: secrets as references, written-out ones hidden."""
    data: dict[str, Any] = file.model_dump(mode="json", exclude_none=True)
    section = data[SECTION]
    values = file.deployment.env_vars
    if values:
        section["env_vars"] = {
            name: HIDDEN if value.kind == "literal" and model.is_secret(name, value) else value.reference()
            for name, value in values.items()
        }
    if "extra_args" in section:
        section["extra_args"] = list(_without_secrets(file.deployment.extra_args))
    return {key: value if key == SECTION else _masked(value) for key, value in data.items()}


def secrets(file: spec.DeploymentFile) -> set[str]:
    """Every secret value that the deployment carries or refers to on this machine."""
    found = set()
    for name, value in file.deployment.env_vars.items():
        if model.is_secret(name, value):
            found.add(os.environ.get(value.value, "") if value.kind == "host" else value.value)
    shown = list(_without_secrets(file.deployment.extra_args))
    found |= {
        was.partition("=")[2] or was for was, now in zip(file.deployment.extra_args, shown, strict=True) if was != now
    }
    return found


def _without_secrets(arguments: Sequence[str]) -> Iterator[str]:
    previous = ""
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        if equals and _SECRET_FLAG.match(flag):
            yield f"{flag}={HIDDEN}"
        elif _SECRET_FLAG.match(previous) and not argument.startswith("--"):
            yield HIDDEN
        else:
            yield argument
        previous = argument


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, name) for item in value]
    reference = isinstance(value, str) and value.startswith(("host:", "runtime:"))
    secret = isinstance(value, str) and model.is_secret(name, model.EnvValue(kind="literal", value=value))
    return HIDDEN if secret and not reference else value
