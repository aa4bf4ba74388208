"""The machine under the GPUs, as `doctor` judges it: system, clock, storage, network. Reads only.

Every function answers from what is there and leaves out what cannot be known. Python 3.8, standard library.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import time

from ansible.module_utils import sglang_host_api as api
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_state import read_text

_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_BRIDGES = ("docker0", "podman0", "cni-podman0")  # of the engines, for containers with a network of their own
_SHARED = "/dev/shm"  # noqa: S108 (looked at, not written)
_SECONDS = 10  # for every program asked


def system():
    """Distribution, kernel, and what keeps a kernel module from being built or loaded."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read_text("/etc/os-release") or "", re.MULTILINE))
    kernel = os.uname().release
    return {
        "distribution": release.get("ID", ""),
        "version": release.get("VERSION_ID", ""),
        "name": release.get("PRETTY_NAME", ""),
        "kernel": kernel,
        "container": os.path.exists("/run/systemd/container"),
        "headers": os.path.isdir("/lib/modules/%s/build/" % kernel),
        "dkms": bool(glob.glob("/var/lib/dkms/nvidia*") or glob.glob("/usr/src/nvidia-*/dkms.conf")),
        "secure_boot": secure_boot(),
        "modules": [name for name in ("nouveau", "nvidia") if os.path.isdir("/sys/module/" + name)],
    }


def secure_boot(path=_SECURE_BOOT):
    """Whether the firmware enforces signatures; None where there is no EFI. Attributes come first."""
    try:
        with open(path, "rb") as stream:
            return stream.read()[4:5] == b"\x01"
    except OSError:
        return None


def clock():
    """Seconds since the epoch, and whether something keeps them right (None where nothing here can say)."""
    shown = run("timedatectl", "show", "--property", "NTPSynchronized", "--value", timeout=_SECONDS).stdout.strip()
    return {"seconds": time.time(), "synchronised": {"yes": True, "no": False}.get(shown)}


def limits():
    """What containers get without being told: the manager's limit of locked memory, the size of /dev/shm, in bytes."""
    shown = run("systemctl", "show", "--property", "DefaultLimitMEMLOCK", "--value", timeout=_SECONDS).stdout.strip()
    memlock = int(shown) if shown.isdigit() else None
    usage = os.statvfs(_SHARED) if os.path.ismount(_SHARED) else None
    return {"memlock": memlock, "shm": usage.f_blocks * usage.f_frsize if usage else 0}


def cgroups(engine):
    """The version of control groups, and how docker drives them."""
    found = {"version": 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1}
    if engine == "docker" and os.path.exists(api.DOCKER_SOCKET):
        try:
            info = api.get(api.DOCKER_SOCKET, "/info") or {}
        except api.ApiError:
            return found
        found.update(driver=info.get("CgroupDriver", ""), default_runtime=info.get("DefaultRuntime", ""))
    return found


def storage(path):
    """The file system below `path`, or that it will be on, and whether its disk says that it rotates."""
    present = path
    while not os.path.exists(present):
        present = os.path.dirname(present)
    number = os.stat(present).st_dev
    mounts = [mount for mount in _mounts() if mount["device"] == number]
    best = max(mounts, key=lambda mount: len(os.path.commonpath([mount["where"], os.path.realpath(present)])),
               default={"type": "", "source": ""})
    return {"path": path, "type": best["type"], "source": best["source"],
            "rotational": rotational("%d:%d" % (os.major(number), os.minor(number)))}


def _mounts():
    found = []
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        major, _, minor = fields[2].partition(":")
        found.append({"device": os.makedev(int(major), int(minor)), "where": fields[4], "type": kind[0],
                      "source": kind[1] if len(kind) > 1 else ""})
    return found


def rotational(number, root="/sys/dev/block"):
    """Whether the disk of the block device `number` (major:minor) rotates; None where it has none or cannot know.

    A virtual disk reports whatever its hypervisor was told, so its word is not taken.
    """
    device = os.path.realpath(os.path.join(root, number))
    if not os.path.exists(os.path.join(device, "queue")):
        device = os.path.dirname(device)  # a partition: its disk
    text = read_text(os.path.join(device, "queue", "rotational"))
    if text is None or os.path.basename(device).startswith(("vd", "xvd", "loop")):
        return None
    return text.strip() == "1"


def network(root="/sys/class/net"):
    """The interface of the default route, its MTU, and those of the links below it and of the engines' bridges."""
    rows = [line.split() for line in (read_text("/proc/net/route") or "").splitlines()[1:]]
    name = next((row[0] for row in rows if row[1] == "00000000"), None)
    if name is None:
        return None
    lower = [os.path.basename(path)[len("lower_"):] for path in sorted(glob.glob(os.path.join(root, name, "lower_*")))]
    return {"interface": name, "mtu": _mtu(root, name), "lower": {link: _mtu(root, link) for link in lower},
            "bridges": {link: _mtu(root, link) for link in _BRIDGES if os.path.isdir(os.path.join(root, link))}}


def _mtu(root, name):
    text = (read_text(os.path.join(root, name, "mtu")) or "").strip()
    return int(text) if text.isdigit() else 0


def firewall(ports):
    """What filters incoming packets: the program that rules, and those of `ports` that it lets through.

    None where nothing drops what is not allowed.
    """
    if shutil.which("ufw"):
        told = run("ufw", "status", "verbose", timeout=_SECONDS).stdout
        if "Status: active" in told:
            return {"program": "ufw", "open": [port for port in ports if ufw_allows(told, port)]}
    if shutil.which("firewall-cmd") and run("firewall-cmd", "--state", timeout=_SECONDS).ok:
        allowed = [port for port in ports
                   if run("firewall-cmd", "--query-port=%d/tcp" % port, timeout=_SECONDS).ok]
        target = "target: ACCEPT" in run("firewall-cmd", "--list-all", timeout=_SECONDS).stdout
        return {"program": "firewalld", "open": list(ports) if target else allowed}
    done = run("nft", "--json", "list", "ruleset", timeout=_SECONDS)
    rules = json.loads(done.stdout)["nftables"] if done.ok else []
    closed = nft_closed(rules)
    if closed:
        return {"program": "nftables", "chain": " ".join(closed[0]), "open": nft_open(rules, ports)}
    done = run("iptables", "-S", timeout=_SECONDS)
    allowed = iptables_open(done.stdout, ports) if done.ok else None
    return None if allowed is None else {"program": "iptables", "open": allowed}


def ufw_allows(told, port):
    """Whether `ufw status verbose` lets TCP connections to `port` in. Pure."""
    if re.search(r"^Default: allow \(incoming\)", told, re.MULTILINE):
        return True
    for words in re.findall(r"^([\d:,]+)(?:/tcp)?(?: \(v6\))?\s+(?:ALLOW|LIMIT)", told, re.MULTILINE):
        for part in words.split(","):
            low, _, high = part.partition(":")
            if int(low) <= port <= int(high or low):
                return True
    return bool(re.search(r"^Anywhere(?: on \S+)?\s+ALLOW", told, re.MULTILINE))


def nft_closed(entries):
    """(family, table, chain) of the chains of incoming packets that drop by policy. Pure."""
    chains = [entry["chain"] for entry in entries if "chain" in entry]
    return [(chain["family"], chain["table"], chain["name"]) for chain in chains
            if chain.get("hook") == "input" and chain.get("policy") == "drop"]


def nft_open(entries, ports):
    """Those of `ports` that the tables of the closed chains accept. Pure.

    A rule that accepts by something other than ports and states (an address, an interface) counts for every port:
    a host is not called closed on a guess.
    """
    tables = {chain[:2] for chain in nft_closed(entries)}
    rules = [entry["rule"] for entry in entries if "rule" in entry]
    accepted = [rule["expr"] for rule in rules
                if (rule["family"], rule["table"]) in tables and any("accept" in part for part in rule["expr"])]
    return [port for port in ports if any(_accepts(parts, port) for parts in accepted)]


def _accepts(parts, port):
    matches = [part["match"] for part in parts if "match" in part]
    for match in matches:
        field = match.get("left", {})
        payload = field.get("payload", {}) if isinstance(field, dict) else {}
        if "ct" in field or match.get("right") == "lo" or str(payload.get("protocol", "")).startswith(("icmp", "udp")):
            return False
        if (field.get("meta") or {}).get("key") == "l4proto" and "tcp" not in str(match.get("right")):
            return False
        if payload.get("field") == "dport":
            return _holds(match.get("right"), port)
    return True


def _holds(value, port):
    if isinstance(value, dict):
        if "set" in value:
            return any(_holds(item, port) for item in value["set"])
        low, high = value.get("range", (0, 0))
        return low <= port <= high
    return value == port or str(value).startswith("@")  # a named set: its members may hold it


def iptables_open(text, ports):
    """The same of `iptables -S`. Pure."""
    if not re.search(r"^-P INPUT (?:DROP|REJECT)", text, re.MULTILINE):
        return None
    rules = [line for line in text.splitlines() if re.search(r"^-A \S+ .*-j ACCEPT$|^-A \S+ -j ACCEPT$", line)]
    return [port for port in ports if any(_iptables_accepts(line, port) for line in rules)]


def _iptables_accepts(line, port):
    if re.search(r"--ctstate|--state|-i lo\b|-p (?:icmp|udp|ipv6-icmp)\b", line):
        return False
    named = re.search(r"--dports? (\S+)", line)
    for part in named.group(1).split(",") if named else ():
        low, _, high = part.partition(":")
        if int(low) <= port <= int(high or low):
            return True
    return named is None
