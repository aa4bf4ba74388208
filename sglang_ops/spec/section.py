"""What all sections of the deployment file have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

NO_EFFECT = "x-no-effect"


class Section(BaseModel):
    """A mapping whose keys are all known. `x-…` keys are the user's own; an empty section is one not written."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"patternProperties": {"^x-": {}}, "additionalProperties": False}
    )

    @model_validator(mode="before")
    @classmethod
    def _without_free_keys(cls, data: Any) -> Any:
        if data is None:
            return {}
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if not str(key).startswith("x-")}
        return data


def subsection(kind: Callable[..., Any], description: str) -> Any:
    """A section within a section, with its own defaults where the file leaves it out."""
    return Field(default_factory=kind, description=description)


def no_effect(description: str, instead: str = "", *, exclude: bool = False) -> Any:
    """A key of the launcher's schema that is accepted and does nothing here; `instead` says what does."""
    why = f"No effect here. {instead}".strip()
    extra: dict[str, Any] = {NO_EFFECT: instead}
    return Field(None, description=f"{description} {why}", json_schema_extra=extra, exclude=exclude)
