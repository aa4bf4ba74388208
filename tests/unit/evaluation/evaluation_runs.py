"""Runs of evaluations for tests, written as the program writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sglang_ops.evaluation import results

SHA = "a" * 64
HARNESS = results.Harness(name="lm-evaluation-harness", version="0.4.13")


def sample(number: int, score: float | None = 1.0, **keys: Any) -> results.Sample:
    settings: dict[str, Any] = {
        "id": f"item-{number}", "host": "gpu-1", "category": "physics" if number % 2 else "biology",
        "prompt": f"Question {number}", "answer": "A" if score else "B", "expected": "A",
        "scores": {} if score is None else {"exact_match": score}, "finish_reason": "stop",
        "latency_seconds": 0.5 + number / 100, "prompt_tokens": 100 + number, "completion_tokens": 10 + number,
    }  # fmt: skip
    return results.Sample(**{**settings, **keys})


def result(samples: Sequence[results.Sample], task: str = "gpqa_diamond", **keys: Any) -> results.TaskResult:
    failed = sum(item.failed is not None for item in samples)
    scored = [item.scores["exact_match"] for item in samples if "exact_match" in item.scores]
    score = sum(scored) / len(scored) if scored else None
    metrics = [
        {"name": "exact_match", "score": score, "items": len(scored), "interval": [0, 1], "method": "wilson"}
    ] if scored else []  # fmt: skip
    settings: dict[str, Any] = {
        "run": "20261123-010203-evaluate-ab12", "task": task, "harness_task": f"{task}_cot_zeroshot",
        "harness": HARNESS, "dataset": {"name": "Idavidrein/gpqa", "revision": None, "sha256": SHA},
        "primary": "exact_match", "metrics": metrics, "score": score, "interval": [0, 1] if scored else None,
        "items": len({item.id for item in samples}), "answered": len(samples) - failed, "failed": failed,
        "timings": {"started": "2026-11-23T01:02:03+00:00", "ended": "2026-11-23T01:03:03+00:00", "seconds": 60.0},
        "hosts": ["gpu-1"], "complete": True,
    }  # fmt: skip
    return results.TaskResult(**{**settings, **keys})


def info(tasks: Sequence[str] = ("gpqa_diamond",), **keys: Any) -> results.RunInfo:
    settings: dict[str, Any] = {
        "run": "20261123-010203-evaluate-ab12", "who": "ops", "started": "2026-11-23T01:02:03+00:00",
        "ended": "2026-11-23T01:03:03+00:00", "complete": True, "deployment": "llama",
        "model": {"name": "llama-3.1-8b", "repo": "meta-llama/Llama-3.1-8B-Instruct", "revision": "0e9e39f249a1"},
        "image_digest": "sha256:" + "1" * 64, "server_arguments": ["--tp-size", "1"], "hosts": ["gpu-1"],
        "tasks": list(tasks), "harness": HARNESS, "parameters": {"temperature": 0.0},
    }  # fmt: skip
    return results.RunInfo(**{**settings, **keys})


def write(
    path: Path, scores: Sequence[float | None], change: Callable[[int], dict[str, Any]] = lambda _: {}, **keys: Any
) -> Path:
    """A run of one task with these scores, in the folder `path`; `keys` are the result's."""
    name = keys.setdefault("run", path.name)
    samples = [sample(number, score, **change(number)) for number, score in enumerate(scores)]
    done = result(samples, **keys)
    results.write_info(path, info((done.task,), run=name))
    results.write_task(path, done, samples)
    return path
