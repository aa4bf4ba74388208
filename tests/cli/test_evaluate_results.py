"""The verbs of `evaluate` that need results and no host."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Shell

sys.path.append(str(Path(__file__).parents[1] / "unit" / "evaluation"))
from evaluation_runs import write

POLICY = "tasks:\n  gpqa_diamond: {min_score: 0.6, max_drop: 0.1}\n"


@pytest.fixture
def runs(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs where runs are looked for, and a policy."""
    monkeypatch.chdir(shell.home)
    folder = shell.home / "evaluated"
    write(folder / "before", [1] * 90 + [0] * 10)
    write(folder / "after", [1] * 70 + [0] * 30)
    (shell.home / "policy.yaml").write_text(POLICY)
    deployment = (shell.home / "deployment.yaml").read_text()
    (shell.home / "deployment.yaml").write_text(f"{deployment}execution:\n  output_dir: evaluated\n")
    return folder


def test_report_prints_the_scores_and_writes_the_page(shell: Shell, runs: Path) -> None:
    assert shell.run("evaluate", "report", "before") == 0
    assert "gpqa_diamond" in shell.out
    assert "90.0 %" in shell.out
    assert (runs / "before/report.html").read_text().startswith("<!doctype html>")
    assert shell.run("evaluate", "report", "before", "--to", "page.html", "--output", "json") == 0
    said = json.loads(shell.out)
    assert said["report"] == "page.html"
    assert {key: said["tasks"][0][key] for key in ("name", "score", "items", "failed", "seconds")} == {
        "name": "gpqa_diamond", "score": 0.9, "items": 100, "failed": 0, "seconds": 60.0,
    }  # fmt: skip


def test_compare_says_what_fell(shell: Shell, runs: Path) -> None:
    assert shell.run("evaluate", "compare", "before", "after", "-n", "2") == 0
    assert "worse" in shell.out
    assert "20 fell: item-70, item-71, 18 more" in shell.out
    assert shell.run("evaluate", "compare", "before", "after", "--output", "json") == 0
    said = json.loads(shell.out)["tasks"][0]
    assert said["difference"]["difference"] == pytest.approx(-0.2)
    assert len(said["flips"]) == 20


@pytest.mark.parametrize(
    ("run", "baseline", "code", "verdict"),
    [("before", "before", 0, "GO"), ("after", "before", 1, "NO-GO"), ("small", "small", 2, "INCONCLUSIVE")],
)
def test_gate_ends_with_its_verdict(shell: Shell, runs: Path, run: str, baseline: str, code: int, verdict: str) -> None:
    write(runs / "small", [1, 1, 1, 1, 0])
    words = ["evaluate", "gate", run, "--baseline", baseline, "--policy", "policy.yaml"]
    assert shell.run(*words) == code
    assert verdict in shell.out.splitlines()
    assert shell.run(*words, "--output", "json") == code
    said = json.loads(shell.out)
    assert (said["verdict"], said["exit_code"], said["ok"]) == (verdict, code, code == 0)


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["--format", "json"], ["export.json"]),
        (["--format", "csv"], ["scores.csv", "items.csv"]),
        (["--format", "junit", "--policy", "policy.yaml", "--baseline", "before"], ["junit.xml"]),
    ],
)
def test_export_writes_beside_the_results(shell: Shell, runs: Path, words: list[str], files: list[str]) -> None:
    assert shell.run("evaluate", "export", "after", *words, "--output", "json") == 0
    assert json.loads(shell.out)["files"] == [str(Path("evaluated/after") / name) for name in files]
    assert all((runs / "after" / name).stat().st_size > 100 for name in files)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nothing"], "There is no run nothing"),
        (["gate", "after", "--policy", "policy.yaml"], "there is no baseline"),
        (["gate", "after", "--policy", "none.yaml"], "none.yaml has a mistake"),
        (["compare", "before", "after", "-t", "ifeval"], "Task ifeval is not in both runs"),
        (["compare", "before", "after", "--confidence", "95"], "Invalid value for '--confidence'"),
        (["export", "after", "--format", "csv", "--policy", "policy.yaml"], "--policy has no meaning"),
        (["export", "after", "--format", "junit", "--baseline", "before"], "--baseline has no meaning without"),
        (["export", "after", "--format", "json", "--to", "policy.yaml/x"], "cannot be written"),
        (["report", "after", "--to", "/proc/none/x.html"], "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(shell: Shell, runs: Path, words: list[str], message: str) -> None:
    assert shell.run("evaluate", *words) == 7
    assert message in " ".join(shell.err.split())
    assert "Traceback" not in shell.err


def test_a_result_cut_off_by_hand_is_one_sentence(shell: Shell, runs: Path) -> None:
    file = runs / "after/gpqa_diamond/results.json"
    file.write_text(file.read_text()[:200])
    for verb in (["report", "after"], ["compare", "before", "after"]):
        assert shell.run("evaluate", *verb) == 7
        assert "results.json is no JSON, or only a part of it" in shell.err
