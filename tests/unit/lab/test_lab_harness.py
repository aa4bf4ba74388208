"""The programs of the lab's evaluation images."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sglang_ops.lab import harness


def test_a_program_that_is_imported_by_a_process_it_spawned_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's evaluator spawns its own proxy, which waits for nothing if it cannot begin."""
    module = ModuleType("their_evaluator")
    module.main = lambda: 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_evaluator", module)
    program = tmp_path / "evaluator"
    program.write_text(harness._PROGRAM.format(module="their_evaluator", name="main"))
    runpy.run_path(str(program), run_name="__mp_main__")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 3
