"""The catalogue of SGLang's arguments: its files, how they are found, and the parser that they give back."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible.module_utils import sglang_host_arguments as host

from sglang_ops import catalog
from sglang_ops.catalog.options import MANY, READERS, human_readable_int
from sglang_ops.catalog.parser import add_arguments

# Options and flags, counted independently with SGLang's own parsers.
COUNTS = {
    "0.4.0": (83, 87), "0.4.3.post4": (108, 113), "0.4.6.post5": (146, 152), "0.4.10.post2": (186, 194),
    "0.5.3.post3": (264, 273), "0.5.6.post2": (293, 302), "0.5.10.post1": (355, 367), "0.5.15.post1": (438, 453),
    "0.5.16": (461, 478), "0.5.17": (475, 493), "0.5.18": (489, 508), "0.5.19": (504, 523), "0.5.20": (495, 515),
    "0.5.21": (513, 534), "0.5.22": (522, 546), "0.5.23": (532, 561),
}  # fmt: skip


@pytest.mark.parametrize("release", COUNTS)
def test_nothing_is_missing(release: str) -> None:
    known = catalog.catalogue(release)
    assert (len(known.options), len(known.flags)) == COUNTS[release]
    assert known.release == release


def test_releases_are_in_order_of_age() -> None:
    known = catalog.releases()
    assert known[0] == "0.4.0"
    assert known[-1] == "0.5.23"
    assert known.index("0.5.9") + 1 == known.index("0.5.10.post1")
    assert set(COUNTS) <= set(known)


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.5.9", "0.5.10"), ("0.5.10", "0.5.10.post1"), ("0.5.10rc0", "0.5.10"), ("0.4.10.post2", "0.5.0"),
     ("0.5.10.post1", "0.5.11rc1")],
)  # fmt: skip
def test_order(older: str, newer: str) -> None:
    assert catalog.order(older) < catalog.order(newer)


@pytest.mark.parametrize("word", ["latest", "0.5", "1.2.3.4", "v0.5.23", "0.5.23.dev1", ""])
def test_what_is_no_release_has_no_order(word: str) -> None:
    with pytest.raises(ValueError, match="is not a release like"):
        catalog.order(word)


@pytest.mark.parametrize(
    ("image", "release"),
    [
        ("lmsysorg/sglang:v0.5.23", "0.5.23"),
        ("lmsysorg/sglang:v0.5.23-cu129-runtime", "0.5.23"),
        ("lmsysorg/sglang:v0.5.6.post2-rocm700-mi35x", "0.5.6.post2"),
        ("lmsysorg/sglang:v0.5.10rc0_x", "0.5.10rc0"),
        ("198.18.0.2:5000/sglang:0.4.6.post5", "0.4.6.post5"),
        ("sglang:v0.5.23@sha256:" + "0" * 64, "0.5.23"),
        ("lmsysorg/sglang:latest", None),
        ("lmsysorg/sglang", None),
        ("198.18.0.2:5000/sglang", None),
        ("lmsysorg/sglang@sha256:" + "0" * 64, None),
        ("lmsysorg/sglang:dev-x86-0.5.23", None),
        ("lmsysorg/sglang:nightly-dev-20261030-0a1b2c3d", None),
        ("lmsysorg/sglang:v0.5.23.dev7", None),
        ("lmsysorg/sglang:v0.5.231x", None),
    ],
)
def test_a_tag_tells_the_release_or_nothing(image: str, release: str | None) -> None:
    assert catalog.release_of(image) == release


@pytest.mark.parametrize(
    ("release", "nearest"),
    [("0.5.15", ("0.5.14", "0.5.15.post1")), ("0.5.0", ("0.4.10.post2", "0.5.1.post3")), ("0.6.0", ("0.5.23",)),
     ("0.3.6", ("0.4.0",)), ("0.5.10rc0", ("0.5.9", "0.5.10.post1"))],
)  # fmt: skip
def test_neighbours(release: str, nearest: tuple[str, ...]) -> None:
    assert catalog.neighbours(release) == nearest


def test_only_catalogued_releases_are_given() -> None:
    with pytest.raises(KeyError):
        catalog.catalogue("0.5.15")


def test_an_options_values() -> None:
    flags = catalog.catalogue("0.5.23").flags
    assert flags["--port"].values == (1, 1)
    assert flags["--enable-metrics"].values == flags["--no-lora-strict-loading"].values == (0, 0)
    assert flags["--disable-cuda-graph"].values == (0, 0)
    assert flags["--cuda-graph-bs-decode"].values == (1, MANY)
    assert flags["--model-checksum"].values == (0, 1)
    assert flags["--lora-paths"].values == (0, MANY)


@pytest.mark.parametrize("release", catalog.releases())
def test_every_type_can_be_read(release: str) -> None:
    """A reading function that is new in SGLang has to be looked at, once."""
    text_as_it_is = {"str", "nullable_str", "bool"}
    assert {option.type for option in catalog.catalogue(release).options} <= text_as_it_is | set(READERS)


def test_an_images_list_is_a_catalogue_whatever_else_it_says() -> None:
    told = {"sglang": "0.6.0", "options": [{"flags": ["--new"], "choices": ["a"], "invented_later": 1}], "more": 2}
    known = catalog.from_image(told)
    assert known.flags["--new"].choices == ("a",)


def test_when_a_flag_was_known() -> None:
    assert (catalog.first_with("--torchao-config"), catalog.last_with("--torchao-config")) == ("0.4.0", "0.5.17")
    assert catalog.last_with("--new_flag") is catalog.first_with("--new_flag") is None
    assert catalog.last_with("--cp-strategy") == "0.5.23"  # named in another option's text is not known


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("-1", -1), ("1k", 1000), ("25.6k", 25_600), ("1Ki", 1024)])
def test_human_readable_int(text: str, number: int) -> None:
    assert human_readable_int(text) == number


def test_the_catalogue_loads_nothing_else() -> None:
    asked = "import sys, sglang_ops.catalog.parser as p; p.Catalogue; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ansible", "pydantic", "yaml", "rich"} & set(loaded)


def listed_by(release: str) -> dict[str, Any]:
    """What an image would list whose SGLang has the parser that is rebuilt from the catalogue."""

    class ServerArgs:
        @staticmethod
        def add_cli_args(parser: argparse.ArgumentParser) -> None:
            add_arguments(parser, catalog.catalogue(release))

    names = ("sglang", "sglang.srt", "sglang.srt.server_args", "sglang.version")
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    modules["sglang.srt.server_args"].ServerArgs = ServerArgs
    modules["sglang.version"].__version__ = release
    printed = io.StringIO()
    with mock.patch.dict(sys.modules, modules), contextlib.redirect_stdout(printed):
        exec(host.script(), {"__name__": "__main__"})  # noqa: S102 (as an image runs it)
    answer: dict[str, Any] = host.answer_in(printed.getvalue())
    return answer


@pytest.mark.parametrize("release", catalog.releases())
def test_the_rebuilt_parser_has_the_same_list(release: str) -> None:
    stored = Path(catalog.__path__[0], f"{release}.json").read_text("utf-8")
    assert listed_by(release) == json.loads(stored)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [("--disable-flashinfer", (), "Please use '--attention-backend triton' instead"),
     ("--port", ("x",), "argument --port: invalid int value: 'x'"),
     ("--tensor", ("x",), "argument --tensor-parallel-size/--tp-size: invalid int value: 'x'")],
)  # fmt: skip
def test_the_rebuilt_parser_refuses_in_sglangs_words(
    flag: str, value: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, catalog.catalogue("0.4.0"))
    with pytest.raises(SystemExit):
        parser.parse_args(["--model-path", "m", flag, *value])
    assert words in capsys.readouterr().err


def test_a_deprecated_option_that_does_nothing_stores_nothing() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, catalog.catalogue("0.5.12.post1"))
    assert parser.parse_args(["--model-path", "m", "--hybrid-kvcache-ratio"]).hybrid_kvcache_ratio is None
