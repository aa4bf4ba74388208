"""What a host has of memory, and what the processes of a server hold: plugins/module_utils/sglang_host_memory.py."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from ansible.module_utils import sglang_host_memory as memory
from ansible.module_utils import sglang_host_probe as probe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_host_has_more_than_is_available() -> None:
    found = memory.of_host()
    assert found["total"] > found["available"] > 0


def test_server_holds_what_its_processes_hold() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert memory.of_server(port) > 2**20
    assert memory.of_server(port) is None


def test_a_connection_that_closes_meanwhile_hides_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (["99999"] if str(path).endswith("/fd") else []) + listed(path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert (probe.listener(server.getsockname()[1]) or (0, ""))[0] == os.getpid()
