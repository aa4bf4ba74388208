"""Pinned wheels for the images: fetched with pip, unpacked without running anything of them.

A wheel is a zip file; what an image does not need is left in it. The images' Python decides which wheels fit,
not the one that runs here.
"""

from __future__ import annotations

import concurrent.futures
import fnmatch
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sglang_ops.errors import OpsError

PYTHON = "3.11"  # of Debian 12
_NEWEST_GLIBC = 36  # 2.36, of Debian 12
_LEGACY_TAGS = ("manylinux2014", "manylinux2010", "manylinux1")

# Of the places in NAME.data/, these two are merged into the site directory; programs, manual pages and headers
# are not needed.
_LIBRARIES = ("purelib", "platlib")


def fetch(pins: Sequence[str], target: Path) -> None:
    """Download exactly these packages, without what they depend on, as wheels into `target`.

    PyTorch's CPU build is not on every index: where pip does not find it, uv is asked, which knows PyTorch's
    own. Raises OpsError with pip's last words.
    """
    target.mkdir(parents=True, exist_ok=True)
    torch = [pin for pin in pins if pin.startswith("torch==") and "+cpu" in pin]
    _pip_download([pin for pin in pins if pin not in torch], target)
    for pin in torch:
        try:
            _pip_download([pin], target)
        except OpsError:
            _uv_install(pin, target)


def unpack(source: Path, site: Path, *, without: Sequence[str] = (), only: Sequence[str] = ("*",)) -> None:
    """Unpack the wheels in `source` into the directory `site`: files that match `only` and do not match `without`.

    Patterns are those of fnmatch, against the path in `site`.
    """
    take = re.compile("|".join(map(fnmatch.translate, only)))
    leave_out = re.compile("|".join(map(fnmatch.translate, without)) or r"\Z.")
    wheels = sorted(source.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib works outside Python's lock
        for done in [pool.submit(_unpack, wheel, site, take, leave_out) for wheel in wheels]:
            done.result()


def _unpack(wheel: Path, site: Path, take: re.Pattern[str], leave_out: re.Pattern[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = None if entry.is_dir() else _installed_name(entry.filename)
            if name is None or not take.match(name) or leave_out.match(name):
                continue
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file, 1024 * 1024)
            path.chmod(0o755 if entry.external_attr >> 16 & 0o111 else 0o644)


def _installed_name(name: str) -> str | None:
    """Where a file of a wheel goes in the site directory; None where it goes elsewhere, or out of it."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        return None
    if not parts[0].endswith(".data"):
        return name
    return "/".join(parts[2:]) if parts[1] in _LIBRARIES else None


def _platforms() -> list[str]:
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(5, _NEWEST_GLIBC + 1)]
    return tags + [f"{tag}_{machine}" for tag in _LEGACY_TAGS]


def _pip_download(pins: Sequence[str], target: Path) -> None:
    command = [
        *_pip(), "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(target),
        "--implementation", "cp", "--python-version", PYTHON, *(f"--platform={tag}" for tag in _platforms()), *pins,
    ]  # fmt: skip
    _run(command, f"pip could not download {len(pins)} packages")


def _pip() -> list[str]:
    """This environment's pip, or the machine's: environments made by other tools have none."""
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
            return [python, "-m", "pip", "--disable-pip-version-check"]
    raise OpsError("The lab builds its images with pip, and there is none.", fix="apt-get install python3-pip")


def _uv_install(pin: str, target: Path) -> None:
    """Install one package with uv, and pack it as a wheel again, so that it is treated like the others."""
    wheel = target / f"{pin.replace('==', '-')}-py3-none-any.whl"
    with tempfile.TemporaryDirectory(dir=target) as place:
        tools, unpacked = Path(place, "tools"), Path(place, "unpacked")
        _run([*_pip(), "install", "--quiet", "--target", str(tools), "uv"], "pip could not install uv")
        command = [
            str(tools / "bin" / "uv"), "pip", "install", "--quiet", "--no-cache", "--no-deps", "--torch-backend", "cpu",
            "--python-version", PYTHON, "--python-platform", f"{platform.machine()}-manylinux_2_{_NEWEST_GLIBC}",
            "--target", str(unpacked), pin.partition("+")[0],
        ]  # fmt: skip
        _run(command, f"uv could not install {pin}")
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(unpacked.rglob("*")):
                if path.is_file() and path.name != ".lock":  # uv's own
                    archive.write(path, path.relative_to(unpacked))


def _run(command: Sequence[str], failure: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " | ".join(line.strip() for line in done.stderr.splitlines()[-3:] if line.strip())
        raise OpsError(f"{failure}: {words or 'no output'}", fix="Make a package index reachable for pip.")
