"""`${…}` as OmegaConf and the launcher resolve it, `???` as they refuse it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from sglang_ops.spec.model import Deployment
from sglang_ops.spec.problems import SpecProblem
from sglang_ops.spec.yamlfile import Document

MISSING = "???"
# Keys that may be null; for an interpolation they are then absent, so that `oc.select` takes its alternative.
_NULLABLE = ("name", "hf_model_handle", "checkpoint_path", "cache_path", "pre_cmd", "command")
# What an interpolation finds where the file leaves the key out.
_DEFAULTS = {
    name: Deployment.model_fields[name].default
    for name in ("type", "image", "port", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
} | {
    "extra_args": "",
    "env_vars": {},
    "endpoints": {"chat": "/v1/chat/completions", "completions": "/v1/completions", "health": "/health"},
}
_DEPTH = 64


def resolve(
    document: Document, data: dict[str, Any], ignored: Callable[[str], bool]
) -> tuple[dict[str, Any], list[SpecProblem]]:
    """`data` with every interpolation resolved, and what could not be. What `ignored(path)` names may fail."""
    problems = [
        SpecProblem(path, document.line(path), f"is missing ({MISSING}).", "Write a value.")
        for path in _missing(data, "")
        if not ignored(path)
    ]
    if "${" not in repr(data):  # the library is loaded only for files that use it
        return data, problems
    resolved, failures = _resolve(_with_defaults(data))
    for path, message in failures:
        if not ignored(path) and _get(data, path) != MISSING:
            problems.append(SpecProblem(path, document.line(path), f"{message.rstrip('.')}."))
    return _only_keys_of(resolved, data), problems


def _missing(node: Any, path: str) -> Iterator[str]:
    for key, value in _items(node):
        child = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and value == MISSING:
            yield child
        yield from _missing(value, child)


def _items(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from enumerate(node)


def _get(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = next((value for key, value in _items(data) if str(key) == part), None)
    return data


def _with_defaults(data: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(data)
    several = data.get("deployments")
    sections = [data.get("deployment"), *(several.values() if isinstance(several, dict) else [])]
    for section in sections:
        if isinstance(section, dict):
            for key in _NULLABLE:
                if section.get(key, "") is None:
                    del section[key]
            for key, value in _DEFAULTS.items():
                section.setdefault(key, copy.deepcopy(value))
    return data


def _only_keys_of(resolved: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Take out again what `_with_defaults` put in."""

    def section(found: Any, written: Any) -> Any:
        if not (isinstance(found, dict) and isinstance(written, dict)):
            return found
        return {key: found.get(key) for key in written}

    result = {**resolved}
    if "deployment" in result:
        result["deployment"] = section(result["deployment"], data["deployment"])
    if isinstance(result.get("deployments"), dict) and isinstance(data["deployments"], dict):
        result["deployments"] = {
            key: section(found, data["deployments"].get(key)) for key, found in result["deployments"].items()
        }
    return result


def _resolve(data: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    from omegaconf import OmegaConf  # noqa: PLC0415
    from omegaconf.errors import OmegaConfBaseException  # noqa: PLC0415

    OmegaConf.register_resolver("select_not_null", _select_not_null, replace=True)
    failures: list[tuple[str, str]] = []

    def value_of(config: Any, key: Any, path: str) -> Any:
        if OmegaConf.is_missing(config, key):
            return MISSING
        try:
            return plain(config[key], path)
        except (OmegaConfBaseException, RecursionError) as error:
            message = str(getattr(error, "msg", None) or error).splitlines()[0]
            failures.append((path, "refers to itself" if isinstance(error, RecursionError) else message))
            return None

    def plain(node: Any, path: str) -> Any:
        if path.count(".") > _DEPTH:
            raise RecursionError
        if OmegaConf.is_dict(node):
            return {key: value_of(node, key, f"{path}.{key}" if path else str(key)) for key in node}
        if OmegaConf.is_list(node):
            return [value_of(node, index, f"{path}.{index}") for index in range(len(node))]
        return node

    try:
        config = OmegaConf.create(data)
    except OmegaConfBaseException as error:
        path = str(getattr(error, "full_key", "") or "").replace("[", ".").replace("]", "")
        return data, [(path, str(error.msg or error).splitlines()[0])]
    resolved: dict[str, Any] = plain(config, "")
    return resolved, failures


def _select_not_null(key: str, default: Any, *, _root_: Any) -> Any:
    """The launcher's resolver: like `oc.select`, and null counts as absent."""
    from omegaconf import OmegaConf  # noqa: PLC0415

    value = OmegaConf.select(_root_, key, default=None, throw_on_resolution_failure=False)
    return default if value is None else value
