"""The roll-out of one run, as the plan of every host carries it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from sglang_ops import identity, rollout
from sglang_ops.errors import PreflightError
from sglang_ops.planning import HostFacts, Settings, Wanted
from sglang_ops.planning.facts import Service
from sglang_ops.spec import Deployment, DeploymentFile, Rollout
from sglang_ops.spec.messages import problem
from sglang_ops.spec.yamlfile import Document

MARGIN_SECONDS = 300
_NO_SERVICE = Service(name="")


@dataclass(frozen=True)
class RunRollout:
    """Settings of the files with the flags, `options`, over them; `digests` are those of a roll-out that goes on.

    One that is resumed is `judged` once its canary has changed: by its gate, or by the person who lets it go on.
    """

    settings: Rollout
    identity: str
    who: str
    started: int
    digests: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    judged: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Sequence[DeploymentFile], given: Mapping[str, Any]) -> RunRollout:
        """`given` is what the command line adds: {"run", "started", "options", "digests", "resume", "judged"}.

        Raises PreflightError where an option cannot be used.
        """
        try:
            options = given.get("options") or {}
            settings = rollout.merged([file.rollout for file in files], options)
        except ValidationError as error:
            raise PreflightError(*told(error, "rollout.{}"), fix=fix_of(error)) from None
        return cls(
            settings=settings,
            identity=rollout.identity(str(given["run"])),
            who=identity.who(),
            started=int(given.get("started") or time.time()),
            digests=given.get("digests") or {},
            resume=bool(given.get("resume")),
            judged=bool(given.get("judged")),
            options=options,
        )

    def going_on(self, names: Sequence[str], hostvars: rollout.Hostvars) -> RunRollout:
        """With the digests of a roll-out that the hosts `names`, all planned by now, have not finished."""
        return self if self.digests else replace(self, digests=rollout.digests_of(names, hostvars))

    @property
    def timeouts(self) -> dict[str, int | str]:
        """What shapes a plan beside the role's variables; the unit keeps its own drain_timeout."""
        named = {
            "soak": self.settings.soak,
            "start_timeout": self.settings.start_timeout,
            "surge": None if self.settings.surge == "auto" else self.settings.surge,
        }
        return {name: value for name, value in named.items() if value is not None}

    def check_size(self, parts: Sequence[Sequence[str]]) -> None:
        """Raise PreflightError where the canary is larger than the fleet; `parts` are its hosts as they change."""
        canary, hosts = self.settings.canary, sum(map(len, parts))
        if canary is None or canary <= len(parts):
            return
        counted = f"there {'is 1 host' if hosts == 1 else f'are {hosts} hosts'}"
        if len(parts) < hosts:
            counted += f", which count as {len(parts)}: those that serve a model together change together"
        fix = f"Set it to {len(parts)} at most, or take more hosts."
        raise PreflightError(f"rollout.canary is {canary}, and {counted}.", fix=fix)

    def changed(self, deployments: Sequence[Deployment], facts: HostFacts) -> list[str]:
        """Why a paused roll-out cannot go on with this file: what has changed in it since."""
        if not self.resume:
            return []
        found = []
        for deployment in deployments:
            service = facts.service(deployment.service_name)
            record = service.rollout if service else None
            before = (record or {}).get("file")
            if before and before != (now := rollout.described(deployment)):
                what = "; ".join(rollout.changes(before, now))
                fix = (
                    "Resume with the file of before, or take the roll-out back with `rollout undo` and deploy this one."
                )
                found.append(f"The file has changed since the roll-out began: {what}. {fix}")
        return found

    def of_host(
        self, wanted: Sequence[Wanted], services: Sequence[Any], settings: Settings, facts: HostFacts
    ) -> dict[str, Any]:
        """What the tasks of a host need: the settings, and the record by service that it keeps until it is done."""
        images = {item.name: item.image.digest_ref for item in wanted}
        described = {item.name: rollout.described(item.deployment) for item in wanted}
        changing = [item["name"] for item in services if item["action"] != "none"]
        drain = self.settings.drain_timeout or settings.drain_timeout
        common = {"id": self.identity, "who": self.who, "started": self.started, "options": dict(self.options)}
        return {
            **self.settings.model_dump(include={"canary", "batch", "max_failures", "order", "auto_rollback"}),
            "gate": self.settings.gate.model_dump() if self.settings.gate and not self.judged else {},
            "drain_timeout": drain,
            # By then a host has been changed, or has failed and gone back.
            "rejoin": drain + 2 * settings.start_timeout + settings.soak + MARGIN_SECONDS,
            "change": {"who": self.who, "rollout": self.identity},
            "digests": dict(self.digests),
            "unfinished": [
                {"id": record["id"], "ref": record["ref"], "image": record["image"], "started": record["started"]}
                for name, file in described.items()
                for record in [(facts.service(name) or _NO_SERVICE).rollout]
                if record and record.get("file") == file and record.get("ref")
            ],
            "failed": sorted({one for service in facts.services for one in service.failed_rollouts}),
            "images": {item.image.ref: item.image.digest_ref for item in wanted},
            "records": {
                name: {**common, "image": images[name], "ref": ref_of(wanted, name), "file": described[name]}
                for name in changing
                if name in images
            },
        }


def ref_of(wanted: Sequence[Wanted], name: str) -> str:
    return next(item.image.ref for item in wanted if item.name == name)


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a roll-out that a command line gave, without those that it did not. Raises PreflightError."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        made = Rollout.model_validate(given)
    except ValidationError as error:
        raise PreflightError(*told(error, "--{}"), fix=fix_of(error)) from None
    return {name: getattr(made, name) for name in given}


def flags(*, rollback: bool | None = None, surge: bool | None = None, **others: Any) -> dict[str, Any]:
    """What was given of the flags that several verbs have for a roll-out. Raises PreflightError."""
    surging = None if surge is None else "auto" if surge else "never"
    return checked({**others, "auto_rollback": rollback, "surge": surging})


def typed(options: Mapping[str, Any]) -> list[str]:
    """Options of a roll-out as the flags that they were given by."""
    words: list[str] = []
    for name in (key for key in Rollout.model_fields if key in options):
        value = options[name]
        if name == "auto_rollback":
            words.append("--rollback" if value else "--no-rollback")
        elif name == "surge":
            words.append("--no-surge" if value == "never" else "--surge")
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def told(error: ValidationError, how: str) -> tuple[str]:
    """The first thing that is wrong, in one sentence; `how` writes the key."""
    found = problem(Document("", {}), error.errors()[0])
    key = found.path.partition(".")[0]
    return (f"{how.format(key.replace('_', '-') if how.startswith('--') else key)}: {found.message}",)


def fix_of(error: ValidationError) -> str | None:
    return problem(Document("", {}), error.errors()[0]).fix
