"""What `models pull`, `ls`, `verify` and `prune` found out or did, as plain data: a pure function of a run's events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState
from sglang_ops.result import Deployed, PlannedStep

PULLED = ("engine", "image", "model", "kernels")  # the steps of a plan that a pull takes


@dataclass(frozen=True)
class Model:
    """A model that a host's deployments need. `bytes` is 0 where the host was not asked, because nothing is missing.

    `fetched` is whether this run brought it, or in check mode would; `giver` the host it came from, "" for the hub;
    `origin` names the host, the hub or its mirror, "" where all of it was there already, and only had to be checked.
    """

    repo: str
    commit: str
    fetched: bool
    bytes: int = 0
    giver: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Pulled:
    """The result of pull: what `deploy` would have said of the same steps, and the models of each host."""

    run: Deployed
    models: Mapping[str, tuple[Model, ...]]

    @classmethod
    def from_run(cls, state: RunState, *, run: str, seconds: float, check: bool, interrupted: bool) -> Pulled:
        done = Deployed.from_run(state, run=run, seconds=seconds, check=check, interrupted=interrupted)
        steps = tuple(step for step in done.steps if step.step in PULLED)
        return cls(replace(done, steps=steps), {host.name: tuple(_pulled(host)) for host in state.hosts.values()})

    @property
    def steps(self) -> tuple[PlannedStep, ...]:
        return self.run.steps

    def as_dict(self) -> dict[str, Any]:
        data = self.run.as_dict()
        for host in data["hosts"]:
            host.pop("services")
            host["models"] = [asdict(model) for model in self.models.get(host["host"], ())]
        return data


def _pulled(host: HostState) -> Iterator[Model]:
    plan = host.result("plan").get("plan") or {}
    result = host.result("model")
    sizes = {item["repo"]: int(item["bytes"]) for item in result.get("models") or []}
    missing = {item["repo"] for item in plan.get("models") or []}
    named = {}
    for service in plan.get("services") or []:
        source = (service.get("content") or {}).get("model") or {}
        if source.get("repo"):
            named[source["repo"], str(source.get("commit") or "")] = source["repo"] in missing
    for (repo, commit), fetched in named.items():
        giver, origin = (str((result.get(key) or {}).get(repo, "")) for key in ("peers", "origins"))
        yield Model(repo, commit, fetched, sizes.get(repo, 0), giver, origin or giver)


@dataclass(frozen=True)
class HostCache:
    """The caches of one host: what the module `sglang_models` said, and why it failed, if it did."""

    host: str
    hubs: tuple[str, ...] = ()
    models: tuple[Mapping[str, Any], ...] = ()
    bad: tuple[Mapping[str, Any], ...] = ()
    unnamed: tuple[str, ...] = ()
    checked_bytes: int = 0
    repaired: bool = False
    removed: tuple[Mapping[str, Any], ...] = ()
    failure: Failure | None = None

    @property
    def freed_bytes(self) -> int:
        return sum(int(item["bytes"]) for item in self.removed)

    def as_dict(self, verb: str) -> dict[str, Any]:
        data: dict[str, Any] = {"host": self.host, "hubs": list(self.hubs)}
        if verb == "ls":
            data["models"] = list(self.models)
        elif verb == "verify":
            read = {"checked_bytes": self.checked_bytes, "repaired": self.repaired, "unnamed": list(self.unnamed)}
            data |= {"bad": list(self.bad), **read}
        else:
            data |= {"removed": list(self.removed), "freed_bytes": self.freed_bytes}
        if self.failure:
            data["failure"] = {"step": self.failure.step, "cause": self.failure.cause}
        return data


@dataclass(frozen=True)
class Cached:
    """The result of ls, verify and prune. With `check`, `removed` is what would be."""

    hosts: tuple[HostCache, ...]
    exit_code: ExitCode
    check: bool = False

    @classmethod
    def from_run(cls, state: RunState, *, check: bool = False, interrupted: bool = False) -> Cached:
        code = ExitCode.INTERRUPTED if interrupted else state.exit_code()
        return cls(tuple(_cache(host) for host in state.hosts.values()), code, check)

    @property
    def ok(self) -> bool:
        return self.exit_code is ExitCode.DONE

    @property
    def failures(self) -> list[Failure]:
        """Hosts that did not get as far as saying which files are wrong."""
        return [host.failure for host in self.hosts if host.failure and not host.bad]

    def as_dict(self, verb: str) -> dict[str, Any]:
        head = {"ok": self.ok, "exit_code": int(self.exit_code)} | ({"check": self.check} if verb != "ls" else {})
        return head | {"hosts": [host.as_dict(verb) for host in self.hosts]}


def _cache(host: HostState) -> HostCache:
    told = host.result("models")
    return HostCache(
        host=host.name,
        hubs=tuple(told.get("hubs") or ()),
        models=tuple(told.get("models") or ()),
        bad=tuple(told.get("bad") or ()),
        unnamed=tuple(told.get("unnamed") or ()),
        checked_bytes=int(told.get("checked_bytes") or 0),
        repaired=bool(told.get("repaired")),
        removed=tuple(told.get("removed") or ()),
        failure=host.failure,
    )
