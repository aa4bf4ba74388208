from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.benchmark import page, results
from sglang_ops.commands import bench as command
from sglang_ops.evaluation.results import ResultError


def bench(run: str = "a", host: str = "gpu-1", speed: float = 100.0, **parameters: Any) -> results.Bench:
    def point(number: int) -> dict[str, Any]:
        measured = {"output_throughput": speed * number, "median_ttft_ms": 20.0 * number, "p99_tpot_ms": None}
        return {
            "name": f"random {number} at once", "data": "random", "concurrency": number, "request_rate": None,
            "prompts": 16, "arguments": ["--seed", "1"], "measured": measured, "error": None, "seconds": 3.0,
        }  # fmt: skip

    server = {
        "host": host, "service": "sglang-tiny", "release": "0123456789ab", "image": "sglang@sha256:1",
        "image_digest": "sha256:1", "model": "tiny", "server_arguments": ["--tp-size", "1"],
        "points": [point(1), point(4)],
    }  # fmt: skip
    data = {
        "run": run, "who": "ops", "started": "2026-11-23T01:02:03+00:00", "seconds": 10.0, "servers": [server],
        "parameters": {"input_len": 512, "output_len": 128, **parameters},
    }  # fmt: skip
    return results.Bench.model_validate(data)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    results.write(tmp_path / "a", bench())
    assert results.read(results.locate("a", tmp_path)) == bench()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 2}, "has schema 2"), ({"seconds": "x"}, "seconds: Input should be"), ({"more": 1}, "more: Extra")],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = results.write(tmp_path, bench())
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ResultError, match=message):
        results.read(tmp_path)
    file.write_text(file.read_text()[:50])
    with pytest.raises(ResultError, match="cannot be read as JSON"):
        results.read(tmp_path)


def test_points_are_compared_by_their_load() -> None:
    found = results.compare(bench(), bench("b", speed=150.0))
    assert [(change.point, change.measure, round(change.change, 2), change.better) for change in found] == [
        ("random 1 at once", "output_throughput", 0.5, True),
        ("random 1 at once", "median_ttft_ms", 0.0, False),
        ("random 4 at once", "output_throughput", 0.5, True),
        ("random 4 at once", "median_ttft_ms", 0.0, False),
    ]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("--mem-fraction-static 0.8 --x", "--x --mem-fraction-static=0.9",
         ["only A: --mem-fraction-static 0.8", "only B: --mem-fraction-static 0.9"]),
        ("--tp-size 1 --dp-size 2", "--tp-size 2 --dp-size 1",
         ["only A: --tp-size 1 --dp-size 2", "only B: --tp-size 2 --dp-size 1"]),
        ("--model-path m --cuda-graph-bs 1 2", "--model-path=m --cuda-graph-bs 1 2 4 --disable-radix-cache",
         ["only A: --cuda-graph-bs 1 2", "only B: --cuda-graph-bs 1 2 4 --disable-radix-cache"]),
        ("--tp-size 1", "--tp-size=1", []),
    ],
)  # fmt: skip
def test_the_configurations_differ_by_flags_with_their_values(
    first: str, second: str, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, host, arguments in (("a", "gpu-1", first), ("b", "gpu-2", second)):
        data = bench(name, host=host).model_dump(mode="json", by_alias=True)
        data["servers"][0]["server_arguments"] = ["python3", "-m", "sglang.launch_server", *arguments.split()]
        results.write(tmp_path / name, results.Bench.model_validate(data))
    command.compare("a", "b", different_hosts=True, output_dir=tmp_path)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("only")] == told


def test_what_does_not_compare_is_refused() -> None:
    with pytest.raises(ResultError, match="input_len 512, b with 1024"):
        results.compare(bench(), bench("b", input_len=1024))
    with pytest.raises(ResultError, match="no host in common: gpu-1; gpu-2"):
        results.compare(bench(), bench("b", host="gpu-2"))
    assert results.compare(bench(), bench("b", host="gpu-2"), different_hosts=True)


def test_the_page_has_its_plots_and_escapes(tmp_path: Path) -> None:
    hostile = bench("</title><img src=x onerror=alert(1)>")
    text = page.build(hostile)
    assert text.count("<svg") == 1
    assert "<img" not in text
    assert "random 4 at once: 400 tok/s, 80.0 ms" in text
    page.write(bench(), tmp_path / page.FILE)
    assert (tmp_path / page.FILE).read_text().startswith("<!doctype html>")


def test_a_point_that_failed_has_its_error_in_the_page() -> None:
    data = bench().model_dump(mode="json", by_alias=True)
    data["servers"][0]["points"][1] |= {"measured": {}, "error": "not done after 600 s"}
    assert "not done after 600 s" in page.build(results.Bench.model_validate(data))
