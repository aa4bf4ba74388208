"""pydantic's findings as problems of the deployment file: where, what, what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_ops.spec.known import keys_below
from sglang_ops.spec.model import Deployment
from sglang_ops.spec.problems import SpecProblem, nearest
from sglang_ops.spec.values import EnvValue, Mistake, is_secret
from sglang_ops.spec.yamlfile import Document

# Keys that stand for something else here.
_INSTEAD = {
    "gpu_memory_utilization": "SGLang's is `extra_args: --mem-fraction-static 0.8`.",
    "overrides": "The launcher's newer name is `nemo_evaluator_config`.",
    "deployment_overrides": "It belongs in group_vars or host_vars of the inventory.",
    "model": "Write `hf_model_handle` or `checkpoint_path`.",
    "gpus": "Write `tensor_parallel_size`, and `CUDA_VISIBLE_DEVICES` under env_vars to choose.",
}
_MAPPING = {"model_type", "dict_type", "model_attributes_type"}


def problem(document: Document, detail: Any) -> SpecProblem:
    """One error of `ValidationError.errors()`."""
    location = [str(part) for part in detail["loc"] if part != "[key]"]
    kind, given = detail["type"], detail.get("input")
    mistake = detail.get("ctx", {}).get("error")
    if isinstance(mistake, Mistake):
        path = ".".join([*location, *mistake.where])
        return SpecProblem(path, document.line(path), str(mistake), mistake.fix)
    path = ".".join(location)
    line = document.line(path)
    if kind == "extra_forbidden":
        return SpecProblem(path, line, "is not a key of the deployment file.", _instead(location))
    if kind == "missing":
        return SpecProblem(path, line, "is missing.", f"Add `{location[-1]}:`.")
    if kind in _MAPPING:
        fix = f"Write `name: {given}`." if location[-2:-1] == ["tasks"] and isinstance(given, str) else None
        return SpecProblem(path, line, f"must be a mapping of keys to values{_found(path, given)}.", fix)
    if kind in {"tuple_type", "list_type"}:
        return SpecProblem(path, line, f"must be a list{_found(path, given)}.")
    if kind == "literal_error" and location[-1] == "type":
        message = f"{given!r} cannot be served; this tool serves with SGLang only."
        return SpecProblem(path, line, message, "Write 'sglang'.")
    fix = "Write how many GPUs, or auto." if location[-1:] == ["tensor_parallel_size"] else None
    message = str(detail["msg"]).replace("Input should be", "must be").replace("valid string", "text")
    return SpecProblem(path, line, f"{message}{_found(path, given)}.", fix)


def _found(path: str, given: Any) -> str:
    """What stands in the file instead; never a secret."""
    if given is None:
        return ", found nothing"
    if isinstance(given, dict | list | tuple):
        return f", found a {'mapping' if isinstance(given, dict) else 'list'}"
    secret = is_secret(path.rpartition(".")[2], EnvValue(kind="literal", value=""))
    return "" if secret else f", found {given!r}"


def _instead(location: Sequence[str]) -> str | None:
    """The nearest key of the same section; where none is near, the section that has one of that name."""
    key, section = location[-1], location[:-1]
    if key in _INSTEAD:
        return _INSTEAD[key]
    near = nearest(key, keys_below(section))
    if near or section[:1] in (["deployment"], ["deployments"]):
        return near
    return f"Did you mean 'deployment.{key}'?" if key in Deployment.model_fields else None
