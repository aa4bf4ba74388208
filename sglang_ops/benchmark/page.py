"""A run of `bench` as one HTML file: throughput against latency, and the table behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from sglang_ops.benchmark.results import MEASURES, Bench, Measured
from sglang_ops.evaluation import plots, report
from sglang_ops.evaluation.files import write_text

FILE = "bench.html"
_LATENCIES = (
    ("median_e2e_latency_ms", "whole answer, median ms"),
    ("median_ttft_ms", "first token, median ms"),
    ("p99_ttft_ms", "first token, 99th percentile ms"),
    ("median_tpot_ms", "each further token, median ms"),
)


def build(bench: Bench) -> str:
    """The page as HTML."""
    return report.render("bench.html.j2", bench=bench, plots=list(_plots(bench)), measures=MEASURES)


def write(bench: Bench, file: Path) -> None:
    """Write the page. Raises ResultError."""
    write_text(file, build(bench))


def _plots(bench: Bench) -> Iterator[tuple[str, Markup]]:
    for name, title in _LATENCIES:
        series = []
        for server in bench.servers:
            for data in dict.fromkeys(point.data for point in server.points):
                spots = [spot for point in server.points if point.data == data and (spot := _spot(point, name))]
                if spots:
                    label = f"{server.host}, {data}" if len(bench.servers) > 1 else data
                    series.append(plots.Line(label, spots))
        if series:
            yield title, plots.lines(series, title=title, x_unit="output tokens per second", y_unit="ms")


def _spot(point: Measured, name: str) -> plots.Point | None:
    x, y = point.measured.get("output_throughput"), point.measured.get(name)
    if x is None or y is None:
        return None
    return plots.Point(x, y, f"{point.name}: {x:,.0f} tok/s, {y:,.1f} ms")
