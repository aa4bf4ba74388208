"""What a run's hosts know of each other: who lacks what, who has it, and the secret that they share."""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sglang_ops import peers
from sglang_ops.addresses import address_of
from sglang_ops.peers import Host, Kernels, Model
from sglang_ops.registered import plan_of


def fleet(
    hostvars: Mapping[str, Mapping[str, Any]], names: Collection[str], batch: Collection[str], port: int
) -> list[Host]:
    """The hosts `names` that are still in the play, were planned and share, in its order.

    Those of earlier batches (`serial`) have by now what their plan lacked. `port` is that of hosts whose variables do
    not name another one.
    """
    known = ((name, hostvars[name]) for name in names)  # Ansible puts a host's variables together each time it is asked
    found = [_host(name, variables, port, done=name not in batch) for name, variables in known if plan_of(variables)]
    return [host for host in found if host.port]


def offers(hostvars: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the hosts `names` hold, by repository and revision, as the module `sglang_facts` takes it."""
    held = [item for name in names for item in plan_of(hostvars[name]).get("holds", ())]
    return {(item["repo"], item["revision"]): {key: item[key] for key in ("commit", "bytes", "files")} for item in held}


def _host(name: str, variables: Mapping[str, Any], port: int, *, done: bool) -> Host:
    plan = plan_of(variables)
    missing = tuple(_model(item) for item in plan.get("models", ()))
    holds = tuple(_model(item) for item in plan.get("holds", ()))
    address = str(variables.get("sglang_server_peer_address") or address_of(name, variables))
    own = int(variables.get("sglang_server_peer_port", port))
    if done:
        missing, holds = (), holds + missing
    kernels = () if done else tuple(map(_kernels, plan.get("kernels", ())))
    return Host(name, address, own, missing, holds, kernels, tuple(map(_kernels, plan.get("compiled", ()))))


def _model(item: Mapping[str, Any]) -> Model:
    return Model(str(item["repo"]), str(item["commit"]), str(item["hub"]))


def _kernels(item: Mapping[str, Any]) -> Kernels:
    return Kernels(str(item["key"]), str(item["machine"]), str(item["path"]), tuple(item["parts"]))


def identity(run_directory: Path) -> str:
    """The run's key and certificate, made by whoever asks first.

    `run_directory` is Ansible's own temporary directory, private to the run and shared by its workers.
    """
    kept = run_directory / "sglang-ops-peers.pem"
    with (run_directory / "sglang-ops-peers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.touch(mode=0o600)
            kept.write_text(peers.identity())
        return kept.read_text()


def told_to(host: str, task_vars: Mapping[str, Any], options: Mapping[str, Any], run_directory: Path) -> dict[str, Any]:
    """The module parameter `peers` for a host; empty where it has nobody to share with, or shall not.

    `options` are those of the task: `port` (0: share nothing) and `address` (the host's own, "" for every one).
    """
    port = int(options.get("port") or 0)
    if not port:
        return {}
    hosts = fleet(task_vars["hostvars"], task_vars["ansible_play_hosts"], task_vars["ansible_play_batch"], port)
    part = peers.part_of(host, hosts)
    if not part:
        return {}
    return {**part, "address": str(options.get("address") or ""), "identity": identity(run_directory)}
