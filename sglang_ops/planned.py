"""What `plan` found out, as plain data: what `deploy` would do on each host, and why.

`Planned.from_run` is a pure function of the events of a run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState
from sglang_ops.handed import foreseen

UNITS = "/etc/systemd/system"
STARTS = ("start", "restart", "check")  # steps that come after everything is there


@dataclass(frozen=True)
class Step:
    """One thing that deploy would do."""

    step: str
    subject: str
    why: str


@dataclass(frozen=True)
class Refusal:
    """Why a host cannot take the deployment, or could not be asked; `check` is a stable word."""

    check: str
    message: str


@dataclass(frozen=True)
class Service:
    """One service as deploy would leave it. `memory` is None where nothing is known of the model's size."""

    name: str
    action: str
    why: str
    release: str
    image: str
    image_digest: str
    gpus: tuple[int, ...]
    link: str
    port: int
    endpoint: str
    outage: str
    way: str
    way_why: str
    memory: Mapping[str, Any] | None
    unit_diff: str


@dataclass(frozen=True)
class Host:
    """The plan of one host. With `errors` there is nothing else."""

    host: str
    errors: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    steps: tuple[Step, ...]
    services: tuple[Service, ...]

    @classmethod
    def from_state(cls, state: HostState, run: RunState) -> Host:
        plan: Mapping[str, Any] = state.result("plan").get("plan") or {}
        planned = [Step(item["step"], item["subject"], item["why"]) for item in plan.get("steps") or ()]
        kernels = [Step(*step) for step in foreseen(state, run.hosts.values())]
        steps = tuple(sorted([*planned, *kernels], key=lambda step: step.step in STARTS))
        return cls(
            host=state.name,
            errors=tuple(_refusals(plan, state.failure)),
            warnings=tuple(plan.get("warnings") or ()),
            steps=steps,
            services=tuple(_service(item, steps) for item in plan.get("services") or ()),
        )


@dataclass(frozen=True)
class Planned:
    """The result of plan."""

    hosts: tuple[Host, ...]
    failures: tuple[Failure, ...]
    exit_code: ExitCode
    interrupted: bool = False

    @classmethod
    def from_run(cls, state: RunState, *, interrupted: bool = False) -> Planned:
        return cls(
            hosts=tuple(Host.from_state(host, state) for host in state.hosts.values()),
            failures=tuple(state.failures),
            exit_code=ExitCode.INTERRUPTED if interrupted else state.exit_code(),
            interrupted=interrupted,
        )

    @property
    def ok(self) -> bool:
        return self.exit_code is ExitCode.DONE

    @property
    def pending(self) -> bool:
        """Whether deploy would do anything anywhere."""
        return any(host.steps for host in self.hosts)

    def as_dict(self) -> dict[str, Any]:
        hosts = [asdict(host) for host in self.hosts]
        return {"ok": self.ok, "exit_code": int(self.exit_code), "pending": self.pending, "hosts": hosts}


def _refusals(plan: Mapping[str, Any], failure: Failure | None) -> Iterator[Refusal]:
    told = plan.get("errors") or ()
    yield from (Refusal(str(item["check"]), str(item["message"])) for item in told)
    if failure and not told:
        check = "connect" if failure.exit_code is ExitCode.UNREACHABLE else failure.step
        yield Refusal(check, failure.cause)


def _service(item: Mapping[str, Any], steps: tuple[Step, ...]) -> Service:
    name = str(item["name"])
    why = next((step.why for step in steps if step.subject == name), "it is as it should be")
    return Service(
        name=name,
        action=str(item["action"]),
        why=why,
        release=str(item["release"]),
        image=str(item["image"]),
        image_digest=str(item["image_digest"]),
        gpus=tuple(item["gpus"]),
        link=str(item.get("link", "")),
        port=int(item["port"]),
        endpoint=str(item["endpoint"]),
        outage=str(item["outage"]),
        way=str(item.get("way") or ""),
        way_why=str(item.get("way_why") or ""),
        memory=item.get("memory"),
        unit_diff=unit_diff(name, item.get("deployed_unit"), item.get("unit")),
    )


def unit_diff(name: str, deployed: str | None, wanted: str | None) -> str:
    """Unified diff from the unit on the host, None where there is none, to the wanted one; "" if they are equal."""
    path = f"{UNITS}/{name}.service"
    lines = difflib.unified_diff(
        (deployed or "").splitlines(),
        (wanted or "").splitlines(),
        fromfile="/dev/null" if deployed is None else f"{path} (deployed)",
        tofile=f"{path} (planned)",
        lineterm="",
    )
    return "\n".join(lines)
