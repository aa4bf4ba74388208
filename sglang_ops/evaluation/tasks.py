"""Which task a name means, which harness runs it, and what it needs. The launcher's names are understood.

A name that several harnesses know is resolved by preference: NVIDIA's simple-evals, then NVIDIA's
lm-evaluation-harness, where the deployment file asks for them; else lm-evaluation-harness of its package.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from sglang_ops.errors import UsageError
from sglang_ops.evaluation import groups
from sglang_ops.spec.problems import nearest

HARNESS, VERSION = "lm-evaluation-harness", "0.4.13"
NVIDIA = "nvidia"
SIMPLE_EVALS = "simple_evals"
# Another harness of the launcher's task table (nemo-evaluator-launcher 0.2.6) that knows tasks by the same name; what
# it measures is contamination, with probabilities.
_ELSEWHERE = {"gpqa_diamond": ("codec",), "ifeval": ("codec",)}
_UPSTREAM_NAMES = (HARNESS, "lm_eval")
_PLACES = ("simple_evals", HARNESS)  # NVIDIA's, in the order of preference


@dataclass(frozen=True)
class Nvidia:
    """One of NVIDIA's containers: the image's name in the launcher's task table, and what is in it."""

    harness: str
    image: str
    distribution: str
    package: str
    extra: tuple[str, ...]
    tasks: Mapping[str, Mapping[str, Any]]


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
    repeats: int = 1
    nvidia: Nvidia | None = None
    data: tuple[str, str, str] | None = None  # hub id, configuration and split of the data set, where they are known

    @property
    def harness(self) -> str:
        """Who runs it, as people are told."""
        return f"NVIDIA's {self.nvidia.harness}" if self.nvidia else HARNESS


_GPQA, _IFEVAL = "Idavidrein/gpqa", "google/IFEval"
# Data sets of NVIDIA's tasks, looked at before anything is asked: hub id, configuration, split.
_DATA = {
    **{f"gpqa_diamond{kind}": (_GPQA, "gpqa_diamond", "train") for kind in ("", "_nemo", "_cot", "_aa_v2", "_aa_v3")},
    "gpqa_diamond_aa_v2_llama_4": (_GPQA, "gpqa_diamond", "train"),
    "gpqa_extended": (_GPQA, "gpqa_extended", "train"),
    "gpqa_main": (_GPQA, "gpqa_main", "train"),
    "ifeval": (_IFEVAL, "default", "train"),
}

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
def _listed() -> tuple[Mapping[str, Any], frozenset[str], Mapping[str, Any]]:
    """The harness's tasks that generate text, {name: [file, data set]}, the names of all others, and the groups of
    tasks that generate text, {name: [tasks, means]}."""
    packed = (resources.files(__package__) / f"lm_eval-{VERSION}.json.gz").read_bytes()
    content = json.loads(gzip.decompress(packed))
    return content["generating"], frozenset(content["other"]), content["groups"]


def group(written: str) -> groups.Members | None:
    """The tasks of one of the harness's groups or tags, None where the name is none."""
    harness, dot, rest = written.partition(".")
    name = rest if dot and harness in _UPSTREAM_NAMES else written
    if name not in _listed()[2]:
        return None
    members, means = _listed()[2][name]
    return groups.Members(tuple(members), tuple(groups.Mean.of(*mean) for mean in means))


def known_groups() -> Mapping[str, Sequence[str]]:
    """The harness's groups and tags, of which all tasks generate text, with their tasks."""
    return {name: members for name, (members, _) in sorted(_listed()[2].items())}


@cache
def nvidia() -> Mapping[str, Nvidia]:
    """NVIDIA's containers by the harness's name in the launcher's task table, in the order of preference."""
    content = json.loads((resources.files(__package__) / "nvidia-26.3.json").read_bytes())
    return {
        harness: Nvidia(
            harness, one["image"], one["distribution"], one["package"], tuple(one["extra"]), one["tasks"]
        )
        for harness in _PLACES
        for one in [content[harness]]
    }  # fmt: skip


def known() -> list[Task]:
    """Every task that can be run: those of the page first, then NVIDIA's, then the harness's own."""
    theirs = [_of_nvidia(container, name) for container in nvidia().values() for name in container.tasks]
    rest = [_of_harness(name) for name in sorted(_listed()[0]) if name not in {task.name for task in _PAGE}]
    first = [task for task in theirs if task.name in {page.name for page in _PAGE}]
    return [*_PAGE, *first, *(task for task in theirs if task not in first), *rest]


def find(written: str, *, own: bool = False, preferred: Collection[str] = ()) -> tuple[Task, str | None]:
    """The task of a name such as `ifeval` or `simple_evals.gpqa_diamond`, and what is to be said about the choice.

    With `own`, a name that no harness has is a task of the user's. `preferred` are those of NVIDIA's harnesses that
    take what they know. Raises UsageError.
    """
    harness, dot, rest = written.partition(".")
    if dot and harness == "codec":
        raise UsageError(
            f"evaluation.tasks: '{written}' belongs to codec, whose container is not run here.",
            fix=f"Write '{rest}'.",
        )
    named = bool(dot) and harness in {*_UPSTREAM_NAMES, *_PLACES}
    name = rest if named else written
    if harness == SIMPLE_EVALS and named:
        if name not in nvidia()[SIMPLE_EVALS].tasks:
            fix = nearest(name, list(nvidia()[SIMPLE_EVALS].tasks))
            raise UsageError(f"evaluation.tasks: there is no task '{name}' in NVIDIA's simple_evals.", fix=fix)
        return _of_nvidia(nvidia()[SIMPLE_EVALS], name), None
    places = [HARNESS] if named else _PLACES
    chosen = next((place for place in places if place in preferred and name in nvidia()[place].tasks), None)
    task = _of_nvidia(nvidia()[chosen], name) if chosen else _upstream(name, own=own)
    others = [
        f"{place}.{name}" for place in _PLACES if name in nvidia()[place].tasks and place not in (chosen, HARNESS)
    ]
    others += [f"{other}.{name}" for other in _ELSEWHERE.get(name, ())]
    said = None
    if others and not named:
        said = f"{name} is taken from {task.harness}; the launcher also knows {', '.join(others)}."
    return task, said


def _upstream(name: str, *, own: bool) -> Task:
    task = next((task for task in _PAGE if task.name == name), None)
    if task:
        return task
    if name in _listed()[0]:
        return _of_harness(name)
    if own:
        return Task(name, name)
    if name in _listed()[1]:
        raise UsageError(
            f"evaluation.tasks: '{name}' runs code, or needs probabilities of given answers, "
            "which SGLang's API does not offer.",
            fix=nearest(name, list(_listed()[0])) or "`sglang-ops evaluate tasks` lists what can be run.",
        )
    theirs = next((place for place in _PLACES if name in nvidia()[place].tasks), None)
    if theirs:
        raise UsageError(
            f"evaluation.tasks: only NVIDIA's {theirs} has a task '{name}'.",
            fix="Write `evaluation.harness: nvidia`" + (f", or '{theirs}.{name}'." if theirs == SIMPLE_EVALS else "."),
        )
    names = [*(task.name for task in _PAGE), *_listed()[0], *_listed()[2]]
    raise UsageError(
        f"evaluation.tasks: there is no task '{name}' in {HARNESS} {VERSION}.",
        fix=nearest(name, names) or "`sglang-ops evaluate tasks` lists them; a task of your own needs dataset_dir.",
    )


def _of_harness(name: str) -> Task:
    path, dataset = _listed()[0][name]
    return Task(name, name, path=path, dataset=str(dataset or ""))


def _of_nvidia(container: Nvidia, name: str) -> Task:
    told = container.tasks[name]
    usual = {
        "temperature": told.get("temperature"),
        "top_p": told.get("top_p"),
        "max_gen_toks": told.get("max_new_tokens"),
    }
    page = next((task for task in _PAGE if task.name == name), None)
    data = _DATA.get(name)
    needs = [page.needs] if page else ["HF_TOKEN, or dataset_dir"] if data and data[0] == _GPQA else []
    needs += ["a judge: extra.judge.url, model_id, api_key"] if told["judge"] else []
    return Task(
        name,
        name,
        dataset=data[0] if data else "",
        primary="score" if container.harness == SIMPLE_EVALS else page.primary if page else "",
        items=page.items if page else None,
        gated=bool(data and data[0] == _GPQA),
        needs="; ".join(needs),
        generation={key: value for key, value in usual.items() if value is not None},
        request_timeout=told["request_timeout"],
        repeats=told["repeats"],
        nvidia=container,
        data=data,
    )
