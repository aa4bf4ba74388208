"""The results of an evaluation on disk: reading, writing, validation.

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
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sglang_ops.errors import UsageError
from sglang_ops.evaluation.results_schema import (
    SCHEMA,
    Dataset,
    Group,
    Harness,
    Metric,
    ModelInfo,
    Run,
    RunInfo,
    Sample,
    Task,
    TaskResult,
    Timings,
)

__all__ = [
    "RESULT_FILE",
    "RUN_FILE",
    "SAMPLES_FILE",
    "SCHEMA",
    "Dataset",
    "Group",
    "Harness",
    "Metric",
    "ModelInfo",
    "ResultError",
    "Run",
    "RunInfo",
    "Sample",
    "Task",
    "TaskResult",
    "Timings",
    "locate",
    "read",
    "read_info",
    "read_samples",
    "read_task",
    "write_info",
    "write_task",
]

RUN_FILE, RESULT_FILE, SAMPLES_FILE = "run.json", "results.json", "samples.jsonl"
_HOW_MADE = "Fetch the run again, or name another one."


class ResultError(UsageError):
    """A folder or file of results is not what it should be."""


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
