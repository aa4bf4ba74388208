"""Run with the Python of NVIDIA's evaluator: is the task there, and its data? One line of JSON on stdout."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.resources
import json
import sys
from typing import Any

from .lmeval import cause, check_sentences, described
from .task import Problem


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """{"version", "dataset": {"name", "revision", "sha256", "items"}}. Raises Problem.

    Of data that only the harness knows, neither hash nor items.
    """
    try:
        version = importlib.metadata.version(asked["distribution"])
        framework = (importlib.resources.files(f"core_evals.{asked['package']}") / "framework.yml").read_text()
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        raise Problem(f"the image has no {asked['distribution']}. Correct evaluation.nvidia_images.") from None
    if not any(line.split("#")[0].strip().strip("'\"") == asked["task"] for line in _types(framework)):
        raise Problem(f"{asked['distribution']} {version} of the image has no task {asked['task']}.")
    if asked["task"] == "ifeval":
        check_sentences()
    return {"version": version, "dataset": _dataset(asked)}


def _types(framework: str) -> list[str]:
    lines = (line.strip() for line in framework.splitlines())
    return [line.partition("type:")[2] for line in lines if line.startswith("type:")]


def _dataset(asked: dict[str, Any]) -> dict[str, Any]:
    if not asked.get("data"):
        return {"name": asked["task"], "revision": None, "sha256": None, "items": None}
    import datasets  # noqa: PLC0415 - the image has it

    name, configuration, split = asked["data"]
    try:
        rows = datasets.load_dataset(name, configuration)[split]
    except Exception as error:
        raise Problem(cause(error, name)) from error
    return {**described(name, rows), "items": len(rows)}


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        try:
            told = look(json.loads(sys.argv[1]))
        except Problem as problem:
            told = {"problem": str(problem)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
