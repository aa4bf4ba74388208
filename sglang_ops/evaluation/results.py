"""The results of an evaluation on disk: their schema, reading, writing, validation.

``<output_dir>/<run>/run.json`` describes the run; ``<output_dir>/<run>/<task>/`` holds ``results.json`` and
``samples.jsonl``, one line per item and repeat. Files and folders appear by a rename, never half-written; what a run
could not finish says so itself (`complete`, `incomplete_because`). docs/evaluation-results.md is written for readers.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from sglang_ops.errors import UsageError

SCHEMA: Final = 1
RUN_FILE, RESULT_FILE, SAMPLES_FILE = "run.json", "results.json", "samples.jsonl"
_HOW_MADE = "Fetch the run again, or name another one."


class ResultError(UsageError):
    """A folder or file of results is not what it should be."""


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
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the data as it was read, in hexadecimal digits.")


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


_Kind = TypeVar("_Kind", bound=BaseModel)


def locate(run: str, output_dir: Path | None = None) -> Path:
    """The folder of a run, which is given as a directory or by its name below `output_dir`. Raises ResultError."""
    candidates = [Path(run)] if output_dir is None or "/" in run else [Path(run), output_dir / run]
    for path in candidates:
        if (path / RUN_FILE).is_file():
            return path
    there = next((path for path in candidates if path.exists()), None)
    if there is not None:
        raise ResultError(f"{there} is no folder of an evaluation: it has no {RUN_FILE}.", fix="Name a run's folder.")
    below = f" and {output_dir} has none of that name" if output_dir is not None and "/" not in run else ""
    raise ResultError(
        f"There is no run {run}: it is no directory{below}.", fix="Give the run's folder, or --output-dir."
    )


def read(path: Path) -> Run:
    """Read a run's folder and check it. Raises ResultError with the file, and the line of samples."""
    info = read_info(path)
    tasks = tuple(read_task(path, name) for name in info.tasks if (path / name).is_dir())
    for task in tasks:
        if task.result.run != info.run:
            where = path / task.result.task / RESULT_FILE
            raise ResultError(f"{where} belongs to the run {task.result.run}, not to {info.run}.", fix=_HOW_MADE)
    return Run(path=path, info=info, tasks=tasks)


def read_info(path: Path) -> RunInfo:
    """Read only run.json of a run's folder. Raises ResultError."""
    return _parse(RunInfo, path / RUN_FILE, _text(path / RUN_FILE))


def read_task(path: Path, task: str) -> Task:
    """Read one task of the run's folder `path`. Raises ResultError."""
    folder = path / task
    result = _parse(TaskResult, folder / RESULT_FILE, _text(folder / RESULT_FILE))
    samples = read_samples(folder / SAMPLES_FILE)
    if result.task != task:
        raise ResultError(f"{folder / RESULT_FILE} is of the task {result.task}, not of {task}.", fix=_HOW_MADE)
    if len(samples) != result.asked:
        raise ResultError(
            f"{folder / SAMPLES_FILE} holds {len(samples)} answers, {RESULT_FILE} speaks of {result.asked}: "
            "one of them was changed.",
            fix=_HOW_MADE,
        )
    return Task(result=result, samples=samples)


def read_samples(file: Path) -> tuple[Sample, ...]:
    """Read samples.jsonl. Raises ResultError with the line."""
    text = _text(file)
    if text and not text.endswith("\n"):
        raise ResultError(f"{file} is cut off in line {text.count(chr(10)) + 1}.", fix=_HOW_MADE)
    # Not splitlines(): an answer may hold characters that it takes for line ends.
    samples = tuple(
        _parse(Sample, file, line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    )
    seen: set[tuple[str, int]] = set()
    for sample in samples:
        if (sample.id, sample.repeat) in seen:
            raise ResultError(f"{file} has item {sample.id}, repeat {sample.repeat} twice.", fix=_HOW_MADE)
        seen.add((sample.id, sample.repeat))
    return samples


def write_info(path: Path, info: RunInfo) -> None:
    """Write run.json into the run's folder `path`, in one step. Raises ResultError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _write(path / RUN_FILE, _json(info, indent=2) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def write_task(path: Path, result: TaskResult, samples: Iterable[Sample]) -> Path:
    """Write a task's folder below the run's folder `path`; an older one of the task is replaced. In one step: until
    everything is on the disk, readers see what was there before. Raises ResultError."""
    lines = [_json(sample) + "\n" for sample in samples]
    if len(lines) != result.asked:
        raise ResultError(f"task {result.task} has {len(lines)} answers, its result speaks of {result.asked}.")
    folder = path / result.task
    made = path / f".{result.task}.{secrets.token_hex(4)}"
    try:
        made.mkdir(parents=True)
        _write(made / SAMPLES_FILE, "".join(lines))
        _write(made / RESULT_FILE, _json(result, indent=2) + "\n")
        _exchange(made, folder)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _exchange(made: Path, folder: Path) -> None:
    """Put `made` in the place of `folder`. What else lay in the old folder (raw files of the harness) is kept."""
    old = made.with_name(made.name + ".old")
    if folder.exists():
        for extra in folder.iterdir():
            if extra.name not in {RESULT_FILE, SAMPLES_FILE}:
                extra.rename(made / extra.name)
        folder.rename(old)
    made.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write(file: Path, text: str) -> None:
    """By a rename, with mode 0644 less the umask, on the disk when it returns."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json(part: BaseModel, indent: int | None = None) -> str:
    data = part.model_dump(mode="json", by_alias=True)
    # Half a surrogate pair in a model's answer has no form in UTF-8, an escaped one has.
    text = json.dumps(data, ensure_ascii=False, indent=indent, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ResultError(f"{file} is not there: the task was not brought home whole.", fix=_HOW_MADE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{file} cannot be read: {error}.", fix=_HOW_MADE) from error


def _parse(kind: type[_Kind], file: Path, text: str, line: int | None = None) -> _Kind:
    where = f"{file}, line {line}," if line else f"{file}"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ResultError(f"{where} is no JSON, or only a part of it: {error}.", fix=_HOW_MADE) from error
    if isinstance(data, dict) and line is None and data.get("schema") != SCHEMA:
        fix = "Read it with the version of sglang-ops that wrote it."
        raise ResultError(f"{where} has schema {data.get('schema')}, this version reads schema {SCHEMA}.", fix=fix)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ResultError(f"{where} is wrong: {_sentence(error.errors())}.", fix=_HOW_MADE) from error


def _sentence(errors: Sequence[Any]) -> str:
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"


def _unwritable(path: Path, error: OSError) -> ResultError:
    fix = "Choose another directory with --output-dir, or make room."
    return ResultError(f"Results cannot be written to {path}: {error.strerror or error}.", fix=fix)
