"""A lab's SSH side: the key made for it, its hosts' keys, and a configuration for plain ssh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from sglang_ops.lab.settings import USER, Folder, Plan, write

_KEY = "id_ed25519"


def make_keys(folder: Folder, plan: Plan) -> None:
    """Write key, host keys, known_hosts and configuration below STATE/ssh.

    Host keys are made here and given to the hosts, so they are known before the first connection.
    """
    hosts = folder.ssh / "hosts"
    hosts.mkdir(parents=True, exist_ok=True)
    _generate(private_key(folder), comment=f"sglang-ops lab {plan.shape.name}")
    known = []
    for host in plan.hosts:
        key = hosts / host.name
        _generate(key, comment=host.name)
        kind, public = key.with_suffix(".pub").read_text().split()[:2]
        known.append(f"{host.name},{host.address} {kind} {public}\n")
    write(known_hosts(folder), "".join(known))
    write(folder.ssh / "config", configuration(folder, plan))
    _give_to_caller(folder)


def private_key(folder: Folder) -> Path:
    return folder.ssh / _KEY


def public_key(folder: Folder) -> str:
    return private_key(folder).with_suffix(".pub").read_text()


def host_key(folder: Folder, host: str) -> Path:
    """The private key of a host; the public one lies beside it with the suffix .pub."""
    return folder.ssh / "hosts" / host


def known_hosts(folder: Folder) -> Path:
    return folder.ssh / "known_hosts"


def options(folder: Folder) -> list[str]:
    """What ssh must be told so that it trusts the lab's hosts, only them, and asks nothing."""
    return [
        f"UserKnownHostsFile={known_hosts(folder)}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
    ]


def configuration(folder: Folder, plan: Plan) -> str:
    """The text of STATE/ssh/config, for `ssh -F`."""
    lines = [f"Host {' '.join(host.name for host in plan.hosts)}"]
    lines += [f"  User {USER}", f"  IdentityFile {private_key(folder)}"]
    lines += [f"  {option.replace('=', ' ', 1)}" for option in options(folder)]
    lines.append("  LogLevel ERROR")
    for host in plan.hosts:
        lines += [f"Host {host.name}", f"  HostName {host.address}"]
    return "\n".join(lines) + "\n"


def _generate(key: Path, *, comment: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)],
        stdin=subprocess.DEVNULL,
        check=True,
        capture_output=True,
    )


def _give_to_caller(folder: Folder) -> None:
    """Under sudo the key is the caller's: every verb but up and down then works without root."""
    caller = int(os.environ.get("SUDO_UID", "0"))
    if caller:
        for path in (private_key(folder), known_hosts(folder)):
            os.chown(path, caller, -1)
