"""A release's parser, rebuilt: accepts, warns and refuses as SGLang's own, in the same words."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from . import Catalogue
from .options import Option


def add_arguments(parser: argparse.ArgumentParser, catalogue: Catalogue) -> None:
    """Add the release's options. Abbreviations are allowed and may be ambiguous, as in SGLang."""
    for option in catalogue.options:
        if option.action != "_HelpAction":  # every parser brings its own
            parser.add_argument(*_declared(option), **_keywords(option))


class _Deprecated(argparse.Action):
    """Warns and names the successor, then does what the option did; or ends the parser where it is refused."""

    def __init__(self, *, option: Option, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.option = option
        self.new_flag = option.new_flag

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if self.option.refuses:
            parser.error(self.option.refuses)
        successor = f" Use '{self.new_flag}' instead." if self.new_flag else ""
        logging.warning("'%s' is deprecated and will be removed in a future release.%s", option_string, successor)
        if not self.option.ignored:
            setattr(namespace, self.dest, values if self.const is None else self.const)


def _declared(option: Option) -> Sequence[str]:
    """The flags as they were registered; argparse adds the `--no-…` ones itself."""
    if option.action != "BooleanOptionalAction":
        return option.flags
    return [flag for flag in option.flags if f"--no-{flag[2:]}" in option.flags]


def _keywords(option: Option) -> dict[str, Any]:
    """The option as keywords of `add_argument`."""
    given: dict[str, Any] = {"default": option.default, "required": option.required, "help": option.help}
    if option.dest:
        given["dest"] = option.dest
    if option.action == "_StoreTrueAction":
        return given | {"action": "store_true", "default": False}
    if option.action == "BooleanOptionalAction":
        return given | {"action": argparse.BooleanOptionalAction}
    if option.type != "str":
        given["type"] = _reader(option)
    given |= {"nargs": option.nargs, "const": option.const, "choices": option.choices and list(option.choices)}
    if option.action == "_StoreAction":
        return given
    if option.action.startswith("Deprecated"):
        return given | {"action": type(option.action, (_Deprecated,), {}), "option": option}
    return given | {"action": type(option.action, (argparse._StoreAction,), {})}  # noqa: SLF001 (stores as that does)


def _reader(option: Option) -> Any:
    def read(text: str) -> Any:
        return option.read(text)

    read.__name__ = option.type  # argparse names it: "invalid human_readable_int value"
    return read
