"""What hosts keep of roll-outs, put together: which one has not finished, who runs what, every change. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sglang_ops.errors import PreflightError
from sglang_ops.events import RunState
from sglang_ops.planning.release import differences


@dataclass(frozen=True)
class Unfinished:
    """A roll-out that has not finished: `waiting` hosts have still to change, `changed` have changed in it.

    One that `failed` on a host is over: nobody is to go on with it. `options` are those that it was begun with.
    """

    id: str
    who: str
    started: str
    services: tuple[str, ...]
    changed: tuple[str, ...]
    waiting: tuple[str, ...]
    failed: tuple[str, ...]
    paused: Mapping[str, Any]
    digests: Mapping[str, str]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Running:
    """What one service of one host runs. `rollout` is the unfinished roll-out that will change it, "" for none."""

    host: str
    service: str
    release: str | None
    stable: bool
    rollout: str


@dataclass(frozen=True)
class Change:
    """One change of a service's release. `differences` is what it changed against the one before, "" if unknown."""

    time: str
    host: str
    service: str
    release: str
    verb: str
    who: str
    rollout: str
    result: str
    image: str
    image_digest: str
    model: str
    differences: str


def looked(state: RunState) -> dict[str, list[Mapping[str, Any]]]:
    """{host: what was found of its services}."""
    return {host.name: list(host.result("rollout").get("services") or []) for host in state.hosts.values()}


def running(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Running]:
    return [
        Running(
            host,
            item["name"],
            item["release"],
            bool(item["release"]) and item["stable"] == item["release"],
            (item["rollout"] or {}).get("id", ""),
        )
        for host, services in found.items()
        for item in services
    ]


def unfinished(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Unfinished]:
    """Every roll-out of which a host has a record, the oldest first."""
    records: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for host, services in found.items():
        for item in services:
            if item["rollout"]:
                records.setdefault(item["rollout"]["id"], []).append((host, item["rollout"]))
    made = [_unfinished(identity, rows, found) for identity, rows in records.items()]
    return sorted(made, key=lambda item: item.started)


def _unfinished(
    identity: str, rows: Sequence[tuple[str, Mapping[str, Any]]], found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Unfinished:
    first = rows[0][1]
    changed = tuple(host for host, services in found.items() if any(_changed_in(item, identity) for item in services))
    failed = tuple(host for host, services in found.items() if any(_failed_in(item, identity) for item in services))
    marks = [record["paused"] for _, record in rows if record["paused"]]
    return Unfinished(
        id=identity,
        who=first["who"],
        started=moment(first["started"]),
        services=tuple(dict.fromkeys(record["service"] for _, record in rows)),
        changed=changed,
        waiting=tuple(host for host in dict.fromkeys(host for host, _ in rows) if host not in changed),
        failed=failed,
        paused=dict(marks[0], since=moment(marks[0]["since"])) if marks else {},
        digests={record["ref"]: record["image"] for _, record in rows if record.get("ref")},
        options={name: value for _, record in rows for name, value in (record.get("options") or {}).items()},
    )


def of_file(open_ones: Sequence[Unfinished], services: Collection[str]) -> list[Unfinished]:
    """The roll-outs with which a file that deploys `services` goes on; those of other services are left alone.

    Raises PreflightError where it goes on with none, or lacks a service of one: then it is not the file of before.
    """
    fix = "Resume with the file of before, or take the roll-out back with `rollout undo` and deploy this one."
    meant = [item for item in open_ones if not set(services).isdisjoint(item.services)]
    missing = {name: None for item in meant or open_ones for name in item.services if name not in services}
    if missing:
        has = ", ".join(services) or "nothing"
        raise PreflightError(
            f"The roll-out that is unfinished is of {', '.join(missing)}; the file has {has}.", fix=fix
        )
    return meant


def _changed_in(item: Mapping[str, Any], identity: str) -> bool:
    changes = item["history"]
    last = changes[-1] if changes else {}
    return last.get("rollout") == identity and last.get("verb") == "deploy" and last.get("release") == item["release"]


def _failed_in(item: Mapping[str, Any], identity: str) -> bool:
    return any(change["rollout"] == identity and change["result"] == "failed" for change in item["history"])


def changes(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Change]:
    """Every change of release that the hosts remember, the newest first."""
    made = [
        _change(host, item["name"], change, item["history"][number - 1] if number else {})
        for host, services in found.items()
        for item in services
        for number, change in enumerate(item["history"])
    ]
    return sorted(made, key=lambda change: change.time, reverse=True)


def _change(host: str, service: str, change: Mapping[str, Any], before: Mapping[str, Any]) -> Change:
    old, new = before.get("content"), change.get("content")
    return Change(
        time=moment(change["time"]),
        host=host,
        service=service,
        release=str(change["release"]),
        verb=str(change["verb"]),
        who=str(change.get("who") or ""),
        rollout=str(change.get("rollout") or ""),
        result=str(change["result"]),
        image=str(change.get("image") or ""),
        image_digest=str(change.get("image_digest") or ""),
        model=str(change.get("model") or ""),
        differences=differences(old, new) if old and new and old != new else "",
    )


def moment(seconds: Any) -> str:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(int(seconds or 0), UTC).isoformat(timespec="seconds")


def as_dicts(items: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(item) for item in items]
