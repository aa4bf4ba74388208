"""What will be done on a host, and why, in the words of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sglang_ops.planning.draft import Draft
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.release import differences, short
from sglang_ops.planning.service import ServicePlan
from sglang_ops.planning.settings import ResolvedImage


@dataclass(frozen=True)
class Step:
    """One thing that will be done, and why; `step` is the word that progress and tests use."""

    step: Literal["engine", "image", "model", "start", "restart", "check", "join"]
    subject: str
    why: str


def steps(
    facts: HostFacts, drafts: Sequence[Draft], services: Sequence[ServicePlan], images: Sequence[ResolvedImage]
) -> tuple[Step, ...]:
    """In the order in which they are done."""
    everything = [
        *(Step("engine", facts.engine.name, reason) for reason in facts.engine.pending),
        *_images(facts, images),
        *_models(drafts),
        *(Step(service.action, service.name, service.why) for service in services if service.action != "none"),
        *_members(services),
    ]
    return tuple(dict.fromkeys(everything))


def _members(services: Sequence[ServicePlan]) -> Iterator[Step]:
    for service in services:
        members = service.members or {}
        said = [f"{url} is not registered" for url in members.get("join", ())]
        said += [f"{url} is not in the inventory any more" for url in members.get("leave", ())]
        if said and service.action in ("none", "check"):
            yield Step("join", service.name, ", ".join(said))


def _images(facts: HostFacts, images: Sequence[ResolvedImage]) -> Iterator[Step]:
    for image in images:
        if not facts.images.get(image.digest_ref):
            size = f", {image.size_bytes / 1e6:.0f} MB" if image.size_bytes else ""
            yield Step("image", short(image.ref), f"{image.digest[:19]} is not on the host{size}")


def _models(drafts: Sequence[Draft]) -> Iterator[Step]:
    for draft in drafts:
        if draft.fetch and draft.model:
            had = ", which another host has" if draft.model.offered else ""
            yield Step("model", str(draft.source.repo), f"not in the cache, {draft.model.bytes / 1e6:.1f} MB{had}")


def why(deployed: Service | None, service: ServicePlan) -> str:
    """Why something is done about a service, "" where nothing is."""
    if service.action == "none":
        return ""
    if deployed is None or deployed.release is None:
        return "not deployed yet"
    if deployed.release != service.release:
        return differences(deployed.record.get("content", {}), service.content)
    if deployed.unit != service.unit:
        return "its unit file is gone" if deployed.unit is None else "its unit file was changed by hand"
    if service.action == "start":
        return f"the unit is {deployed.state}"
    if deployed.probe.ok:
        return "it has not been up for its soak time since it was started"
    failing = [layer for layer in deployed.probe.layers if not layer.get("ok")]
    layer = failing[0] if failing else {"name": "gate", "detail": "no answer"}
    return f"does not answer as it should ({layer['name']}: {layer['detail']})"
