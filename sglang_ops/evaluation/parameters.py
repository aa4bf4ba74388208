"""The evaluator's parameters as the launcher's files write them: `nemo_evaluator_config.config.params`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_ops.errors import UsageError
from sglang_ops.spec.problems import nearest

Count = Annotated[int, Field(strict=True, ge=1)]
_Given = ConfigDict(frozen=True, extra="forbid")


class Extra(BaseModel):
    """What the launcher hands to its harness, as far as it means something to ours."""

    model_config = _Given

    n_samples: Count = Field(1, description="How often each item is asked.")
    num_fewshot: Annotated[int, Field(strict=True, ge=0)] | None = Field(None, description="Solved examples before it.")
    seed: int = Field(1234, description="Of the first repeat; each further one has the next.")
    system_instruction: str | None = Field(None, description="System message before every question.")
    gen_kwargs: dict[str, Any] = Field(default_factory=dict, description="Further keys of the request's body.")


class Parameters(BaseModel):
    """Settings of a task; None where the file says nothing. Times in seconds."""

    model_config = _Given

    limit_samples: Count | None = Field(None, description="Only the first so many items.")
    parallelism: Count | None = Field(None, description="Requests at once, at most; the server's capacity when unset.")
    request_timeout: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The least that an answer may take; at this server's speed it may be more."
    )
    max_retries: Annotated[int, Field(strict=True, ge=0)] = Field(5, description="Further attempts for one answer.")
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Count | None = Field(None, description="Tokens of an answer, at most.")
    extra: Extra = Field(default_factory=lambda: Extra.model_validate({}))
    verbatim: dict[str, Any] = Field(default_factory=dict, description="`extra` of NVIDIA's harnesses, as written.")

    def generation(self, usual: Mapping[str, Any]) -> dict[str, Any]:
        """What goes into every request's body: the file's words over the task's usual ones."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "max_gen_toks": self.max_new_tokens}
        return {
            **usual, **{name: value for name, value in given.items() if value is not None}, **self.extra.gen_kwargs,
        }  # fmt: skip


def read(*layers: Mapping[str, Any], where: str, extras: Collection[str] | None = None) -> Parameters:
    """The parameters of `nemo_evaluator_config` sections laid over each other; later ones win. Raises UsageError.

    `extras` are the keys that one of NVIDIA's harnesses takes below `extra`, instead of ours; they go there as written.
    """
    merged: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for layer in layers:
        params = dict((layer.get("config") or {}).get("params") or {})
        extra |= params.pop("extra", None) or {}
        merged |= {name: value for name, value in params.items() if value is not None}
    unknown = next((name for name in extra if name not in extras), None) if extras is not None else None
    if unknown is not None and extras is not None:
        raise UsageError(
            f"{where}.nemo_evaluator_config.config.params.extra.{unknown}: there is no such parameter.",
            fix=nearest(unknown, list(extras)) or f"Known: {', '.join(extras)}.",
        )
    free = {"extra": extra} if extras is None else {"verbatim": extra}
    try:
        return Parameters.model_validate({**merged, **free})
    except ValidationError as error:
        raise _sentence(error, where) from None


def adapter(*layers: Mapping[str, Any]) -> dict[str, Any] | None:
    """`target.api_endpoint.adapter_config` of the last section that has one: NVIDIA's interceptors."""
    found = None
    for layer in layers:
        endpoint = (layer.get("target") or {}).get("api_endpoint") or {}
        found = endpoint.get("adapter_config") or found
    return found


def _sentence(error: ValidationError, where: str) -> UsageError:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    place = f"{where}.nemo_evaluator_config.config.params.{path}"
    if first["type"] == "extra_forbidden":
        kind = Extra if first["loc"][0] == "extra" else Parameters
        names = [name for name in kind.model_fields if name != "verbatim"]
        key = str(first["loc"][-1])
        return UsageError(
            f"{place}: there is no such parameter.", fix=nearest(key, names) or f"Known: {', '.join(names)}."
        )
    message = str(first["msg"]).replace("Input should be", "must be")
    return UsageError(f"{place}: {first['input']!r} {message}.", fix="Correct it in the deployment file.")
