"""What a host is like, to prove that a dry run changes nothing: files, processes, containers, images, units."""

from __future__ import annotations

from conftest import Lab

# What living does by itself: logs, clocks, SSH and sudo sessions, package manager look-ups.
_VOLATILE = (
    "/var/log", "/run/log", "/run/systemd", "/run/user", "/run/sudo", "/var/lib/systemd", "/run/utmp", "/run/lock",
    "/var/lib/containers/storage/overlay-containers", "/var/lib/sudo", "/var/tmp", "/tmp", "/run/mount",
    "/run/dbus", "/run/udev", "/var/cache/ldconfig", "/run/containerd", "/run/docker", "/var/lib/docker/network",
)
_SCRIPT = """
find / -xdev {prune} -o -type f -newermt @0 -printf '%p %s %m %U %T@\\n' 2>/dev/null | sort
find /var/lib/docker /var/lib/containers -maxdepth 3 2>/dev/null | sort
ps -eo args --no-headers | grep -E 'docker|podman|sglang|conmon' | grep -vE 'grep|sudo|ssh|ps -eo|sh -c' | sort
for engine in docker podman; do command -v $engine >/dev/null && $engine ps -a --no-trunc -q | sort; done
for engine in docker podman; do command -v $engine >/dev/null && $engine images --no-trunc -q | sort; done
systemctl list-unit-files --no-legend --no-pager | sort
systemctl show 'sglang-*' -p Id,ActiveState,NRestarts,InvocationID --no-pager
ss -Hltn | awk '{{print $4}}' | sort
"""


def snapshot(lab: Lab, host: str) -> str:
    prune = " -o ".join(f"-path {path} -prune" for path in _VOLATILE)
    return lab.ssh(_SCRIPT.format(prune=prune), host)
