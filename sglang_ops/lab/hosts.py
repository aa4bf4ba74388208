"""One host: the files that make it different from the next, and the command that boots it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from sglang_ops.lab import gpus, ssh
from sglang_ops.lab.settings import USERS, Folder, Host, Plan

BRIDGE = "lab0"

# Engines keep images in overlays of their own, which do not stack on the overlay that is the host's root:
# these directories of a host are ordinary ones of the machine.
_PLAIN_DIRECTORIES: Mapping[str, str] = {
    "docker": "/var/lib/docker",
    "containerd": "/var/lib/containerd",
    "containers": "/var/lib/containers",
}

# nspawn's filter forbids the keyring calls of crun. The host gets cgroup v2 even where the machine has v1.
NSPAWN_ENVIRONMENT: Mapping[str, str] = {"SYSTEMD_SECCOMP": "0", "UNIFIED_CGROUP_HIERARCHY": "1"}


def prepare(folder: Folder, plan: Plan, host: Host, *, resolv_conf: str) -> None:
    """Lay out a host's directories, and fill its upper layer with what makes it this host."""
    home = folder.host(host.name)
    for name in ("upper", "work", "root", *_PLAIN_DIRECTORIES):
        (home / name).mkdir(parents=True, exist_ok=True)
    upper = home / "upper"
    for path, text in _texts(plan, host).items():
        _put(upper, path, text)
    _put(upper, "/etc/resolv.conf", resolv_conf)

    key = ssh.host_key(folder, host.name)
    _put(upper, "/etc/ssh/ssh_host_ed25519_key", key.read_text(), mode=0o600)
    _put(upper, "/etc/ssh/ssh_host_ed25519_key.pub", key.with_suffix(".pub").read_text())
    for user, uid in USERS.items():
        _put(upper, f"/home/{user}/.ssh/authorized_keys", ssh.public_key(folder), mode=0o600)
        for path in (f"home/{user}", f"home/{user}/.ssh", f"home/{user}/.ssh/authorized_keys"):
            os.chown(upper / path, uid, uid)

    if host.gpus:
        _put(upper, gpus.SMI, gpus.smi(), mode=0o755)


def overlay_options(folder: Folder, plan: Plan, host: Host) -> str:
    """Options of the overlay mount that is the host's root; volatile: a lost host is made anew, not repaired."""
    home = folder.host(host.name)
    return f"lowerdir={plan.tree},upperdir={home / 'upper'},workdir={home / 'work'},volatile"


def nspawn_command(folder: Folder, host: Host) -> list[str]:
    """The command that boots the host. It ends when the host is off, with 133 if it wants to be booted again."""
    home = folder.host(host.name)
    return [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--register=no",  # the machine below need not run systemd
        "--keep-unit",
        f"--directory={home / 'root'}",
        f"--machine={host.name}",
        f"--network-bridge={BRIDGE}",
        "--capability=all",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=read-only",
        *(f"--bind={home / name}:{path}" for name, path in _PLAIN_DIRECTORIES.items()),
    ]


def _texts(plan: Plan, host: Host) -> dict[str, str]:
    """The host's own text files by their path in it."""
    names = "".join(f"{other.address} {other.name}\n" for other in plan.hosts)
    texts = {
        "/etc/hostname": f"{host.name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{names}",
        # Given, not left to the first boot, which would set up every unit anew.
        "/etc/machine-id": f"{_machine_id(plan, host)}\n",
        "/etc/systemd/network/10-lab.network": (
            "[Match]\nName=host0\n\n"
            f"[Link]\nMTUBytes={plan.mtu}\n\n"
            f"[Network]\nAddress={host.address}/24\nGateway={plan.gateway}\n"
            "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        ),
    }
    if host.gpus:
        texts[gpus.CDI_SPEC] = gpus.cdi_spec(host.gpus)
        texts[gpus.ANSWERS] = gpus.answers(host.name, host.gpus)
        texts["/etc/tmpfiles.d/lab-gpus.conf"] = gpus.device_nodes(host.gpus)
    return texts


def _machine_id(plan: Plan, host: Host) -> str:
    return hashlib.md5(f"{host.name} {host.address} {plan.tree}".encode(), usedforsecurity=False).hexdigest()


def _put(upper: Path, path: str, text: str, *, mode: int = 0o644) -> None:
    """Write a file of the upper layer, whatever the umask."""
    target = upper / path.lstrip("/")
    for directory in reversed(target.relative_to(upper).parents[:-1]):
        (upper / directory).mkdir(mode=0o755, exist_ok=True)
        (upper / directory).chmod(0o755)
    target.write_text(text)
    target.chmod(mode)
