"""The wheel holds everything: installed elsewhere, without the checkout, the command line plays its playbooks."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = """\
deployment:
  image: registry.example/sglang@sha256:{digest}
  served_model_name: m
  checkpoint_path: {model}
  extra_args: --device cpu
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sglang-ops` in a clean environment, with whatever pip brings along."""
    home = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", str(wheel)], check=True)
    return home / "bin" / "sglang-ops"


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"SGLANG_OPS_STATE": str(cwd / "state"), "NO_COLOR": "1"}
    command = [str(program), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_wheel_holds_playbooks_roles_and_plugins_and_no_leftovers(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("playbooks", "roles", "plugins"):
        shipped = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        missing = [path for path in shipped if f"sglang_ops/_content/{path.relative_to(ROOT)}" not in names]
        assert missing == []
    assert "sglang_ops/_content/ansible.cfg" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "bench"))]


def test_installed_elsewhere_it_plays_its_own_playbooks(installed: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "hosts").write_text("here ansible_connection=local ansible_become=false\n")
    (tmp_path / "deployment.yaml").write_text(DEPLOYMENT.format(digest="ab" * 32, model=model))
    where = [installed.with_name("python"), "-c", "import sglang_ops; print(sglang_ops.__file__)"]
    assert str(ROOT) not in subprocess.check_output(where, text=True, cwd=tmp_path)
    assert run(installed, "validate", "--config", "deployment.yaml", cwd=tmp_path).returncode == 0
    done = run(installed, "deploy", "--inventory", "hosts", "--check", "--diff", cwd=tmp_path)
    assert "sglang-m" in done.stdout, done.stderr
    assert "+ExecStart=" in done.stdout.replace(" ", "")
    assert done.returncode == 0
