"""What a host shall run: deployments, each with what was looked up for it on the controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.settings import ResolvedImage, Secrets
from sglang_ops.planning.together import NOTHING, Due
from sglang_ops.spec import Deployment


@dataclass(frozen=True)
class Wanted:
    """One deployment, the digest of its image, the values of its secrets, the hosts of the gateways in front of it.

    `group` are the hosts that serve it together, this one among them, and `due` is what the others need of this one.
    """

    deployment: Deployment
    image: ResolvedImage
    secrets: Secrets = field(default_factory=Secrets)
    gateways: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    due: Due = NOTHING

    @property
    def name(self) -> str:
        return self.deployment.service_name


def in_order(wanted: Sequence[Wanted], facts: HostFacts) -> list[Wanted]:
    """The order in which GPUs are given out: to those that name them, to those that have some, to the rest."""

    def rank(item: Wanted) -> int:
        if "CUDA_VISIBLE_DEVICES" in item.deployment.env_vars:
            return 0
        own = facts.service(item.name)
        return 1 if own and own.gpus else 2

    return sorted(wanted, key=rank)


def around(facts: HostFacts, wanted: Sequence[Wanted], placed: Sequence[Service]) -> HostFacts:
    """The host as the next service finds it: services of this plan count where they were put, not where they run."""
    planned = {item.name for item in wanted} | {service.name for service in placed}
    others = [service for service in facts.services if service.name not in planned]
    return facts.model_copy(update={"services": (*others, *placed)})
