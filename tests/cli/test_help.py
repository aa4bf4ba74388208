"""What `--help` says, kept in files beside this test: a change of the surface has to be meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Shell

from sglang_ops import cli

HELP = Path(__file__).parent / "help"
RENDERED_BY = "0.29"  # typer's frames and type names differ between minor versions; the texts are ours
OURS = [name for name in cli.VERBS if name != "lab"]  # the lab keeps its own
LOCK = ["lock status", "lock release"]
MODELS = ["models pull", "models ls", "models verify", "models prune", "models export", "models import"]
IMAGES = ["images save", "images load"]
ROLLOUT = ["rollout status", "rollout pause", "rollout resume", "rollout undo"]
_EVALUATE = ("tasks", "status", "ls", "logs", "wait", "fetch", "resume", "cancel", "rm")
_JUDGE = ("report", "compare", "gate", "export")
EVALUATE = [f"evaluate {verb}" for verb in (*_EVALUATE, *_JUDGE)]
BENCH = ["bench compare"]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.skipif(not typer.__version__.startswith(RENDERED_BY), reason=f"recorded with typer {RENDERED_BY}")
@pytest.mark.parametrize("verb", ["", *OURS, *LOCK, *MODELS, *IMAGES, *ROLLOUT, *EVALUATE, *BENCH])
def test_help_is_as_recorded(verb: str, shell: Shell) -> None:
    assert shell.run(*verb.split(), "--help") == 0
    said = "\n".join(line.rstrip() for line in shell.out.splitlines()).strip() + "\n"
    recorded = HELP / f"{verb.replace(' ', '-') or 'sglang-ops'}.txt"
    if os.environ.get("SGLANG_OPS_RECORD"):
        recorded.write_text(said)
    assert said == recorded.read_text(), f"meant? then run SGLANG_OPS_RECORD=1 pytest {Path(__file__).name}"


@pytest.mark.parametrize("verb", OURS)
def test_the_list_of_verbs_says_what_each_verb_says_of_itself(verb: str) -> None:
    own = str(cli.load(verb).help).split("\n\n", maxsplit=1)[0].replace("\n", " ")
    assert own.startswith(cli.VERBS[verb].help.rstrip("."))


@pytest.mark.parametrize("verb", OURS)
def test_letters_mean_what_ansible_users_expect(verb: str) -> None:
    expected = {"-i": "--inventory", "-l": "--limit", "-C": "--check", "-D": "--diff", "-e": "--extra-vars"}
    expected |= {"-K": "--ask-become-pass", "-o": "--override", "-y": "--yes", "-c": "--config", "-h": "--help"}
    options: list[Any] = cli.load(verb).params
    for option in options:
        for short in (word for word in option.opts if word in expected):
            assert expected[short] in option.opts


def test_h_is_help(shell: Shell) -> None:
    assert shell.run("deploy", "-h") == 0
    assert "Usage: sglang-ops deploy" in shell.out


def test_without_a_verb_help_is_shown(shell: Shell) -> None:
    assert shell.run() == 0
    assert "deploy" in shell.out


def test_help_imports_neither_ansible_nor_the_verbs() -> None:
    program = (
        "import sys; from sglang_ops import cli; cli.run(['--help']);"
        "slow = ('ansible', 'pydantic', 'yaml', 'sglang_ops.commands');"
        "print([name for name in sys.modules if name.startswith(slow)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_misspelled_verb_is_corrected(shell: Shell) -> None:
    assert shell.run("deplyo") == 7
    assert "Did you mean 'deploy'?" in shell.err


def test_the_version_is_the_package_s(shell: Shell) -> None:
    from sglang_ops import __version__

    assert shell.run("--version") == 0
    assert shell.out == f"sglang-ops {__version__}\n"
