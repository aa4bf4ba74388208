"""Storage and network. Each check is pure and says nothing of a host that is fit."""

from __future__ import annotations

from sglang_ops.planning.doctor_facts import Examined, Finding, listed

NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "9p", "beegfs", "gpfs", "fuse.")
_MOVE = "Set sglang_server_hf_home (or HF_HOME in env_vars) to a directory on local NVMe."
# An engine's image with what it unpacks to; SGLang's images have 15 to 20 GB compressed.
ROOM_FOR_AN_IMAGE = 50e9


def network_storage(seen: Examined) -> Finding | None:
    """Hugging Face's locks are flock, which some network file systems take and do not keep."""
    for place in seen.machine.storage:
        if place.type.startswith(NETWORK_FILE_SYSTEMS):
            detail = (
                f"the model cache {place.path} is on {place.type} ({place.source}): weights load at the network's "
                "pace, and the cache's locks may not hold between hosts"
            )
            remedy = f"{_MOVE} If it stays shared, let one host fetch a model before the others deploy (--limit)."
            return Finding("storage", detail, remedy, warning=True)
    return None


def rotating_storage(seen: Examined) -> Finding | None:
    for place in seen.machine.storage:
        if place.rotational:
            detail = f"the model cache {place.path} is on a rotating disk ({place.source})"
            return Finding("storage", detail, _MOVE, warning=True)
    return None


def room(seen: Examined) -> Finding | None:
    """Without a deployment only a rule of thumb; with one the plan counts bytes."""
    if seen.deployments or not seen.facts.disks or seen.facts.disks[0].free_bytes >= ROOM_FOR_AN_IMAGE:
        return None
    disk = seen.facts.disks[0]
    free = f"{disk.free_bytes / 1e9:.1f} GB are free at {disk.path}"
    detail = f"{free}; an SGLang image takes about {ROOM_FOR_AN_IMAGE / 1e9:.0f} GB while it unpacks"
    return Finding("disk", detail, f"Free space there, or move {disk.path} to a larger disk.", warning=True)


def mtu(seen: Examined) -> Finding | None:
    """Links that carry less than what lies on them: large packets vanish, and transfers hang."""
    network = seen.machine.network
    if network is None or not network.mtu:
        return None
    own = f"{network.interface} ({network.mtu})"
    small = [f"{name} ({size})" for name, size in network.lower.items() if 0 < size < network.mtu]
    if small:
        detail = f"the default route's interface {own} has a larger MTU than {listed(small)} below it"
        return Finding(
            "mtu",
            detail,
            f"sudo ip link set {network.interface} mtu {min(network.lower.values())}, "
            "and the same in the network configuration",
            warning=True,
        )
    large = [f"{name} ({size})" for name, size in network.bridges.items() if size > network.mtu]
    if large:
        detail = f"{listed(large)} has a larger MTU than the default route's interface {own}"
        return Finding("mtu", detail, f'Set "mtu": {network.mtu} in /etc/docker/daemon.json.', warning=True)
    return None


def firewall(seen: Examined) -> Finding | None:
    filtering = seen.machine.firewall
    if filtering is None:
        return None
    ports = [port for port in dict.fromkeys(item.port for item in seen.deployments) if port not in filtering.open]
    if not ports:
        return None
    detail = f"{filtering.program} drops what comes in for port {listed(ports)}"
    remedy = " && ".join(_OPEN[filtering.program].format(port, filtering.chain) for port in ports)
    return Finding("firewall", detail, f"{remedy} (for the addresses of your clients)", warning=True)


_OPEN = {
    "ufw": "sudo ufw allow {0}/tcp",
    "firewalld": "sudo firewall-cmd --permanent --add-port={0}/tcp && sudo firewall-cmd --reload",
    "nftables": "sudo nft insert rule {1} tcp dport {0} accept",
    "iptables": "sudo iptables -I INPUT -p tcp --dport {0} -j ACCEPT",
}

CHECKS = (network_storage, rotating_storage, room, mtu, firewall)
