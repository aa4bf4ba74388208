"""How a change goes from host to host: `rollout:` of the deployment file, and the same as flags of `deploy`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from sglang_ops.spec.section import Section
from sglang_ops.spec.values import Count, Mistake, Seconds, Size, Tokens, Truth

_SHARE = re.compile(r"^(100|[1-9][0-9]?)%\Z")


def _batch(raw: object) -> object:
    """A number of hosts, or a share of them; Ansible's `serial` takes both, and fails late on anything else."""
    if raw is None or (isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1):
        return raw
    text = str(raw).strip()
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    if _SHARE.match(text):
        return text
    fix = "Write a number of hosts of 1 or more, or a share from 1% to 100%, such as 25%."
    raise Mistake(f"{text} is no number of hosts.", fix=fix)


_Batch = Annotated[
    int | str | None,
    BeforeValidator(_batch),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d+%?$"}]}),
]
Order = Literal["inventory", "reverse_inventory", "sorted", "reverse_sorted", "shuffle"]


class QualityGate(Section):
    """What the first batch must show once it serves: an answer, or an evaluation that a policy judges."""

    prompt: str | None = Field(None, min_length=1, description="What the canary is asked, as a chat message.")
    expect: str | None = Field(None, min_length=1, description="Regular expression that must be found in its answer.")
    max_tokens: Tokens = Field(64, description="Tokens that it may take for it.")
    policy: str | None = Field(
        None, min_length=1, description="Instead: file with the limits that an evaluation of the canary must keep."
    )
    tasks: tuple[str, ...] = Field((), description="Tasks of that evaluation. Default: those of the policy.")
    limit_samples: Size | None = Field(None, description="Only so many items of each task.")
    baseline: str | None = Field(None, min_length=1, description="Folder of a run, for the policy's max_drop.")

    @model_validator(mode="after")
    def _one_way(self) -> QualityGate:
        question = [name for name in ("prompt", "expect") if getattr(self, name) is not None]
        if self.policy is not None and question:
            fix = "Keep one of them."
            raise Mistake(f"has policy and {question[0]}: an evaluation decides, or a question.", fix=fix)
        if self.policy is None:
            missing = next((name for name in ("prompt", "expect") if name not in question), None)
            if missing:
                raise Mistake(f"has no {missing}.", fix="Write prompt and expect, or policy for an evaluation.")
            alone = next((name for name in ("tasks", "limit_samples", "baseline") if getattr(self, name)), None)
            if alone:
                raise Mistake(f"has {alone} without policy.", fix="Write policy: the file with its limits.")
        return self

    @field_validator("expect")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise Mistake(f"'{value}' is no regular expression: {error}.") from None
        return value


class Rollout(Section):
    """How a change goes from host to host, when it stops, and what happens then. Times in seconds."""

    canary: Count | None = Field(
        None,
        description="Hosts that change first, alone; 0 is none. Default: 1 where a release serves already, else 0.",
    )
    batch: _Batch = Field(
        None,
        description="Hosts that change at a time after that: a number, or a share such as 25%. Default: 25% where a "
        "release serves already, else all.",
    )
    max_failures: Count = Field(
        0, description="Hosts that may fail after the canary before no further batch begins; of the canary, none."
    )
    soak: Count | None = Field(
        None, description="Time that a server must stay up before it is stable. Default: sglang_server_soak."
    )
    start_timeout: Seconds | None = Field(
        None, description="Time within which a server must serve. Default: sglang_server_start_timeout."
    )
    drain_timeout: Seconds | None = Field(
        None,
        description="Time for the requests in flight before a server is ended. Default: sglang_server_drain_timeout.",
    )
    auto_rollback: Truth = Field(True, description="Whether a host that fails goes back to its last stable release.")
    order: Order = Field("inventory", description="Which hosts come first, in Ansible's words.")
    surge: Literal["auto", "never"] = Field(
        "auto",
        description="Whether a second server starts beside the one that changes, where a gateway is in front of them "
        "and it fits the host; else the one stops first.",
    )
    gate: QualityGate | None = Field(None, description="What the first batch must show beyond serving.")

    def laid_over(self, given: dict[str, Any]) -> Rollout:
        """These settings with what was given elsewhere (flags, another file) over them. Raises ValidationError."""
        return Rollout.model_validate(self.model_dump(exclude_unset=True) | given)
