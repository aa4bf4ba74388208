"""The units of the fan-out bench, and what it refuses before a lab is brought up."""

from __future__ import annotations

import argparse

import pytest

from bench import fanout


def test_rates_are_decimal_as_tc_counts_them() -> None:
    assert [fanout.bits(rate) for rate in ("64kbit", "200mbit", "1gbit")] == [64_000, 200_000_000, 1_000_000_000]


def test_sizes_are_decimal() -> None:
    assert [fanout.count(size) for size in ("500MB", "1GB")] == [500_000_000, 1_000_000_000]


@pytest.mark.parametrize("rate", ["200", "200 mbit", "fast", "1tbit"])
def test_a_rate_that_is_none_says_how_to_write_one(rate: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="Write 200mbit"):
        fanout.bits(rate)


@pytest.mark.parametrize("wrong", [["--hosts", "1"], ["--size", "big"], ["--link", "fast"]])
def test_bad_arguments_are_refused_at_once(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fanout.main(wrong)
    assert caught.value.code == 2
    assert "fanout" in capsys.readouterr().err
