"""The cable between the machine and a lab, and the few settings of the machine that a lab needs.

A lab's hosts live in a network namespace of their own. The machine holds one end of a cable into it, the
gateway address, and a masquerade rule, so that hosts reach package mirrors. Everything here can be undone
by name, whoever made it and however far that got.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Network, ip_network
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab.settings import Plan, write

# RFC 2544 keeps this range for measurements between devices: no network that people use is in it.
_RANGE = IPv4Network("198.18.0.0/16")
_FORWARDING = "net.ipv4.ip_forward"
# What a host takes of limits that all hosts share, because they share their users; 128 and 200 are usual.
_HOST_NEEDS = {"fs.inotify.max_user_instances": 16, "kernel.keys.maxkeys": 8}


def free_network(taken: Iterable[IPv4Network]) -> str:
    """The first three bytes of a /24 that overlaps with none in `taken`."""
    taken = list(taken)
    for candidate in _RANGE.subnets(new_prefix=24):
        if not any(candidate.overlaps(other) for other in taken):
            return str(candidate.network_address).rpartition(".")[0]
    raise OpsError(f"Every network of {_RANGE} is in use here.", fix="End a lab: sglang-ops lab down")


def machine_networks() -> list[IPv4Network]:
    """The networks that the machine has a route to, but for routes to half the world, as VPNs set them."""
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all"))
    networks = (ip_network(route["dst"], strict=False) for route in routes if route["dst"][0].isdigit())
    return [network for network in networks if isinstance(network, IPv4Network) and network.prefixlen >= 8]


def as_network(plan: Plan) -> IPv4Network:
    return IPv4Network(plan.subnet)


def uplink_mtu() -> int:
    """The MTU of the machine's way out, in bytes; hosts that used a larger one would lose packets there."""
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "default"))
    if not routes:
        return 1500
    return int(json.loads(_run("ip", "-json", "link", "show", "dev", routes[0]["dev"]))[0]["mtu"])


def connect(plan: Plan, supervisor: int) -> None:
    """Lay the cable into the network namespace of process `supervisor`, and let the hosts out."""
    _run(
        "ip", "link", "add", plan.uplink, "mtu", str(plan.mtu), "type", "veth",
        "peer", "name", "uplink", "mtu", str(plan.mtu), "netns", str(supervisor),
    )  # fmt: skip
    _run("ip", "address", "add", f"{plan.gateway}/24", "dev", plan.uplink)
    # A host that boots is asked for ten times a second instead of once, so it is noticed at once.
    Path(f"/proc/sys/net/ipv4/neigh/{plan.uplink}/retrans_time_ms").write_text("100")
    _run("ip", "link", "set", plan.uplink, "up")
    _run("nft", "-f", "-", text=masquerade(plan))
    if "-P FORWARD DROP" in _forward_rules():
        for rule in _forward_exceptions(plan):
            _run("iptables", "-I", "FORWARD", *rule)


def disconnect(name: str, plan: Plan | None) -> None:
    """Remove what `connect` made, all of it or as far as it came."""
    if plan:
        _try("ip", "link", "delete", plan.uplink)
        for rule in _forward_exceptions(plan):
            _try("iptables", "-D", "FORWARD", *rule)
    _try("nft", "delete", "table", "ip", _table(name))


def masquerade(plan: Plan) -> str:
    """The nftables rule set that lets a lab's hosts reach the world under the machine's address."""
    return (
        f"table ip {_table(plan.shape.name)} {{\n"
        "  chain postrouting {\n"
        "    type nat hook postrouting priority srcnat\n"
        f"    ip saddr {plan.subnet} ip daddr != {plan.subnet} masquerade\n"
        "  }\n"
        "}\n"
    )


def _table(name: str) -> str:
    return f"sglang-ops-lab-{name}"


def _forward_exceptions(plan: Plan) -> list[list[str]]:
    """Docker and ufw on the machine drop what is forwarded; an nftables rule cannot overrule that."""
    comment = ["-m", "comment", "--comment", _table(plan.shape.name), "-j", "ACCEPT"]
    return [["-s", plan.subnet, *comment], ["-d", plan.subnet, *comment]]


def _forward_rules() -> str:
    try:
        return _run("iptables", "-S", "FORWARD")
    except (FileNotFoundError, OpsError):
        return ""  # no iptables, hence none of its rules


def needed_settings(hosts: int) -> dict[str, int]:
    """The kernel settings, by name, that a machine with `hosts` hosts in all its labs must at least have."""
    return {_FORWARDING: 1} | {name: hosts * each for name, each in _HOST_NEEDS.items()}


def raise_settings(hosts: int, record: Path) -> None:
    """Raise kernel settings to what `hosts` hosts need; `record` keeps what the first lab found."""
    before = json.loads(record.read_text()) if record.exists() else {}
    low = {name: need for name, need in needed_settings(hosts).items() if _setting(name) < need}
    if low:
        write(record, json.dumps({name: _setting(name) for name in low} | before))
    for name, need in low.items():
        _sysctl(name).write_text(str(need))


def restore_settings(record: Path) -> None:
    """Put back what `raise_settings` found; for the last lab to call."""
    if record.exists():
        for name, value in json.loads(record.read_text()).items():
            _sysctl(name).write_text(str(value))
        record.unlink()


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _setting(name: str) -> int:
    return int(_sysctl(name).read_text())


def resolv_conf() -> str:
    """The machine's resolver configuration, as hosts can use it.

    systemd-resolved listens on a loopback address that means something else in a host; the name servers
    that it asks are in a file of its own.
    """
    text = Path("/etc/resolv.conf").read_text()
    upstream = Path("/run/systemd/resolve/resolv.conf")
    if re.search(r"^nameserver\s+127\.", text, re.MULTILINE) and upstream.exists():
        return upstream.read_text()
    return text


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OpsError(f"'{' '.join(command)}' failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _try(*command: str) -> None:
    """For undoing: what is not there any more need not be removed."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(command, capture_output=True, check=False)
