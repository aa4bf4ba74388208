"""YAML with line numbers, so that every message can name the line it speaks of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sglang_ops.spec.problems import SpecErrors, SpecProblem

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """The data of one YAML mapping, and the 1-based line of each dotted path in it."""

    source: str
    data: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        fix = "Write one (see examples/) or name it with --config."
        raise SpecErrors(source, [SpecProblem("", None, "no such file.", fix)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecErrors(source, [SpecProblem("", None, f"cannot be read: {error}.")]) from error
    return parse(text, source)


def parse(text: str, source: str) -> Document:
    """Parse YAML text into a Document. Duplicate keys are errors: YAML would silently keep the last."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        problems: list[SpecProblem] = []
        lines: dict[str, int] = {}
        _collect(node, "", lines, problems)
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        problem = SpecProblem("", mark.line + 1 if mark else None, f"is not YAML: {what}.")
        raise SpecErrors(source, [problem]) from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        fix = "Begin with `deployment:` and its keys."
        problems = [SpecProblem("", 1, f"must be a YAML mapping, found {found}.", fix)]
    if problems:
        raise SpecErrors(source, problems)
    return Document(source, dict(data or {}), lines)


def _collect(node: Any, path: str, lines: dict[str, int], problems: list[SpecProblem]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            child = f"{path}.{key.value}" if path else str(key.value)
            line = key.start_mark.line + 1
            if key.value in seen and key.value != "<<":
                problems.append(SpecProblem(child, line, "appears twice.", "Keep one of the two."))
            seen.add(key.value)
            lines[child] = line
            _collect(value, child, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            child = f"{path}.{index}"
            lines[child] = item.start_mark.line + 1
            _collect(item, child, lines, problems)
