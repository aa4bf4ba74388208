"""What `provision` did on each host, or in check mode would do, as plain data.

`Provisioned.from_run` is a pure function of the events of a run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState

PARTS = ("driver", "engine", "cache")  # in the order in which they are done


@dataclass(frozen=True)
class Part:
    """One part of a host: what is there now (in check mode: what would be done), and whether it changed."""

    name: str
    detail: str
    changed: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Host:
    """One host. `reboot` is "" where none is needed, else "done" or why it must be rebooted."""

    host: str
    changed: int
    module_executions: int
    seconds: float
    parts: tuple[Part, ...] = ()
    reboot: str = ""
    failure: Failure | None = None

    @classmethod
    def from_state(cls, state: HostState) -> Host:
        stopped = state.failure.step if state.failure else ""
        parts = tuple(_part(name, state) for name in PARTS if state.results.get(name) and name != stopped)
        driver = [*state.results.get("driver", [])]
        waits = [item for item in driver if item.get("reboot")]
        reboot = "; ".join(waits[-1].get("reasons") or ["the new driver is loaded at boot"]) if waits else ""
        if waits and "reboot" in state.steps and not state.failure and driver[-1] is not waits[-1]:
            reboot = "done"
        return cls(state.name, state.changed, state.executions, round(state.seconds, 2), parts, reboot, state.failure)

    @property
    def must_reboot(self) -> bool:
        return self.reboot not in ("", "done")

    def as_dict(self) -> dict[str, Any]:
        data = asdict(self)
        failure = data.pop("failure")
        if failure:
            data["failure"] = {key: failure[key] for key in ("step", "cause", "log")}
        return data


@dataclass(frozen=True)
class Provisioned:
    """The result of provision."""

    hosts: tuple[Host, ...]
    exit_code: ExitCode
    run: str
    seconds: float
    check: bool = False
    interrupted: bool = False

    @classmethod
    def from_run(
        cls, state: RunState, *, run: str, seconds: float, check: bool = False, interrupted: bool = False
    ) -> Provisioned:
        code = ExitCode.INTERRUPTED if interrupted else state.exit_code()
        hosts = tuple(Host.from_state(host) for host in state.hosts.values())
        return cls(hosts, code, run, round(seconds, 2), check, interrupted)

    @property
    def ok(self) -> bool:
        return self.exit_code is ExitCode.DONE

    @property
    def pending(self) -> bool:
        """Whether anything was changed, or in check mode would be."""
        return any(host.changed or host.must_reboot for host in self.hosts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "exit_code": int(self.exit_code),
            "check": self.check,
            "hosts": [host.as_dict() for host in self.hosts],
            "seconds": self.seconds,
            "run": self.run,
        }


def _part(name: str, state: HostState) -> Part:
    told = state.results[name]
    last = told[-1]
    warnings = tuple(dict.fromkeys(str(text) for item in told for text in item.get("warnings") or ()))
    return Part(name, str(last.get("detail", "")), any(bool(item.get("changed")) for item in told), warnings)
