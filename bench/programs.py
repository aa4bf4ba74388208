"""The programs that are measured, and their versions."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from bench.process import BenchError, call

_REQUIREMENTS = Path(__file__).resolve().parent / "peers" / "pyinfra" / "requirements.txt"


def find(name: str) -> str:
    """A program of this Python environment, else one on PATH. Raises BenchError."""
    here = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", os.defpath)]))
    if not found:
        raise BenchError(f"{name} is not installed. Run: {sys.executable} -m pip install --editable .")
    return found


def pyinfra() -> str:
    """pyinfra, installed into an environment of its own inside this one. Raises BenchError.

    It brings paramiko, which Ansible imports wherever it finds it: beside it, Ansible would start 0.1 s later.
    """
    home = Path(sys.prefix) / "pyinfra"
    python = home / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", str(home))
    call(str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-r", str(_REQUIREMENTS))
    return str(home / "bin" / "pyinfra")


def versions(pyinfra_program: str) -> dict[str, str]:
    """What is compared, by package."""
    told = call(pyinfra_program, "--version").split()[-1].removeprefix("v")
    return {name: version(name) for name in ("ansible-core", "ansible-runner")} | {"pyinfra": told}
