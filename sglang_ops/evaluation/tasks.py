"""Which task a name means, and what the task needs. The launcher's names are understood; what is ambiguous there is
resolved by preference: lm-evaluation-harness has every task that is run here."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from sglang_ops.errors import UsageError
from sglang_ops.spec.problems import nearest

HARNESS, VERSION = "lm-evaluation-harness", "0.4.13"
# Other harnesses of the launcher's task table (nemo-evaluator-launcher 0.2.6) that know a task by the same name.
_ELSEWHERE = {"gpqa_diamond": ("simple_evals", "codec"), "ifeval": ("codec",)}


@dataclass(frozen=True)
class Task:
    """A task of the harness. `generation` and `defaults` are the launcher's for it, used where a file says nothing."""

    name: str
    harness_task: str
    path: str = ""
    dataset: str = ""
    primary: str = ""
    endpoint: str = "chat"
    items: int | None = None
    gated: bool = False
    needs: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    request_timeout: int = 60


_PAGE = (
    Task(
        "gpqa_diamond",
        "gpqa_diamond_cot_zeroshot",
        path="gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
        dataset="Idavidrein/gpqa",
        primary="exact_match,flexible-extract",
        items=198,
        gated=True,
        needs="HF_TOKEN, or dataset_dir",
        generation={"temperature": 0.0, "top_p": 1e-5, "max_gen_toks": 16384},
    ),
    Task(
        "ifeval",
        "ifeval",
        path="ifeval/ifeval.yaml",
        dataset="google/IFEval",
        primary="prompt_level_strict_acc",
        items=541,
        needs="NLTK's punkt_tab",
        generation={"temperature": 1e-7, "top_p": 0.9999999},
        request_timeout=30,
    ),
)


@cache
def _listed() -> tuple[Mapping[str, Any], frozenset[str]]:
    """The harness's tasks that generate text, {name: [file, data set]}, and the names of all others."""
    packed = (resources.files(__package__) / f"lm_eval-{VERSION}.json.gz").read_bytes()
    content = json.loads(gzip.decompress(packed))
    return content["generating"], frozenset(content["other"])


def known() -> list[Task]:
    """Every task that can be run, those of the page first."""
    rest = [_of_harness(name) for name in sorted(_listed()[0]) if name not in {task.name for task in _PAGE}]
    return [*_PAGE, *rest]


def find(written: str, *, own: bool = False) -> tuple[Task, str | None]:
    """The task of a name such as `ifeval` or `lm-evaluation-harness.ifeval`, and what is to be said about the choice.

    With `own`, a name that the harness has not is a task of the user's. Raises UsageError.
    """
    harness, dot, rest = written.partition(".")
    named = dot and harness in {HARNESS, "lm_eval", *(one for several in _ELSEWHERE.values() for one in several)}
    name = rest if named else written
    if named and harness not in {HARNESS, "lm_eval"}:
        raise UsageError(
            f"evaluation.tasks: '{written}' belongs to {harness}, whose container is not run here.",
            fix=f"Write '{name}': {HARNESS} has it.",
        )
    said = None
    if name in _ELSEWHERE and not named:
        others = ", ".join(f"{other}.{name}" for other in _ELSEWHERE[name])
        said = f"{name} is taken from {HARNESS}; the launcher also knows {others}."
    task = next((task for task in _PAGE if task.name == name), None)
    if task:
        return task, said
    if name in _listed()[0]:
        return _of_harness(name), said
    if own:
        return Task(name, name), None
    if name in _listed()[1]:
        raise UsageError(
            f"evaluation.tasks: '{name}' is a group, runs code, or needs probabilities of given answers, "
            "which SGLang's API does not offer.",
            fix=nearest(name, list(_listed()[0])) or "`sglang-ops evaluate tasks` lists what can be run.",
        )
    names = [*(task.name for task in _PAGE), *_listed()[0]]
    raise UsageError(
        f"evaluation.tasks: there is no task '{name}' in {HARNESS} {VERSION}.",
        fix=nearest(name, names) or "`sglang-ops evaluate tasks` lists them; a task of your own needs dataset_dir.",
    )


def _of_harness(name: str) -> Task:
    path, dataset = _listed()[0][name]
    return Task(name, name, path=path, dataset=str(dataset or ""))
