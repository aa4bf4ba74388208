"""From the deployment file's `evaluation:` to what each host is told to do. Everything is checked before a host is
touched; no secrets are in what is made here."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sglang_ops.errors import UsageError
from sglang_ops.evaluation import data, groups, parameters, tasks
from sglang_ops.planning.command import Mount, arguments, option
from sglang_ops.spec import Deployment, DeploymentFile
from sglang_ops.spec.launcher import Evaluation, Task
from sglang_ops.spec.model import is_secret
from sglang_ops.spec.values import EnvValue

DEFAULT_DIRECTORY = "results"
_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,39}\Z")
_SLUG = re.compile(r"^[A-Za-z0-9][\w.-]{0,80}\Z")


@dataclass(frozen=True)
class Work:
    """A run to be: what the module is told (`job`), which files of this machine go along, and what is said.

    `images` are those of the job's stages; None is the inventory's.
    """

    run: str
    job: dict[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    images: tuple[str | None, ...] = (None,)
    base: Path = Path()
    said: tuple[str, ...] = ()

    def variables(self) -> dict[str, Any]:
        """The same for Ansible's side."""
        return {
            "run": self.run,
            "job": self.job,
            "files": {name: str(path) for name, path in self.files.items()},
            "mounts": [[mount.source, mount.target, mount.read_only] for mount in self.mounts],
            "images": [image or "" for image in self.images],
            "base": str(self.base),
        }


def new_name(now: datetime) -> str:
    """A run's name where the user gives none: sorts by time, and two at once differ."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_name(name: str) -> str:
    if not _NAME.match(name):
        raise UsageError(f"A run cannot be called '{name}'.", fix="Use up to 40 lower-case letters, digits and dashes.")
    return name


def work(
    file: DeploymentFile,
    deployment: Deployment,
    *,
    run: str,
    base: Path,
    only: Sequence[str] = (),
    limit: int | None = None,
    repeat_on_hosts: bool = False,
) -> Work:
    """The run of `file`'s tasks against `deployment`. `base` is where relative paths of the file begin; `only` names
    tasks to run instead of the file's (with the file's settings where it has them). Raises UsageError."""
    section = file.evaluation
    wanted, named = _expanded(_wanted(section.tasks, only), base)
    if not wanted:
        raise UsageError("No task is named.", fix="Write evaluation.tasks in the deployment file, or give -t TASK.")
    said: list[str] = []
    items: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    mounts = _mounts(file)
    images: list[str | None] = []
    for place, (task, within) in enumerate(wanted):
        known, remark = _find(task, section)
        said += [remark] if remark else []
        image = _image(known, task, section)
        images += [] if image in images else [image]
        said += _gated(file, task, known)
        if task.dataset_dir:
            carried, mount = data.of_task(task.name, task.dataset_dir, within or known.name, base)
            files |= carried
            mounts += [mount] if mount and mount not in mounts else []
        item = _item(known, task, section, f"evaluation.tasks.{place}", limit)
        items.append(item | {"stage": images.index(image), "data": within or known.name})
    for place, item in enumerate([item for item in items if item["nvidia"]]):
        item["nvidia"]["place"] = place  # which of several hosts runs it
    names = [item["name"] for item in items]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"evaluation.tasks: {twice} is there twice.", fix="Take one of them away.")
    data.check(files)
    _check_environment(file, [task for task, _ in wanted])
    job = {
        "run": run,
        "deployment": deployment.service_name,
        "model": deployment.served_model_name,
        "tasks": items,
        "groups": named,
        "repeat_on_hosts": repeat_on_hosts,
        "offline": all(task.dataset_dir for task, _ in wanted),
    }
    return Work(run, job, files, tuple(mounts), tuple(images), base, tuple(said))


def _wanted(written: Sequence[Task], only: Sequence[str]) -> list[Task]:
    if not only:
        return list(written)
    by_name = {task.name: task for task in written} | {task.name.rpartition(".")[2]: task for task in written}
    return [by_name.get(name) or Task.model_validate({"name": name}) for name in dict.fromkeys(only)]


def _gated(file: DeploymentFile, task: Task, known: tasks.Task) -> list[str]:
    """What is said of a data set that the hub gives only to those whom it knows."""
    layers = [*(layer for _, layer in _common(file)), task.env_vars]
    if not known.gated or task.dataset_dir or any("HF_TOKEN" in layer for layer in layers):
        return []
    missing = "is gated, and there is no HF_TOKEN in evaluation.env_vars"
    return [f"{known.name}: its data set {known.dataset} {missing}: it must be in the cache of the hosts."]


def _expanded(written: Sequence[Task], base: Path) -> tuple[list[tuple[Task, str | None]], list[dict[str, Any]]]:
    """The tasks with the groups among them resolved, each with the group in whose directory its data is; and the
    groups, as job.json has them."""
    found: list[tuple[Task, str | None]] = []
    named: list[dict[str, Any]] = []
    for task in written:
        own = base / task.dataset_dir if task.dataset_dir and not task.dataset_dir.startswith("/") else None
        members = (groups.of_directory(own, task.name) if own and own.is_dir() else None) or tasks.group(task.name)
        if members is None:
            found.append((task, None))
            continue
        for name in members.tasks:
            here = not members.here or name in members.here
            update = {"name": name} | ({} if here else {"dataset_dir": None})
            found.append((task.model_copy(update=update), task.name if task.dataset_dir and here else None))
        means = [[mean.metric, mean.filters, mean.by_size] for mean in members.means]
        named.append({"name": task.name, "tasks": list(members.tasks), "means": means})
    return found, named


def _find(task: Task, section: Evaluation) -> tuple[tasks.Task, str | None]:
    """The task, from NVIDIA's containers where the file prefers or names them."""
    preferred = set(tasks.nvidia()) if section.harness == tasks.NVIDIA else set(section.nvidia_images)
    for harness, container in tasks.nvidia().items():
        if task.container and _repository(task.container) == _repository(container.image):
            preferred.add(harness)
    return tasks.find(task.name, own=bool(task.dataset_dir), preferred=preferred)


def _repository(image: str) -> str:
    """The end of an image's name by which NVIDIA's are told: eval-factory/simple-evals."""
    return "/".join(image.partition("@")[0].rsplit("/", 2)[-2:]).partition(":")[0]


def _image(known: tasks.Task, task: Task, section: Evaluation) -> str | None:
    """The image that runs the task; None for the inventory's."""
    if known.nvidia:
        return task.container or section.nvidia_images.get(known.nvidia.harness) or known.nvidia.image
    return task.container or section.harness_image


def _item(known: tasks.Task, task: Task, section: Evaluation, where: str, limit: int | None) -> dict[str, Any]:
    layers = (section.nemo_evaluator_config, task.nemo_evaluator_config)
    given = parameters.read(*layers, where=where, extras=known.nvidia.extra if known.nvidia else None)
    endpoint = task.endpoint_type or known.endpoint
    if endpoint not in {"chat", "completions"}:
        raise UsageError(
            f"{known.name}: endpoint_type '{endpoint}' is neither chat nor completions.",
            fix="Write one of them: SGLang's API for language models has no other.",
        )
    if not _SLUG.match(known.name):
        raise UsageError(f"A task cannot be called '{known.name}'.", fix="Use letters, digits, '_', '.' and '-'.")
    return {
        "name": known.name,
        "harness_task": known.harness_task,
        "path": known.path,
        "dataset": known.dataset,
        "dataset_dir": task.dataset_dir,
        "primary": known.primary,
        "limit": limit or given.limit_samples,
        "shards": [[0, 1]],
        "repeats": given.verbatim.get("n_samples", known.repeats) if known.nvidia else given.extra.n_samples,
        "num_fewshot": given.extra.num_fewshot,
        "seed": given.extra.seed,
        "system_instruction": given.extra.system_instruction,
        "endpoint_type": endpoint,
        "parallelism": given.parallelism,
        "generation": given.generation(known.generation),
        "usual": given.max_new_tokens is None,
        "request_timeout": given.request_timeout or known.request_timeout,
        "max_retries": given.max_retries,
        "pre_cmd": [text for text in (section.pre_cmd, task.pre_cmd) if text],
        "post_cmd": [text for text in (task.post_cmd, section.post_cmd) if text],
        "extra": given.verbatim,
        "nvidia": _nvidia(known, endpoint, parameters.adapter(*layers)),
    }


def _nvidia(known: tasks.Task, endpoint: str, adapter: dict[str, Any] | None) -> dict[str, Any] | None:
    if not known.nvidia:
        return None
    if endpoint != "chat":
        raise UsageError(f"{known.name}: NVIDIA's containers ask by chat here.", fix="Take endpoint_type away.")
    return {
        "distribution": known.nvidia.distribution,
        "package": known.nvidia.package,
        "data": known.data,
        "adapter_config": adapter,
    }


def _mounts(file: DeploymentFile) -> list[Mount]:
    return [Mount(one.source, one.target, one.read_only) for one in file.execution.mounts.evaluation]


def environment(file: DeploymentFile, deployment: Deployment, base: Path) -> dict[str, Any]:
    """What is secret about a run, and its environment: read here, where the operator's variables are. `base` is where
    relative paths of the file begin.

    {"api_key", "environment": {name: value}, "tasks": {task: {name: value}}, "runtime": {name: variable of the host}}.
    """
    layers = {name: value for _, layer in _common(file) for name, value in layer.items()}
    resolved = {name: _value(value) for name, value in layers.items() if value.kind != "runtime"}
    per_task = {
        _find(task, file.evaluation)[0].name: {name: _value(value) for name, value in task.env_vars.items()}
        for task, _ in _expanded(file.evaluation.tasks, base)[0]
    }
    return {
        "api_key": option(arguments(deployment), "--api-key") or resolved.pop("OPENAI_API_KEY", None),
        "environment": resolved,
        "tasks": per_task,
        "runtime": {name: value.value for name, value in layers.items() if value.kind == "runtime"},
    }


def secret_values(file: DeploymentFile) -> set[str]:
    """Values that must not be kept in run folders."""
    layers = [*(layer for _, layer in _common(file)), *(task.env_vars for task in file.evaluation.tasks)]
    pairs = [pair for layer in layers for pair in layer.items() if pair[1].kind != "runtime"]
    return {_value(value) for name, value in pairs if is_secret(name, value)} - {""}


def _common(file: DeploymentFile) -> list[tuple[str, Mapping[str, EnvValue]]]:
    """The environment of all tasks: where in the file, and what; later ones win."""
    return [
        ("env_vars", file.env_vars),
        ("evaluation.env_vars", file.evaluation.env_vars),
        ("execution.env_vars.evaluation", file.execution.env_vars.evaluation),
    ]


def _value(value: EnvValue) -> str:
    return os.environ.get(value.value, "") if value.kind == "host" else value.value


def _check_environment(file: DeploymentFile, wanted: Sequence[Task]) -> None:
    common = {name: (where, value) for where, layer in _common(file) for name, value in layer.items()}
    used = [(where, name, value) for name, (where, value) in common.items()]
    for task in wanted:
        where = f"evaluation.tasks ({task.name}).env_vars"
        used += [(where, name, value) for name, value in task.env_vars.items()]
        theirs = next((name for name, value in task.env_vars.items() if value.kind == "runtime"), None)
        if theirs:
            raise UsageError(
                f"{where}.{theirs} is a variable of the hosts (runtime:), which all tasks of a run have.",
                fix="Write it in evaluation.env_vars.",
            )
    for where, name, value in used:
        if value.kind == "host" and not os.environ.get(value.value):
            raise UsageError(
                f"{where}.{name}: the variable {value.value} is not set here.", fix=f"export {value.value}=…"
            )
