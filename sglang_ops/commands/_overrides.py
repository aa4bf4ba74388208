"""``-e`` and ``-o``: variables for Ansible, and keys of the deployment file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sglang_ops.errors import UsageError
from sglang_ops.spec.known import keys_below
from sglang_ops.spec.overrides import REMOVED, merged
from sglang_ops.spec.problems import nearest
from sglang_ops.spec.yamlfile import inline, scalar

__all__ = ["REMOVED", "SECTION", "ExtraVars", "merged", "parse", "parse_overrides"]

SECTION = "deployment"
_ASSIGNMENT = re.compile(r"^[A-Za-z_][\w.-]*=")
# `+key` and `++key` add, for which Hydra knows two ways; `~key` removes.
_OVERRIDE = re.compile(r"^(?P<sign>\+\+|\+|~|)(?P<path>[^=\s~+][^=]*?)(?:(?P<equals>=)(?P<value>.*))?\Z", re.DOTALL)


@dataclass(frozen=True)
class ExtraVars:
    """`variables` and `files` go to Ansible; `deployment` is laid over the deployment file."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    deployment: Mapping[str, Any] = field(default_factory=dict)


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read the values of ``-o`` as the launcher (Hydra) does, in the order given: later ones win.

    The result is what `spec.load(path, overrides)` takes: nested like the file, REMOVED for `~key`. Raises UsageError.
    """
    overrides: dict[str, Any] = {}
    for word in words:
        found = _OVERRIDE.match(word)
        removes = found is not None and found["sign"] == "~"
        if found is None or removes == bool(found["equals"]):
            output = word in {"json", "table"}
            fix = f"The form of the result is --output {word}." if output else "~KEY takes a key away."
            raise UsageError(f"-o '{word}' is neither KEY=VALUE nor ~KEY.", fix=fix)
        path = found["path"].strip()
        _check_section(path)
        overrides = merged(overrides, _nested(path, REMOVED if removes else _value(found["value"], word)))
    return overrides


def _check_section(path: str) -> None:
    """The first key must be a section of the file: a key of a section is not looked for in all of them."""
    first, sections = path.partition(".")[0], keys_below([])
    if first in sections or first.startswith("x-"):
        return
    inside = first in keys_below([SECTION])
    fix = f"Did you mean '{SECTION}.{path}'?" if inside else nearest(first, sections)
    fix = fix or f"Sections are {', '.join(sections)}."
    raise UsageError(f"-o {path}: '{first}' is no section of the deployment file.", fix=fix)


def _value(text: str, word: str) -> Any:
    """What stands behind `=`: quoted text, [a,b], {a: b}, null, a boolean, a number, else the text as it is."""
    if not text or text[0] not in "[{'\"":
        return scalar(text) if text else ""
    try:
        return inline(re.sub(r"([{,]\s*[\w.-]+):(?=\S)", r"\1: ", text) if text[0] == "{" else text)
    except (yaml.YAMLError, ValueError) as error:
        if text[0] in "'\"":
            return text
        what = getattr(error, "problem", None) or error
        raise UsageError(f"-o '{word}' cannot be read: {what}.", fix="Put text in quotes: KEY=\"'TEXT'\".") from error


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
    if re.fullmatch(r"0\d+", text):
        return text  # a file's mode, say: to Ansible all of these are text, to YAML 1.1 an octal number
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
