"""Whatever is in the file: it is read as it was written, or refused by path and line; nothing else ever happens."""

from __future__ import annotations

import string
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sglang_ops.spec import DeploymentFile, SpecErrors, SpecProblem, check
from sglang_ops.spec.known import keys_below
from sglang_ops.spec.yamlfile import dump, parse

PREFIXES = ("host:", "runtime:", "lit:")
LAUGHS = "x-a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"x-{outer}: &{outer} [{', '.join([f'*{inner}'] * 10)}]\n" for inner, outer in pairwise("abcdefgh")
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def carried(text: str) -> bool:
    """Whether it reaches a container: Unicode's noncharacters and podman's lost carriage returns are refused."""
    lost = any(ord(char) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(char) <= 0xFDEF for char in text)
    return not lost and "\r\n" not in text


PLAIN = TEXT.filter(lambda text: "${" not in text and text != "???" and carried(text))  # says nothing to OmegaConf
SCALARS = st.none() | st.booleans() | st.integers(-10, 2**40) | st.floats(allow_nan=False) | TEXT
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.integers(), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.from_regex(r"/[a-z0-9 ,'\"é×-]{1,12}", fullmatch=True)
SIZES = st.integers(1, 1024)
DEPLOYMENTS = st.fixed_dictionaries(
    {
        "served_model_name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9/ ._é-]{0,20}[a-z]", fullmatch=True),
        "hf_model_handle": st.just("org/m"),
    },
    optional={
        "port": st.integers(1, 65535),
        "tensor_parallel_size": SIZES | st.just("auto"),
        "data_parallel_size": SIZES,
        "share_gpus": st.booleans(),
        "checkpoint_path": PATHS,
        "cache_path": PATHS,
        "extra_args": st.lists(PLAIN.filter(lambda text: not text.startswith("--")), max_size=4),
        "env_vars": st.dictionaries(
            st.from_regex(r"X_[A-Z0-9]{1,8}", fullmatch=True),
            PLAIN.filter(lambda text: not text.startswith(PREFIXES)),
            max_size=3,
        ),
        "mounts": st.dictionaries(PATHS, st.sampled_from(["/a", "/b:ro"]), max_size=1),
    },
)


def load_text(text: str) -> DeploymentFile:
    return check(parse(text, "a file"))


def problems(text: str) -> list[SpecProblem]:
    try:
        load_text(text)
    except SpecErrors as refused:
        return refused.errors
    return []


@settings(max_examples=150, deadline=None)
@given(DEPLOYMENTS)
def test_what_is_written_is_what_is_read(written: dict[str, Any]) -> None:
    read = load_text(dump({"deployment": written})).deployment
    seen = {key: getattr(read, key) for key in written}
    if "env_vars" in seen:
        seen["env_vars"] = {name: item.value for name, item in read.env_vars.items()}
    if "mounts" in seen:
        seen["mounts"] = {item.source: item.target + ":ro" * item.read_only for item in read.mounts}
    if "extra_args" in seen:
        seen["extra_args"] = list(read.extra_args)
    assert seen == written


@settings(max_examples=100, deadline=None)
@given(DEPLOYMENTS)
def test_a_dump_of_the_model_is_a_file_again(written: dict[str, Any]) -> None:
    file = load_text(dump({"deployment": written}))
    assert load_text(dump(file.model_dump(mode="json"))).services == file.services


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
@example("deployment: &a\n  x-b: *a\n")
@example("x: " + "[" * 3000)
@example(LAUGHS)
@example("deployment: {? [1] : 2}")
@example("deployment: {? {a: 1} : 2}")
@example("{{ templated }}: 1")
@example("x: !!python/object/apply:os.system ['true']")
@example("x: !!int nonsense")
@example("x: !!timestamp 2024-99-99")
@example("x: \ud800")
@example("a: ${\n")
@example("deployment: {port: '${deployment.port}'}")
@example("deployment: {port: '${deployment}'}")
@example("deployment: {~: 1, 2: 3, true: 4, port: '${x}'}")
@example("deployment: {<<: 3}")
@example("deployment: {<<: [{port: 1}, {port: 2}], port: x}")
@example("? \n: ")
def test_garbage_is_refused_and_never_breaks_anything(text: str) -> None:
    found = problems(text)
    assert found
    assert all(problem.message for problem in found)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(keys_below(["deployment"])), ANYTHING)
def test_any_value_under_any_key_is_taken_or_refused_at_its_line(key: str, value: Any) -> None:
    written = {"served_model_name": "m", "hf_model_handle": "org/m", key: value}
    for problem in problems(dump({"deployment": written})):
        assert problem.path.split(".")[0] in {"deployment", ""}
        assert problem.line is not None or not problem.path


SECTIONS = [
    [], ["deployment"], ["deployment", "endpoints"], ["execution"], ["execution", "mounts"], ["execution", "env_vars"],
    ["evaluation"], ["target"], ["target", "api_endpoint"], ["export"],
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SECTIONS), st.text(string.ascii_lowercase + "_", min_size=1, max_size=20))
def test_unknown_keys_are_refused_everywhere_at_their_line(section: list[str], key: str) -> None:
    assume(key not in keys_below(section))
    data: dict[str, Any] = {"deployment": {"served_model_name": "m", "hf_model_handle": "org/m"}}
    inner = data
    for part in section:
        inner = inner.setdefault(part, {})
    inner[key] = 1
    text = dump(data)
    with pytest.raises(SpecErrors) as refused:
        load_text(text)
    (problem,) = refused.value.errors
    assert problem.path == ".".join([*section, key])
    assert text.splitlines()[(problem.line or 0) - 1].strip().replace("'", "") == f"{key}: 1"


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(TEXT, ANYTHING, max_size=4))
def test_a_dump_reads_back_as_it_was(data: dict[str, Any]) -> None:
    wanted = {key: value for key, value in data.items() if key not in {"env_vars", "extra_args", "command"}}
    assert parse(dump({"x": wanted}), "a file").data == {"x": wanted}
