"""Which interface leads to the other hosts of a group."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ansible.module_utils import sglang_host_routes as routes


def test_the_interface_on_the_way_there() -> None:
    assert routes.interface_to("127.0.0.1") == "lo"
    assert routes.interface_to("") == ""
    assert routes.interface_to("no-such-name.invalid") == ""


def test_an_interface_with_an_ipv6_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = "2001:db8::12"
    table = tmp_path / "if_inet6"
    rows = [("::1", "lo"), (own, "ens3")]
    table.write_text("".join(f"{socket.inet_pton(socket.AF_INET6, a).hex()} 02 40 00 80 {n}\n" for a, n in rows))
    monkeypatch.setattr(routes, "ADDRESSES6", str(table))
    monkeypatch.setattr(routes, "_source", lambda _: own)
    assert routes.interface_to("2001:db8::99") == "ens3"
