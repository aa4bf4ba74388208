from __future__ import annotations

import html.parser
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import info, write

from sglang_ops.evaluation import plots, report, results

HOSTILE = "</script></pre><img src=x onerror=alert(1)><svg onload=alert(2)>\"'&"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "path", "rect", "circle", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"path", "rect", "circle"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def build(path: Path, scores: list[float | None], **keys: Any) -> str:
    return report.build(results.read(write(path / "run", scores, **keys)))


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    page = Page(build(tmp_path, [1, 0, 1]))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    attributes = {(name, value) for _, found in page.tags for name, value in found.items()}
    assert not [name for name, _ in attributes if name in {"src", "srcset", "action"} or name.startswith("on")]
    assert all(str(value).startswith("#") for name, value in attributes if name == "href")
    policy = [found for tag, found in page.tags if tag == "meta" and "http-equiv" in found]
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert page.open == []


@pytest.mark.parametrize(
    "key", ["answer", "prompt", "expected", "reasoning", "category", "id", "finish_reason", "host"]
)
def test_hostile_text_stays_text(tmp_path: Path, key: str) -> None:
    plain = Page(build(tmp_path / "plain", [1, 0, 0]))
    page = Page(build(tmp_path / "hostile", [1, 0, 0], change=lambda n: {key: HOSTILE} if n == 1 else {}))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert HOSTILE in page.text
    assert page.open == []


@pytest.mark.parametrize("key", ["deployment", "who", "server_arguments", "parameters"])
def test_hostile_run_data_stay_text(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "run", [1, 0])
    hostile = {"server_arguments": [HOSTILE], "parameters": {HOSTILE: HOSTILE}}.get(key, HOSTILE)
    results.write_info(path, info(run="run", **{key: hostile}))
    page = Page(report.build(results.read(path)))
    assert "img" not in {tag for tag, _ in page.tags}
    assert HOSTILE in page.text


def test_groups_stand_there_with_their_means(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1, 0])
    mean = {"name": "acc", "score": 0.625, "items": 40, "interval": [0.5, 0.75], "confidence": 0.95, "method": "mover"}
    whole = {"name": HOSTILE, "tasks": ["one", "two"], "metrics": [mean], "complete": True}
    tag = {"name": "reasoning", "tasks": ["one"], "metrics": [], "complete": False}
    results.write_info(path, info(run="run", groups=[whole, tag]))
    page = Page(report.build(results.read(path)))
    text = "".join(page.text.split())
    assert "".join(HOSTILE.split()) + "one,twoacc62.5%50.0%–75.0%40mover" in text
    assert "reasoningincompleteonenomeanyet" in text
    assert page.open == []
    assert "Groups" not in Page(build(tmp_path / "none", [1, 0])).text


def test_what_was_not_right_is_there_to_read_the_worst_first(tmp_path: Path) -> None:
    def change(number: int) -> dict[str, Any]:
        return {
            1: {"id": "WRONG", "answer": "(B) it falls"},
            2: {"id": "EMPTY", "answer": ""},
            3: {"id": "THOUGHT", "answer": None, "reasoning": "so it is (A)"},
            4: {"id": "FAILED", "answer": None, "failed": "HTTP 500", "scores": {}},
        }.get(number, {})

    text = Page(build(tmp_path, [1, 0, 0, 0, None, 1], change=change)).text
    places = [text.index(name) for name in ("FAILED", "EMPTY", "THOUGHT", "WRONG")]
    assert places == sorted(places)
    for shown in ("HTTP 500", "so it is (A)", "(B) it falls"):
        assert shown in text
    assert "item-0" not in text
    assert "item-5" not in text


def test_many_wrong_items_do_not_make_a_huge_page(tmp_path: Path) -> None:
    page = build(tmp_path, [0] * 1000, change=lambda _: {"answer": "x" * 30_000})
    assert page.count("<details>") == report.ITEMS
    assert "800 more are in gpqa_diamond/samples.jsonl" in page
    assert "10000 letters more in samples.jsonl" in page


def test_numbers_and_metadata_are_shown(tmp_path: Path) -> None:
    text = Page(build(tmp_path, [1, 1, 1, 0])).text
    for shown in (
        "75.0 %", "gpqa_diamond", "physics", "biology", "lm-evaluation-harness 0.4.13", "sha256:1111", "--tp-size 1",
        "meta-llama/Llama-3.1-8B-Instruct at 0e9e39f249a1", "a" * 64, "temperature", "complete", "p50",
    ):  # fmt: skip
        assert shown in text


def test_an_incomplete_run_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1], complete=False, incomplete_because="gpu-2 was lost", items=4)
    results.write_info(path, info(("gpqa_diamond", "ifeval"), run="run", complete=False))
    text = Page(report.build(results.read(path))).text
    assert "Nothing of the task ifeval has arrived" in text
    assert "Incomplete: gpu-2 was lost" in text


@pytest.mark.parametrize("scores", [[None], [0.0], [1.0], [-3.0, 12.5], [7.0]])
def test_any_scores_can_be_drawn(tmp_path: Path, scores: list[float | None]) -> None:
    change = {"failed": "no answer", "answer": None, "latency_seconds": None, "completion_tokens": None}
    page = Page(build(tmp_path, scores, change=lambda n: change if scores[n] is None else {}))
    assert page.open == []
    drawn = [value for _, found in page.tags for value in found.values() if value]
    assert not [value for value in drawn if "nan" in value.lower() or "inf" in value.lower().split()]


def test_quantiles() -> None:
    assert plots.quantile([3, 1, 2], 0.5) == 2
    assert plots.quantile([1, 2], 0.9) == pytest.approx(1.9)
    assert plots.quantile([5], 0.99) == 5


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "0.2 s"), (45, "45 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert report.duration(seconds) == shown


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_real_browser_draws_the_page(tmp_path: Path, dark: bool) -> None:
    """Chromium, headless: what it draws, whether scripts ran, what it asked of the network."""
    names = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip("NO BROWSER: `make test` installs one, tools/browser.sh, where the distribution has it")
    probe = "<img src=x onerror=document.title='ran'><script>document.title='ran'</script>"
    page = build(tmp_path, [1, 0, 1, 0] * 20, change=lambda n: {"answer": probe, "prompt": probe} if n == 1 else {})
    file = tmp_path / "report.html"
    file.write_text(page)
    base = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=700,500", "--hide-scrollbars"]
    base += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={int(not dark)}"]

    def browse(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*base, *flags, file.as_uri()], capture_output=True, text=True, timeout=90, check=True)

    dom = browse("--dump-dom").stdout
    assert "<title>llama-3.1-8b · run</title>" in dom  # nobody changed it
    assert dom.count("<svg") == page.count("<svg") == 5
    shown = Page(dom).text
    for part in ("exact_match per category", "Latency", "Items to read", "How it was measured"):
        assert part in shown, part
    browse(f"--screenshot={tmp_path / 'page.png'}")
    pixels = _pixels(tmp_path / "page.png")
    corner = pixels[0][:3]
    assert (max(corner) < 60) if dark else (min(corner) > 240)
    colours = {bytes(row[n : n + 3]) for row in pixels for n in range(0, len(row), 30)}
    assert len(colours) > 50  # text, bars and lines, not an empty page


def _pixels(file: Path, height: int = 260) -> list[bytearray]:
    """The upper rows of an 8-bit RGB(A) PNG as three bytes per pixel."""
    data, place, packed, width, size = file.read_bytes(), 8, b"", 0, 0
    while place < len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, size = int.from_bytes(body[:4]), {2: 3, 6: 4}[body[9]]
        packed += body if kind == b"IDAT" else b""
        place += length + 12
    raw, rows, step = zlib.decompress(packed), [], width * size + 1
    before = bytearray(width * size)
    for start in range(0, min(len(raw), height * step), step):
        row = _unfiltered(raw[start], bytearray(raw[start + 1 : start + step]), before, size)
        rows.append(bytearray(value for n, value in enumerate(row) if size == 3 or n % 4 != 3))
        before = row
    return rows


def _unfiltered(kind: int, row: bytearray, above: bytearray, size: int) -> bytearray:
    for n in range(len(row)):
        left, up, corner = (row[n - size], above[n], above[n - size]) if n >= size else (0, above[n], 0)
        guess = left + up - corner
        paeth = min((left, up, corner), key=lambda value: abs(guess - value))
        row[n] = (row[n] + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
    return row
