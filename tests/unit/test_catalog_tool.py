"""`tools/catalogue.py`: what is in the repository is what it makes of the published packages."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sglang_ops import catalog

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "0.5.3.post3"  # its wheel is small, and it refuses what it deprecates


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("catalogue_tool", ROOT / "tools" / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


tool = load_tool()


def test_a_release_is_made_again() -> None:
    try:
        made = tool.text(tool.extract(RELEASE))
    except tool.Unreachable as error:
        warnings.warn(f"the catalogue is not checked: {error}", stacklevel=1)
        pytest.skip(f"the package index cannot be reached: {error}")
    assert made == Path(catalog.__path__[0], f"{RELEASE}.json").read_text("utf-8")


@pytest.mark.parametrize("release", catalog.releases())
def test_files_are_written_as_the_tool_writes_them(release: str) -> None:
    path = Path(catalog.__path__[0], f"{release}.json")
    assert tool.text(catalog._read(release)) == path.read_text("utf-8")


def test_an_index_that_is_not_there_is_told_from_a_release_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(tool.Unreachable, match=r"No matching distribution found for sglang==0\.5\.10"):
        tool.extract("0.5.10")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"flags": ["--a"], "choices": []}, "a stub is in"),
        ({"flags": ["--a"], "choices": ["auto", "<class 'sglang_without_torch.x'>"]}, "a stub is in"),
        ({"flags": ["--a"], "type": "sglang.srt.utils.reader"}, "a stub is in"),
    ],
)
def test_a_list_with_a_hole_is_refused(option: dict[str, Any], words: str) -> None:
    tool._check("0.5.23", {"sglang": "0.5.23", "options": [{"flags": ["--b"], "choices": ["x"]}]})
    with pytest.raises(ValueError, match=words):
        tool._check("0.5.23", {"sglang": "0.5.23", "options": [option]})


def test_a_wheel_of_another_release_is_refused() -> None:
    with pytest.raises(ValueError, match=r"says that it is 0\.5\.22"):
        tool._check("0.5.23", {"sglang": "0.5.22", "options": []})


SOURCES = {
    "sglang/__init__.py": "raise SystemExit('the real package imports PyTorch')",
    "sglang/version.py": "__version__ = '9.9.9'",
    "sglang/srt/server_args.py": """
import torch, triton.language as tl
from transformers import AutoConfig
from sglang.srt.layers.moe import Runner
from sglang.srt.utils.common import reader

@torch.compile
def left_alone():
    return 7

class Config(AutoConfig):
    def anything(self):
        return self

class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        assert left_alone() == 7 and not tl.constexpr and torch.__version__
        assert not torch.cuda.is_available() and Config().anything() is not None
        parser.add_argument("--real", type=reader, choices=["a", "b"])
        parser.add_argument("--stub", choices=["a"] + [name for name in Runner])
""",
    "sglang/srt/utils/common.py": "def reader(text): return text",
}


def test_stubs_do_not_hide(tmp_path: Path) -> None:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    asked = [sys.executable, "-I", str(ROOT / "tools" / "sglang_without_torch.py"), str(tmp_path), tool.script()]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    found = tool.answer_in(done.stdout)
    assert found is not None, done.stderr
    real, stub = found["options"][1:]
    assert real == {"flags": ["--real"], "type": "reader", "choices": ["a", "b"]}
    with pytest.raises(ValueError, match=r"a stub is in .*--stub"):
        tool._check("9.9.9", {"sglang": "9.9.9", "options": [real, stub]})
