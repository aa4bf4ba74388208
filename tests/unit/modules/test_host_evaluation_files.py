"""A run's directory is there whole or not at all, and what is packed of it is never changed beneath a reader."""

from __future__ import annotations

import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_evaluation as evaluation
from ansible.module_utils import sglang_host_evaluation_files as files


def job(text: str) -> Any:
    return lambda base: (Path(base) / "job.json").write_text(text)


def test_a_run_that_began_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "ROOT", str(tmp_path / "runs"))
    target = tmp_path / "runs" / "r"

    def slow(base: str) -> None:
        assert evaluation.runs() == [], "what is being written is no run"
        job("slow")(base)
        assert evaluation.runs() == []
        files.put(str(target), job("quick"))

    with pytest.raises(FileExistsError):
        files.put(str(target), slow)
    assert (target / "job.json").read_text() == "quick"
    assert [path.name for path in target.parent.iterdir()] == ["r"]


def test_what_is_left_of_a_start_or_a_removal_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "r" / "data").mkdir(parents=True)
    for name, age in ((".old.x", 7200), (".new.x", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, times=(0, 0) if age else None)
    files.put(str(tmp_path / "r"), job("{}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.x", "r"]
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["job.json"]
    with pytest.raises(ZeroDivisionError):
        files.put(str(tmp_path / "q"), lambda _: 1 / 0)
    assert not (tmp_path / "q").exists()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "results" / "t").mkdir(parents=True)
    (tmp_path / "results" / "t" / "samples.jsonl").write_text("{}\n")
    (tmp_path / "results" / "t" / ".harness.json.partial").write_text("{")
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "secrets.json").write_text("canary")
    return tmp_path


def test_the_same_results_are_packed_once(base: Path) -> None:
    first = files.pack(str(base))
    made = Path(first["path"]).stat().st_mtime_ns
    assert files.pack(str(base)) == first
    assert Path(first["path"]).stat().st_mtime_ns == made
    with tarfile.open(first["path"]) as packed:
        assert sorted(packed.getnames()) == ["job.json", "results/t/samples.jsonl"]
    for count in range(8):
        (base / "status.json").write_text("x" * count)
        other = files.pack(str(base))
    assert other["path"] != first["path"]
    assert len(list(base.glob("results.*.tar.gz"))) == 4
    assert not list(base.glob(".packing-*"))


def test_several_may_fetch_at_once(base: Path) -> None:
    told: list[dict[str, Any]] = []
    over = threading.Event()

    def write() -> None:
        count = 0
        while not over.is_set():
            partial = base / "results" / "t" / f".{count % 3}.partial"
            partial.write_text("x" * count)
            partial.replace(base / "results" / "t" / "harness.json")
            count += 1

    writer = threading.Thread(target=write)
    readers = [threading.Thread(target=lambda: told.extend(files.pack(str(base)) for _ in range(20))) for _ in range(3)]
    for thread in (writer, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    over.set()
    writer.join()
    assert len(told) == 60
