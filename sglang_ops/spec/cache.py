"""Where the model cache lies: for the server in the container, and on the host, where models are fetched into it.

`HF_HOME` names the cache as the container sees it. What the file mounts decides where that is on the host: below
`cache_path` (mounted as /cache), below a mount of its own, else the same path. `TRANSFORMERS_CACHE` held the hub's
cache itself; transformers 5 ignores it, so it becomes `HF_HUB_CACHE`, unless a variable that is still read is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sglang_ops.spec.model import Deployment
from sglang_ops.spec.values import Mount

CACHE = "/cache"
# Where Hugging Face's libraries keep things when they are told nothing; the image's user is root.
_IMAGE_HOME = "/root/.cache/huggingface"


@dataclass(frozen=True)
class Cache:
    """`home` is HF_HOME, `hub` the directory with the models. `mounts` are those that the cache needs besides
    `Deployment.mounts`. The container gets `environment` in place of the variables in `withheld`."""

    container_home: str
    container_hub: str
    host_home: str
    host_hub: str
    mounts: tuple[Mount, ...]
    environment: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    withheld: frozenset[str] = frozenset({"TRANSFORMERS_CACHE"})


def cache_of(deployment: Deployment, default_home: str) -> Cache:
    """The cache of `deployment`; `default_home` is the host's directory where the file says nothing of it."""
    named = {name: value.value.rstrip("/") or "/" for name, value in deployment.env_vars.items()}
    binds = list(deployment.mounts)
    if deployment.cache_path:
        binds.append(Mount(source=deployment.cache_path, target=CACHE))
    legacy = named.get("TRANSFORMERS_CACHE")
    meant = legacy if "HF_HOME" not in named and "HF_HUB_CACHE" not in named else None
    home = named.get("HF_HOME") or _unnamed_home(binds, default_home)
    hub = named.get("HF_HUB_CACHE") or meant or f"{home}/hub"
    for directory in (home, hub):
        if _host_path(binds, directory) is None:
            binds.append(Mount(source=directory, target=directory))
    return Cache(
        container_home=home,
        container_hub=hub,
        host_home=_host_path(binds, home) or home,
        host_hub=_host_path(binds, hub) or hub,
        mounts=tuple(mount for mount in binds if mount not in deployment.mounts),
        environment={"HF_HOME": home} | ({"HF_HUB_CACHE": hub} if hub != f"{home}/hub" else {}),
        warnings=(_warning(named, legacy),) if legacy else (),
    )


def _unnamed_home(binds: Sequence[Mount], default_home: str) -> str:
    """HF_HOME where the file sets none: in cache_path, else in a mount over the image's own place, else the default."""
    if any(mount.target == CACHE for mount in binds):
        return f"{CACHE}/huggingface"
    return _IMAGE_HOME if _host_path(binds, _IMAGE_HOME) else default_home.rstrip("/")


def _host_path(binds: Sequence[Mount], path: str) -> str | None:
    """What `path` of the container is on the host: the innermost mount decides. None where nothing is mounted."""
    inside = PurePosixPath(path)
    over = [mount for mount in binds if inside.is_relative_to(mount.target)]
    if not over:
        return None
    mount = max(over, key=lambda item: len(PurePosixPath(item.target).parts))
    return str(PurePosixPath(mount.source) / inside.relative_to(mount.target))


def _warning(named: Mapping[str, str], legacy: str) -> str:
    winner = next((name for name in ("HF_HOME", "HF_HUB_CACHE") if name in named), None)
    ignored = "env_vars.TRANSFORMERS_CACHE: transformers 5 no longer reads it"
    if winner:
        return f"{ignored}; {winner} says where the models are. Remove TRANSFORMERS_CACHE."
    return f"{ignored}; HF_HUB_CACHE={legacy} is set, which means the same. Write HF_HUB_CACHE instead."
