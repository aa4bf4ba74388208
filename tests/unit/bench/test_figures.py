"""Medians, ratios, targets, and the tables made of them."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from bench.contenders import OURS, PLAIN, PYINFRA, Sample
from bench.figures import HELP, PASS, VALIDATE, Figures, Median
from bench.report import render, seconds


@pytest.fixture
def figures() -> Figures:
    def walls(*values: float) -> list[Sample]:
        return [Sample(value, value / 2, 10) for value in values]

    series = {OURS: walls(2.0, 9.0, 3.0), PLAIN: walls(60.0, 59.0, 61.0), PYINFRA: walls(4.0, 5.0, 3.0)}
    return Figures(
        hosts=4,
        floor=walls(0.5),
        first={name: samples[:1] for name, samples in series.items()},
        noop=series,
        connected=series,
        startup={PASS: [0.01, 0.02, 0.03], HELP: [0.2, 0.1, 0.3], VALIDATE: [0.8, 0.9, 0.7]},
    )


def test_median_is_per_host_and_ignores_the_outlier(figures: Figures) -> None:
    assert figures.median(figures.noop, OURS) == Median(wall=3.0, cpu_per_host=3.0 / 2 / 4, executions=10)


def test_ratios_compare_medians(figures: Figures) -> None:
    assert figures.ratio(figures.noop, OURS, PLAIN) == pytest.approx(0.05)
    assert figures.ratio(figures.noop, OURS, PYINFRA) == pytest.approx(0.75)


def test_targets_say_what_is_missed(figures: Figures) -> None:
    assert [target.reached for target in figures.targets()] == [True, True, True, False]


def test_json_holds_medians_and_every_sample(figures: Figures) -> None:
    data = json.loads(json.dumps(figures.as_dict()))
    assert data["noop"][OURS] == {"wall": 3.0, "cpu_per_host": 0.375, "executions": 10}
    assert [sample["wall"] for sample in data["samples"]["noop"][OURS]] == [2.0, 9.0, 3.0]
    assert data["startup"][HELP] == {"median": 0.2, "best": 0.1}
    assert data["targets"][3]["reached"] is False


def test_table_shows_every_contender_with_its_ratios(figures: Figures) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(render(figures, "4 hosts"))
    lines = console.export_text().splitlines()
    ours = next(line for line in lines if "sglang-ops " in line and "10 / 10" in line)
    assert [word in ours for word in ("2.00 s", "3.00 s", "0.05", "0.75")] == [True] * 4
    assert any("validate" in line and "missed" in line for line in lines)


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12 s"), (12.34, "12.3 s"), (123.4, "123 s")])
def test_seconds_have_the_digits_they_deserve(value: float, text: str) -> None:
    assert seconds(value) == text
