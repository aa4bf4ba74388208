"""The schema of the deployment file.

Keys and defaults follow the SGLang deployment page of the NeMo Evaluator Launcher, with two deliberate
differences: `tensor_parallel_size` defaults to 1 (the launcher's 8 fits only hosts with eight GPUs), and
keys that nobody knows are errors instead of being ignored.
"""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

# huggingface_hub's rule for repository ids (validate_repo_id): one optional namespace, 96 characters at most.
_REPO = re.compile(r"^(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?$", re.ASCII)
# distribution reference grammar: host[:port]/path[:tag][@sha256:...]
_IMAGE = re.compile(
    r"^(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d{1,5})?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$"
)
_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|PRIVATE_KEY)", re.IGNORECASE)

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


class EnvValue(BaseModel):
    """The value of one environment variable: written in the file, or a reference to where it is.

    `host:NAME` is read from the environment of the machine that runs sglang-ops, `runtime:NAME` from
    /etc/sglang-ops/runtime.env on the GPU host, `lit:TEXT` and plain text stand for themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["literal", "host", "runtime"]
    value: str

    @classmethod
    def parse(cls, raw: object) -> EnvValue:
        text = str(raw).lower() if isinstance(raw, bool) else str(raw)
        for prefix, kind in (("host:", "host"), ("runtime:", "runtime")):
            if text.startswith(prefix):
                name = text.removeprefix(prefix)
                if not _ENV_NAME.match(name):
                    raise ValueError(f"'{text}' must name an environment variable after '{prefix}'.")
                return cls(kind=kind, value=name)  # type: ignore[arg-type]
        if "\0" in text:
            raise ValueError("must not contain a NUL character.")
        return cls(kind="literal", value=text.removeprefix("lit:"))

    def reference(self) -> str:
        """How the value is shown to people: references stay references."""
        return self.value if self.kind == "literal" else f"{self.kind}:{self.value}"


def is_secret(name: str, value: EnvValue) -> bool:
    """Secrets are what comes from the operator's environment, and what is named like one."""
    return value.kind == "host" or bool(_SECRET_NAME.search(name))


def _is_path(text: str) -> bool:
    """An absolute path that can stand in a unit and in a mount."""
    return text.startswith("/") and text.isprintable() and ".." not in text.split("/")


def _env(raw: object) -> object:
    if not isinstance(raw, dict):
        return raw
    values: dict[str, EnvValue] = {}
    for name, value in raw.items():
        if isinstance(value, EnvValue):
            values[str(name)] = value
            continue
        if not isinstance(name, str) or not _ENV_NAME.match(name):
            raise ValueError(f"'{name}' is not a name for an environment variable.")
        if value is None or isinstance(value, dict | list):
            raise ValueError(f"{name} must be text or a number, found {type(value).__name__}.")
        values[name] = EnvValue.parse(value)
    return values


def _arguments(raw: object) -> object:
    """`extra_args` as the page writes it (one shell-quoted string) or as a list of ready arguments."""
    if raw is None:
        return ()
    if isinstance(raw, str):
        try:
            return tuple(shlex.split(raw))
        except ValueError as error:
            raise ValueError(f"cannot be split into arguments: {error}.") from error
    if isinstance(raw, list | tuple) and not any(isinstance(item, dict | list) for item in raw):
        return tuple(str(item) for item in raw)
    return raw


class Endpoints(BaseModel):
    """Paths below the server's base URL, used by the gate, by `status` and by the evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat: str = "/v1/chat/completions"
    completions: str = "/v1/completions"
    health: str = "/health"

    @field_validator("*")
    @classmethod
    def _is_path(cls, value: str) -> str:
        if not re.match(r"^/[^\s?#]*$", value):
            raise ValueError(f"must be a path that begins with '/', found '{value}'.")
        return value


class Deployment(BaseModel):
    """One model, served in a certain way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["sglang"] = "sglang"
    name: str | None = Field(None, description="Name of the unit; default: made from served_model_name.")
    image: str = "lmsysorg/sglang:latest"
    served_model_name: str
    port: int = Field(8000, ge=1, le=65535)
    hf_model_handle: str | None = None
    checkpoint_path: str | None = None
    tensor_parallel_size: int = Field(1, ge=1, le=1024)
    pipeline_parallel_size: int = Field(1, ge=1, le=1024)
    data_parallel_size: int = Field(1, ge=1, le=1024)
    extra_args: Annotated[tuple[str, ...], BeforeValidator(_arguments)] = ()
    env_vars: Annotated[dict[str, EnvValue], BeforeValidator(_env)] = Field(default_factory=dict)
    endpoints: Endpoints = Endpoints()

    @field_validator("served_model_name")
    @classmethod
    def _name_sglang_accepts(cls, value: str) -> str:
        if ":" in value:
            fix = value.replace(":", "-")
            raise ValueError(f"'{value}' contains ':', which SGLang refuses. Write '{fix}'.")
        if not value.strip() or value != value.strip() or value.startswith("-") or not value.isprintable():
            raise ValueError(f"{value!r} must be printable, not begin with '-' and have no blank at its ends.")
        return value

    @field_validator("name")
    @classmethod
    def _unit_name(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"^[a-z0-9][a-z0-9-]{0,47}$", value):
            raise ValueError(f"'{value}' must be lower-case letters, digits and '-', 48 at most.")
        return value

    @field_validator("image")
    @classmethod
    def _image_reference(cls, value: str) -> str:
        if not _IMAGE.match(value):
            raise ValueError(f"'{value}' is not an image reference like 'lmsysorg/sglang:v0.5.23'.")
        return value

    @field_validator("hf_model_handle")
    @classmethod
    def _repository(cls, value: str | None) -> str | None:
        if value is not None and (not _REPO.match(value) or ".." in value or "--" in value):
            raise ValueError(
                f"'{value}' is not a Hugging Face repository like 'meta-llama/Llama-3.1-8B-Instruct'. "
                "A directory on the host goes into checkpoint_path."
            )
        return value

    @field_validator("checkpoint_path")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not _is_path(value):
            raise ValueError(f"{value!r} must be an absolute path on the host, without '..'.")
        return value

    @field_validator("env_vars")
    @classmethod
    def _cache_is_a_path(cls, value: dict[str, EnvValue]) -> dict[str, EnvValue]:
        home = value.get("HF_HOME")
        if home is not None and (home.kind != "literal" or not _is_path(home.value)):
            raise ValueError(f"HF_HOME is {home.reference()!r} and must be an absolute path on the host, without '..'.")
        return value

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for argument in value:
            flag = argument.partition("=")[0]
            if flag in OWNED_FLAGS:
                raise ValueError(f"{flag} is set by the key {OWNED_FLAGS[flag]}. Remove it from extra_args.")
            if "\0" in argument:
                raise ValueError("an argument contains a NUL character.")
        return value

    @model_validator(mode="after")
    def _has_model(self) -> Deployment:
        if self.hf_model_handle is None and self.checkpoint_path is None:
            raise ValueError("names no model. Set hf_model_handle or checkpoint_path.")
        return self

    @property
    def gpus_needed(self) -> int:
        """Total GPUs of one service: tensor × pipeline × data parallel size."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def service_name(self) -> str:
        """Name of the systemd unit (without suffix) and of the container."""
        slug = self.name or re.sub(r"[^a-z0-9]+", "-", self.served_model_name.lower()).strip("-")[:48].strip("-")
        return f"sglang-{slug or 'model'}"


class Execution(BaseModel):
    """The launcher's execution section. What belongs to other executors is accepted and has no effect here."""

    model_config = ConfigDict(frozen=True, extra="allow")

    output_dir: str | None = None


class Evaluation(BaseModel):
    """The evaluation section, kept as written until an evaluation reads it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    tasks: tuple[dict[str, Any], ...] = ()


class DeploymentFile(BaseModel):
    """The whole file. `x-…` keys are free for the user's own anchors and notes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defaults: tuple[Any, ...] = ()
    deployment: Deployment
    execution: Execution = Execution()
    evaluation: Evaluation = Evaluation()
