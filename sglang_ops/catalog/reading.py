"""How argparse divides a command line among the options of a release. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import Catalogue
from .options import Option

_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


@dataclass(frozen=True)
class Use:
    """One option as it was written, with the words that argparse gives it.

    `flag` is what was written, up to a '='; `candidates` are the flags that it may stand for: one where argparse
    knows what is meant, none for an unknown flag, several for an ambiguous one. `attached` tells `--flag=value`.
    """

    flag: str
    values: tuple[str, ...]
    attached: bool
    candidates: tuple[str, ...]
    option: Option | None

    def words(self, flag: str | None = None) -> tuple[str, ...]:
        """As written, or under another flag."""
        name = flag or self.flag
        if not self.attached:
            return (name, *self.values)
        return (f"{name}={self.values[0]}", *self.values[1:])


@dataclass(frozen=True)
class Stray:
    """A word that belongs to no option."""

    word: str


def divide(words: Sequence[str], catalogue: Catalogue, former: Mapping[str, Option]) -> tuple[Use | Stray, ...]:
    """The options in the order in which they were written.

    `former` are flags that are to be seen as themselves although the release does not have them; a prefix of
    another flag they must not become. An option without enough values has fewer, one with too many is followed
    by strays; an unknown flag has every word up to the next flag.
    """
    found: list[Use | Stray] = []
    position = 0
    while position < len(words):
        use = _flag(words[position], catalogue, former)
        position += 1
        if use is None:
            found.append(Stray(words[position - 1]))
            continue
        if not use.attached:
            end = position
            most = use.option.values[1] if use.option else len(words)
            while end < len(words) and end - position < most and _is_value(words[end], catalogue, former):
                end += 1
            use = Use(use.flag, tuple(words[position:end]), False, use.candidates, use.option)
            position = end
        found.append(use)
    return tuple(found)


def _is_value(word: str, catalogue: Catalogue, former: Mapping[str, Option]) -> bool:
    return word != "--" and _flag(word, catalogue, former) is None


def _flag(word: str, catalogue: Catalogue, former: Mapping[str, Option]) -> Use | None:
    """The flag that this word is, None for a value; in argparse's order of questions (`_parse_optional`)."""
    if not word.startswith("-") or word in ("-", "--"):
        return None
    name, equals, value = word.partition("=")
    for flag, attached in ((word, ()), (name, (value,) if equals else ())):
        option = former.get(flag) or catalogue.flags.get(flag)
        if option:
            return Use(flag, attached, bool(attached), (flag,), option)
    candidates = catalogue.starting_with(name) if name.startswith("--") else ()
    if candidates:
        only = catalogue.flags[candidates[0]] if len(candidates) == 1 else None
        return Use(name, (value,) if equals else (), bool(equals), candidates, only)
    if _NUMBER.fullmatch(word) or " " in word:
        return None
    return Use(name, (value,) if equals else (), bool(equals), (), None)
