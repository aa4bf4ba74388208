"""Logins to registries, as ``docker login`` and ``podman login`` keep them for the person at this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DOCKER_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"  # under which `docker login` keeps Docker Hub


@dataclass(frozen=True)
class Login:
    """A login as kept by ``docker login``: base64 of ``user:password``, or a refresh token."""

    basic: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


def login_for(host: str) -> Login | None:
    """The login for a registry that this machine's docker or podman keeps, if any."""
    key = _HUB_KEY if host == DOCKER_HUB else host
    for path in _login_files():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        entry = known.get("auths", {}).get(key) or known.get("auths", {}).get(host) or {}
        if entry.get("identitytoken") or entry.get("auth"):
            return Login(entry.get("auth"), entry.get("identitytoken"))
        helper = known.get("credHelpers", {}).get(host) or known.get("credsStore")
        if helper and (found := _helped(helper, key)):
            return found
    return None


def _login_files() -> Iterator[Path]:
    if "REGISTRY_AUTH_FILE" in os.environ:
        yield Path(os.environ["REGISTRY_AUTH_FILE"])
    yield Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "config.json"
    yield Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")) / "containers" / "auth.json"


def _helped(helper: str, key: str) -> Login | None:
    try:
        program = [f"docker-credential-{helper}", "get"]
        told = subprocess.run(program, input=key, capture_output=True, text=True, check=True, timeout=20)
        found = json.loads(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # the registry then says that it wants a login, which is the better message
    if found["Username"] == "<token>":
        return Login(token=found["Secret"])
    return Login(base64.b64encode(f"{found['Username']}:{found['Secret']}".encode()).decode())
