"""From a file to a checked DeploymentFile: read, override, interpolate, validate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sglang_ops.spec.model import DeploymentFile
from sglang_ops.spec.problems import SpecErrors, SpecProblem, nearest
from sglang_ops.spec.yamlfile import Document, read

DEFAULT_NAME = "deployment.yaml"


def find_deployment_file(config: Path | None, inventories: Sequence[Path]) -> Path | None:
    """The file to use: --config, else ./deployment.yaml, else the one beside the inventory, else None."""
    if config is not None:
        return config
    beside = [(item if item.is_dir() else item.parent) / DEFAULT_NAME for item in inventories]
    return next((path for path in [Path(DEFAULT_NAME), *beside] if path.is_file()), None)


def load(path: Path) -> DeploymentFile:
    """Read and check the deployment file at `path`. Raises SpecErrors with every mistake found."""
    return _validate(read(path))


def load_mapping(data: Mapping[str, Any], source: str) -> DeploymentFile:
    """The same checks for a mapping that did not come from a file of its own (inventory variables)."""
    return _validate(Document(source, dict(data)))


def _validate(document: Document) -> DeploymentFile:
    data = {key: value for key, value in document.data.items() if not str(key).startswith("x-")}
    if isinstance(data.get("deployment"), dict):
        data["deployment"] = {
            key: value for key, value in data["deployment"].items() if not str(key).startswith("x-")
        }
    data = _interpolate(document, data)
    try:
        return DeploymentFile.model_validate(data)
    except ValidationError as error:
        raise SpecErrors(document.source, [_problem(document, detail) for detail in error.errors()]) from error


def _interpolate(document: Document, data: dict[str, Any]) -> dict[str, Any]:
    """Resolve `${…}` as OmegaConf does; the library is loaded only for files that use it."""
    if "${" not in repr(data):
        return data
    from omegaconf import OmegaConf  # noqa: PLC0415
    from omegaconf.errors import OmegaConfBaseException  # noqa: PLC0415

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    except OmegaConfBaseException as error:
        path = str(getattr(error, "full_key", "") or "").replace("[", ".").replace("]", "")
        message = str(error.msg or error).splitlines()[0]
        raise SpecErrors(document.source, [SpecProblem(path, document.line(path), f"{message}.")]) from error
    return {str(key): value for key, value in resolved.items()} if isinstance(resolved, dict) else {}


def _problem(document: Document, detail: Any) -> SpecProblem:
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location)
    line = document.line(path)
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        return SpecProblem(path, line, "is not a key of the deployment file.", nearest(location[-1], known))
    if kind == "missing":
        return SpecProblem(path, line or document.line(location[0]), "is missing.", f"Add `{location[-1]}:`.")
    if kind == "value_error":
        return SpecProblem(path, line, str(detail["ctx"]["error"]))
    message = str(detail["msg"]).replace("Input should be", "must be")
    shown = "" if isinstance(given, dict | list) else f", found {given!r}"
    return SpecProblem(path, line, f"{message}{shown}.")


def _known_keys(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = DeploymentFile
    for part in location:
        field = model.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        inner = next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
