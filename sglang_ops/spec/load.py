"""From a file to a checked DeploymentFile: read, override, interpolate, validate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sglang_ops.spec import known
from sglang_ops.spec.file import DeploymentFile, one_of_the_two
from sglang_ops.spec.interpolation import resolve
from sglang_ops.spec.messages import problem
from sglang_ops.spec.overrides import lay_over, with_host_overrides
from sglang_ops.spec.problems import SpecErrors
from sglang_ops.spec.yamlfile import Document, read

DEFAULT_NAME = "deployment.yaml"


def find_deployment_file(config: Path | None, inventories: Sequence[Path]) -> Path | None:
    """The file to use: --config, else ./deployment.yaml, else the one beside the inventory, else None."""
    if config is not None:
        return config
    beside = [(item if item.is_dir() else item.parent) / DEFAULT_NAME for item in inventories]
    return next((path for path in [Path(DEFAULT_NAME), *beside] if path.is_file()), None)


def load(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    host_overrides: Mapping[str, Any] | None = None,
) -> DeploymentFile:
    """Read and check the deployment file at `path`. Raises SpecErrors with every mistake found.

    `host_overrides` (a host's `deployment_overrides`) is laid over the file, `overrides` (the command line) over both.
    """
    return check(read(path), overrides, host_overrides=host_overrides)


def load_mapping(
    data: Mapping[str, Any],
    source: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    host_overrides: Mapping[str, Any] | None = None,
) -> DeploymentFile:
    """The same checks for a mapping that did not come from a file of its own (inventory variables)."""
    return check(Document(source, dict(data)), overrides, host_overrides=host_overrides)


def check(
    document: Document,
    overrides: Mapping[str, Any] | None = None,
    *,
    host_overrides: Mapping[str, Any] | None = None,
) -> DeploymentFile:
    """The checks of `load` for a document that is read already."""
    if host_overrides:
        document = with_host_overrides(document, host_overrides)
    if overrides:
        document = lay_over(document, overrides)
    data, problems = resolve(document, document.data, known.has_no_effect)
    problems += [replace(item, line=document.line(item.path)) for item in one_of_the_two(data)]
    unresolved = {item.path for item in problems}
    try:
        file = DeploymentFile.model_validate(data)
    except ValidationError as error:
        found = [problem(document, detail) for detail in error.errors()]
        problems += [item for item in found if item.path not in unresolved]
    else:
        problems += [replace(item, line=document.line(item.path)) for item in file.conflicts()]
    if problems:
        raise SpecErrors(document.source, sorted(problems, key=lambda item: item.line or 0))
    return file
