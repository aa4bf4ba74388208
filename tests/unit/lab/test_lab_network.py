"""Which network a lab gets, and what it needs of the machine."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from sglang_ops.errors import OpsError
from sglang_ops.lab import network
from sglang_ops.lab.settings import Plan, Shape


def networks(*names: str) -> list[IPv4Network]:
    return [IPv4Network(name) for name in names]


def test_first_free_network_is_taken() -> None:
    assert network.free_network([]) == "198.18.0"
    assert network.free_network(networks("198.18.0.0/24", "198.18.1.0/24", "10.0.0.0/8")) == "198.18.2"


def test_larger_and_smaller_networks_count_as_taken() -> None:
    assert network.free_network(networks("198.18.0.0/22", "198.18.4.128/30")) == "198.18.5"


def test_full_range_is_an_error() -> None:
    with pytest.raises(OpsError, match="in use"):
        network.free_network(networks("198.18.0.0/15"))


def test_routes_of_the_machine_are_seen_and_default_routes_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "0.0.0.0/1", "dev": "tun0"},
        {"dst": "198.18.0.0/24", "dev": "x"},
        {"dst": "10.1.2.3", "dev": "lo", "type": "local"},
    ]
    monkeypatch.setattr(network, "_run", lambda *_: json.dumps(routes))
    assert network.machine_networks() == networks("198.18.0.0/24", "10.1.2.3/32")


def test_masquerade_names_the_lab_and_spares_its_own_traffic() -> None:
    text = network.masquerade(Plan(Shape(name="two"), "198.18.9", 1500, "", "", ""))
    assert "table ip sglang-ops-lab-two {" in text
    assert "ip saddr 198.18.9.0/24 ip daddr != 198.18.9.0/24 masquerade" in text


def test_usual_limits_are_enough_for_eight_hosts_and_not_for_fifty() -> None:
    usual = {"net.ipv4.ip_forward": 1, "fs.inotify.max_user_instances": 128, "kernel.keys.maxkeys": 200}
    assert all(need <= usual[name] for name, need in network.needed_settings(8).items())
    many = network.needed_settings(50)
    assert many["fs.inotify.max_user_instances"] > 128
    assert many["kernel.keys.maxkeys"] > 200


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory that stands for /proc/sys."""
    for name, value in (
        ("net.ipv4.ip_forward", 0),
        ("fs.inotify.max_user_instances", 128),
        ("kernel.keys.maxkeys", 200),
    ):
        (tmp_path / name).write_text(str(value))
    monkeypatch.setattr(network, "_sysctl", lambda name: tmp_path / name)
    return tmp_path


def test_settings_come_back_to_what_the_first_lab_found(settings: Path) -> None:
    record = settings / "record.json"
    network.raise_settings(1, record)
    network.raise_settings(40, record)
    assert (settings / "net.ipv4.ip_forward").read_text() == "1"
    assert int((settings / "fs.inotify.max_user_instances").read_text()) > 128
    network.restore_settings(record)
    assert (settings / "net.ipv4.ip_forward").read_text() == "0"
    assert (settings / "fs.inotify.max_user_instances").read_text() == "128"
    assert not record.exists()


def test_settings_that_are_high_enough_are_left_alone(settings: Path) -> None:
    (settings / "net.ipv4.ip_forward").write_text("1")
    record = settings / "record.json"
    network.raise_settings(1, record)
    assert not record.exists()
    network.restore_settings(record)
    assert (settings / "net.ipv4.ip_forward").read_text() == "1"
