"""May this release go out? A policy file and the results of its evaluation give GO, NO-GO or INCONCLUSIVE.

`decide` is pure: a roll-out can call it as the command line does. Limits are held against one-sided confidence
bounds: GO where the whole interval keeps a limit, NO-GO where the whole interval breaks it, else INCONCLUSIVE. With
`confidence: 0.5` the bounds are the score itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from sglang_ops.errors import UsageError
from sglang_ops.evaluation import compare, scoring, statistics
from sglang_ops.evaluation.results import Run, Task
from sglang_ops.spec.problems import SpecErrors, SpecProblem, nearest
from sglang_ops.spec.yamlfile import Document, parse

MAX_FAILED = 0.01


class PolicyError(UsageError):
    """The policy does not fit the results that it shall judge."""


class Verdict(StrEnum):
    """What a limit, or all of them, say."""

    GO = "GO"
    NO_GO = "NO-GO"
    INCONCLUSIVE = "INCONCLUSIVE"


EXIT_CODES: Mapping[Verdict, int] = {Verdict.GO: 0, Verdict.NO_GO: 1, Verdict.INCONCLUSIVE: 2}


class Tier(StrEnum):
    """critical: must be shown to be good. supporting: must not be shown to be bad. advisory: only shown."""

    CRITICAL = "critical"
    SUPPORTING = "supporting"
    ADVISORY = "advisory"


class Rule(BaseModel):
    """The limits of one task. What is left out comes from `defaults`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tier: Tier | None = Field(default=None, description="critical where left out.")
    metric: str | None = Field(default=None, description="The task's primary metric where left out.")
    min_score: FiniteFloat | None = Field(default=None, description="Least score, in the unit of the metric.")
    max_drop: Annotated[FiniteFloat, Field(ge=0)] | None = Field(
        default=None, description="Most that the score may be below the baseline's, in the unit of the metric."
    )
    max_failed: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = Field(
        default=None, description=f"Most requests that may fail for good, as a share. {MAX_FAILED} where left out."
    )

    def over(self, defaults: Rule) -> Rule:
        """This rule with the gaps filled."""
        return Rule(**{**defaults.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})


class Policy(BaseModel):
    """A policy file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    confidence: Annotated[FiniteFloat, Field(ge=0.5, lt=1)] = Field(
        default=0.95, description="One-sided: how sure a GO and a NO-GO are. 0.5 judges the scores themselves."
    )
    defaults: Rule = Rule()
    tasks: Annotated[dict[str, Rule], Field(min_length=1)]

    def rule(self, task: str) -> Rule:
        return self.tasks[task].over(self.defaults)


@dataclass(frozen=True)
class Criterion:
    """One limit and what the results say to it. `value` and `interval` are in the unit of the limit."""

    task: str
    tier: Tier
    name: str  # min_score, max_drop, max_failed, complete
    metric: str | None
    verdict: Verdict
    limit: float | None
    value: float | None
    interval: tuple[float, float] | None
    why: str

    @property
    def blocks(self) -> bool:
        """Whether it keeps the whole from being a GO."""
        if self.tier is Tier.SUPPORTING:
            return self.verdict is Verdict.NO_GO
        return self.tier is Tier.CRITICAL and self.verdict is not Verdict.GO


@dataclass(frozen=True)
class Decision:
    """The verdict over all criteria, and the tasks of the run that the policy says nothing of."""

    verdict: Verdict
    run: str
    baseline: str | None
    criteria: tuple[Criterion, ...]
    unjudged: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 GO, 1 NO-GO, 2 INCONCLUSIVE."""
        return EXIT_CODES[self.verdict]

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": str(self.verdict),
            "run": self.run,
            "baseline": self.baseline,
            "criteria": [{**asdict(item), "blocks": item.blocks} for item in self.criteria],
            "unjudged": list(self.unjudged),
        }


def load(path: Path) -> Policy:
    """Read a policy file. Raises SpecErrors with every mistake and its line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SpecErrors(str(path), [SpecProblem("", None, f"cannot be read: {why}.")]) from error
    document = parse(text, str(path), fix="Begin with `tasks:` and the name of a task.")
    try:
        policy = Policy.model_validate(document.data)
    except ValidationError as error:
        raise SpecErrors(str(path), [_problem(document, detail) for detail in error.errors()]) from error
    problems = []
    for name in policy.tasks:
        rule = policy.rule(name)
        if rule.min_score is None and rule.max_drop is None:
            line, fix = document.line(f"tasks.{name}"), "Write min_score or max_drop."
            problems.append(SpecProblem(f"tasks.{name}", line, "has neither min_score nor max_drop.", fix))
    if not problems and all(policy.rule(name).tier is Tier.ADVISORY for name in policy.tasks):
        fix = "Make one critical or supporting."
        problems = [SpecProblem("tasks", document.line("tasks"), "are all advisory: the gate is always open.", fix)]
    if problems:
        raise SpecErrors(str(path), problems)
    return policy


def decide(run: Run, baseline: Run | None, policy: Policy) -> Decision:
    """Judge `run`, where a rule has max_drop against `baseline`. Raises PolicyError where a rule cannot be applied,
    ResultError where the baseline was measured over other data."""
    known = run.info.tasks
    for name in policy.tasks:
        if name not in known:
            raise PolicyError(
                f"The policy names the task {name}; {run.info.run} has {', '.join(known)}.",
                fix=nearest(name, known) or "Evaluate that task too, or take it out of the policy.",
            )
    criteria = tuple(item for name in policy.tasks for item in _judge(run, baseline, name, policy))
    blocking = [item.verdict for item in criteria if item.blocks]
    verdict = Verdict.NO_GO if Verdict.NO_GO in blocking else Verdict.INCONCLUSIVE if blocking else Verdict.GO
    return Decision(
        verdict=verdict,
        run=run.info.run,
        baseline=baseline.info.run if baseline else None,
        criteria=criteria,
        unjudged=tuple(name for name in known if name not in policy.tasks),
    )


def _judge(run: Run, baseline: Run | None, name: str, policy: Policy) -> Iterator[Criterion]:
    rule, task = policy.rule(name), run.task(name)
    tier = rule.tier or Tier.CRITICAL
    if task is None or not task.result.complete:
        why = (task.result.incomplete_because if task else None) or "nothing of it has arrived"
        yield Criterion(name, tier, "complete", None, Verdict.INCONCLUSIVE, None, None, None, why)
    if task is None:
        return
    yield _failed(task, rule, tier)
    metric = rule.metric or task.result.primary
    observed = scoring.observations(task.samples, metric)
    if not observed:
        _check_metric(task, metric)
    if rule.min_score is not None:
        yield _min_score(task, metric, rule.min_score, tier, policy.confidence)
    if rule.max_drop is not None:
        yield _max_drop(run, baseline, task, metric, rule.max_drop, tier, policy.confidence)


def _check_metric(task: Task, metric: str) -> None:
    known = [item.name for item in task.result.metrics]
    if metric not in known and known:
        raise PolicyError(
            f"The policy names the metric {metric} of {task.result.task}, which has {', '.join(known)}.",
            fix=nearest(metric, known) or "Name one of these, or leave it out for the primary one.",
        )


def _failed(task: Task, rule: Rule, tier: Tier) -> Criterion:
    limit = MAX_FAILED if rule.max_failed is None else rule.max_failed
    failed, asked = task.result.failed, task.result.asked
    share = failed / asked if asked else 0.0
    verdict = Verdict.GO if share <= limit else Verdict.NO_GO
    why = f"{failed} of {asked} requests failed ({share:.1%}), {limit:.1%} may"
    return Criterion(task.result.task, tier, "max_failed", None, verdict, limit, share, None, why)


def _min_score(task: Task, metric: str, limit: float, tier: Tier, confidence: float) -> Criterion:
    name, observed = task.result.task, scoring.observations(task.samples, metric)
    if not observed:
        why = f"no item has a score of {metric}"
        return Criterion(name, tier, "min_score", metric, Verdict.INCONCLUSIVE, limit, None, None, why)
    if limit > 1 and all(0 <= score <= 1 for seen in observed.values() for score, _ in seen):
        raise PolicyError(
            f"The policy wants min_score {limit:g} of {name}, where {metric} lies between 0 and 1.",
            fix=f"Write {limit / 100:g}." if limit <= 100 else None,
        )
    found = statistics.estimate(observed, 2 * confidence - 1)
    low, high = found.interval
    verdict = Verdict.GO if low >= limit else Verdict.NO_GO if high < limit else Verdict.INCONCLUSIVE
    why = f"{metric} {_shown(found.score)} [{_shown(low)}, {_shown(high)}], at least {_shown(limit)} is asked"
    if _alone(found.items, low, high):
        verdict, why = Verdict.INCONCLUSIVE, f"{metric} {_shown(found.score)} of one item: {_NO_INTERVAL}"
    return Criterion(name, tier, "min_score", metric, verdict, limit, found.score, found.interval, why)


def _max_drop(
    run: Run, baseline: Run | None, task: Task, metric: str, limit: float, tier: Tier, confidence: float
) -> Criterion:
    name = task.result.task
    if baseline is None:
        fix = "Give the run to compare with: --baseline RUN."
        raise PolicyError(f"The policy limits the drop of {name}, and there is no baseline.", fix=fix)
    if not scoring.observations(task.samples, metric):
        why = f"no item has a score of {metric}"
        return Criterion(name, tier, "max_drop", metric, Verdict.INCONCLUSIVE, limit, None, None, why)
    before, after = compare.both(baseline, run, name)
    found = compare.compare_task(before, after, metric, 2 * confidence - 1).difference
    drop, low, high = 0.0 - found.difference, 0.0 - found.interval[1], 0.0 - found.interval[0]
    verdict = Verdict.GO if high <= limit else Verdict.NO_GO if low > limit else Verdict.INCONCLUSIVE
    why = f"{metric} {_shown(found.first)} → {_shown(found.second)}, a drop of {_shown(drop)} "
    why += f"[{_shown(low)}, {_shown(high)}] over {found.items} items, at most {_shown(limit)} is allowed"
    if _alone(found.items, low, high):
        verdict, why = Verdict.INCONCLUSIVE, f"{metric} dropped by {_shown(drop)} on one item: {_NO_INTERVAL}"
    return Criterion(name, tier, "max_drop", metric, verdict, limit, drop, (low, high), why)


_NO_INTERVAL = "how far another's may lie is not known"


def _alone(items: int, low: float, high: float) -> bool:
    """Whether an interval has no width because there is but one item, of a metric without bounds."""
    return items == 1 and low == high


def _shown(value: float) -> str:
    return f"{value:.3f}"


def _problem(document: Document, detail: Any) -> SpecProblem:
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = list(Policy.model_fields if len(location) == 1 else Rule.model_fields)
        fix = nearest(location[-1], known) or f"Known: {', '.join(known)}."
        return SpecProblem(path, document.line(path), "is not a key of a policy.", fix)
    if detail["type"] == "missing":
        return SpecProblem(path, None, "is missing.", f"Add `{path}:`.")
    message = str(detail["msg"]).replace("Input should be", "must be")
    given = detail.get("input")
    found = f", found {given!r}" if isinstance(given, str | int | float) else ""
    return SpecProblem(path, document.line(path), f"{message}{found}.")
