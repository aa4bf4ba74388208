"""SGLang's command line, rebuilt from `arguments.json`: what the real parser accepts and how it refuses.

The file holds the options of one SGLang release, taken from its own parser; whatever is not said there has
argparse's default. Abbreviations are allowed and may be ambiguous, as in SGLang.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import SGLANG_VERSION

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one server. Like SGLang, prints to stderr and exits 2 where they are wrong."""
    return parser().parse_args(list(argv))


def parser() -> argparse.ArgumentParser:
    """SGLang's parser; its name is SGLang's too, so that error messages are the same."""
    catalogue = json.loads(Path(__file__).with_name("arguments.json").read_text("utf-8"))
    if catalogue["sglang"] != SGLANG_VERSION:
        raise ValueError(f"arguments.json is of SGLang {catalogue['sglang']}, the simulator of {SGLANG_VERSION}")
    built = argparse.ArgumentParser(
        prog="sglang serve", description=f"Simulator of SGLang {SGLANG_VERSION}: runs no model."
    )
    for option in catalogue["options"]:
        built.add_argument(*option.pop("options"), **_keywords(**option))
    return built


def human_readable_int(text: str) -> int:
    """A number with SGLang's suffixes: 20000, 20k, 1.5M, 16Ki."""
    matched = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T|)\s*", text)
    if not matched or ("." in matched[1] and matched[2] in ("", "Ki", "Mi", "Gi", "Ti")):
        raise ValueError(text)
    return int(float(matched[1]) * _UNITS[matched[2]])


_TYPES: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "loads": json.loads,
    "human_readable_int": human_readable_int,
}


class _Deprecated(argparse.Action):
    """Warns and names the successor, then stores the constant."""

    def __init__(self, *, successor: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.successor = successor

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        del parser, values
        logging.warning(
            "'%s' is deprecated and will be removed in a future release. Use '%s' instead.",
            option_string,
            self.successor,
        )
        setattr(namespace, self.dest, self.const)


def _keywords(*, kind: str = "value", deprecated: str | None = None, **others: Any) -> dict[str, Any]:
    """One entry of the file as keywords of `add_argument`."""
    if "type" in others:
        others["type"] = _TYPES[others["type"]]
    if deprecated:
        others = {"action": _Deprecated, "successor": deprecated, "const": True, "default": False, **others}
        if kind == "flag":
            others["nargs"] = 0
    elif kind == "flag":
        others["action"] = "store_true"
    elif kind == "switch":
        others["action"] = argparse.BooleanOptionalAction
    return others
