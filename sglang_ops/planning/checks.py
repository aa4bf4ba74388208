"""What a host must offer before anything is touched. Each check returns every problem it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sglang_ops.planning.command import ModelSource, hub_cache
from sglang_ops.planning.facts import HostFacts, Model
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.settings import Secrets, Settings
from sglang_ops.spec import EnvValue

if TYPE_CHECKING:
    from sglang_ops.planning.draft import Draft
    from sglang_ops.planning.service import ServicePlan

_ALIVE = ("active", "activating", "deactivating", "reloading")

# A pulled image needs its compressed layers and their extracted files at the same time.
UNPACKED_PER_PULLED = 2.5


def check_secrets(
    secrets: Secrets, facts: HostFacts, given: Mapping[str, EnvValue], key: str = "env_vars"
) -> list[Problem]:
    """Every reference of `given`, which stands at `key` of the file, leads somewhere."""
    unset = key + " refers to host:{0}, but {0} is not set where sglang-ops runs. Export it."
    absent = key + " refers to runtime:{0}, but /etc/sglang-ops/runtime.env on {1} does not set it. Add {0}=…"
    garbled = key + " refers to host:{0}, whose value is not UTF-8. Set it anew where sglang-ops runs."
    problems = [Problem("environment", unset.format(name)) for name in secrets.missing]
    problems += [Problem("environment", garbled.format(name)) for name in secrets.unreadable]
    from_host = dict.fromkeys(value.value for value in given.values() if value.kind == "runtime")
    lacking = [name for name in from_host if facts.runtime.get(name) is None]
    return problems + [Problem("environment", absent.format(name, facts.host)) for name in lacking]


def check_port(name: str, port: int, key: str, facts: HostFacts, now: HostFacts) -> list[Problem]:
    """The port of service `name`, set by `key`, is free, or held by a service of ours that this plan moves or keeps.

    `facts` has the services that stay or were placed already, `now` those that run at this moment.
    """
    for other in facts.services:
        if other.name != name and other.port == port:
            message = f"port {port} on {facts.host} belongs to {other.name}. Set {key} to a free one."
            return [Problem("port", message)]
    if any(service.port == port and service.state in _ALIVE for service in now.services):
        return []
    for listener in facts.listeners:
        if listener.port == port:
            who = f"{listener.process} (pid {listener.pid})" if listener.pid else "another process"
            message = f"port {port} on {facts.host} is taken by {who}. Stop it, or set {key} to a free one."
            return [Problem("port", message)]
    return []


def check_engine(facts: HostFacts) -> list[Problem]:
    """The container engine is usable, or can be made so without stopping what runs."""
    return [Problem("engine", f"{facts.host}: {facts.engine.refusal}")] if facts.engine.refusal else []


def check_evaluations(services: Sequence[ServicePlan], facts: HostFacts) -> list[Problem]:
    """No service gets another release while the quality of the one it has is being measured."""
    problems = []
    for one in facts.evaluations:
        changing = [item.name for item in services if one.releases.get(item.name) not in (None, item.release)]
        if changing:
            far = f"{one.done} of {one.total} answered" if one.total else "it has just begun"
            left = f", about {max(1, round(one.seconds_left / 60))} min left" if one.seconds_left else ""
            problems.append(
                Problem(
                    "evaluation",
                    f"evaluation {one.run} of {', '.join(changing)} is at work on {facts.host} ({far}{left}), and this "
                    f"deploy would end it incomplete. Wait for it (`sglang-ops evaluate wait {one.run}`), cancel it, "
                    "or add --interrupt-evaluations.",
                )
            )
    return problems


def check_model(source: ModelSource, model: Model | None) -> list[Problem]:
    """A model that must be fetched has files."""
    if source.repo and model and not (model.error or model.cached or model.bytes):
        return [Problem("model", f"model {source.repo} has no files at this revision. Check the revision.")]
    return []


def check_disks(drafts: Sequence[Draft], facts: HostFacts, settings: Settings) -> list[Problem]:
    """Images and models fit, counted together where they share a file system. Sizes in bytes."""
    wanted: dict[int, list[tuple[str, int]]] = {}
    for path, what, size in dict.fromkeys(_downloads(drafts, facts, settings)):
        disk = facts.disk(path)
        if disk:
            wanted.setdefault(disk.device, []).append((what, size))
    problems = []
    for disk in {disk.device: disk for disk in facts.disks}.values():
        need = sum(size for _, size in wanted.get(disk.device, []))
        if need > disk.free_bytes:
            what = " and ".join(f"{name} ({size / 1e9:.1f} GB)" for name, size in wanted[disk.device])
            free = f"{facts.host} has {disk.free_bytes / 1e9:.1f} GB free at {disk.path}"
            message = f"{free}, {what} need {need / 1e9:.1f} GB."
            problems.append(Problem("disk", f"{message} Free space, or set HF_HOME in env_vars to a larger disk."))
    return problems


def _downloads(drafts: Sequence[Draft], facts: HostFacts, settings: Settings) -> Iterator[tuple[str, str, int]]:
    """(where, what, bytes) of everything that is not there yet."""
    for made in drafts:
        image = made.wanted.image
        if not facts.images.get(image.digest_ref):
            yield facts.engine.data_root, f"image {image.ref}", int(image.size_bytes * UNPACKED_PER_PULLED)
        if made.fetch and made.model:
            yield hub_cache(made.deployment, settings), f"model {made.deployment.hf_model_handle}", made.model.bytes
