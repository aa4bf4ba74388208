"""Hosts that several modules of tests use one after the other: put back in between as they were.

As they were means: docker with the simulator's image and nothing of ours; every file of the directories below, the
mounts and the names in / as at first. What is not put back is told, and then the lab is made anew.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Lab

_KEPT = "/var/lib/as-made"
_LOOK = """
look() {
    ls -A / | sort > $1/top
    find etc srv root home opt usr/local -xdev ! -path 'etc/.pwd.lock' | sort > $1/names
    awk '{print $5}' /proc/self/mountinfo | grep -vE '^/(run|proc|sys|dev|var/lib/docker)/' | sort > $1/mounts
    docker image ls --quiet --no-trunc | sort -u | xargs -r docker image inspect \
        --format '{{range .RepoTags}}{{println .}}{{end}}{{range .RepoDigests}}{{println .}}{{end}}' \
        | grep . | sort -u > $1/images
    { docker ps --all --quiet; docker volume ls --quiet
      systemctl list-units --all --plain --no-legend 'sglang-*' | cut -d' ' -f1
      ls /run/systemd/transient | grep -E '[.]service$'; } > $1/running
}
cd /
"""
_EMPTY = """
systemctl kill --signal KILL 'sglang-*' 2>/dev/null
(cd /run/systemd/transient && ls | grep -E '[.]service$' | xargs -r systemctl stop)
ls /etc/systemd/system | grep ^sglang- | xargs -r systemctl disable --now --quiet 2>/dev/null
docker ps --all --quiet | xargs -r docker rm --force >/dev/null
rm -rf /etc/systemd/system/sglang-* /run/systemd/system/sglang-* /etc/sglang-ops /run/sglang-ops /var/lib/sglang-ops
find /tmp /var/tmp -mindepth 1 -maxdepth 1 ! -name 'systemd-private-*' -exec rm -rf {} +
systemctl daemon-reload
systemctl reset-failed
"""
_REMEMBER = f"""
{_LOOK}{_EMPTY}
mkdir -p {_KEPT}
look {_KEPT}
tar --one-file-system -cf {_KEPT}/files.tar etc srv root home opt usr/local
"""
_PUT_BACK = f"""
exec 2>/dev/null
{_LOOK}{_EMPTY}
mkdir -p {_KEPT}/now
look {_KEPT}/now
comm -13 {_KEPT}/mounts {_KEPT}/now/mounts | sort -r | xargs -r -d '\\n' -n 1 umount
comm -13 {_KEPT}/images {_KEPT}/now/images | xargs -r docker image rm >/dev/null
comm -13 {_KEPT}/names {_KEPT}/now/names | xargs -r -d '\\n' rm -rf
comm -13 {_KEPT}/top {_KEPT}/now/top | xargs -r -d '\\n' rm -rf
tar --overwrite -xf {_KEPT}/files.tar
systemctl daemon-reload
look {_KEPT}/now
cd {_KEPT}
for part in top names mounts running; do diff $part now/$part; done
diff images now/images | grep '^>'
true
"""


def remember(lab: Lab) -> None:
    """Keep on the hosts what they are like, without anything that serves."""
    _everywhere(lab, _REMEMBER)


def put_back(lab: Lab) -> str:
    """Make the hosts what they were; returns what is different all the same, as `diff` prints it."""
    return _everywhere(lab, _PUT_BACK)


def _everywhere(lab: Lab, script: str) -> str:
    with ThreadPoolExecutor(len(lab.hosts)) as pool:
        return "".join(pool.map(lambda host: lab.ssh(script, host), lab.hosts))
