"""One deployment: a model served in a certain way.

Keys and defaults follow the SGLang deployment page of the NeMo Evaluator Launcher, with two deliberate
differences: `tensor_parallel_size` defaults to 1 (the launcher's 8 fits only hosts with eight GPUs), and
keys that nobody knows are errors instead of being ignored. docs/deployment-file.md lists every difference.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sglang_ops.spec.section import Section, no_effect, subsection
from sglang_ops.spec.values import (
    Arguments,
    Command,
    EnvValue,
    EnvVars,
    Mistake,
    Mount,
    Mounts,
    Port,
    Size,
    SizeOrAuto,
    Truth,
    carried,
    is_path,
    is_secret,
)

__all__ = ["OWNED_FLAGS", "Deployment", "Endpoints", "EnvValue", "Mount", "is_secret", "slug"]

# huggingface_hub's rule for repository ids (validate_repo_id): one optional namespace, 96 characters at most.
_REPO = re.compile(r"^(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?\Z", re.ASCII)
# distribution reference grammar: host[:port]/path[:tag][@sha256:...]
_IMAGE = re.compile(
    r"^(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d{1,5})?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?\Z",
    re.ASCII,
)

_ABSOLUTE: dict[str, Any] = {"pattern": "^/"}  # what editors are told; the validators below know more

# What we write on the command line ourselves, and the key that sets it.
OWNED_FLAGS = {
    "--model-path": "hf_model_handle or checkpoint_path",
    "--model": "hf_model_handle or checkpoint_path",
    "--served-model-name": "served_model_name",
    "--port": "port",
    "--tp-size": "tensor_parallel_size",
    "--tp": "tensor_parallel_size",
    "--tensor-parallel-size": "tensor_parallel_size",
    "--dp-size": "data_parallel_size",
    "--dp": "data_parallel_size",
    "--data-parallel-size": "data_parallel_size",
    "--pp-size": "pipeline_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
}


RESERVED = "ops-"  # units of this tool itself are called sglang-ops-…


def slug(text: str) -> str:
    """`text` as the name of a unit: lower-case letters, digits and '-', 48 at most; "" where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")


def _reserved(name: str) -> str:
    return f"'{name}' would make the unit sglang-{name}; names that begin with '{RESERVED}' are this tool's own."


class Endpoints(Section):
    """Paths below the server's base URL, used by the gate, by `status` and by the evaluation."""

    chat: str = Field(
        "/v1/chat/completions", description="Where chat completions are asked for.", json_schema_extra=_ABSOLUTE
    )
    completions: str = Field(
        "/v1/completions", description="Where completions are asked for.", json_schema_extra=_ABSOLUTE
    )
    health: str = Field("/health", description="Where the server says that it is alive.", json_schema_extra=_ABSOLUTE)
    embedding: str | None = no_effect("Where embeddings are asked for.", exclude=True)
    ranking: str | None = no_effect("Where rankings are asked for.", exclude=True)

    @field_validator("*")
    @classmethod
    def _is_path(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r'^/[!"$->@-~]*\Z', value):  # printable ASCII without '#' and '?'
            raise Mistake(f"must be a path in ASCII that begins with '/', found '{value}'.")
        return value


class Deployment(Section):
    """One model, served in a certain way."""

    type: Literal["sglang"] = Field("sglang", description="The engine; this tool serves with SGLang only.")
    name: str | None = Field(
        None,
        description="The unit and the container are called sglang-<name>. Default: from served_model_name.",
        json_schema_extra={"pattern": f"^(?!{RESERVED})[a-z0-9][a-z0-9-]{{0,47}}$"},
    )
    hosts: str = Field("all", description="Ansible pattern of the hosts that serve this deployment.")
    image: str = Field("lmsysorg/sglang:latest", description="Container image; resolved to a digest once per run.")
    served_model_name: str = Field(
        description="The name that clients ask for. SGLang refuses ':' in it.",
        json_schema_extra={"pattern": "^[^:-][^:]*$"},
    )
    port: Port = Field(8000, description="TCP port on the host's own network.")
    hf_model_handle: str | None = Field(
        None, description="Hugging Face repository, optionally @revision; fetched into the cache and pinned."
    )
    checkpoint_path: str | None = Field(
        None,
        description="Directory on the host, mounted read-only as /checkpoint; served where the hub has no model.",
        json_schema_extra=_ABSOLUTE,
    )
    cache_path: str | None = Field(
        None,
        description="Directory on the host that is mounted as /cache; the model cache lies in it.",
        json_schema_extra=_ABSOLUTE,
    )
    tensor_parallel_size: SizeOrAuto = Field(
        1, description="GPUs that share one copy of the model; auto takes the fewest that hold it."
    )
    pipeline_parallel_size: Size = Field(1, description="Stages that the model is cut into.")
    data_parallel_size: Size = Field(1, description="Copies of the model inside one server.")
    share_gpus: Truth = Field(False, description="Let this service use GPUs that other services use as well.")
    extra_args: Arguments = Field((), description="Further arguments of SGLang: shell-quoted text, or a list.")
    env_vars: EnvVars = Field(
        default_factory=dict,
        description="Environment of the server: text, lit:TEXT, host:NAME (a secret of yours) or runtime:NAME.",
    )
    endpoints: Endpoints = subsection(Endpoints, "Paths that the gate and others ask.")
    pre_cmd: str | None = Field(
        None, description="Shell commands in the container before the server, in the same shell."
    )
    command: Command = Field(
        None, description="The whole command instead of the one made from the other keys: shell text, or a list."
    )
    mounts: Mounts = Field((), description="Further mounts, host path: container path, with :ro where it is read only.")
    lepton_config: Any = no_effect("The launcher's settings for Lepton.")
    multiple_instances: Any = no_effect("The launcher's switch for several servers per Slurm job.")
    haproxy_port: Any = no_effect("Port of the launcher's proxy.")
    health_check_path: Any = no_effect("What the launcher's proxy asks.", "The gate asks endpoints.health.")
    health_check_status: Any = no_effect("What the launcher's proxy expects.")

    @field_validator("served_model_name")
    @classmethod
    def _name_sglang_accepts(cls, value: str) -> str:
        if ":" in value:
            raise Mistake(f"'{value}' contains ':', which SGLang refuses.", fix=f"Write '{value.replace(':', '-')}'.")
        if not value.strip() or value != value.strip() or value.startswith("-") or not value.isprintable():
            raise Mistake(f"{value!r} must be printable, not begin with '-' and have no blank at its ends.")
        return value

    @field_validator("name")
    @classmethod
    def _unit_name(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"^[a-z0-9][a-z0-9-]{0,47}\Z", value):
            fix = f"Write '{slug(value)}'." if slug(value) else None
            raise Mistake(f"'{value}' must be lower-case letters, digits and '-', 48 at most.", fix=fix)
        if value is not None and value.startswith(RESERVED):
            raise Mistake(_reserved(value), fix=f"Write '{value.removeprefix(RESERVED) or 'model'}'.")
        return value

    @field_validator("hosts")
    @classmethod
    def _pattern(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise Mistake(f"{value!r} is not a pattern of hosts like 'gpu_large' or 'gpu:!old'.")
        return value

    @field_validator("image")
    @classmethod
    def _image_reference(cls, value: str) -> str:
        if not _IMAGE.match(value):
            raise Mistake(f"'{value}' is not an image reference like 'lmsysorg/sglang:v0.5.23'.")
        return value

    @field_validator("hf_model_handle")
    @classmethod
    def _repository(cls, value: str | None) -> str | None:
        if value is not None and (not _REPO.match(value) or ".." in value or "--" in value):
            raise Mistake(
                f"'{value}' is not a Hugging Face repository like 'meta-llama/Llama-3.1-8B-Instruct'.",
                fix="A directory on the host goes into checkpoint_path.",
            )
        return value

    @field_validator("checkpoint_path", "cache_path")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not is_path(value):
            raise Mistake(f"{value!r} must be an absolute path on the host, without '..'.")
        return value

    @field_validator("pre_cmd", "command")
    @classmethod
    def _carried(cls, value: Any) -> Any:
        for word in [value] if isinstance(value, str) else value or ():
            carried(word)
        return value

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for argument in value:
            flag = argument.partition("=")[0]
            if flag in OWNED_FLAGS:
                raise Mistake(f"{flag} is set by the key {OWNED_FLAGS[flag]}.", fix="Remove it from extra_args.")
            carried(argument)
        return value

    @model_validator(mode="after")
    def _has_model(self) -> Deployment:
        if self.hf_model_handle is None and self.checkpoint_path is None and self.command is None:
            raise Mistake("names no model.", fix="Set hf_model_handle or checkpoint_path.")
        return self

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self) -> Deployment:
        derived = slug(self.served_model_name)
        if self.name is None and derived.startswith(RESERVED):
            raise Mistake(_reserved(derived), fix="Set name to what the unit shall be called, without 'sglang-'.")
        return self

    @property
    def gpus_needed(self) -> int:
        """Total GPUs of one service: tensor × pipeline × data parallel size; with `auto`, the least it can be."""
        tensor = 1 if self.tensor_parallel_size == "auto" else self.tensor_parallel_size
        return tensor * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def service_name(self) -> str:
        """Name of the systemd unit (without suffix) and of the container."""
        return f"sglang-{self.name or slug(self.served_model_name) or 'model'}"
