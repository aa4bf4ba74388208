"""What the supervisor does with children that end, without namespaces: it keeps ordinary processes here."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from lab_plans import make_plan

from sglang_ops.lab import supervisor
from sglang_ops.lab.settings import Folder


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> supervisor.Supervisor:
    """A supervisor of one host and no service; the host is a Python that ends as its command says."""
    folder = Folder(tmp_path)
    folder.logs.mkdir()
    monkeypatch.setattr(supervisor.services, "service_commands", lambda *_: {})
    monkeypatch.setattr(supervisor.cgroups, "enter", lambda *_: None)
    return supervisor.Supervisor(folder, make_plan(hosts=1))


def end_with(keeper: supervisor.Supervisor, code: int) -> supervisor.Child:
    """Start the host, and reap it after it has ended with `code`; a second time it ends with 0."""
    host = keeper.children["lab-1"]
    again = keeper.folder.root / "again"
    host.command = ["sh", "-c", f"[ -e {again} ] && exit 0; touch {again}; exit {code}"]
    keeper._start(host)
    deadline = time.monotonic() + 20
    while host.process and time.monotonic() < deadline:
        keeper._reap()
        time.sleep(0.01)
    return host


@pytest.mark.parametrize(("code", "state", "boots"), [(0, "off", 1), (1, "failed", 1), (133, "off", 2)])
def test_how_a_host_ends(keeper: supervisor.Supervisor, code: int, state: str, boots: int) -> None:
    host = end_with(keeper, code)
    assert (host.state, host.boots) == (state, boots)


def test_a_hard_off_is_no_failure(keeper: supervisor.Supervisor) -> None:
    host = keeper.children["lab-1"]
    keeper._note_end(host, 0)
    host.wanted = "off"
    keeper._note_end(host, 255)
    assert host.state == "off"


def test_status_file(keeper: supervisor.Supervisor) -> None:
    keeper._report()
    assert json.loads(keeper.folder.status.read_text()) == {"lab-1": {"state": "off", "boots": 0}}


def test_requests_for_hosts_that_cannot_follow(keeper: supervisor.Supervisor) -> None:
    assert keeper._power("lab-9", "off", hard=False) == "There is no host lab-9."
    assert keeper._power("lab-1", "reboot", hard=True) == "lab-1 is not running."
