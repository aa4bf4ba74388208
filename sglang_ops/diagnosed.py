"""What `doctor` found out, as plain data: which hosts are fit, and every problem of the others with its remedy.

`Diagnosed.from_run` is a pure function of the events of a run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState

_REMEDIES = {
    "ssh": "Try ssh -v with the inventory's address, user and key; correct ansible_host, ansible_port or ansible_user.",
    "sudo": "Let ansible_user use sudo (visudo: USER ALL=(ALL) NOPASSWD: ALL), or connect as one who may.",
    "python": "Install python3 on the host.",
}


@dataclass(frozen=True)
class Problem:
    """`check` is a stable word, `detail` what was seen, `remedy` a command or what to change."""

    check: str
    detail: str
    remedy: str


@dataclass(frozen=True)
class Host:
    """One host. It is fit where there are no problems; warnings are only worth knowing."""

    host: str
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()

    @classmethod
    def from_state(cls, state: HostState) -> Host:
        told = state.result("doctor")
        problems = _problems(told.get("problems"))
        if state.failure and not problems:
            problems = (_unheard(state.failure),)
        return cls(state.name, problems, _problems(told.get("warnings")))

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Diagnosed:
    """The result of doctor."""

    hosts: tuple[Host, ...]
    exit_code: ExitCode

    @classmethod
    def from_run(cls, state: RunState, *, interrupted: bool = False) -> Diagnosed:
        hosts = tuple(Host.from_state(host) for host in state.hosts.values())
        return cls(hosts, ExitCode.INTERRUPTED if interrupted else state.exit_code())

    @property
    def ok(self) -> bool:
        return self.exit_code is ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        hosts = [{"host": host.host, "ok": host.ok, **_listed(host)} for host in self.hosts]
        return {"ok": self.ok, "exit_code": int(self.exit_code), "hosts": hosts}


def _listed(host: Host) -> dict[str, list[dict[str, str]]]:
    return {
        "problems": [asdict(problem) for problem in host.problems],
        "warnings": [asdict(warning) for warning in host.warnings],
    }


def _problems(told: Any) -> tuple[Problem, ...]:
    return tuple(Problem(item["check"], item["detail"], item["remedy"]) for item in told or ())


def _unheard(failure: Failure) -> Problem:
    """Why a host could not be examined at all."""
    detail, _, remedy = failure.cause.partition(". ")
    if "sudo" in detail or "become root" in detail:
        check = "sudo"
    elif failure.exit_code is ExitCode.UNREACHABLE:
        check = "ssh"
    else:
        check = "python" if "Python" in detail else failure.step
    usual = _REMEDIES.get(check, "Run it again with -vvv; the full log says more.")
    return Problem(check, detail, remedy or usual)
