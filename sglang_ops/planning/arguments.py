"""Judging the arguments for SGLang before a host is touched.

What SGLang's parser would do with them on the image's release is found out here: mistakes become errors,
abbreviations and former names become today's full names, with a warning each. Everything else stays as it was
written, word for word. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sglang_ops.catalog import catalogue, first_with, last_with, release_of, releases
from sglang_ops.catalog.options import Option
from sglang_ops.catalog.reading import Stray, Use, divide
from sglang_ops.catalog.successors import NEVER, Former, former
from sglang_ops.planning.argument_lists import Grounds, grounds
from sglang_ops.spec.model import OWNED_FLAGS

__all__ = ["ArgumentError", "Judged", "judge", "release_of"]


@dataclass(frozen=True)
class ArgumentError:
    """Why SGLang would not start as meant, and what to do about it."""

    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message} {self.fix}"


@dataclass(frozen=True)
class Judged:
    """`arguments` are to be used where there are no errors; `judged_by` says whose list was asked.

    `exact` is False where that list is not of the image's own release: the image knows better.
    """

    arguments: tuple[str, ...]
    errors: tuple[ArgumentError, ...] = ()
    warnings: tuple[str, ...] = ()
    judged_by: str = ""
    exact: bool = True


def judge(
    arguments: Sequence[str],
    release: str | None,
    *,
    image_list: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Judged:
    """Judge `arguments` for an image of `release`; None is an image whose tag names none.

    `image_list` is what the image itself listed (the module `sglang_image` asks it); it counts more than the
    catalogue. `strict` refuses what would be rewritten.
    """
    by = grounds(release, image_list)
    gone = former(arguments, by.catalogue)
    verdict = _Verdict(by, arguments, gone, strict)
    for part in divide(arguments, by.catalogue, {flag: old.option for flag, old in gone.items()}):
        verdict.on(part)
    warnings = [by.caution, *verdict.warnings] if arguments and by.caution else verdict.warnings
    return Judged(tuple(verdict.arguments), tuple(verdict.errors), tuple(warnings), by.name, by.exact)


class _Verdict:
    """Collects what is found, part by part."""

    def __init__(self, by: Grounds, written: Sequence[str], gone: Mapping[str, Former], strict: bool) -> None:
        self.arguments: list[str] = []
        self.errors: list[ArgumentError] = []
        self.warnings: list[str] = []
        self._by = by
        self._gone = gone
        self._strict = strict
        self._sglang = f"SGLang {by.catalogue.release}"
        self._written = {word.partition("=")[0] for word in written}

    def on(self, part: Use | Stray) -> None:
        if isinstance(part, Stray):
            self.arguments.append(part.word)
            self._error(f"{_shown(part.word)} belongs to no argument, and {self._sglang} refuses it.", "Remove it.")
        elif part.option is None:
            self.arguments += part.words()
            self._ambiguous(part) if part.candidates else self._unknown(part)
        elif part.flag not in part.candidates:
            self._abbreviated(part, part.option)
        elif part.flag in self._gone:
            self._succeeded(part, part.option)
        else:
            self.arguments += part.words()
            self._known(part.flag, part, part.option)

    def _unknown(self, use: Use) -> None:
        told = f"{_name(use.flag)} is not an argument of {self._sglang}"
        fix = _nearest(use.flag, self._by.catalogue.flags)
        first, last = first_with(use.flag), last_with(use.flag)
        if first and last:
            said = catalogue(last).flags[use.flag].help
            told += f"; {first} to {last} have it"
            fix = f"SGLang {last} says: {_sentence(said)}" if said else f"Remove it, or use an image of SGLang {last}."
        self._error(f"{told}.", fix)

    def _ambiguous(self, use: Use) -> None:
        meanings = ", ".join(use.candidates)
        self._error(f"{use.flag} is ambiguous in {self._sglang}: {meanings}.", "Write the one that is meant.")

    def _abbreviated(self, use: Use, option: Option) -> None:
        full = use.candidates[0]
        self.arguments += use.words(full)
        if full in OWNED_FLAGS:
            self._error(f"{use.flag} is short for {full}, which the key {OWNED_FLAGS[full]} sets.", "Remove it.")
            return
        self._rewritten(use.flag, full, f"it is short for that in {self._sglang}, and may not be in another release")
        self._known(full, use, option)

    def _succeeded(self, use: Use, option: Option) -> None:
        """A former argument, by its exact successor."""
        new = self._gone[use.flag].successor
        if new.moved:
            moved = replace(use, values=tuple((new.renamed or {}).get(value, value) for value in use.values))
            words = moved.words(new.moved)
            self._known(new.moved, moved, self._by.catalogue.flags[new.moved])
        else:
            words = tuple(word for flag in new.flags if flag[0] not in self._written for word in flag)
            if self._right_number(use.flag, use, option):
                self._values(use.flag, use.values, option)
        self.arguments += words
        self._rewritten(use.flag, _name(" ".join(words)), new.why or self._when_gone(use.flag))

    def _when_gone(self, flag: str) -> str:
        """The release in which an argument went, as far as the catalogue's steps tell."""
        if flag in NEVER:
            return "no release of SGLang starts with it as it is meant"
        if flag in self._by.catalogue.flags:
            return f"{self._sglang} refuses it"
        later = releases().index(last_with(flag) or "") + 1
        return f"SGLang {releases()[later]} no longer has it"

    def _known(self, flag: str, use: Use, option: Option) -> None:
        if flag in self._by.only:
            told = f"{flag} is known to SGLang {self._by.only[flag]} only, of {self._by.catalogue.release}."
            self.warnings.append(f"{told} The server may refuse it.")
        if option.action == "_HelpAction":
            self._error(f"{flag} makes SGLang print its help and end.", "Remove it.")
        elif self._right_number(flag, use, option):
            self._values(flag, use.values, option)
        if option.deprecated:
            self._deprecated(flag, option)
        if flag == "--config" and use.attached:
            path = _name(use.values[0])
            self.warnings.append(f"SGLang ignores --config={path}. Write it as two: --config {path}.")

    def _right_number(self, flag: str, use: Use, option: Option) -> bool:
        least, most = option.values
        if use.attached and most == 0:
            told = f"{flag} takes no value, and has {_shown(use.values[0])}."
            self._error(told, f"Write {flag} alone, or remove it.")
        elif len(use.values) < least:
            needs = "a value" if least == 1 else f"{least} values"
            self._error(f"{flag} needs {needs}, and has {len(use.values) or 'none'}.", f"Write one after {flag}.")
        else:
            return True
        return False

    def _values(self, flag: str, values: Sequence[str], option: Option) -> None:
        for text in values:
            try:
                value = option.read(text)
            except ValueError:
                self._error(f"{flag} is {_shown(text)}, which is not {_kind(option)}.", f"Give it {_kind(option)}.")
                continue
            if option.choices is None or value in option.choices:
                continue
            listed = ", ".join(map(str, option.choices))
            told = f"{flag} is {_shown(text)}, and {self._sglang} lists {listed}."
            if self._by.complete:
                self._error(told, "Choose one of these.")
            else:
                self.warnings.append(f"{told} The server refuses it unless a plugin or the platform adds it.")

    def _deprecated(self, flag: str, option: Option) -> None:
        said = f"Write {option.new_flag} instead." if option.new_flag else f"It says: {_sentence(option.help or '')}"
        if option.refuses:
            self._error(f"{self._sglang} refuses {flag}: {_sentence(option.refuses)}", "Remove it.")
        elif option.ignored:
            self.warnings.append(f"{flag} does nothing in {self._sglang}. {said}")
        else:
            self.warnings.append(f"{flag} is deprecated in {self._sglang}. {said}")

    def _rewritten(self, old: str, new: str, why: str) -> None:
        what = f"{old} becomes {new}" if new else f"{old} is left out"
        if self._strict:
            self._error(f"{old} would not be passed as written: {why}.", f"Write {new}." if new else "Remove it.")
        else:
            self.warnings.append(f"{what}: {why}.")

    def _error(self, message: str, fix: str) -> None:
        self.errors.append(ArgumentError(message, fix))


def _shown(value: str) -> str:
    """A value on one line of a message, whatever is in it."""
    return repr(value if len(value) <= 80 else f"{value[:79]}…")


def _name(words: str) -> str:
    """What is mostly printable and short, without quotes then."""
    return words if words.isprintable() and len(words) <= 80 else _shown(words)


def _sentence(text: str) -> str:
    """SGLang's words, which end as they please."""
    return f"{text.rstrip(' .')}."


def _kind(option: Option) -> str:
    kinds = {"int": "a whole number", "float": "a number", "human_readable_int": "a number like 20000, 20k or 16Ki"}
    return kinds.get(option.type, "JSON")


def _nearest(flag: str, known: Mapping[str, Option]) -> str:
    meant = "--" + flag.lstrip("-").replace("_", "-")
    close = [name for name in known if name.startswith(meant)] or list(known)
    close = difflib.get_close_matches(meant, close, n=3, cutoff=0.7 if len(close) == len(known) else 0)
    return f"Did you mean {' or '.join(close)}?" if close else "Remove it."
