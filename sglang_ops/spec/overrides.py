"""What the command line and a host's variables lay over a deployment file, before anything is checked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sglang_ops.spec.file import DeploymentFile
from sglang_ops.spec.model import Deployment
from sglang_ops.spec.problems import SpecErrors, SpecProblem, nearest
from sglang_ops.spec.yamlfile import Document

HOST_VARIABLE = "deployment_overrides"


class _Removed:
    """Stands for a key that is to be taken away."""

    def __repr__(self) -> str:
        return "REMOVED"


REMOVED: Final = _Removed()


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping; lists and scalars are replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def lay_over(document: Document, overrides: Mapping[str, Any]) -> Document:
    """`overrides` laid over the document: as `merged`, and further REMOVED takes a key away, and a mapping over a
    list changes the items that its keys name, by position or by their `name`. Raises SpecErrors."""
    problems: list[SpecProblem] = []
    data = _laid(document.data, overrides, "", problems)
    if problems:
        raise SpecErrors(document.source, problems)
    lines = document.lines | dict.fromkeys(_leaves(overrides, ""))
    return replace(document, data=data, lines=lines)


def with_host_overrides(document: Document, overrides: Mapping[str, Any]) -> Document:
    """The variable `deployment_overrides` of a host laid over the document: keys of the one `deployment`, or, where
    the file has `deployments`, such keys by name. Raises SpecErrors, which name the variable."""
    named = document.data.get("deployments")
    if not isinstance(overrides, Mapping):
        problem = SpecProblem(HOST_VARIABLE, None, f"must be a mapping, found {overrides!r}.")
        raise SpecErrors(document.source, [problem])
    if isinstance(named, Mapping):
        problems = list(_unknown_names(overrides, named))
        section: dict[str, Any] = {"deployments": overrides}
    else:
        problems = list(_unknown_keys(HOST_VARIABLE, overrides))
        section = {"deployment": overrides}
    if problems:
        raise SpecErrors(document.source, problems)
    return lay_over(replace(document, source=f"{document.source} with {HOST_VARIABLE}"), section)


def divided(files: Sequence[DeploymentFile], overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The part of a host's `deployment_overrides` that `with_host_overrides` takes for each of `files`: with one file
    the whole, with several what stands under the names of their deployments. Raises SpecErrors."""
    if len(files) == 1:
        return [dict(overrides)]
    names = [list(file.several or [file.deployment.service_name.removeprefix("sglang-")]) for file in files]
    problems = list(_unknown_names(overrides, [name for of_file in names for name in of_file]))
    if problems:
        raise SpecErrors("the inventory", problems)
    parts = [{name: overrides[name] for name in of_file if name in overrides} for of_file in names]
    return [
        part if file.several else dict(next(iter(part.values()), {})) for file, part in zip(files, parts, strict=True)
    ]


def _unknown_names(overrides: Mapping[str, Any], named: Collection[str]) -> Iterator[SpecProblem]:
    for name, keys in overrides.items():
        path = f"{HOST_VARIABLE}.{name}"
        if name not in named:
            known = ", ".join(map(str, named))
            fix = nearest(str(name), map(str, named)) or f"There are {known}."
            yield SpecProblem(path, None, "is no deployment of the file.", fix)
        elif not isinstance(keys, Mapping):
            yield SpecProblem(path, None, f"must be a mapping of keys to values, found {keys!r}.")
        else:
            yield from _unknown_keys(path, keys)


def _unknown_keys(path: str, keys: Mapping[str, Any]) -> Iterator[SpecProblem]:
    for key in map(str, keys):
        if key == "hosts":
            yield SpecProblem(f"{path}.{key}", None, "chooses hosts, and cannot be overridden by one.")
        elif key not in Deployment.model_fields and not key.startswith("x-"):
            fix = nearest(key, Deployment.model_fields)
            yield SpecProblem(f"{path}.{key}", None, "is not a key of a deployment.", fix)


def _laid(base: Any, over: Any, path: str, problems: list[SpecProblem]) -> Any:
    if isinstance(over, Mapping) and isinstance(base, list):
        return _laid_over_list(base, over, path, problems)
    if not isinstance(over, Mapping):
        return over
    result = dict(base) if isinstance(base, Mapping) else {}
    for key, value in over.items():
        child = f"{path}.{key}" if path else str(key)
        if value is not REMOVED:
            result[key] = _laid(result.get(key), value, child, problems)
        elif key in result:
            del result[key]
        else:
            problems.append(SpecProblem(child, None, "is not in the file, so that it cannot be taken away."))
    return result


def _laid_over_list(base: list[Any], over: Mapping[str, Any], path: str, problems: list[SpecProblem]) -> list[Any]:
    result = list(base)
    gone: set[int] = set()
    items = [(index, item) for index, item in enumerate(base) if isinstance(item, Mapping)]
    names = {index: str(item["name"]) for index, item in items if "name" in item}
    for key, value in _whole_names(over, set(names.values())):
        found = _positions(names, len(base), key)
        if len(found) != 1:
            what = "means several of the list" if found else "is not in the list"
            fix = f"It has {', '.join(names.values()) or f'{len(base)} items'}."
            problems.append(SpecProblem(f"{path}.{key}", None, f"{what}.", nearest(key, names.values()) or fix))
        elif value is REMOVED:
            gone |= set(found)
        else:
            (index,) = found
            result[index] = _laid(result[index], value, f"{path}.{index}", problems)
    return [item for index, item in enumerate(result) if index not in gone]


def _whole_names(over: Mapping[str, Any], names: set[str]) -> Iterator[tuple[str, Any]]:
    """The keys of `over`; names with a dot (`lm-evaluation-harness.ifeval`) are put together again."""
    for key, value in over.items():
        inner = value if isinstance(value, Mapping) else {}
        parts = {f"{key}.{rest}": below for rest, below in inner.items() if f"{key}.{rest}" in names}
        yield from parts.items() if parts and key not in names else [(str(key), value)]


def _positions(names: Mapping[int, str], length: int, key: str) -> list[int]:
    """The items that `key` means: by position, by whole name, by name without its harness."""
    if key.isdecimal():
        return [int(key)] if int(key) < length else []
    whole = [index for index, name in names.items() if name == key]
    return whole or [index for index, name in names.items() if name.endswith(f".{key}")]


def _leaves(over: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in over.items():
        child = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, child)
        else:
            yield child
