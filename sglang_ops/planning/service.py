"""One service, fully decided: its release, its unit, what is to be done about it, how to ask whether it serves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any, Literal

from sglang_ops.planning import nodes, topology
from sglang_ops.planning.command import (
    WITH_KEY,
    ModelSource,
    Mount,
    arguments,
    container_environment,
    exec_start,
    mounts,
    option,
    server_argv,
)
from sglang_ops.planning.draft import Draft
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.fit import as_mapping
from sglang_ops.planning.jit import JitCache, jit_cache
from sglang_ops.planning.release import release_id
from sglang_ops.planning.settings import ResolvedImage, Secrets, Settings
from sglang_ops.planning.systemd import Unit
from sglang_ops.spec import Deployment
from sglang_ops.spec.model import is_secret

STATE = "/var/lib/sglang-ops/services"
# Values of --host that mean every address; None is our own default.
EVERYWHERE = {None, "0.0.0.0", "::"}  # noqa: S104
# States of a unit whose server must stop first; sglang_service has the same list.
RUNNING = {"active", "activating", "deactivating", "reloading", "restarting"}
Action = Literal["none", "check", "start", "restart"]


@dataclass(frozen=True)
class ServicePlan:
    """One service as it shall be. `content` makes the release; `gate` tells how to ask whether it serves.

    `link` is the worst link among the GPUs (NV18, PIX, … SYS), "" where there is none or it is not known; `jit` the
    host's directory of compiled kernels. `gateways` are those in front of a server: their host, their service, and the
    URL by which they know the server; `former` are those by which they know the one that runs now, where they differ.
    A gateway's `files` lie beside its unit, and `members` are the servers behind it. `way` is how a service that serves
    changes; `surge` is the second server beside it meanwhile, `aside` what must be gone in the end.
    `group` are the hosts that serve one model together, the first of them rank 0; () where this one does alone.
    """

    name: str
    release: str
    action: Action
    image: str
    image_digest: str
    gpus: tuple[int, ...]
    link: str
    port: int
    endpoint: str
    healthy: bool
    outage: str
    unit: str
    content: dict[str, Any]
    gate: dict[str, Any]
    directories: tuple[str, ...] = ()
    jit: str = ""
    secrets: tuple[str, ...] = ()
    kind: Literal["server", "gateway", "surge"] = "server"
    gateways: tuple[dict[str, str], ...] = ()
    group: tuple[str, ...] = ()
    former: tuple[dict[str, str], ...] = ()
    way: str = ""
    way_why: str = ""
    surge: ServicePlan | None = None
    aside: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)
    members: dict[str, list[str]] | None = None
    memory: dict[str, Any] | None = None
    why: str = ""
    deployed_unit: str | None = None
    deployed_release: str | None = None
    deployed_stable: str | None = None


@dataclass(frozen=True)
class Resolved:
    """Everything that a service is made of, decided."""

    deployment: Deployment
    settings: Settings
    image: ResolvedImage
    source: ModelSource
    gpus: tuple[int, ...]
    device_flags: tuple[str, ...]
    environment: dict[str, str]
    fingerprints: dict[str, str]
    engine_path: str
    memory: dict[str, Any] | None = None
    context: int | None = None
    jit: JitCache | None = None

    @property
    def mounts(self) -> tuple[Mount, ...]:
        bound = mounts(self.deployment, self.settings, self.source)
        return (*bound, self.jit.mount) if self.jit else bound

    @property
    def argv(self) -> tuple[str, ...]:
        return server_argv(self.deployment, self.source)

    @property
    def files(self) -> dict[str, str]:
        """Texts by name that lie beside the unit, and that the container mounts."""
        if self.deployment.api_key is None:
            return {}
        name = WITH_KEY.rpartition("/")[2]
        return {name: (resources.files(__package__) / name).read_text("utf-8")}

    def unit(self, release: str) -> str:
        """The systemd unit; it names the release, which is a hash of all the rest."""
        name, engine = self.deployment.service_name, self.settings.container_engine
        kept = f"{STATE}/{name}/releases/{release}"
        beside = [Mount(f"{kept}/{file}", f"/run/sglang-ops/{file}", read_only=True) for file in self.files]
        start = exec_start(
            engine=engine,
            engine_path=self.engine_path,
            image=self.image,
            devices=self.device_flags,
            environment=self.environment,
            bind=[*self.mounts, *beside],
            argv=self.argv,
            secrets_file=f"{kept}/secrets.env" if self.fingerprints else None,
            settings=self.settings,
        )
        return Unit(
            description=f"SGLang: {self.deployment.served_model_name} (release {release})",
            engine=engine,
            engine_path=self.engine_path,
            exec_start=start,
            mounts=tuple(mount.source for mount in self.mounts),
            drain_timeout=self.settings.drain_timeout,
            restart_delay=self.settings.restart_delay,
        ).render()

    def content(self) -> dict[str, Any]:
        """What makes the release: secrets by fingerprint, the unit by its hash."""
        return {
            "image": self.image.digest_ref,
            "model": asdict(self.source),
            "argv": list(self.argv),
            "environment": self.environment,
            "secrets": self.fingerprints,
            "gpus": list(self.gpus),
            "unit": release_id({"unit": self.unit("")}),
            **({"files": release_id(self.files)} if self.files else {}),
            **({"share_gpus": True} if self.deployment.share_gpus else {}),
        }


def service_plan(resolved: Resolved, facts: HostFacts) -> ServicePlan:
    """The plan for a decided service on a host that is as `facts` say."""
    deployment, settings = resolved.deployment, resolved.settings
    content = resolved.content()
    release = release_id(content)
    unit = resolved.unit(release)
    action, healthy = _action(facts.service(deployment.service_name), release, unit)
    bound = option(arguments(deployment), "--host")
    address = nodes.leader(deployment) or (facts.address if bound in EVERYWHERE else bound)
    return ServicePlan(
        name=deployment.service_name,
        release=release,
        action=action,
        image=resolved.image.ref,
        image_digest=resolved.image.digest,
        gpus=resolved.gpus,
        link=topology.joining(resolved.gpus, topology.links(facts.topology)),
        port=deployment.port,
        endpoint=f"http://{address}:{deployment.port}",
        healthy=healthy,
        outage=outage(action, settings, facts.service(deployment.service_name)),
        unit=unit,
        content=content,
        gate=_gate(deployment, settings, release) | {"tokens_needed": resolved.context},
        memory=resolved.memory,
        directories=tuple(mount.source for mount in resolved.mounts if not mount.read_only),
        jit=resolved.jit.directory if resolved.jit else "",
        secrets=tuple(resolved.fingerprints),
        files=resolved.files,
    )


def resolve(made: Draft, facts: HostFacts, settings: Settings) -> Resolved:
    """Put the decisions together: what the server sees in clear, what by file, what by no means."""
    deployment = made.deployment
    hidden = [name for name, value in deployment.env_vars.items() if is_secret(name, value)]
    from_host = {
        name: facts.runtime.get(value.value) or ""
        for name, value in deployment.env_vars.items()
        if value.kind == "runtime"
    }
    jit = jit_cache(deployment, settings, made.wanted.image, made.source, made.fit.gpus, facts)
    environment = container_environment(deployment, settings, made.source, hidden)
    return Resolved(
        deployment=deployment,
        settings=settings,
        image=made.wanted.image,
        source=made.source,
        gpus=made.fit.gpus,
        device_flags=made.flags,
        environment=environment | dict(jit.environment if jit else {}),
        fingerprints=_given_to_server(deployment, made.wanted.secrets).fingerprints() | from_host,
        engine_path=facts.engine.path or f"/usr/bin/{settings.container_engine}",
        memory=as_mapping(made.fit.memory),
        context=made.fit.context,
        jit=jit,
    )


def _given_to_server(deployment: Deployment, secrets: Secrets) -> Secrets:
    """The hub token fetches the model; an offline server has no use for it and does not get it."""
    offline = deployment.env_vars.get("HF_HUB_OFFLINE")
    online = offline is not None and offline.value in {"0", "", "false"}
    return secrets if online else secrets.without("HF_TOKEN")


def _action(deployed: Service | None, release: str, unit: str) -> tuple[Action, bool]:
    if deployed is None or deployed.release is None:
        return "start", False
    if deployed.state not in RUNNING:
        return "start", False
    if deployed.release != release or deployed.unit != unit:
        return "restart", False
    proven = deployed.stable == release  # else a run ended between its start and the end of its soak
    return ("none" if proven and deployed.probe.ok else "check"), deployed.probe.ok


def outage(action: Action, settings: Settings, deployed: Service | None) -> str:
    """How long nobody is served; the last start is the best guess for the next one."""
    if action != "restart":
        return "none"
    drain = f"requests in flight (up to {settings.drain_timeout} s)"
    if deployed and deployed.start_seconds is not None:
        return f"{drain}, then about {deployed.start_seconds} s, as the last start took"
    return f"{drain}, then until the new server is ready"


def _gate(deployment: Deployment, settings: Settings, release: str) -> dict[str, Any]:
    bound = option(arguments(deployment), "--host")
    return {
        "name": deployment.service_name,
        "release": release,
        "engine": settings.container_engine,
        "address": "127.0.0.1" if bound in EVERYWHERE else bound,
        "port": deployment.port,
        "served_model_name": deployment.served_model_name,
        "endpoints": deployment.endpoints.model_dump(),
        "start_timeout": settings.start_timeout,
        "soak": settings.soak,
        **({"rank": nodes.rank_of(deployment)} if deployment.nodes > 1 else {}),
    }
