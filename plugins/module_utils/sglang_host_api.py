"""The container engines' HTTP API on a Unix socket: the CLIs have no progress that a program can read.

Docker's daemon serves it; podman serves the same routes for as long as `podman system service` runs.
Python 3.8, standard library.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from urllib.parse import quote

from ansible.module_utils.sglang_host_command import environment
from ansible.module_utils.sglang_host_progress import end

DOCKER_SOCKET = "/var/run/docker.sock"
DOCKER_CONFIG = "/root/.docker/config.json"
DOCKER_HUB = "https://index.docker.io/v1/"  # the key under which `docker login` keeps Docker Hub
_START_SECONDS = 20


class ApiError(Exception):
    """The engine refused, in its own words, or does not answer."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)  # type: ignore[arg-type]
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(path: str, route: str, timeout: float = 20) -> dict | None:
    """A JSON object from the API behind the socket `path`; None where the thing asked for is not there.

    Raises ApiError for every other failure, a socket that nobody listens on included.
    """
    with contextlib.closing(_UnixConnection(path, timeout)) as connection:
        try:
            connection.request("GET", route)
            response = connection.getresponse()
            body = response.read()
            if response.status == 404:
                return None
            if response.status != 200:
                raise ApiError(_message(body))
            return json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ApiError("%s does not answer: %s" % (path, error)) from error


def pull(path: str, name: str, digest: str, auth: str | None = None):
    """Pull ``name@digest`` and yield the engine's progress messages as they come.

    Ending the iteration early closes the connection, upon which the engine gives the pull up.
    """
    route = "/images/create?fromImage=%s&tag=%s" % (quote(name, safe=""), quote(digest, safe=""))
    with contextlib.closing(_UnixConnection(path, None)) as connection:
        try:
            connection.request("POST", route, headers={"X-Registry-Auth": auth} if auth else {})
            response = connection.getresponse()
            if response.status != 200:
                raise ApiError(_message(response.read()))
            for line in response:
                event = json.loads(line) if line.strip() else {}
                if event.get("error"):
                    raise ApiError(event["error"])
                yield event
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ApiError("%s broke off: %s" % (path, error)) from error


def _message(body: bytes) -> str:
    try:
        told = json.loads(body)
        return str(told.get("message") or told.get("cause") or told)
    except (ValueError, AttributeError):
        return body.decode(errors="replace").strip()


@contextlib.contextmanager
def serving(engine: str):
    """The path of the engine's socket. Podman's service runs for as long as this context does."""
    if engine == "docker":
        yield DOCKER_SOCKET
        return
    with tempfile.TemporaryDirectory(prefix="sglang-ops-") as directory:
        path = os.path.join(directory, "podman.sock")
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", "unix://" + path], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), start_new_session=True,
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not os.path.exists(path):
                if service.poll() is not None or time.monotonic() > deadline:
                    told = service.stderr.read().decode(errors="replace") if service.poll() is not None else ""
                    raise ApiError("podman's API service does not start: %s" % (told.strip() or "no answer"))
                time.sleep(0.05)
            yield path
        finally:
            end(service)
            service.stderr.close()


def registry_auth(name: str, config: str = DOCKER_CONFIG) -> str | None:
    """The header that hands docker the login that root made on this host with `docker login`, if there is one.

    Podman needs none: its service reads root's logins itself.
    """
    registry = name.partition("/")[0]
    if "/" not in name or not ("." in registry or ":" in registry or registry == "localhost"):
        registry = DOCKER_HUB
    try:
        with open(config, encoding="utf-8") as stream:
            known = json.load(stream)
    except (OSError, ValueError):
        return None
    login = _stored(known, registry) or _helped(known, registry)
    return base64.urlsafe_b64encode(json.dumps(login).encode()).decode() if login else None


def _stored(known: dict, registry: str) -> dict | None:
    entry = known.get("auths", {}).get(registry) or {}
    if entry.get("identitytoken"):
        return {"identitytoken": entry["identitytoken"], "serveraddress": registry}
    if not entry.get("auth"):
        return None
    user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
    return {"username": user, "password": password.rstrip("\0"), "serveraddress": registry}


def _helped(known: dict, registry: str) -> dict | None:
    helper = known.get("credHelpers", {}).get(registry) or known.get("credsStore")
    if not helper:
        return None
    try:
        told = subprocess.run(
            ["docker-credential-" + helper, "get"], input=registry.encode(), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, check=True, timeout=20,
        ).stdout
        found = json.loads(told)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # the registry then says that it wants a login, which is the better message
    if found["Username"] == "<token>":
        return {"identitytoken": found["Secret"], "serveraddress": registry}
    return {"username": found["Username"], "password": found["Secret"], "serveraddress": registry}
