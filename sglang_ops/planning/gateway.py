"""The gateway of a deployment as a service of its host: its command, its unit, its release, who its members are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from sglang_ops.planning.beside import sharing_hosts
from sglang_ops.planning.checks import check_port, check_secrets
from sglang_ops.planning.command import Mount, arguments, exec_start, option
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.release import release_id
from sglang_ops.planning.service import EVERYWHERE, RUNNING, STATE, Action, ServicePlan
from sglang_ops.planning.settings import ResolvedImage, Secrets, Settings
from sglang_ops.planning.systemd import Unit
from sglang_ops.spec import Deployment, Gateway

LAUNCHER = "gateway_launcher.py"
_IN_CONTAINER = "/run/sglang-ops/gateway"
# A held request asks again that often, in milliseconds: 50, 75, … up to every half second.
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH, _JITTER = 50, 500, 1.5, 0.1
# Layers that tell of the gateway itself; the others tell of the servers behind it.
OWN_LAYERS = {"unit", "port", "ready"}


@dataclass(frozen=True)
class Worker:
    """A server behind the gateway: the host that runs it, and its base URL."""

    host: str
    url: str


@dataclass(frozen=True)
class WantedGateway:
    """The gateway that a host shall run for `deployment`, with what was looked up for it on the controller.

    `workers` are all servers that the inventory has for it, whether they run or not.
    """

    gateway: Gateway
    deployment: Deployment
    image: ResolvedImage
    workers: tuple[Worker, ...] = ()
    secrets: Secrets = field(default_factory=Secrets)

    @property
    def name(self) -> str:
        return self.gateway.service_name

    def as_service(self) -> Service:
        """How the servers of the same host see it."""
        return Service(name=self.name, record={"port": self.gateway.port, "gpus": []}, state="active")


def worker_url(deployment: Deployment, address: str) -> str:
    """Where the gateways find the server of `deployment` on the host at `address`."""
    bound = option(arguments(deployment), "--host")
    return f"http://{address if bound in EVERYWHERE else bound}:{deployment.port}"


def tries(hold: int) -> int:
    """How often the router must ask again so that a request waits `hold` seconds; 0 for none.

    The sum of the pauses, shortened by the jitter, is at least `hold`.
    """
    if not hold:
        return 0
    needed, pause, waited, count = hold * 1000 / (1 - _JITTER), float(_FIRST_PAUSE), 0.0, 0
    while waited < needed:
        waited, count, pause = waited + pause, count + 1, min(pause * _GROWTH, _LONGEST_PAUSE)
    return count


def router_argv(gateway: Gateway, settings: Settings) -> tuple[str, ...]:
    """The command in the container. Keys and servers are added by the launcher, inside."""
    retries = (
        *("--retry-max-retries", str(tries(gateway.hold))),
        *("--retry-initial-backoff-ms", str(_FIRST_PAUSE)),
        *("--retry-max-backoff-ms", str(_LONGEST_PAUSE)),
        *("--retry-backoff-multiplier", str(_GROWTH)),
        *("--retry-jitter-factor", str(_JITTER)),
    )
    given = {word.partition("=")[0] for word in gateway.extra_args}
    # A server that comes back is asked again soon: held requests wait for it, and the router's own minute is theirs.
    circuit = {"--cb-timeout-duration-secs": str(gateway.health_interval), "--cb-success-threshold": "1"}
    startup = {"--health-success-threshold": "1", "--worker-startup-check-interval": "1"}
    return (
        *("python3", f"{_IN_CONTAINER}.py"),
        *("--host", gateway.address, "--port", str(gateway.port)),
        *("--policy", gateway.policy),
        *("--prometheus-host", gateway.address, "--prometheus-port", str(gateway.prometheus_port)),
        *("--health-check-interval-secs", str(gateway.health_interval)),
        *("--health-check-timeout-secs", str(gateway.health_timeout)),
        *("--health-failure-threshold", str(gateway.health_failures)),
        *("--request-timeout-secs", str(gateway.request_timeout)),
        *("--shutdown-grace-period-secs", str(settings.drain_timeout)),
        *(retries if gateway.hold else ("--disable-retries",)),
        *(word for flag, value in (circuit | startup).items() if flag not in given for word in (flag, value)),
        *gateway.extra_args,
    )


def launcher() -> str:
    """The program that starts the router, as it is written on the host."""
    return (resources.files(__package__) / LAUNCHER).read_text("utf-8")


def gateway_plan(wanted: WantedGateway, facts: HostFacts, settings: Settings) -> ServicePlan:
    """The plan for one gateway on a host that is as `facts` say."""
    gateway, name = wanted.gateway, wanted.name
    deployed = facts.service(name)
    fingerprints = wanted.secrets.fingerprints() | {
        variable: facts.runtime.get(value.value) or ""
        for variable, value in gateway.env_vars.items()
        if value.kind == "runtime"
    }
    program = launcher()
    content: dict[str, Any] = {
        "image": wanted.image.digest_ref,
        "argv": list(router_argv(gateway, settings)),
        "secrets": fingerprints,
        "launcher": release_id({"text": program}),
        "unit": release_id({"unit": _unit(wanted, facts, settings, "", fingerprints)}),
    }
    release = release_id(content)
    unit = _unit(wanted, facts, settings, release, fingerprints)
    action, healthy = _action(deployed, release, unit)
    join, leave, spared = _membership(wanted, deployed)
    address = facts.address if gateway.address in EVERYWHERE else gateway.address
    return ServicePlan(
        kind="gateway",
        name=name,
        release=release,
        action=action,
        image=wanted.image.ref,
        image_digest=wanted.image.digest,
        gpus=(),
        link="",
        port=gateway.port,
        endpoint=f"http://{address}:{gateway.port}",
        healthy=healthy,
        outage=f"no new requests while it starts, some seconds; those in flight end (up to {settings.drain_timeout} s)"
        if action == "restart"
        else "none",
        unit=unit,
        content=content,
        gate=_gate(wanted, settings, release),
        directories=(),
        secrets=tuple(fingerprints),
        files={LAUNCHER: program},
        members={
            "wanted": [*(worker.url for worker in wanted.workers), *spared],
            "join": list(join),
            "leave": list(leave),
        },
    )


def problems_of(wanted: Sequence[WantedGateway], now: HostFacts, placed: Sequence[Service]) -> list[Problem]:
    """Why the gateways cannot run on the host that is as `now` says; `placed` are the servers of this plan."""
    found: list[Problem] = []
    planned = {item.name for item in wanted} | {service.name for service in placed}
    others = now.model_copy(update={"services": tuple(item for item in now.services if item.name not in planned)})
    taken = {service.port: service.name for service in placed}
    for item in wanted:
        gateway = item.gateway
        ours = now.service(item.name)
        for key, port in (("port", gateway.port), ("prometheus_port", gateway.prometheus_port)):
            owner = taken.setdefault(port, item.name)
            if owner != item.name or (key == "prometheus_port" and port == gateway.port):
                text = f"port {port} on {now.host} belongs to {owner}, and {item.name} wants it."
                found.append(Problem("port", f"{text} Set gateway.{key} to a free one."))
            elif not (ours and ours.state in RUNNING and f"{port}" in ours.record.get("content", {}).get("argv", ())):
                found += check_port(item.name, port, f"gateway.{key}", others, now)
        found += check_secrets(item.secrets, now, gateway.env_vars, "gateway.api_key")
        if not item.workers:
            text = f"{item.name} on {now.host} has no server behind it: hosts: '{item.deployment.hosts}' has none."
            found.append(Problem("gateway", f"{text} Correct the pattern `hosts` of the deployment."))
        if gateway.policy == "power_of_two" and len(item.workers) < 2:
            text = f"gateway.policy power_of_two chooses between two servers, and {item.name} has {len(item.workers)}."
            found.append(Problem("gateway", f"{text} Write cache_aware or round_robin."))
    return found


def _membership(wanted: WantedGateway, deployed: Service | None) -> tuple[list[str], list[str], list[str]]:
    """URLs that the gateway should have and has not, those that it has and the inventory does not, and of these such
    as stay: they serve on a host of the inventory that is about to change, and will be taken out there.
    """
    urls = [worker.url for worker in wanted.workers]
    if deployed is None or deployed.workers is None:
        return [], [], []
    listed = {worker["url"] for worker in deployed.workers}
    drained = {url for url, state in deployed.members.items() if state == "drained"}
    strangers = (listed | set(deployed.members)) - set(urls)
    serving = {worker["url"] for worker in deployed.workers if worker.get("healthy")}
    spared = sharing_hosts(sorted(strangers & serving), urls)
    return [url for url in urls if url not in listed | drained], sorted(strangers - spared), sorted(spared)


def _action(deployed: Service | None, release: str, unit: str) -> tuple[Action, bool]:
    """Servers that do not serve are no reason to touch the gateway."""
    if deployed is None or deployed.release is None or deployed.state not in RUNNING:
        return "start", False
    if deployed.release != release or deployed.unit != unit:
        return "restart", False
    own = [layer for layer in deployed.probe.layers if layer["name"] in OWN_LAYERS]
    well = len(own) == len(OWN_LAYERS) and all(layer["ok"] for layer in own)
    return ("none", True) if well else ("check", False)


def _gate(wanted: WantedGateway, settings: Settings, release: str) -> dict[str, Any]:
    gateway, deployment = wanted.gateway, wanted.deployment
    return {
        "kind": "gateway",
        "name": wanted.name,
        "release": release,
        "engine": settings.container_engine,
        "address": "127.0.0.1" if gateway.address in EVERYWHERE else gateway.address,
        "port": gateway.port,
        "served_model_name": deployment.served_model_name,
        "endpoints": deployment.endpoints.model_dump(),
        "start_timeout": settings.start_timeout,
        "soak": settings.soak,
    }


def _unit(
    wanted: WantedGateway, facts: HostFacts, settings: Settings, release: str, fingerprints: dict[str, str]
) -> str:
    home = f"{STATE}/{wanted.name}"
    start = exec_start(
        engine=settings.container_engine,
        engine_path=facts.engine.path or f"/usr/bin/{settings.container_engine}",
        image=wanted.image,
        devices=(),
        environment={},
        bind=(
            Mount(f"{home}/releases/{release}/{LAUNCHER}", f"{_IN_CONTAINER}.py", read_only=True),
            Mount(f"{home}/gateway", _IN_CONTAINER, read_only=True),
        ),
        argv=router_argv(wanted.gateway, settings),
        secrets_file=f"{home}/releases/{release}/secrets.env" if fingerprints else None,
        settings=settings,
    )
    return Unit(
        description=f"SGLang gateway: {wanted.deployment.served_model_name} (release {release})",
        engine=settings.container_engine,
        engine_path=facts.engine.path or f"/usr/bin/{settings.container_engine}",
        exec_start=start,
        mounts=(),
        drain_timeout=settings.drain_timeout,
        restart_delay=min(settings.restart_delay, 2),
    ).render()
