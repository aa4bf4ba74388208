"""The gateway in front of a deployment: SGLang's own router, one address for all its servers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from sglang_ops.spec.section import Section
from sglang_ops.spec.values import (
    Arguments,
    Count,
    EnvValue,
    Mistake,
    Port,
    Seconds,
    Size,
    a_reference,
    carried,
    is_image,
    is_pattern,
    is_unit_name,
)

# The variable by which the key comes to the launcher.
API_KEY = "SGLANG_OPS_GATEWAY_API_KEY"
# What we write on the router's command line ourselves, and what sets it.
OWNED_FLAGS = {
    "--host": "gateway.address",
    "--port": "gateway.port",
    "--policy": "gateway.policy",
    "--api-key": "gateway.api_key",
    "--prometheus-port": "gateway.prometheus_port",
    "--prometheus-host": "gateway.address",
    "--health-check-interval-secs": "gateway.health_interval",
    "--health-check-timeout-secs": "gateway.health_timeout",
    "--health-failure-threshold": "gateway.health_failures",
    "--request-timeout-secs": "gateway.request_timeout",
    "--retry-max-retries": "gateway.hold",
    "--retry-initial-backoff-ms": "gateway.hold",
    "--retry-max-backoff-ms": "gateway.hold",
    "--retry-backoff-multiplier": "gateway.hold",
    "--retry-jitter-factor": "gateway.hold",
    "--disable-retries": "gateway.hold",
    "--shutdown-grace-period-secs": "sglang_server_drain_timeout in the inventory",
    "--worker-urls": "the inventory, and gateway.hosts",
    "--control-plane-api-keys": "sglang-ops, which makes a key on the gateway's host",
}


class Gateway(Section):
    """SGLang's router in front of the servers of a deployment."""

    hosts: str = Field(description="Ansible pattern of the hosts that run a gateway; servers may be among them.")
    name: str | None = Field(
        None,
        description="The unit is called sglang-<name>. Default: that of the deployment with -gateway behind it.",
        json_schema_extra={"pattern": "^[a-z0-9][a-z0-9-]{0,47}$"},
    )
    image: str = Field(
        "lmsysorg/sgl-model-gateway:v0.3.2", description="Container image of the router; resolved to a digest."
    )
    address: str = Field("0.0.0.0", description="Address that the gateway listens on.")  # noqa: S104 (clients are remote)
    port: Port = Field(30000, description="TCP port that clients ask.")
    policy: Literal["cache_aware", "random", "round_robin", "power_of_two", "manual"] = Field(
        "cache_aware", description="How a server is chosen for a request; power_of_two needs two servers."
    )
    api_key: Annotated[EnvValue | None, BeforeValidator(a_reference)] = Field(
        None,
        description="host:NAME or runtime:NAME: the key that clients send. Without it the gateway asks for none.",
        json_schema_extra={"pattern": "^(host|runtime):[A-Za-z_][A-Za-z0-9_]*$"},
    )
    prometheus_port: Port = Field(29000, description="TCP port of the router's own metrics.")
    health_interval: Seconds = Field(5, description="Seconds between two looks at a server's health.")
    health_timeout: Seconds = Field(
        25, description="Seconds that a server may take to say it; SGLang takes up to 20 under load."
    )
    health_failures: Size = Field(2, description="Looks that must fail in a row until a server gets no requests.")
    request_timeout: Seconds = Field(1800, description="Seconds that one request may take.")
    hold: Count = Field(
        60, description="Seconds that a request waits while no server is there to take it; 0: it fails at once."
    )
    extra_args: Arguments = Field((), description="Further arguments of the router: shell-quoted text, or a list.")

    @field_validator("hosts")
    @classmethod
    def _pattern(cls, value: str) -> str:
        return is_pattern(value)

    @field_validator("name")
    @classmethod
    def _unit_name(cls, value: str | None) -> str | None:
        return value if value is None else is_unit_name(value)

    @field_validator("image")
    @classmethod
    def _image_reference(cls, value: str) -> str:
        return is_image(value, "lmsysorg/sgl-model-gateway:v0.3.2")

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        if not re.match(r"^[0-9A-Fa-f:.]+\Z", value):
            raise Mistake(f"'{value}' is not an address like 10.0.0.5.", fix="Write one of the gateway's host.")
        return value

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for argument in value:
            flag = argument.partition("=")[0]
            if flag in OWNED_FLAGS:
                raise Mistake(f"{flag} is set by {OWNED_FLAGS[flag]}.", fix="Remove it from extra_args.")
            carried(argument)
        return value

    @property
    def service_name(self) -> str:
        """Name of the systemd unit (without suffix) and of the container, once `named` has filled it in."""
        return f"sglang-{self.name}"

    @property
    def env_vars(self) -> dict[str, EnvValue]:
        """The environment of the gateway's container, as a deployment has one."""
        return {API_KEY: self.api_key} if self.api_key else {}

    def named(self, deployment: str) -> Gateway:
        """The gateway with a name: its own, or the service's of the deployment that it is in front of."""
        base = deployment.removeprefix("sglang-")[:40].rstrip("-")
        changes: dict[str, Any] = {} if self.name else {"name": f"{base}-gateway"}
        return self.model_copy(update=changes)
