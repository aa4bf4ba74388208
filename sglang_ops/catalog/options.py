"""One option of SGLang's parser, and how its values are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
MANY = 1 << 30


@dataclass(frozen=True)
class Option:
    """An argparse action as data. What a file leaves out has argparse's default.

    `action` is the class, SGLang's own ones included; `type` the name of the function that reads a value.
    `help` and `new_flag` are given for deprecated options only; `refuses` is what SGLang says when it ends
    because the option was used.
    """

    flags: tuple[str, ...]
    action: str = "_StoreAction"
    nargs: int | str | None = None
    type: str = "str"
    choices: tuple[Any, ...] | None = None
    const: Any = None
    default: Any = None
    required: bool = False
    dest: str | None = None
    help: str | None = None
    new_flag: str | None = None
    refuses: str | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Option:
        """One line of a file. Keys that a newer script on a host may add are left alone."""
        given = {name: entry[name] for name in _FIELDS if name in entry}
        choices = given.get("choices")
        return cls(**(given | {"flags": tuple(given["flags"]), "choices": None if choices is None else tuple(choices)}))

    @property
    def values(self) -> tuple[int, int]:
        """How many values it takes, at least and at most."""
        if self.action in ("_StoreTrueAction", "BooleanOptionalAction"):
            return 0, 0
        if isinstance(self.nargs, int):
            return self.nargs, self.nargs
        return {None: (1, 1), "?": (0, 1), "*": (0, MANY), "+": (1, MANY)}[self.nargs]

    @property
    def deprecated(self) -> bool:
        return self.help is not None or self.new_flag is not None or self.refuses is not None

    @property
    def ignored(self) -> bool:
        """Whether SGLang takes the option and does nothing with it."""
        return self.action == "DeprecatedAction" and self.refuses is None

    def read(self, text: str) -> Any:
        """A value as SGLang reads it. Raises ValueError where SGLang refuses it; choices are not looked at."""
        return READERS.get(self.type, str)(text)


_FIELDS = tuple(field.name for field in fields(Option))


def human_readable_int(text: str) -> int:
    """A number with SGLang's suffixes: 20000, 20k, 1.5M, 16Ki."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)", text.strip())
    if not matched:
        return int(text)
    if "." in matched[1] and matched[2].endswith("i"):
        raise ValueError(text)
    return int(Decimal(matched[1]) * _UNITS[matched[2]])


def _graph_backend(text: str) -> str:
    if text == "tc_piecewise":
        raise ValueError(text)
    return text


# By the names of SGLang's functions; text that any other reads is accepted as it is.
READERS: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "loads": json.loads,
    "json_list_type": json.loads,
    "parse_cuda_graph_config_arg": json.loads,
    "parse_cuda_graph_backend_arg": _graph_backend,
    "human_readable_int": human_readable_int,
}
