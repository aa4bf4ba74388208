"""One model over several hosts: which of them form a group, and what each is told beside the rest of its arguments.

SGLang's own distributed mode: the same command on every host, plus its number, how many there are, and where they
meet. Rank 0 alone answers requests; the others serve a `/health` that says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sglang_ops.errors import PreflightError
from sglang_ops.planning.command import arguments, option
from sglang_ops.planning.facts import HostFacts
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.settings import Settings
from sglang_ops.spec import Deployment, EnvValue

MEET_ABOVE = 10_000  # the port where ranks meet, above that of the service
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
INFINIBAND = ("--device", "/dev/infiniband", "--cap-add", "IPC_LOCK")


@dataclass(frozen=True)
class Group:
    """Hosts that serve one model together, in the order of their ranks, each with its address."""

    addresses: Mapping[str, str]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(self.addresses)

    def rank(self, host: str) -> int:
        return self.hosts.index(host)

    def other(self, host: str) -> str:
        """The address by which `host` finds out which of its interfaces leads to the group."""
        addresses = tuple(self.addresses.values())
        return addresses[1] if self.rank(host) == 0 else addresses[0]


def group_of(deployment: Deployment, host: str, members: Sequence[str], playing: Sequence[str]) -> tuple[str, ...]:
    """The hosts of `host`'s group, rank 0 first: `members`, those of the deployment, cut in their order.

    `playing` are the hosts of this run. Raises PreflightError for a remainder, and for a group that is not whole.
    """
    size, name = deployment.nodes, deployment.service_name
    if len(members) % size:
        fix = f"Name a multiple of {size} in `hosts` of the deployment."
        count = f"{len(members)} host{'s' if len(members) != 1 else ''}"
        raise PreflightError(f"{name} spreads over {size} hosts each (nodes), and {count} are meant for it.", fix=fix)
    start = members.index(host) // size * size
    group = tuple(members[start : start + size])
    absent = [member for member in group if member not in playing]
    if absent:
        message = f"{name} runs on {', '.join(group)} together, and this run leaves out {', '.join(absent)}."
        raise PreflightError(message, fix="Name all of them in --limit, or none.")
    return group


def answering(deployment: Deployment, members: Sequence[str]) -> list[str]:
    """Those of the deployment's hosts that answer requests: the first of each group, or all."""
    return list(members[:: deployment.nodes])


def placed(deployment: Deployment, group: Group, facts: HostFacts) -> Deployment:
    """The deployment as this host runs it: an ordinary one, with what makes it a member of its group.

    What `env_vars` says of interfaces stays.
    """
    host = facts.host
    meet = next(iter(group.addresses.values()))
    bracketed = f"[{meet}]" if ":" in meet else meet
    told = (
        *("--nnodes", str(len(group.hosts))),
        *("--node-rank", str(group.rank(host))),
        *("--dist-init-addr", f"{bracketed}:{meeting_port(deployment)}"),
    )
    environment = dict(deployment.env_vars)
    if facts.interface:
        for name in INTERFACES:
            environment.setdefault(name, EnvValue(kind="literal", value=facts.interface))
    return deployment.model_copy(update={"extra_args": (*deployment.extra_args, *told), "env_vars": environment})


def meeting_port(deployment: Deployment) -> int:
    """Where the ranks of a service meet, on rank 0."""
    above = deployment.port + MEET_ABOVE
    return above if above < 65536 else deployment.port - MEET_ABOVE


def rank_of(deployment: Deployment) -> int:
    """The number of a placed member in its group; 0 for a service of one host."""
    return int(option(arguments(deployment), "--node-rank") or 0) if deployment.nodes > 1 else 0


def leader(deployment: Deployment) -> str | None:
    """The address of rank 0, None for a service of one host."""
    if deployment.nodes == 1:
        return None
    meet = option(arguments(deployment), "--dist-init-addr") or ""
    return meet.rpartition(":")[0] or None


def flags(deployment: Deployment, facts: HostFacts) -> tuple[str, ...]:
    """InfiniBand for the container, where the host has it and the service crosses hosts."""
    return INFINIBAND if deployment.nodes > 1 and facts.infiniband else ()


def warnings(deployment: Deployment, facts: HostFacts, settings: Settings) -> Iterator[str]:
    """What may keep ranks from each other, or slow them, and is no reason to refuse."""
    if deployment.nodes == 1:
        return
    limits = {limit.partition("=")[0] for limit in settings.ulimits}
    if facts.infiniband and "memlock" not in limits:
        yield (
            f"{facts.host} has InfiniBand, which locks memory, and sglang_server_ulimits does not raise its limit. "
            "Add memlock=-1."
        )
    unknown = [name for name in INTERFACES if name not in deployment.env_vars]
    if unknown:
        yield (
            f"which interface of {facts.host} leads to the other hosts of {deployment.service_name} cannot be told; "
            f"NCCL and Gloo choose one. Set {' and '.join(unknown)} in env_vars."
        )


def check(deployment: Deployment, facts: HostFacts, now: HostFacts) -> list[Problem]:
    """Every rank knows its place, and rank 0's meeting port is free, or its own."""
    if deployment.nodes == 1:
        return []
    if not leader(deployment):
        message = f"{deployment.service_name} spreads over {deployment.nodes} hosts, which only an inventory names."
        return [Problem("nodes", message)]
    port = meeting_port(deployment)
    own = now.service(deployment.service_name)
    if rank_of(deployment) or (own and own.state in {"active", "activating", "deactivating"}):
        return []
    taken = next((item for item in facts.listeners if item.port == port), None)
    if taken is None:
        return []
    who = f"{taken.process} (pid {taken.pid})" if taken.pid else "another process"
    message = f"port {port} on {facts.host}, where the ranks would meet, is taken by {who}."
    return [Problem("port", f"{message} Stop it, or set another deployment.port: it is {MEET_ABOVE} above.")]
