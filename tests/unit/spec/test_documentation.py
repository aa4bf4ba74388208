"""docs/deployment-file.md: every key is in its tables, every test that it names exists, every example is valid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_ops.spec import check
from sglang_ops.spec.file import DeploymentFile
from sglang_ops.spec.known import fields, section_of
from sglang_ops.spec.section import Section
from sglang_ops.spec.yamlfile import parse

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "deployment-file.md").read_text(encoding="utf-8")
PREFIXES = {"the file": "", "other sections": ""}
# Sections whose keys have rows of their own.
TABLES = {"execution", "evaluation", "execution.mounts", "execution.env_vars", "target", "export"}


def rows() -> Iterator[tuple[set[str], str]]:
    """Keys (dotted paths) and last cell of every row of the tables of keys."""
    for table in re.findall(r"^\| key of (.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE):
        header, _, *lines = table.splitlines()
        of = header.partition(" |")[0].strip("`")
        prefix = PREFIXES.get(of, f"{of}.")
        for line in lines:
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            yield {f"{prefix}{key}" for key in re.findall(r"`([^`]+)`", cells[0])}, cells[-1].strip(" |")


def every_key(model: type[Section], path: str = "") -> Iterator[str]:
    for name, field in fields(model).items():
        key = f"{path}{name}"
        inner = section_of(field.annotation)
        if key not in TABLES or not path:
            yield key
        if inner and name != "deployments" and key != "gateway":  # the same keys as elsewhere
            yield from every_key(inner, f"{key}.")


def documented() -> set[str]:
    return {key for keys, _ in rows() for key in keys}


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    assert documented() == set(every_key(DeploymentFile))


def names_of_tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_every_test_that_is_named_exists() -> None:
    named = [re.fullmatch(r"`(test_\w+)`", cell) for _, cell in rows()]
    assert all(named)
    assert {match[1] for match in named if match} <= names_of_tests()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_of_the_page_is_valid(block: str) -> None:
    overrides = parse(block, "the page").data.get("deployment_overrides")
    if overrides is None:
        assert check(parse(block, "the page")).services
        return
    entry = "served_model_name: m\n  hf_model_handle: org/m\n"
    several = f"deployments:\n qwen:\n  {entry}"
    file = check(parse(several if "qwen" in overrides else f"deployment:\n  {entry}", "test"), host_overrides=overrides)
    assert file.deployment.tensor_parallel_size == 8
