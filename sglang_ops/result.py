"""What a command found out or did, as plain data: the tables and `--output json` are two views of the same.

Each ``from_run`` is a pure function of the events of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sglang_ops.drift import Drift, drift
from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState
from sglang_ops.groups import members
from sglang_ops.handed import brought, foreseen
from sglang_ops.rolled import Rolled

UNTOUCHED = ("none", "check")  # actions of a service that is as it should be


@dataclass(frozen=True)
class Service:
    """One SGLang server on one host. `healthy` is None where nothing looked.

    `action` is what was done (in check mode: would be done); "pending" where the run ended before it began.
    """

    name: str
    release: str | None = None
    endpoint: str | None = None
    healthy: bool | None = None
    image_digest: str | None = None
    gpus: tuple[int, ...] = ()
    action: str = "none"
    outage: str = ""


@dataclass(frozen=True)
class PlannedStep:
    """One unit of work that check mode announces."""

    host: str
    step: str
    subject: str
    why: str


@dataclass(frozen=True)
class Host:
    """What a run did on one host; `group` are the hosts that serve something together with it, itself included."""

    host: str
    changed: int
    module_executions: int
    seconds: float
    services: tuple[Service, ...] = ()
    failure: Failure | None = None
    kernels: tuple[Mapping[str, Any], ...] = ()
    group: tuple[str, ...] = ()

    @property
    def release(self) -> str | None:
        """What this host runs now; of several services every one's, joined by commas."""
        return ",".join(service.release or "none" for service in self.services) or None

    @classmethod
    def from_state(cls, state: HostState, *, check: bool = False) -> Host:
        services = tuple(_services(state, check=check))
        return cls(
            state.name, state.changed, state.executions, round(state.seconds, 2), services, state.failure,
            brought(state), tuple(dict.fromkeys(mate for item in _planned(state) for mate in members(item))),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        data = asdict(self)
        failure = data.pop("failure")
        data["release"] = self.release
        if failure:
            data["failure"] = {key: failure[key] for key in ("step", "cause", "log")}
        return data


@dataclass(frozen=True)
class Deployed:
    """The result of deploy, restart, stop and remove. `left_out` are hosts of the deployment that --limit kept out."""

    hosts: tuple[Host, ...]
    steps: tuple[PlannedStep, ...]
    warnings: tuple[str, ...]
    exit_code: ExitCode
    run: str
    seconds: float
    check: bool = False
    interrupted: bool = False
    rolled: Rolled | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def from_run(
        cls, state: RunState, *, run: str, seconds: float, check: bool = False, interrupted: bool = False
    ) -> Deployed:
        hosts = tuple(Host.from_state(host, check=check) for host in state.hosts.values())
        rolled = Rolled.from_run(state, seconds)
        code = state.exit_code()
        if code is ExitCode.DONE and rolled and rolled.paused:
            code = ExitCode.PENDING
        return cls(
            hosts=hosts,
            steps=tuple(step for host in state.hosts.values() for step in _steps(host, state)),
            warnings=tuple(_still_true(state)),
            exit_code=ExitCode.INTERRUPTED if interrupted else code,
            run=run,
            seconds=round(seconds, 2),
            check=check,
            interrupted=interrupted,
            rolled=rolled,
            left_out=next(
                (tuple(told) for host in state.hosts.values() if (told := host.result("plan").get("left_out"))), ()
            ),
        )

    @property
    def ok(self) -> bool:
        return self.exit_code is ExitCode.DONE

    @property
    def pending(self) -> bool:
        """Whether anything was changed, or in check mode would be."""
        return any(host.changed for host in self.hosts) or bool(self.steps)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "exit_code": int(self.exit_code),
            "check": self.check,
            "hosts": [host.as_dict() for host in self.hosts],
            "steps": [asdict(step) for step in self.steps],
            "warnings": list(self.warnings),
            "rollout": self.rolled.as_dict() if self.rolled and not self.check else None,
            "left_out": list(self.left_out),
            "seconds": self.seconds,
            "run": self.run,
        }


@dataclass(frozen=True)
class Check:
    """One question of the gate and its answer."""

    host: str
    service: str
    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verified:
    """The result of verify: every layer of the gate, for every service."""

    checks: tuple[Check, ...]
    exit_code: ExitCode
    failures: tuple[Failure, ...] = ()

    @classmethod
    def from_run(cls, state: RunState) -> Verified:
        checks: list[Check] = []
        for host in state.hosts.values():
            for service in host.result("gate").get("services") or []:
                checks += [
                    Check(host.name, service["name"], layer["name"], bool(layer["ok"]), str(layer.get("detail", "")))
                    for layer in service.get("layers") or []
                ]
        for failure in state.failures:
            if all(check.ok for check in checks if check.host == failure.host):
                checks.append(Check(failure.host, "", failure.step, ok=False, detail=failure.cause))
        code = state.exit_code()
        if code is ExitCode.DONE and not all(check.ok for check in checks):
            code = ExitCode.ERROR
        return cls(tuple(checks), code, tuple(state.failures))

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.exit_code is ExitCode.DONE,
            "exit_code": int(self.exit_code),
            "checks": [asdict(check) for check in self.checks],
        }


@dataclass(frozen=True)
class Status:
    """The result of status: what the hosts said, host by host, and who did not answer."""

    services: tuple[Mapping[str, Any], ...]
    unmanaged: tuple[Mapping[str, Any], ...]
    exit_code: ExitCode
    failures: tuple[Failure, ...] = field(default=())
    gateways: tuple[Mapping[str, Any], ...] = ()
    drift: tuple[Drift, ...] = ()

    @classmethod
    def from_run(cls, state: RunState) -> Status:
        def tagged(key: str) -> tuple[Mapping[str, Any], ...]:
            return tuple(
                {"host": host.name, **(item if isinstance(item, Mapping) else {"name": item})}
                for host in state.hosts.values()
                for item in host.result("status").get(key) or []
            )

        services = tagged("services")
        fronts = {row["host"] for row in services if row.get("kind") == "gateway"}
        servers = {row["host"] for row in services if row.get("kind") != "gateway"}
        answered = [host.name for host in state.hosts.values() if host.results.get("status")]
        answered = [name for name in answered if name in servers or name not in fronts]
        fronted = tagged("gateways")
        differing = drift(services, answered, fronted)
        return cls(services, tagged("unmanaged"), state.exit_code(), tuple(state.failures), fronted, differing)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.exit_code is ExitCode.DONE,
            "exit_code": int(self.exit_code),
            "services": list(self.services),
            "gateways": list(self.gateways),
            "unmanaged": list(self.unmanaged),
            "drift": [asdict(item) for item in self.drift],
            "failures": [asdict(failure) | {"exit_code": int(failure.exit_code)} for failure in self.failures],
        }


def _planned(host: HostState) -> Sequence[Mapping[str, Any]]:
    planned = host.result("plan").get("plan") or host.result("target")
    services: Sequence[Mapping[str, Any]] = planned.get("services") or ()
    return services


def _services(host: HostState, *, check: bool) -> Iterator[Service]:
    """What is planned, overlaid with what was done and with what the gate saw."""
    merged: dict[str, dict[str, Any]] = {}
    for service in _planned(host):
        begun = check or service.get("action") in UNTOUCHED
        waits = {"action": "pending", "release": service.get("deployed_release")}
        merged[service["name"]] = {**service, **({} if begun else waits)}
    known = set(merged)
    for service in _told(host, "service", known):
        merged.setdefault(service["name"], {}).update(service)
    for service in _told(host, "gate", known):
        entry = merged.setdefault(service["name"], {})
        entry["healthy"] = bool(service["ok"] or service.get("rolled_back_to"))
        entry["release"] = service.get("rolled_back_to") or service.get("release") or entry.get("release")
    for name, entry in merged.items():
        yield Service(
            name=name,
            release=entry.get("release"),
            endpoint=entry.get("endpoint"),
            healthy=entry.get("healthy"),
            image_digest=entry.get("image_digest"),
            gpus=tuple(entry.get("gpus") or ()),
            action=str(entry.get("action", "none")),
            outage=str(entry.get("outage") or ""),
        )


def _told(host: HostState, kind: str, known: set[str]) -> Iterator[Mapping[str, Any]]:
    """What the results of a kind say of services, in their order; of those that were planned, if any were."""
    for result in host.results.get(kind, ()):
        yield from (item for item in result.get("services") or () if not known or item["name"] in known)


def _steps(host: HostState, run: RunState) -> Iterator[PlannedStep]:
    for step in (host.result("plan").get("plan") or {}).get("steps") or []:
        yield PlannedStep(host.name, str(step["step"]), str(step.get("subject", "")), str(step.get("why", "")))
    yield from (PlannedStep(host.name, *step) for step in foreseen(host, run.hosts.values()))


def _still_true(state: RunState) -> Iterator[str]:
    """Each warning once; a server that a gateway missed at first may have joined it later in the run."""
    told = [result for host in state.hosts.values() for result in host.results.get("gateway", ())]
    joined = {worker["url"] for result in told for worker in result["workers"] if worker["healthy"]}
    for text in dict.fromkeys(text for host in state.hosts.values() for text in _warnings(host)):
        if not any(f"{url} is not registered" in text for url in joined):
            yield text


def _warnings(host: HostState) -> Iterator[str]:
    yield from (host.result("plan").get("plan") or {}).get("warnings") or []
    for result in (result for kind in ("share", "model", "gateway") for result in host.results.get(kind, ())):
        yield from (f"{host.name}: {text}" for text in result.get("warnings") or [])
