"""What the hosts brought home, put together: one folder per run, every item once, complete or marked incomplete."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sglang_ops import identity
from sglang_ops.errors import OpsError
from sglang_ops.evaluation import groups, results, scoring
from sglang_ops.evaluation.results import Dataset, Harness, ModelInfo, RunInfo, Sample, TaskResult, Timings
from sglang_ops.spec.secret_flags import without_secrets

_RAW = "harness"  # what the harness itself said, kept beside the results
_RAW_FILES = (f"{_RAW}.json", "results.yml")


@dataclass(frozen=True)
class Part:
    """What one host brought of a run, unpacked. `state` is the run's on that host."""

    host: str
    path: Path
    state: str
    why: str = ""

    def read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return content

    def samples(self, task: str) -> list[Sample]:
        file = self.path / "results" / task / "samples.jsonl"
        return list(results.read_samples(file)) if file.exists() else []


def unpack(archive: Path, target: Path) -> Path:
    """Unpack what a host sent. Raises OpsError."""
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise OpsError(f"{archive.name} cannot be unpacked: {error}.", fix="Fetch the run again.") from error
    return target


def assemble(folder: Path, run: str, parts: Sequence[Part], lost: Mapping[str, str]) -> RunInfo:
    """Write `folder` from the parts of one run. `lost` are hosts that brought nothing, and why. Raises OpsError."""
    if not parts:
        raise OpsError(f"No host brought anything of the run {run}.")
    job = parts[0].read("job.json")
    names = [task["name"] for task in job["tasks"]]
    written = [_task(folder, run, task, parts, lost) for task in job["tasks"]]
    digests = {part.read("job.json")["server"]["image_digest"] for part in parts}
    model = job["server"]["model"]
    started = min(datetime.fromtimestamp(part.read("job.json")["created"], UTC) for part in parts)
    info = RunInfo(
        schema=results.SCHEMA,
        run=run,
        who=identity.user(),
        started=started.isoformat(timespec="seconds"),
        ended=max((task.timings.ended for task in written if task and task.timings.ended), default=None),
        complete=all(task is not None and task.complete for task in written),
        deployment=job["deployment"],
        model=ModelInfo(name=job["model"], repo=model.get("repo"), revision=model.get("commit")),
        image_digest=next(iter(digests)) if len(digests) == 1 else None,
        server_arguments=_arguments(parts[0]),
        hosts=tuple(dict.fromkeys(host for part in parts for host in _asked(part))),
        tasks=tuple(names),
        harness=_harness(parts),
        parameters={
            **{task["name"]: _parameters(task) for task in job["tasks"]},
            "concurrency": job["concurrency"],
            **_other_arguments(parts),
        },
        groups=tuple(groups.score(one, [task for task in written if task]) for one in job.get("groups") or ()),
    )
    results.write_info(folder, info)
    return info


def _task(
    folder: Path, run: str, task: Mapping[str, Any], parts: Sequence[Part], lost: Mapping[str, str]
) -> TaskResult | None:
    name = task["name"]
    checked = [found for part in parts if (found := part.read("checked.json").get("tasks", {}).get(name))]
    if not checked:
        return None
    once: dict[tuple[str, int], Sample] = {}
    # Where two hosts asked an item, one that was answered counts before one that failed.
    for sample in sorted((one for part in parts for one in part.samples(name)), key=lambda one: one.failed is not None):
        once.setdefault((sample.id, sample.repeat), sample)
    samples = sorted(once.values(), key=lambda sample: (*_place(sample.id), sample.repeat))
    over = all(part.read("status.json").get("tasks", {}).get(name, {}).get("scored") for part in parts)
    items, repeats = checked[0]["items"], int(checked[0]["repeats"])
    if items is None:  # only the harness knows them
        items = len({sample.id for sample in samples})
        missing = 0 if over and items else 1
    else:
        missing = items * repeats - len(samples)
    metrics, counts = scoring.measure(samples), scoring.count(samples)
    primary = checked[0]["primary"] or (metrics[0].name if metrics else "")
    chosen = next((metric for metric in metrics if metric.name == primary), metrics[0] if metrics else None)
    why = _data(name, parts) or (_why(missing, parts, lost) if missing else None)
    why = why or (None if chosen else f"none of {len(samples)} answers could be scored")
    result = TaskResult(
        schema=results.SCHEMA,
        run=run,
        task=name,
        harness_task=task["harness_task"],
        harness=_harness(parts, task),
        dataset=_dataset(checked[0]["dataset"], samples),
        primary=chosen.name if chosen else primary,
        metrics=metrics,
        score=chosen.score if chosen else None,
        interval=chosen.interval if chosen else None,
        items=items,
        answered=counts.answered,
        failed=counts.failed,
        empty=counts.empty,
        reasoning_only=counts.reasoning_only,
        timings=_timings(parts, name),
        hosts=tuple(host for part in parts for host in _asked(part) if any(one.host == host for one in samples)),
        complete=not why,
        incomplete_because=why,
    )
    place = results.write_task(folder, result, samples)
    for part in parts:
        for raw in (part.path / "results" / name / file for file in _RAW_FILES):
            if raw.exists():
                shutil.copyfile(raw, place / f"{raw.stem}-{part.host}{raw.suffix}")
    return result


def _dataset(known: Mapping[str, Any], samples: Sequence[Sample]) -> Dataset:
    """What was asked. Data that only the harness has read is known by its questions and the answers to them."""
    if known["sha256"]:
        return Dataset(**known)
    digest = hashlib.sha256()
    for sample in samples:
        if sample.repeat == 0:
            digest.update(json.dumps([sample.id, sample.prompt, sample.expected]).encode() + b"\n")
    return Dataset(**{**known, "sha256": digest.hexdigest()})


def _asked(part: Part) -> list[str]:
    """The hosts whose servers a part's items were put to: its own, or those that a run of this machine asked."""
    servers = part.read("job.json").get("upstreams") or []
    return list(dict.fromkeys(server.get("host") or part.host for server in servers)) or [part.host]


def _place(name: str) -> tuple[str, int]:
    """Where an item stands among others: `7`, or `subtask:7`."""
    subtask, _, number = name.rpartition(":")
    return subtask, int(number)


def _data(task: str, parts: Sequence[Part]) -> str | None:
    """That the hosts had not the same items, and so no score in common. None where they had."""
    had: dict[str, str] = {}
    for part in parts:
        known = part.read("checked.json").get("tasks", {}).get(task, {}).get("dataset") or {}
        if known.get("sha256"):
            had[part.host] = str(known["sha256"])[:12]
    if len(set(had.values())) < 2:
        return None
    return (
        f"the hosts do not have the same data: {', '.join(f'{host} has {sha}' for host, sha in had.items())} (SHA-256)"
    )


def _why(missing: int, parts: Sequence[Part], lost: Mapping[str, str]) -> str:
    reasons = [f"{host}: {why}" for host, why in lost.items()]
    reasons += [f"{part.host}: {part.why or part.state}" for part in parts if part.state != "done"]
    return f"{missing} answers are missing ({'; '.join(reasons) or 'a host of the run was left out'})"


def _timings(parts: Sequence[Part], task: str) -> Timings:
    spent = [part.read(f"results/{task}/{_RAW}.json").get("timings") or {} for part in parts]
    known = [one for one in spent if one]
    return Timings(
        started=min((one["started"] for one in known), default=datetime.now(UTC).isoformat(timespec="seconds")),
        ended=max((one["ended"] for one in known), default=None),
        seconds=round(max((one["seconds"] for one in known), default=0.0), 2),
    )


def _harness(parts: Sequence[Part], task: Mapping[str, Any] | None = None) -> Harness:
    """Who ran a task; without one, the run: all of its harnesses."""
    job = parts[0].read("job.json")
    found: dict[tuple[str, str, str | None], None] = {}
    for one in [task] if task else job["tasks"]:
        named: dict[str, Any] = next(
            (
                known.get("harness", {})
                for part in parts
                if (known := part.read("checked.json").get("tasks", {}).get(one["name"]))
            ),
            {},
        )
        image = job["images"][one["stage"]] if "images" in job else job.get("image")
        found[named.get("name", "lm-evaluation-harness"), named.get("version", ""), image] = None
    names, versions, images = zip(*found, strict=True)
    return Harness(
        name=" + ".join(dict.fromkeys(names)),
        version=" + ".join(versions),
        image=images[0] if len(found) == 1 else None,
    )


def _arguments(part: Part) -> tuple[str, ...]:
    return tuple(without_secrets(tuple(part.read("job.json")["server"]["argv"]), lambda _: "(hidden)"))


def _other_arguments(parts: Sequence[Part]) -> dict[str, Any]:
    """Each host's server arguments, where they are not the same."""
    had = {part.host: " ".join(_arguments(part)) for part in parts}
    return {"server_arguments": had} if len(set(had.values())) > 1 else {}


def _parameters(task: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "limit", "repeats", "num_fewshot", "seed", "endpoint_type", "parallelism", "generation", "request_timeout",
        "max_retries", "extra",
    )  # fmt: skip
    return {key: task[key] for key in keys if task.get(key) not in (None, {})}
