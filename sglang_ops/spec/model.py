"""One deployment: a model served in a certain way.

Keys and defaults follow the SGLang deployment page of the NeMo Evaluator Launcher, with two deliberate
differences: `tensor_parallel_size` defaults to 1 (the launcher's 8 fits only hosts with eight GPUs), and
keys that nobody knows are errors instead of being ignored. docs/deployment-file.md lists every difference.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sglang_ops.spec.gateway import Gateway
from sglang_ops.spec.section import Section, no_effect, subsection
from sglang_ops.spec.values import (
    RESERVED,
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
    a_reference,
    carried,
    is_image,
    is_path,
    is_pattern,
    is_secret,
    is_unit_name,
    reserved,
    slug,
)

__all__ = ["OWNED_FLAGS", "Deployment", "Endpoints", "EnvValue", "Mount", "is_secret", "slug"]

# huggingface_hub's rule for repository ids (validate_repo_id): one optional namespace, 96 characters at most.
_REPO = re.compile(r"^(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?\Z", re.ASCII)

_ABSOLUTE: dict[str, Any] = {"pattern": "^/"}  # what editors are told; the validators below know more

# The variable by which the container gets `api_key`; plugins/module_utils/sglang_host_probe.py reads it too.
API_KEY = "SGLANG_OPS_API_KEY"
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
    "--nnodes": "nodes",
    "--node-rank": "nodes",
    "--dist-init-addr": "nodes",
    "--nccl-init-addr": "nodes",
}


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
    data_parallel_size: Size = Field(
        1, description="Copies of the model: inside one server, or behind a gateway as that many servers on each host."
    )
    nodes: Size = Field(
        1, description="Hosts that one copy of the model is spread over, by SGLang's own distributed mode."
    )
    share_gpus: Truth = Field(False, description="Let this service use GPUs that other services use as well.")
    extra_args: Arguments = Field((), description="Further arguments of SGLang: shell-quoted text, or a list.")
    env_vars: EnvVars = Field(
        default_factory=dict,
        description="Environment of the server: text, lit:TEXT, host:NAME (a secret of yours) or runtime:NAME.",
    )
    api_key: Annotated[EnvValue | None, BeforeValidator(a_reference)] = Field(
        None,
        description="host:NAME or runtime:NAME: the key that clients send. Without it the server asks for none.",
        json_schema_extra={"pattern": "^(host|runtime):[A-Za-z_][A-Za-z0-9_]*$"},
    )
    endpoints: Endpoints = subsection(Endpoints, "Paths that the gate and others ask.")
    pre_cmd: str | None = Field(
        None, description="Shell commands in the container before the server, in the same shell."
    )
    command: Command = Field(
        None, description="The whole command instead of the one made from the other keys: shell text, or a list."
    )
    mounts: Mounts = Field((), description="Further mounts, host path: container path, with :ro where it is read only.")
    gateway: Gateway | None = Field(None, description="SGLang's router in front of the servers, on hosts of its own.")
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
        return value if value is None else is_unit_name(value)

    @field_validator("hosts")
    @classmethod
    def _pattern(cls, value: str) -> str:
        return is_pattern(value)

    @field_validator("image")
    @classmethod
    def _image_reference(cls, value: str) -> str:
        return is_image(value, "lmsysorg/sglang:v0.5.23")

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
    def _has_one_key(self) -> Deployment:
        if self.api_key is None:
            return self
        if self.gateway is not None:
            raise Mistake("gateway.api_key is what clients of a gateway send.", fix="Move api_key there.")
        if self.command is not None:
            raise Mistake("api_key has no effect: command replaces the whole command.", fix="Leave out one of them.")
        if any(word.partition("=")[0] == "--api-key" for word in self.extra_args):
            raise Mistake("api_key and --api-key in extra_args are both there.", fix="Keep api_key.")
        object.__setattr__(self, "env_vars", self.env_vars | {API_KEY: self.api_key})
        return self

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self) -> Deployment:
        derived = slug(self.served_model_name)
        if self.name is None and derived.startswith(RESERVED):
            raise Mistake(reserved(derived), fix="Set name to what the unit shall be called, without 'sglang-'.")
        return self

    @model_validator(mode="after")
    def _replicas_fit(self) -> Deployment:
        last = self.port + self.data_parallel_size - 1
        if self.gateway and last > 65535:
            message = f"port {self.port} and data_parallel_size {self.data_parallel_size} make ports up to {last}"
            raise Mistake(f"{message}, and the last port is 65535.", fix="Choose a lower port.")
        if self.gateway and self.data_parallel_size > 1 and self.command is not None:
            message = "gives every replica the same port, and each needs its own"
            raise Mistake(f"`command` {message}.", fix="Set data_parallel_size to 1.")
        named = self.env_vars.get("CUDA_VISIBLE_DEVICES")
        count = len(named.value.split(",")) if named else 0
        if self.gateway and count % self.data_parallel_size:
            message = f"CUDA_VISIBLE_DEVICES names {count} GPUs, which {self.data_parallel_size} replicas cannot share"
            raise Mistake(f"{message} evenly.", fix="Name as many for each.")
        return self

    @model_validator(mode="after")
    def _spreads(self) -> Deployment:
        if self.nodes == 1:
            return self
        if self.command is not None:
            raise Mistake(f"nodes: {self.nodes} needs arguments of its own on every host, and `command` is the same.")
        if self.tensor_parallel_size == "auto":
            fix = "Write how many GPUs all hosts have together."
            raise Mistake(f"tensor_parallel_size: auto plans one host, and nodes is {self.nodes}.", fix=fix)
        if self.tensor_parallel_size * self.pipeline_parallel_size % self.nodes:
            sizes = f"{self.tensor_parallel_size} × pipeline_parallel_size {self.pipeline_parallel_size}"
            fix = f"Set a multiple of {self.nodes}."
            raise Mistake(f"tensor_parallel_size {sizes} is not divisible by {self.nodes} nodes.", fix=fix)
        return self

    @property
    def gpus_needed(self) -> int:
        """GPUs of one service on one host: tensor × pipeline × data parallel size, divided among its hosts.

        With `auto`, the least it can be.
        """
        tensor = 1 if self.tensor_parallel_size == "auto" else self.tensor_parallel_size
        return tensor * self.pipeline_parallel_size * self.data_parallel_size // self.nodes

    @property
    def service_name(self) -> str:
        """Name of the systemd unit (without suffix) and of the container."""
        return f"sglang-{self.name or slug(self.served_model_name) or 'model'}"

    @property
    def replicas(self) -> tuple[Deployment, ...]:
        """The services that this deployment is on one host: itself, or with a gateway one for each copy of the model.

        Replicas are called <name>-1 … -N and have the ports from `port` up; GPUs that CUDA_VISIBLE_DEVICES names are
        dealt out to them in order.
        """
        if self.gateway is None:
            return (self,)
        gateway = self.gateway.named(self.service_name)
        count = self.data_parallel_size
        if count == 1:
            return (self.model_copy(update={"gateway": gateway}),)
        base = self.service_name.removeprefix("sglang-")[:44].rstrip("-")
        changes = {"gateway": gateway, "data_parallel_size": 1}
        return tuple(
            self.model_copy(
                update=changes
                | {"name": f"{base}-{number}", "port": self.port + number - 1, "env_vars": self._dealt(number, count)}
            )
            for number in range(1, count + 1)
        )

    def _dealt(self, number: int, count: int) -> dict[str, EnvValue]:
        """The environment of one replica: its share of the GPUs that are named, everything else as it is."""
        named = self.env_vars.get("CUDA_VISIBLE_DEVICES")
        gpus = named.value.split(",") if named else []
        if named is None or len(gpus) % count:
            return self.env_vars
        share = len(gpus) // count
        own = ",".join(gpus[(number - 1) * share : number * share])
        return self.env_vars | {"CUDA_VISIBLE_DEVICES": named.model_copy(update={"value": own})}
