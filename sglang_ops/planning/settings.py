"""What shapes a plan besides the deployment file: role variables, resolved image, secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sglang_ops.spec import Deployment, Gateway
from sglang_ops.spec.model import is_secret


class Settings(BaseModel):
    """The variables of the role `sglang_server` (and `container_engine`). Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    container_engine: Literal["docker", "podman"] = "docker"
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: dict[str, str] = Field(default_factory=dict)
    hf_home: str = "/var/lib/sglang-ops/huggingface"
    hf_endpoint: str = ""
    jit_cache: str = "/var/lib/sglang-ops/jit"
    peer_port: int = Field(7437, ge=0, le=65535)
    ulimits: tuple[str, ...] = ("memlock=-1", "stack=67108864")
    container_args: tuple[str, ...] = ()
    start_timeout: int = Field(1800, ge=1)
    drain_timeout: int = Field(300, ge=1)
    soak: int = Field(5, ge=0)
    restart_delay: int = Field(10, ge=0)
    strict_arguments: bool = False
    interrupt_evaluations: bool = False
    surge: Literal["auto", "never"] = "auto"
    # Whether images of unknown release have been asked in this run: what is still unknown then is refused.
    asked: bool = False


@dataclass(frozen=True)
class ResolvedImage:
    """An image reference with the digest it stands for; `size_bytes` is what a pull moves.

    `release` is SGLang's, where the reference or a tag of the same digest tells it; "" where neither does.
    """

    ref: str
    digest_ref: str
    size_bytes: int = 0
    release: str = ""

    @property
    def digest(self) -> str:
        return self.digest_ref.rpartition("@")[2]


@dataclass(frozen=True)
class Secrets:
    """Secret values by variable name. They are hashed here and never shown, stored or compared in clear."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @classmethod
    def of(cls, deployment: Deployment | Gateway, environment: Mapping[str, str]) -> Secrets:
        """Read the secrets of `deployment` from the operator's environment."""
        values: dict[str, str] = {}
        missing: list[str] = []
        unreadable: list[str] = []
        for name, value in deployment.env_vars.items():
            if value.kind == "host" and value.value not in environment:
                missing.append(value.value)
            elif value.kind == "host" and not _is_utf8(environment[value.value]):
                unreadable.append(value.value)
            elif value.kind == "host":
                values[name] = environment[value.value]
            elif value.kind == "literal" and is_secret(name, value):
                values[name] = value.value
        return cls(values, tuple(missing), tuple(unreadable))

    def without(self, name: str) -> Secrets:
        return replace(self, values={key: value for key, value in self.values.items() if key != name})

    def fingerprints(self) -> dict[str, str]:
        """Short one-way marks by which a changed secret is noticed; the same function runs on the host."""
        return {name: fingerprint(value) for name, value in self.values.items()}


def _is_utf8(text: str) -> bool:
    """Bytes of the environment that are no UTF-8 reach Python as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fingerprint(value: str) -> str:
    """16 hex digits of a keyed-by-purpose BLAKE2b; must equal `sglang_host_state.fingerprint`."""
    return hashlib.blake2b(value.encode(), digest_size=8, person=b"sglang-ops").hexdigest()
