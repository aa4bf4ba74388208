"""Which deployments a verb speaks of, and the files in which Ansible's side reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ops import inventory_check, private, spec
from sglang_ops.action_inputs import BASE_VARIABLE
from sglang_ops.commands import _common, _overrides
from sglang_ops.errors import UsageError
from sglang_ops.runs import RunFolder
from sglang_ops.spec import model, yamlfile
from sglang_ops.spec.secret_flags import without_secrets

SECTIONS = ("deployment", "deployments")
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Source:
    """Checked deployment files. `paths` are what Ansible reads, `origin` where the user wrote them.

    `base` is where relative paths in them begin: beside the first file.
    """

    paths: tuple[Path, ...]
    origin: str
    files: tuple[spec.DeploymentFile, ...]
    base: Path

    @property
    def deployments(self) -> tuple[spec.Deployment, ...]:
        return tuple(deployment for file in self.files for deployment in file.services)

    @property
    def variables(self) -> dict[str, Any]:
        """What tells Ansible's side which files to read, and where their relative paths begin."""
        return {"sglang_ops_deployment_files": [str(path) for path in self.paths], BASE_VARIABLE: str(self.base)}

    def redacted(self) -> dict[str, Any]:
        """The deployments as they were resolved, for people: secrets as references, written-out ones hidden."""
        shown = [_redacted(file) for file in self.files]
        return shown[0] if len(shown) == 1 else {"files": shown}

    def secrets(self) -> set[str]:
        """Every secret value that the deployments carry or refer to on this machine."""
        return {value for deployment in self.deployments for value in _secrets(deployment)}


def overrides(extra: _overrides.ExtraVars, words: Sequence[str] | None) -> dict[str, Any]:
    """What the command line lays over the file: deployment keys of ``-e``, then ``-o``."""
    section = {SECTIONS[0]: extra.deployment} if extra.deployment else {}
    return _overrides.merged(section, _overrides.parse_overrides(words or ()))


def strictness(strict: bool) -> dict[str, Any]:
    """The variable that --strict sets; without the flag the inventory decides."""
    return {"sglang_server_strict_arguments": True} if strict else {}


@contextmanager
def find(
    configs: Sequence[Path] | None, inventory: Sequence[str], limit: str | None, changes: Mapping[str, Any]
) -> Iterator[Source | None]:
    """The deployments to work on, None where there is no file and the inventory has none. Raises SpecErrors.

    `changes` are laid over the file. What is not a file as it stands (changed, or kept in the inventory) is written
    to a private file for the time of the run.
    """
    paths = list(configs or [])
    if not paths:
        found = spec.find_deployment_file(None, inventory_check.paths(inventory))
        paths = [found] if found else []
    base = paths[0].absolute().parent if paths else Path.cwd()
    if paths and not changes:
        files = tuple(spec.load(path) for path in paths)
        spec.check_names([deployment for file in files for deployment in file.services])
        yield Source(tuple(path.absolute() for path in paths), " and ".join(map(str, paths)), files, base)
        return
    if len(paths) > 1:
        names = " and ".join(map(str, paths))
        raise UsageError(
            f"-o and deployment keys of -e change one deployment file, and --config names {len(paths)}: {names}.",
            fix="Change the files themselves, or set deployment_overrides in the inventory.",
        )
    document = yamlfile.read(paths[0]) if paths else _from_inventory(inventory, limit)
    if not document.data and not changes:
        yield None
        return
    document = spec.lay_over(document, changes)
    file = spec.check(document)
    with private.directory() as folder:
        copy = folder / "deployment.yaml"
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(yamlfile.dump(document.data))
        origin = f"{document.source} with what the command line changes" if changes else document.source
        yield Source((copy,), origin, (file,), base)


def _from_inventory(inventory: Sequence[str], limit: str | None) -> yamlfile.Document:
    for section in SECTIONS:
        value = inventory_check.variable(inventory, section, limit)
        if value is not None:
            return yamlfile.Document(f"the variable '{section}' in the inventory", {section: value})
    return yamlfile.Document("the command line", {})


def require(source: Source | None) -> Source:
    if source is None:
        raise UsageError(
            "There is no deployment file: neither ./deployment.yaml, nor one beside the inventory, nor a variable "
            f"'{SECTIONS[0]}' in the inventory.",
            fix="Name one with --config.",
        )
    return source


@contextmanager
def opened(
    verb: str, target: _common.Target, configs: Sequence[Path] | None, override: Sequence[str] | None
) -> Iterator[tuple[Source, RunFolder]]:
    """The deployments that `verb` works on, and its run folder, which keeps what they say and none of their secrets.

    Raises SpecErrors, and UsageError where there is no deployment.
    """
    changes = overrides(target.extra, override)
    with find(configs, target.inventory, target.limit, changes) as found, _common.run_folder(verb, target) as folder:
        source = require(found)
        folder.hide(source.secrets())
        folder.write_yaml("config.yaml", source.redacted())
        yield source, folder


def _redacted(file: spec.DeploymentFile) -> dict[str, Any]:
    data: dict[str, Any] = file.model_dump(mode="json", exclude_none=True)
    shown = {deployment.service_name: _shown(deployment) for deployment in file.services}
    sections = {"deployment": next(iter(shown.values()))} if "deployment" in data else {"deployments": shown}
    return {**{key: _masked(value) for key, value in data.items() if key not in SECTIONS}, **sections}


def _shown(deployment: spec.Deployment) -> dict[str, Any]:
    section: dict[str, Any] = deployment.model_dump(mode="json", exclude_none=True)
    section["env_vars"] = {
        name: HIDDEN if value.kind == "literal" and model.is_secret(name, value) else value.reference()
        for name, value in deployment.env_vars.items()
    }
    section["extra_args"] = list(without_secrets(deployment.extra_args, lambda _: HIDDEN))
    return {key: value for key, value in section.items() if value not in ({}, [])}


def _secrets(deployment: spec.Deployment) -> set[str]:
    found = set()
    for name, value in deployment.env_vars.items():
        if model.is_secret(name, value):
            found.add(os.environ.get(value.value, "") if value.kind == "host" else value.value)
    shown = list(without_secrets(deployment.extra_args, lambda _: HIDDEN))
    found |= {was.partition("=")[2] or was for was, now in zip(deployment.extra_args, shown, strict=True) if was != now}
    return found


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, name) for item in value]
    reference = isinstance(value, str) and value.startswith(("host:", "runtime:"))
    secret = isinstance(value, str) and model.is_secret(name, model.EnvValue(kind="literal", value=value))
    return HIDDEN if secret and not reference else value
