"""An image is asked for its arguments once, in a container that can do no harm."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_arguments as host

from sglang_ops.planning.arguments import judge

DIGITS = "a" * 64
REF = f"registry:5000/sglang@sha256:{DIGITS}"
# An engine that runs the container's command in a directory where `sglang` is what the test puts there.
ENGINE = """#!{python}
import json, os, subprocess, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + chr(10))
if sys.argv[1] == "run":
    sys.exit(subprocess.call([sys.executable, "-c", sys.argv[-1]], cwd={image!r}))
"""
SERVER_ARGS = """
import argparse
print("SGLang talks while it is imported")
class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path", required=True)
        parser.add_argument("--backend", choices=["a", "b"], default="a", help="long text " * 100)
        parser.add_argument("--level", type=int, default=argparse.SUPPRESS)
"""


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the fake engine runs in; beside it the engine's log and what the host keeps."""
    image = tmp_path / "image"
    image.mkdir()
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text(ENGINE.format(python=sys.executable, log=str(tmp_path / "log"), image=str(image)))
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{engine.parent}:/usr/bin:/bin")
    monkeypatch.setattr(host, "STORE", str(tmp_path / "kept"))
    return image


def fill(image: Path, server_args: str) -> None:
    package = image / "sglang" / "srt"
    package.mkdir(parents=True)
    (image / "sglang" / "version.py").write_text("__version__ = '0.6.0'\n")
    (package / "server_args.py").write_text(server_args)


def commands(image: Path) -> list[list[str]]:
    return [json.loads(line) for line in (image.parent / "log").read_text().splitlines()]


def test_the_answer_is_kept_and_judges(image: Path) -> None:
    fill(image, SERVER_ARGS)
    assert host.known(REF) is None
    assert host.ask("docker", REF) is None
    kept = host.known(REF)
    assert kept == json.loads((image.parent / "kept" / f"{DIGITS}.json").read_text())
    assert kept == {
        "sglang": "0.6.0",
        "options": [
            {"flags": ["-h", "--help"], "dest": "help", "action": "_HelpAction", "nargs": 0},
            {"flags": ["--model-path"], "required": True},
            {"flags": ["--backend"], "choices": ["a", "b"], "default": "a"},
            {"flags": ["--level"], "type": "int"},
        ],
    }
    assert [str(error) for error in judge(["--backend", "c"], None, image_list=kept).errors] == [
        "--backend is 'c', and SGLang 0.6.0 lists a, b. Choose one of these."
    ]


def test_the_container_has_no_network_no_gpu_and_nothing_of_the_host(image: Path) -> None:
    fill(image, SERVER_ARGS)
    host.ask("docker", REF)
    (command,) = commands(image)
    assert command[:2] == ["run", "--rm"]
    assert command[4:-1] == [
        "--network", "none", "--pull", "never", "--env", "CUDA_VISIBLE_DEVICES=", "--entrypoint", "python3", REF, "-c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("server_args", "words"),
    [
        ("", "ImportError: cannot import name 'ServerArgs'"),
        ("raise OSError('libcuda.so.1: cannot open')", "OSError: libcuda.so.1: cannot open."),
    ],
)
def test_an_image_that_cannot_answer_is_told_why(image: Path, server_args: str, words: str) -> None:
    fill(image, server_args)
    told = host.ask("docker", REF)
    assert told.startswith(f"{REF} does not say which arguments it accepts: ")
    assert words in told
    assert host.known(REF) is None


def test_an_image_without_sglang(image: Path) -> None:
    assert host.ask("docker", REF).endswith("accepts: ModuleNotFoundError: No module named 'sglang'.")


def test_an_engine_that_is_not_there(image: Path) -> None:
    assert host.ask("podman-of-nobody", REF).endswith("podman-of-nobody is not installed.")


def test_a_container_that_hangs_is_removed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(image, "import time; time.sleep(60)")
    monkeypatch.setattr(host, "TIMEOUT", 0.5)
    assert host.ask("docker", REF).endswith("docker did not answer within 0.5 s.")
    started, removed = commands(image)
    assert removed == ["rm", "--force", started[started.index("--name") + 1]]


@pytest.mark.parametrize("text", ["", "{", "\n"])
def test_a_damaged_answer_is_none(image: Path, text: str) -> None:
    kept = Path(host.path(REF))
    kept.parent.mkdir()
    kept.write_text(text)
    assert host.known(REF) is None
    assert host.known_of([REF]) == {}


@pytest.mark.parametrize("ref", ["sglang:latest", "sglang@sha256:../../etc/passwd", f"sglang@sha256:{DIGITS}0", ""])
def test_only_digests_have_answers(ref: str) -> None:
    with pytest.raises(ValueError, match="is not an image by digest"):
        host.path(ref)


def test_what_is_known_of_several(image: Path) -> None:
    fill(image, SERVER_ARGS)
    host.ask("docker", REF)
    known: dict[str, Any] = host.known_of([REF, f"other@sha256:{'b' * 64}"])
    assert list(known) == [REF]
