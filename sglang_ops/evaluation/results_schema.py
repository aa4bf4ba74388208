"""What the files of an evaluation's results hold. docs/evaluation-results.md is written for readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

SCHEMA: Final = 1


def _plain_name(value: str) -> str:
    if not value or value in {".", ".."} or "/" in value or value.startswith(".") or value != value.strip():
        raise ValueError("must be usable as the name of a folder")
    return value


Name = Annotated[str, AfterValidator(_plain_name)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Interval = tuple[FiniteFloat, FiniteFloat]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Harness(_Part):
    """The program that asked and scored."""

    name: str = Field(description="Name, such as lm-evaluation-harness.")
    version: str = Field(description="Its version.")
    image: str | None = Field(default=None, description="Image with digest that it ran in; null outside a container.")


class Dataset(_Part):
    """The questions. Two runs are compared only over data of the same sha256."""

    name: str = Field(description="Hub id or the user's name for it.")
    revision: str | None = Field(default=None, description="Revision on the hub; null for local data.")
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="Of the data as it was read; where only the harness reads it, of questions and answers.",
    )


class ModelInfo(_Part):
    """The model that answered."""

    name: str = Field(description="Name under which it is served.")
    repo: str | None = Field(default=None, description="Repository on the hub; null for a local path.")
    revision: str | None = Field(default=None, description="Commit of the repository; null where unknown.")


class Timings(_Part):
    """When a task ran. Times are ISO 8601 with offset."""

    started: str
    ended: str | None = Field(default=None, description="null while it runs.")
    seconds: Seconds = Field(description="Time spent at work, in seconds, without interruptions.")


class Metric(_Part):
    """One score with its confidence interval."""

    name: str
    score: FiniteFloat = Field(description="In the unit of the metric, most often a share between 0 and 1.")
    items: Count = Field(description="Distinct items that have this score.")
    interval: Interval = Field(description="Lower and upper end, in the unit of the score.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of the interval.")
    method: str = Field(description="How the interval was made, such as wilson.")

    @model_validator(mode="after")
    def _ordered(self) -> Metric:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval {list(self.interval)} begins above its end")
        return self


class Sample(_Part):
    """One answer: one item, one repeat."""

    id: str = Field(description="The item, the same in every run over the same data.")
    repeat: Count = Field(default=0, description="Which time the item was asked, from 0.")
    host: str = Field(description="Host that answered, as the inventory names it.")
    category: str | None = Field(default=None, description="Group of the item, such as a subject.")
    prompt: str = Field(description="What was asked, as text.")
    answer: str | None = Field(default=None, description="What was answered; null where no content came.")
    reasoning: str | None = Field(default=None, description="Reasoning content, where the server gives it apart.")
    expected: str | None = Field(default=None, description="The right answer, where there is one.")
    scores: dict[str, FiniteFloat] = Field(default_factory=dict, description="Per metric; without an entry: no score.")
    weights: dict[str, Annotated[FiniteFloat, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Per metric, how much the score counts, such as the number of instructions; 1 where left out.",
    )
    failed: str | None = Field(default=None, description="Why the request failed for good; null where it did not.")
    finish_reason: str | None = Field(default=None, description="As the server said: stop, length, …")
    latency_seconds: Seconds | None = Field(default=None, description="Of the attempt that answered, in seconds.")
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    attempts: Count = Field(default=1, description="Requests sent for this answer, repeats after errors included.")


class TaskResult(_Part):
    """``results.json``: one task of a run. Counts of answers are of items × repeats, `items` is of distinct items."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    run: Name
    task: Name = Field(description="The task, as the deployment file names it; also the name of its folder.")
    harness_task: str = Field(description="What the harness calls it.")
    harness: Harness
    dataset: Dataset
    primary: str = Field(description="Name of the metric that `score` repeats.")
    metrics: tuple[Metric, ...]
    score: FiniteFloat | None = Field(description="Of the primary metric; null where nothing was scored.")
    interval: Interval | None = Field(description="Of the primary metric.")
    items: Count = Field(description="Distinct items that were to be asked.")
    answered: Count = Field(description="Answers that came, empty ones included.")
    failed: Count = Field(description="Requests that failed for good.")
    empty: Count = Field(default=0, description="Answers without content and without reasoning.")
    reasoning_only: Count = Field(default=0, description="Answers without content that have reasoning.")
    timings: Timings
    hosts: tuple[str, ...]
    complete: bool = Field(description="Whether every item was asked, whether or not it was answered.")
    incomplete_because: str | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _coherent(self) -> TaskResult:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ValueError("two metrics have one name")
        if names and self.primary not in names:
            raise ValueError(f"primary metric '{self.primary}' is not among the metrics: {', '.join(names)}")
        if self.empty + self.reasoning_only > self.answered:
            raise ValueError(f"{self.empty} empty and {self.reasoning_only} reasoning-only of {self.answered} answers")
        if self.complete == bool(self.incomplete_because):
            raise ValueError("incomplete_because says why a result is incomplete, and is null where it is complete")
        return self

    def metric(self, name: str | None = None) -> Metric | None:
        """The metric of that name, else the primary one; None where it was not measured."""
        return next((metric for metric in self.metrics if metric.name == (name or self.primary)), None)

    @property
    def asked(self) -> int:
        """Lines of samples.jsonl."""
        return self.answered + self.failed


class Group(_Part):
    """Tasks that were named together, with the means that the group asks for."""

    name: str
    tasks: tuple[str, ...] = Field(description="Its tasks; each has results of its own.")
    metrics: tuple[Metric, ...] = Field(default=(), description="Its means; none for a tag.")
    complete: bool = Field(description="Whether all of its tasks are.")


class RunInfo(_Part):
    """``run.json``: what was evaluated, by whom, on which hosts. Times are ISO 8601 with offset."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    run: Name
    who: str
    started: str
    ended: str | None = Field(default=None, description="null while it runs.")
    complete: bool = Field(description="Whether every task is complete.")
    deployment: str
    model: ModelInfo
    image_digest: str | None = Field(default=None, description="Of the server's image; null where the hosts disagree.")
    server_arguments: tuple[str, ...] = Field(
        default=(), description="Full argument list of the server, without secrets."
    )
    hosts: tuple[str, ...]
    tasks: tuple[Name, ...]
    harness: Harness
    parameters: dict[str, Any] = Field(default_factory=dict, description="Settings of the run, without secrets.")
    groups: tuple[Group, ...] = Field(default=(), description="Groups of tasks that the deployment file names.")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Task(_Part):
    """A task as it was read from its folder."""

    result: TaskResult
    samples: tuple[Sample, ...]


class Run(_Part):
    """A run as it was read from its folder, with the tasks that have arrived, in their order."""

    path: Path
    info: RunInfo
    tasks: tuple[Task, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Tasks of the run of which nothing has arrived."""
        there = {task.result.task for task in self.tasks}
        return tuple(name for name in self.info.tasks if name not in there)

    def task(self, name: str) -> Task | None:
        return next((task for task in self.tasks if task.result.task == name), None)
