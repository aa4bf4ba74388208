"""``-e``: variables for Ansible, and keys of the deployment file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sglang_ops.errors import UsageError

SECTION = "deployment"
_ASSIGNMENT = re.compile(r"^[A-Za-z_][\w.-]*=")


@dataclass(frozen=True)
class ExtraVars:
    """`variables` and `files` go to Ansible; `deployment` is laid over the deployment file."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    deployment: Mapping[str, Any] = field(default_factory=dict)


def parse(words: Sequence[str]) -> ExtraVars:
    """Read the values of ``-e`` in the order given: later ones win. Raises UsageError."""
    variables: dict[str, Any] = {}
    files: list[Path] = []
    deployment: dict[str, Any] = {}
    for word in words:
        if word.startswith("@"):
            path = Path(word[1:])
            found = _read(path)
            files.append(path)
        elif word.lstrip().startswith("{"):
            found = _mapping(word, "-e")
        else:
            found = _assignments(word)
        section = found.pop(SECTION, None)
        if section is not None and not isinstance(section, Mapping):
            raise UsageError(f"-e {SECTION} must be a mapping, found {section!r}.")
        deployment = merged(deployment, section or {})
        for key in [key for key in found if key.startswith(f"{SECTION}.")]:
            deployment = merged(deployment, _nested(key.removeprefix(f"{SECTION}."), found.pop(key)))
        if not word.startswith("@"):
            variables |= found
    wrong = next((name for name in variables if not name.isidentifier()), None)
    if wrong:
        fix = f"Keys of the deployment file begin with '{SECTION}.'."
        raise UsageError(f"-e {wrong}=… is not a name for a variable.", fix=fix)
    return ExtraVars(variables, tuple(files), deployment)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping; lists and scalars are replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _assignments(word: str) -> dict[str, Any]:
    """`key=value`, or several as Ansible allows: "a=1 b=2". Values are typed as YAML reads them."""
    try:
        parts = shlex.split(word)
    except ValueError:
        parts = [word]
    if len(parts) < 2 or not all(_ASSIGNMENT.match(part) for part in parts):
        parts = [word]
    pairs = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not _ASSIGNMENT.match(part):
            raise UsageError(f"-e '{word}' is neither KEY=VALUE, nor JSON, nor @FILE.")
        pairs[key] = _scalar(value)
    return pairs


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if value is None else value


def _nested(path: str, value: Any) -> dict[str, Any]:
    head, dot, rest = path.partition(".")
    return {head: _nested(rest, value) if dot else value}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"-e @{path} cannot be read: {error.strerror or error}.") from error
    if text.startswith("$ANSIBLE_VAULT"):
        return {}  # Ansible decrypts it; keys of the deployment file cannot be in there
    return _mapping(text, f"-e @{path}")


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_Tolerant)  # noqa: S506 - a SafeLoader that also passes over Ansible's tags
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is neither JSON nor YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{source} must hold a mapping of variables.")
    return {str(key): value for key, value in data.items()}


class _Tolerant(yaml.SafeLoader):
    """Reads files with Ansible's own tags (!vault, !unsafe), whose values are not for us."""


_Tolerant.add_multi_constructor("!", lambda _loader, _suffix, node: getattr(node, "value", None))
