"""Where the playbooks are found: in the wheel, in a checkout, and not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_ops import content
from sglang_ops.errors import OpsError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "lib" / "sglang_ops"
    path.mkdir(parents=True)
    monkeypatch.setattr(content, "__file__", str(path / "content.py"))
    content.root.cache_clear()
    yield path
    content.root.cache_clear()


def test_a_wheel_carries_them_beside_the_package(package: Path) -> None:
    (package / "_content").mkdir()
    (package / "_content" / "ansible.cfg").touch()
    (package.parent / "ansible.cfg").touch()
    assert content.playbook("deploy") == package / "_content" / "playbooks" / "deploy.yml"


def test_a_checkout_has_them_one_level_up(package: Path) -> None:
    (package.parent / "ansible.cfg").touch()
    assert content.root() == package.parent


def test_an_incomplete_installation_says_so(package: Path) -> None:
    with pytest.raises(OpsError, match=r"neither in .*_content nor in"):
        content.root()
