"""Write what SGLang releases accept on their command line: `python tools/catalogue.py RELEASE… [--output DIR]`.

Each release's wheel is fetched with pip and its parser is asked in a process of its own, without PyTorch. Nothing
of the wheel is installed. One file per release, one line per option, in the order in which SGLang registers them
(that order is part of its error messages).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils

_HERE = Path(__file__).resolve().parent
_CATALOGUE = _HERE.parent / "sglang_ops" / "catalog"
# Images are asked with the same script on the hosts.
ansible.module_utils.__path__.append(str(_HERE.parent / "plugins" / "module_utils"))

from ansible.module_utils.sglang_host_arguments import answer_in, script  # noqa: E402

# Wheels have been compiled for a platform since 0.5.15; only their Python sources are read.
_ANY_MACHINE = ("--python-version=3.12", "--platform=manylinux_2_34_x86_64", "--platform=manylinux2014_x86_64")
_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


class Unavailable(Exception):
    """The release cannot be fetched; pip's last words."""


class Unreachable(Unavailable):
    """No package index answers."""


def extract(release: str) -> dict[str, Any]:
    """The arguments of one release.

    Raises Unavailable or Unreachable, and ValueError where the release's parser cannot be listed.
    """
    with tempfile.TemporaryDirectory() as directory:
        sources = Path(directory) / "sources"
        with zipfile.ZipFile(_fetch(release, Path(directory))) as wheel:
            wheel.extractall(sources, [name for name in wheel.namelist() if name.endswith((".py", "/METADATA"))])
        metadata = next(sources.glob("sglang-*.dist-info/METADATA")).read_text("utf-8")
        if "\nRequires-Dist: msgspec" in metadata:  # its records are msgspec's: no stub can stand for that
            _pip("install", "--no-deps", "--target", str(sources), "msgspec")
        asked = (sys.executable, "-I", str(_HERE / "sglang_without_torch.py"), str(sources), script())
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=300)
    found: dict[str, Any] | None = answer_in(done.stdout)
    if found is None:
        raise ValueError(f"SGLang {release} cannot be listed:\n{done.stderr[-2000:]}")
    _check(release, found)
    return found


def text(found: Mapping[str, Any]) -> str:
    """One line per option, so that releases can be compared with `diff`."""
    lines = ",\n".join(json.dumps(option, sort_keys=True) for option in found["options"])
    return f'{{"sglang": {json.dumps(found["sglang"])}, "options": [\n{lines}\n]}}\n'


def _fetch(release: str, directory: Path) -> Path:
    _pip("download", "--no-deps", "--only-binary=:all:", *_ANY_MACHINE, "--dest", str(directory), f"sglang=={release}")
    return next(directory.glob("sglang-*.whl"))


def _pip(*arguments: str) -> None:
    done = subprocess.run((*_PIP, *arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        silent = "connection broken by" in done.stderr or "(from versions: none)" in done.stderr
        raise (Unreachable if silent else Unavailable)(done.stderr.strip().splitlines()[-1])


def _check(release: str, found: Mapping[str, Any]) -> None:
    """Refuse a list that a stub got into, and a wheel that is of another release than its name says."""
    if found["sglang"] != release:
        raise ValueError(f"the wheel of {release} says that it is {found['sglang']}")
    for option in found["options"]:
        if option.get("choices") == [] or "<class " in str(option) or "." in option.get("type", ""):
            raise ValueError(f"a stub is in {option} of {release}: make its module real")


def main() -> None:
    asked = argparse.ArgumentParser(description="Write what SGLang releases accept on their command line.")
    asked.add_argument("release", nargs="+", help="as on the package index: 0.5.23, 0.5.10.post1")
    asked.add_argument("--output", type=Path, default=_CATALOGUE, help="default: %(default)s")
    given = asked.parse_args()
    for release in given.release:
        found = extract(release)
        path = given.output / f"{release}.json"
        path.write_text(text(found), "utf-8")
        flags = sum(len(option["flags"]) for option in found["options"])
        print(f"{path.name}: {len(found['options'])} options, {flags} flags")


if __name__ == "__main__":
    main()
