"""Where hosts are not as the last deploy left them, or not alike: what the next deploy mends. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Drift:
    """One difference, in words. `service` is missing on a host, was changed there, or is another release."""

    host: str
    service: str
    what: str


def drift(
    rows: Sequence[Mapping[str, Any]], hosts: Sequence[str], gateways: Sequence[Mapping[str, Any]] = ()
) -> tuple[Drift, ...]:
    """The differences of a fleet: `rows` and `gateways` are those of status, `hosts` the ones that answered."""
    found = [Drift(row["host"], row["name"], what) for row in rows for what in _of_itself(row)]
    found += _of_groups(rows, hosts)
    for name in dict.fromkeys(row["name"] for row in rows):
        found += _between(name, [row for row in rows if row["name"] == name], hosts)
    endpoints = {row.get("endpoint") for row in rows}
    for gateway in gateways:
        for worker in gateway.get("workers") or ():
            if worker.get("stranger") and worker["url"] not in endpoints:
                what = f"still has {worker['url']}, which no host of the inventory is"
                found.append(Drift(gateway["host"], gateway["service"], what))
    return tuple(found)


def _of_itself(row: Mapping[str, Any]) -> Iterator[str]:
    if row.get("kind") == "surge":
        yield "stands beside another server while that changes; if nobody is at work, the next deploy takes it away"
    if row.get("changed_by_hand"):
        yield str(row["changed_by_hand"])
    record = row.get("rollout")
    if record and record.get("paused"):
        yield f"waits for a roll-out that {record['paused']['who']} paused"
    elif record:
        yield f"waits for a roll-out that {record['who']} began"


def _of_groups(rows: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> Iterator[Drift]:
    """Hosts that lack what others serve together with them, or have it from another group: the whole group restarts."""
    of = {(row["host"], row["name"]): row.get("group") or [] for row in rows}
    told = set()
    for row in rows:
        group = row.get("group") or []
        for mate in group:
            its = of.get((mate, row["name"]))
            if mate in hosts and its != group and (mate, row["name"]) not in told:
                told.add((mate, row["name"]))
                others = ", ".join(host for host in group if host != mate)
                why = "is not deployed here" if its is None else "was deployed with other hosts"
                yield Drift(mate, row["name"], f"{why}, and {others} would serve it together with this host")


def _between(name: str, rows: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> Iterator[Drift]:
    there = {row["host"] for row in rows}
    if any(row.get("group") for row in rows):  # each member has a release of its own
        return
    servers = not any(row.get("kind") == "gateway" for row in rows)  # gateways are on the hosts that the file names
    if servers and len(there) * 2 > len(hosts):  # what most hosts have, the others are taken to lack
        for host in hosts:
            if host not in there:
                yield Drift(host, name, f"is not deployed here, and is on {len(there)} other hosts")
    counted = Counter(row.get("release") for row in rows)
    usual, times = counted.most_common(1)[0]
    if len(counted) > 1 and times * 2 > len(rows):
        for row in rows:
            if row.get("release") != usual:
                yield Drift(row["host"], name, f"runs release {row.get('release')}, and {times} hosts run {usual}")
