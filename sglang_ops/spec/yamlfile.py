"""YAML with line numbers, so that every message can name the line it speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sglang_ops.spec.problems import SpecErrors, SpecProblem

_TAG = "tag:yaml.org,2002:"
# Anchors let a small file stand for an endless one.
_MOST_NODES = 100_000
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """YAML 1.2's plain scalars, as editors and OmegaConf read them: `yes`, `0777`, `12:30` and dates are text."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 (PyYAML's own)


_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,300})", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class _Dumper(yaml.SafeDumper):
    """Quotes the text that YAML 1.1 or 1.2 would take for something else."""


for _kind, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _letters = [letter.replace("\0", "") for letter in _first]
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})\Z"), _letters)


@dataclass(frozen=True)
class Document:
    """The data of one YAML mapping, and the 1-based line of each dotted path in it (None: not from the file)."""

    source: str
    data: dict[str, Any]
    lines: dict[str, int | None] = field(default_factory=dict)

    def line(self, path: str) -> int | None:
        """Line of `path`, or of its nearest ancestor that stands in the file."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path.rpartition(".")[0]
        return None


def read(path: Path) -> Document:
    """Read one YAML mapping from `path`. Raises SpecErrors for anything that is not one."""
    source = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        fix = "Write one (see examples/) or name it with --config."
        raise SpecErrors(source, [SpecProblem("", None, "no such file.", fix)]) from None
    except (OSError, ValueError) as error:
        raise SpecErrors(source, [SpecProblem("", None, f"cannot be read: {error}.")]) from error
    return parse(text, source)


def parse(text: str, source: str, *, fix: str = "Begin with `deployment:` and its keys.") -> Document:
    """Parse YAML text into a Document. Duplicate keys are errors: YAML would silently keep the last. `fix` says what
    to write where there is no mapping."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[str, int | None] = {}
            problems = list(_collect(node, "", lines, []))
            _keep_texts(node, problems)
            data = None if problems or node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecErrors(source, [SpecProblem("", mark.line + 1 if mark else None, f"is not YAML: {what}.")]) from error
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SpecErrors(source, [SpecProblem("", None, f"is not YAML: {what}.")]) from error
    if not problems and not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        problems = [SpecProblem("", 1, f"must be a YAML mapping, found {found}.", fix)]
    if problems:
        raise SpecErrors(source, problems)
    return Document(source, dict(data or {}), lines)


def dump(data: Any) -> str:
    """`data` as YAML that `parse`, and any reader of YAML 1.1, reads back as it is (hence ASCII: PyYAML folds some
    characters that it takes for line breaks)."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def scalar(text: str) -> Any:
    """`text` as a plain scalar of a deployment file: null, a boolean, a number, else the text itself."""
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        typed = tag.endswith((":null", ":bool", ":int", ":float"))
        return loader.construct_object(yaml.ScalarNode(tag, text)) if typed else text
    finally:
        loader.dispose()


def inline(text: str) -> Any:
    """`[a, b]`, `{a: b}` or a quoted text, as a deployment file reads it. Raises yaml.YAMLError, ValueError."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)


def _collect(node: Any, path: str, lines: dict[str, int | None], above: list[Any]) -> Iterator[SpecProblem]:
    """Note the line of every path, and tell what YAML would pass over in silence."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return
    if any(node is outer for outer in above):
        yield SpecProblem(path, lines.get(path), "contains itself through an anchor.")
        return
    own: dict[str, int] = {}
    for child, key, value in _children(node, path):
        if len(lines) > _MOST_NODES:
            yield SpecProblem("", None, f"has more than {_MOST_NODES} values once its anchors are expanded.")
            return
        line = key.start_mark.line + 1
        if child in own and child != path:
            yield SpecProblem(child, line, f"appears twice, first in line {own[child]}.", "Keep one of the two.")
        own[child] = line
        lines[child] = line
        yield from _collect(value, child, lines, [*above, node])


def _children(node: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted path, node of the key (of the item, in a list), node of the value. What `<<` merges comes first and has
    the path of the section it is merged into, so that the section's own keys win."""
    prefix = f"{path}." if path else ""
    if not isinstance(node, yaml.MappingNode):
        yield from ((f"{prefix}{index}", item, item) for index, item in enumerate(node.value))
        return
    for key, value in node.value:
        if key.tag == f"{_TAG}merge":
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from ((path, key, part) for part in parts)
    yield from ((f"{prefix}{key.value}", key, value) for key, value in node.value if key.tag != f"{_TAG}merge")


def _keep_texts(root: Any, problems: list[SpecProblem]) -> None:
    """Environment values and arguments are text as it is written: `1.50`, `True` and `1e5` included."""
    pending, seen = ([] if problems or root is None else [root]), set()
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.ScalarNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        for key, value in node.value:
            pending.append(value)
            if key.value == "env_vars" and isinstance(value, yaml.MappingNode):
                inner = [item for _, item in value.value if isinstance(item, yaml.MappingNode)]
                for environment in (value, *inner):
                    environment.value = [(name, _as_text(item)) for name, item in environment.value]
            elif key.value in ("extra_args", "command") and isinstance(value, yaml.SequenceNode):
                value.value = [_as_text(item) for item in value.value]


def _as_text(node: Any) -> Any:
    typed = node.tag in {f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool"}
    return yaml.ScalarNode(f"{_TAG}str", node.value, node.start_mark, node.end_mark) if typed else node
