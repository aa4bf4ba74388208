"""The decisions of a roll-out: how many hosts at a time, when it stops, whether it is the same as before. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sglang_ops.groups import units
from sglang_ops.planning.settings import fingerprint
from sglang_ops.registered import plan_of
from sglang_ops.spec import Deployment, EnvValue
from sglang_ops.spec.model import is_secret
from sglang_ops.spec.rollout import Rollout
from sglang_ops.spec.secret_flags import without_secrets

Hostvars = Mapping[str, Mapping[str, Any]]

# Registers of roles/sglang_server/tasks; they survive to the next play of a run.
BEGUN = "__sglang_server_begun"
TURN = "__sglang_server_turn"
GATE = "__sglang_server_gate"
FAILED = "__sglang_server_failed"
DEFAULT_CANARY = 1
DEFAULT_BATCH = "25%"  # as Kubernetes' maxUnavailable


def canary_of(hosts: int, canary: int | None, batch: int | str | None, *, serving: bool) -> int:
    """How many of `hosts` change first, alone.

    `serving` says whether a release serves on any of them: only then is there a canary by default, for where nothing
    serves there is nothing to lose.
    """
    if canary is None:
        canary = DEFAULT_CANARY if serving or batch is not None else 0
    return min(hosts, canary)


def batch_sizes(hosts: int, canary: int | None, batch: int | str | None, *, serving: bool) -> list[int]:
    """How many of `hosts` change at a time, one number a batch, the canary's first; their sum is `hosts`.

    A share counts of all hosts, rounded down, and is one host at least. `serving` as for `canary_of`.
    """
    first = canary_of(hosts, canary, batch, serving=serving)
    if batch is None:
        batch = DEFAULT_BATCH if serving or canary is not None else "100%"
    rest, size = hosts - first, _number(batch, hosts)
    sizes = [size] * (rest // size) + ([rest % size] if rest % size else [])
    return ([first] if first else []) + sizes


def _number(batch: int | str, hosts: int) -> int:
    if isinstance(batch, str) and batch.endswith("%"):
        return max(1, math.floor(hosts * float(batch[:-1]) / 100))
    return max(1, int(batch))


def stops(failed: int, had_turn: int, canary: int, max_failures: int) -> bool:
    """Whether no further batch may begin. One failure of the canary is enough; later `max_failures` are bearable.

    `had_turn` is how many hosts have had their turn: right after the canary's, as many as it has hosts. Hosts that
    serve a model together count as one.
    """
    return failed > (0 if had_turn <= canary else max_failures)


def plans_of(names: Sequence[str], hostvars: Hostvars) -> Iterator[Mapping[str, Any]]:
    """The plans of the hosts that have one, in their order."""
    for name in names:
        plan = plan_of(hostvars[name])
        if plan:
            yield plan


def sizes_for(names: Sequence[str], hostvars: Hostvars) -> list[int]:
    """The batches of the hosts `names`, from what was planned for them."""
    canary, batch, serving = _settings(names, hostvars)
    return grouped_sizes(units(names, hostvars), canary, batch, serving=serving)


def grouped_sizes(
    parts: Sequence[Sequence[str]], canary: int | None, batch: int | str | None, *, serving: bool
) -> list[int]:
    """`batch_sizes` where hosts that serve a model together count as one, in numbers of hosts."""
    sizes, left = [], list(parts)
    for size in batch_sizes(len(parts), canary, batch, serving=serving):
        sizes.append(sum(map(len, left[:size])))
        left = left[size:]
    return sizes


def sizes_back(names: Sequence[str], batch: int | str, hostvars: Hostvars) -> list[int]:
    """The batches of hosts that go back, all alike."""
    return grouped_sizes(units(names, hostvars), 0, batch, serving=True)


def stops_for(names: Sequence[str], left: Sequence[str], hostvars: Hostvars) -> bool:
    """`stops` for the hosts `names` of a play, of which those `left` are still in it."""
    lost = (set(names) - set(left)) | {name for name in names if FAILED in hostvars[name]}
    if not lost:
        return False
    canary, batch, serving = _settings(names, hostvars)
    plan = next(plans_of(names, hostvars), {})
    parts = units(names, hostvars)
    failed = sum(bool(lost.intersection(part)) for part in parts)
    had_turn = sum(any(hostvars[name].get(TURN) for name in part) for part in parts)
    first = canary_of(len(parts), canary, batch, serving=serving)
    return stops(failed, had_turn, first, int(rollout_of(plan).get("max_failures") or 0))


def _settings(names: Sequence[str], hostvars: Hostvars) -> tuple[int | None, int | str | None, bool]:
    plans = list(plans_of(names, hostvars))
    settings = rollout_of(plans[0]) if plans else {}
    return settings.get("canary"), settings.get("batch"), any(serves(plan) for plan in plans)


def in_turn(everyone: Sequence[str], changing: Sequence[str], hostvars: Hostvars) -> list[str]:
    """The hosts `changing` in the order in which they change: `everyone` is the inventory, `rollout.order` says how.

    Hosts that serve a model together are one in that order, by the name of their first, and stay side by side.
    """
    wanted = set(changing)
    names = [name for name in everyone if name in wanted]
    settings = rollout_of(next(plans_of(names, hostvars), {}))
    parts = units(names, hostvars)
    order = str(settings.get("order") or "inventory")
    if order.endswith("sorted"):
        parts.sort(key=lambda part: part[0])
    if order == "shuffle":  # asked several times in a run, it is the same each time
        random.Random(str((settings.get("change") or {}).get("rollout"))).shuffle(parts)  # noqa: S311
    if order.startswith("reverse_"):
        parts.reverse()
    return [name for part in parts for name in part]


def paused_for(names: Sequence[str], hostvars: Hostvars) -> bool:
    """Whether one of the hosts says that the roll-out is paused, or its canary left it in doubt."""
    return any(paused_by(hostvars[name]) for name in names)


def paused_by(variables: Mapping[str, Any]) -> bool:
    told = (variables.get(register) or {} for register in (BEGUN, TURN, GATE))
    return any((result.get("sglang_ops") or {}).get("paused") for result in told)


def turns_before(names: Sequence[str], batch: Sequence[str], hostvars: Hostvars) -> int:
    """How many of the hosts `names` have had their turn before those of `batch`; 0 is the first batch."""
    return sum(bool(hostvars[name].get(TURN)) for name in set(names) - set(batch))


def returning(services: Sequence[Mapping[str, Any]], passed: Sequence[str]) -> list[Mapping[str, Any]]:
    """The services of a host that failed which go back: those that it changed, or whose release never was stable.

    A neighbour that `passed` its own gate keeps its new release.
    """
    return [item for item in services if item["name"] not in passed and _goes_back(item)]


def _goes_back(item: Mapping[str, Any]) -> bool:
    unproven = item["action"] == "check" and item.get("deployed_stable") != item["release"]
    return item["action"] in ("start", "restart") or unproven


def digests_of(names: Sequence[str], hostvars: Hostvars) -> dict[str, str]:
    """The digest, by image, with which a roll-out of the same file began that the hosts `names` have not finished.

    It goes on with that, wherever the tag is by now, so that a fleet never runs two. One that failed on a host is over.
    """
    told = [rollout_of(plan) for plan in plans_of(names, hostvars)]
    kept = {ref: image for rollout in told for ref, image in (rollout.get("digests") or {}).items()}
    failed = {identity for rollout in told for identity in rollout.get("failed") or ()}
    records = [record for rollout in told for record in rollout.get("unfinished") or ()]
    for record in sorted(records, key=lambda record: int(record["started"])):
        if record["id"] not in failed:
            kept.setdefault(record["ref"], record["image"])
    return kept


def moved_for(names: Sequence[str], hostvars: Hostvars) -> bool:
    """Whether one of the hosts has been planned with another digest than those of `digests_of`."""
    planned = [rollout_of(plan).get("images") or {} for plan in plans_of(names, hostvars)]
    began = digests_of(names, hostvars)
    return any(found.get(ref, image) != image for ref, image in began.items() for found in planned)


def moved(earlier: Mapping[str, Any], images: Mapping[str, str]) -> list[str]:
    """What is said where a roll-out goes on with digests, `images`, that its tags have left since.

    `earlier` is the plan that was made of this host before in this run, empty where there is none.
    """
    before = rollout_of(earlier)
    planned = before.get("images") or {}
    return list(before.get("moved") or ()) + [
        f"A roll-out of this file has not finished: it goes on with the image that it began with ({_digest(image)}). "
        f"{ref} is {_digest(planned[ref])} by now; deploy once more for that."
        for ref, image in images.items()
        if planned.get(ref, image) != image
    ]


def _digest(image: str) -> str:
    return image.partition("@")[2][:19]


def stayed(failure: Mapping[str, Any]) -> bool:
    """Whether a host failed because its services could not leave a gateway: then they have not been touched."""
    told = (item.get("sglang_ops") or {} for item in (failure, *(failure.get("results") or ())))
    return any(report.get("state") == "left" and report.get("failed") for report in told)


def rollout_of(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The roll-out's settings in a plan."""
    settings: Mapping[str, Any] = plan.get("rollout") or {}
    return settings


def serves(plan: Mapping[str, Any]) -> bool:
    """Whether a service that will change runs an older release now."""
    return any(item["action"] in ("restart", "check") for item in plan.get("services") or ())


def described(deployment: Deployment) -> dict[str, Any]:
    """What a deployment asks for, for telling later what has changed; secrets as one-way marks."""
    data: dict[str, Any] = deployment.model_dump(mode="json", exclude_none=True)
    data["env_vars"] = {
        name: _mark(value.value) if _written_secret(name, value) else value.reference()
        for name, value in deployment.env_vars.items()
    }
    data["extra_args"] = list(without_secrets(deployment.extra_args, _mark))
    return data


def _mark(secret: str) -> str:
    return f"secret {fingerprint(secret)}"


def _written_secret(name: str, value: EnvValue) -> bool:
    return value.kind == "literal" and is_secret(name, value)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two described deployments, key by key: `port 8000 → 9000`."""
    said: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            said += [f"{key}.{text}" for text in changes(old, new)]
        elif old != new:
            said.append(f"{key} {_short(old)} → {_short(new)}")
    return said


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def identity(run: str) -> str:
    """A short name of a roll-out, the same on every host of a run."""
    return hashlib.sha256(run.encode()).hexdigest()[:10]


def summed_up(sizes: Sequence[int]) -> str:
    """Batches in words: `1, then 2 × 10, then 5`."""
    if len(sizes) < 2:
        return ""
    groups: list[tuple[int, int]] = []
    for size in sizes:
        if groups and groups[-1][1] == size:
            groups[-1] = (groups[-1][0] + 1, size)
        else:
            groups.append((1, size))
    return ", then ".join(f"{times} × {size}" if times > 1 else str(size) for times, size in groups)


def merged(files: Sequence[Rollout], given: Mapping[str, Any]) -> Rollout:
    """The roll-out of a run: the files' sections in their order, then the flags. Raises ValidationError."""
    made = Rollout.model_validate({})
    for file in files:
        made = made.laid_over(file.model_dump(exclude_unset=True))
    return made.laid_over(dict(given))
