"""What the schema knows about a dotted path: the keys below it, and whether it has any effect here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic.fields import FieldInfo

from sglang_ops.spec.file import DeploymentFile
from sglang_ops.spec.section import NO_EFFECT, Section

# Sections below which the user chooses the names: deployments.<name>, evaluation.tasks.<position>.
_CHOSEN = {"deployments", "tasks"}


def keys_below(path: Sequence[str]) -> list[str]:
    """The keys that may stand in the section at `path`; none where they are free."""
    model: type[Section] | None = DeploymentFile
    chosen = False
    for part in path:
        if chosen:
            chosen = False
            continue
        field = fields(model).get(part) if model else None
        model, chosen = (section_of(field.annotation) if field else None), part in _CHOSEN
    return [] if chosen or model is None else list(fields(model))


def has_no_effect(path: str) -> bool:
    """Whether `path` is, or lies in, a key of the launcher that does nothing here, or the user's own `x-…`."""
    model: type[Section] | None = DeploymentFile
    chosen = False
    for part in path.split("."):
        if model is None:
            return False
        if chosen:
            chosen = False
            continue
        if part.startswith("x-"):
            return True
        field = fields(model).get(part)
        if field is None:
            return False
        if isinstance(field.json_schema_extra, dict) and NO_EFFECT in field.json_schema_extra:
            return True
        model, chosen = section_of(field.annotation), part in _CHOSEN
    return False


def fields(model: type[Section]) -> dict[str, FieldInfo]:
    """The fields of a section by the names that a file uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def section_of(annotation: Any) -> type[Section] | None:
    """The section behind `annotation`: itself, or within Optional, tuple or dict."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inner in get_args(annotation) if (found := section_of(inner))), None)
