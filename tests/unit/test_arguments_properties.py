"""Judging agrees with argparse, whatever is written: with each release's own parser, rebuilt from the catalogue."""

from __future__ import annotations

import argparse
import functools

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_ops.catalog import catalogue, releases
from sglang_ops.catalog.options import Option
from sglang_ops.catalog.parser import add_arguments
from sglang_ops.catalog.successors import NEVER
from sglang_ops.planning.arguments import judge

REFUSED_CHOICE = "The server refuses it unless"
WORDS = ("", "-", "--", "-1", "-0.5", "1", "0.9", "auto", "triton", "x y", "-x", "--x y", "{}", "1k", "a=b", "größe")


class Refused(Exception):
    pass


class Strict(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise Refused(message)


@functools.cache
def parser(release: str) -> argparse.ArgumentParser:
    built = Strict(add_help=False)
    add_arguments(built, catalogue(release))
    return built


def parsed(release: str, arguments: tuple[str, ...]) -> argparse.Namespace | None:
    """What SGLang makes of it, None where it refuses."""
    try:
        return parser(release).parse_args(["--model-path", "m", *arguments])
    except Refused:
        return None


@functools.cache
def flags_of(release: str) -> list[str]:
    flags = catalogue(release).flags.items()
    return [flag for flag, option in flags if option.action != "_HelpAction" and flag not in NEVER]


@functools.cache
def usable(release: str) -> list[Option]:
    options = catalogue(release).options
    return [option for option in options if option.action != "_HelpAction" and not option.deprecated]


def value_of(option: Option) -> st.SearchStrategy[str]:
    if option.choices is not None:
        return st.sampled_from([str(choice) for choice in option.choices])
    return {
        "int": st.integers(-(10**6), 10**9).map(str),
        "float": st.floats(allow_nan=False, allow_infinity=False, min_value=0).map(str),
        "human_readable_int": st.sampled_from(["1", "20k", "1.5M", "16Ki"]),
        "loads": st.sampled_from(["{}", "[1]", '{"a": " "}']),
        "json_list_type": st.sampled_from(["[]", '["a b"]']),
        "parse_cuda_graph_config_arg": st.just("{}"),
    }.get(option.type, st.text().filter(lambda text: not text.startswith("-") and "\0" not in text))


@st.composite
def valid_uses(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """A release, and arguments as a careful person writes them for it."""
    release = draw(st.sampled_from(releases()))
    words: list[str] = []
    for option in draw(st.lists(st.sampled_from(usable(release)), max_size=6)):
        flag = draw(st.sampled_from(option.flags))
        least, most = option.values
        values = draw(st.lists(value_of(option), min_size=least, max_size=min(most, least + 3)))
        if len(values) == 1 and flag != "--config" and draw(st.booleans()):
            words.append(f"{flag}={values[0]}")
        else:
            words += [flag, *values]
    return release, tuple(words)


@st.composite
def anything(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """A release, and its flags, those of another release, their beginnings, values and nonsense in any order."""
    release = draw(st.sampled_from(releases()))
    flags = st.sampled_from([*flags_of(release), *flags_of(draw(st.sampled_from(releases())))])
    cut = st.tuples(flags, st.integers(4, 30)).map(lambda pair: pair[0][: pair[1]])
    word = st.one_of(flags, cut, st.sampled_from(WORDS), st.text(max_size=5))
    # Pythons differ in what they make of `--flag=--`.
    attached = st.tuples(st.one_of(flags, cut), st.sampled_from(WORDS).filter("--".__ne__)).map("=".join)
    return release, tuple(draw(st.lists(st.one_of(word, attached), max_size=6)))


@given(valid_uses())
@settings(max_examples=100, deadline=None)
def test_valid_arguments_pass_word_for_word(case: tuple[str, tuple[str, ...]]) -> None:
    release, arguments = case
    assert parsed(release, arguments) is not None
    found = judge(arguments, release, strict=True)
    assert (found.arguments, found.errors, found.warnings) == (arguments, (), ())


@given(anything())
@settings(max_examples=300, deadline=None)
def test_whatever_is_judged_well_starts_and_means_the_same(case: tuple[str, tuple[str, ...]]) -> None:
    release, arguments = case
    found = judge(arguments, release)
    good = not found.errors and not any(REFUSED_CHOICE in warning for warning in found.warnings)
    meant, started = parsed(release, arguments), parsed(release, found.arguments)
    if good:
        assert started is not None
    if meant is not None and not any("which the key" in error.message for error in found.errors):
        assert good
        assert vars(started) == vars(meant)


@given(anything())
@settings(max_examples=100, deadline=None)
def test_judging_again_changes_nothing(case: tuple[str, tuple[str, ...]]) -> None:
    release, arguments = case
    once = judge(arguments, release)
    if not once.errors:
        assert judge(once.arguments, release).arguments == once.arguments


@given(anything(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_message_is_one_line_and_says_what_to_do(case: tuple[str, tuple[str, ...]], strict: bool) -> None:
    release, arguments = case
    for chosen in (release, None, f"{release.partition('.post')[0]}.post77"):
        found = judge(arguments, chosen, strict=strict)
        told = [*found.warnings, *(word for error in found.errors for word in (error.message, error.fix))]
        assert all(sentence.endswith((".", "?")) and sentence.isprintable() for sentence in told), told
