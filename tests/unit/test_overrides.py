"""``-e`` and ``-o``: what goes to Ansible, and what is laid over the deployment file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sglang_ops.commands import _overrides
from sglang_ops.errors import UsageError


@pytest.mark.parametrize(
    ("word", "variables"),
    [
        ("a=1", {"a": 1}),
        ("a=true", {"a": True}),
        ("a=1.5", {"a": 1.5}),
        ("a=text", {"a": "text"}),
        ("a='1'", {"a": "1"}),
        ("a=", {"a": ""}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a=x=y", {"a": "x=y"}),
        ("a={{ b }}", {"a": "{{ b }}"}),
        ("a=1 b=two", {"a": 1, "b": "two"}),
        ("a=--flag --other=2", {"a": "--flag --other=2"}),
        ('{"a": {"b": [1]}, "c": null}', {"a": {"b": [1]}, "c": None}),
    ],
)
def test_values_have_the_type_that_yaml_gives_them(word: str, variables: dict[str, Any]) -> None:
    assert _overrides.parse([word]).variables == variables


def test_later_words_win_and_mappings_are_merged() -> None:
    found = _overrides.parse(
        [
            "deployment.port=1",
            "deployment.env_vars.A=x",
            '{"deployment": {"env_vars": {"B": "y"}}}',
            "deployment.port=2",
        ]
    )
    assert found.deployment == {"port": 2, "env_vars": {"A": "x", "B": "y"}}
    assert found.variables == {}


def test_a_file_goes_to_ansible_and_its_deployment_to_us(tmp_path: Path) -> None:
    path = tmp_path / "vars.yml"
    path.write_text("deployment: {port: 9}\nsecret: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  61\n")
    found = _overrides.parse([f"@{path}"])
    assert (found.files, found.deployment, found.variables) == ((path,), {"port": 9}, {})


def test_an_encrypted_file_is_ansible_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "vault.yml"
    path.write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    assert _overrides.parse([f"@{path}"]) == _overrides.ExtraVars({}, (path,), {})


@pytest.mark.parametrize("word", ["nonsense", "=1", "1a=2", "{broken", "a.b=1", "deployment=3", "@/no/such/file"])
def test_what_cannot_be_read_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        _overrides.parse([word])


@pytest.mark.parametrize(
    ("word", "section"),
    [
        ("deployment.port=9000", {"port": 9000}),
        ("++deployment.env_vars.X=1", {"env_vars": {"X": 1}}),
        ("+deployment.name=a", {"name": "a"}),
        ("deployment.hf_model_handle=null", {"hf_model_handle": None}),
        ("deployment.share_gpus=true", {"share_gpus": True}),
        ("deployment.extra_args=[--a,b c,1]", {"extra_args": ["--a", "b c", 1]}),
        ("deployment.extra_args=--a --b=c", {"extra_args": "--a --b=c"}),
        ("deployment.env_vars={A:1,B: two}", {"env_vars": {"A": 1, "B": "two"}}),
        ("deployment.served_model_name='8'", {"served_model_name": "8"}),
        ('deployment.served_model_name="a b"', {"served_model_name": "a b"}),
        ("deployment.pre_cmd=", {"pre_cmd": ""}),
        ("deployment.pre_cmd=a: b #c", {"pre_cmd": "a: b #c"}),
        ("deployment.pre_cmd=- a", {"pre_cmd": "- a"}),
        ("deployment.pre_cmd=&a *b !c", {"pre_cmd": "&a *b !c"}),
        ("deployment.pre_cmd=x=${oc.env:Y}", {"pre_cmd": "x=${oc.env:Y}"}),
        ("deployment.pre_cmd='a' && b", {"pre_cmd": "'a' && b"}),
        ("deployment.pre_cmd=12:30", {"pre_cmd": "12:30"}),
        ("~deployment.checkpoint_path", {"checkpoint_path": _overrides.REMOVED}),
    ],
)
def test_overrides_are_read_as_hydra_reads_them(word: str, section: dict[str, Any]) -> None:
    assert _overrides.parse_overrides([word]) == {"deployment": section}


def test_later_overrides_win() -> None:
    words = ["deployment.port=1", "deployment.name=a", "~deployment.name", "deployment.port=2"]
    assert _overrides.parse_overrides(words) == {"deployment": {"port": 2, "name": _overrides.REMOVED}}


def test_tasks_are_named_or_numbered() -> None:
    found = _overrides.parse_overrides(["++evaluation.tasks.ifeval.container=x", "evaluation.tasks.0.name=y"])
    assert found == {"evaluation": {"tasks": {"ifeval": {"container": "x"}, "0": {"name": "y"}}}}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("port=9000", "Did you mean 'deployment.port'?"),
        ("deploymnt.port=1", "Did you mean 'deployment'?"),
        ("nothing.like=it", "Sections are"),
        ("deployment.port", "~KEY takes a key away"),
        ("~deployment.port=1", "~KEY takes a key away"),
        ("=1", "~KEY"),
        ("json", "The form of the result is --output json."),
        ("deployment.extra_args=[a", "Put text in quotes"),
    ],
)
def test_overrides_that_cannot_be_meant_are_refused(word: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        _overrides.parse_overrides([word])
    assert says in str(refused.value.fix)


def test_a_file_s_mode_stays_text() -> None:
    assert _overrides.parse(["hf_cache_mode=0750", "n=0"]).variables == {"hf_cache_mode": "0750", "n": 0}
