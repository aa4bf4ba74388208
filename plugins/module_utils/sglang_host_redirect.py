"""Have a container engine take an image from this host, under the name that it has elsewhere.

podman: a registry configuration of its own, for the one process that pulls. docker: a mirror in daemon.json, which
it honours for docker.io only and takes over without a restart; it is taken back afterwards. A registry on the loopback
(what `sglang_server_registry_mirrors` may say) needs neither. Python 3.8, standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import time

from ansible.module_utils import sglang_host_api as api
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_engine import DAEMON_JSON
from ansible.module_utils.sglang_host_image import registry
from ansible.module_utils.sglang_host_layout import ADDRESS, served
from ansible.module_utils.sglang_host_state import read_text, write_atomic

_MIRRORS = "registry-mirrors"
_RELOAD_SECONDS = 20


class RedirectError(Exception):
    """The engine cannot be made to take the image from here."""


def refusal(engine: str, name: str) -> str:
    """Why an image of this name cannot be loaded, "" where it can. Pure."""
    host = registry(name)
    if engine == "podman" or host == "docker.io" or _loopback(host):
        return ""
    return ("%s cannot be loaded under that name: docker takes images of docker.io alone from elsewhere. Set "
            "sglang_server_registry_mirrors: {\"%s\": \"127.0.0.1:5990\"} for these hosts; deploy then looks for it "
            "there." % (name, host))


def _loopback(host: str) -> bool:
    return host.partition(":")[0] == "localhost" or (host.startswith("127.") and ":" in host)


@contextlib.contextmanager
def redirected(engine: str, name: str, blobs: str):
    """While this lasts, the engine pulls ``name@digest`` from the files in `blobs`. Raises RedirectError."""
    host = registry(name)
    address, _, port = host.partition(":") if _loopback(host) else (ADDRESS, "", "0")
    try:
        server = served(blobs, address, int(port or 80))
        with server as at:
            if engine == "podman":
                with _registry_of_podman(host, at):
                    yield
            elif host == "docker.io":
                with _mirror_of_docker(at):
                    yield
            else:
                yield
    except OSError as error:
        raise RedirectError("%s cannot be served on this host: %s." % (host, error.strerror or error)) from error


@contextlib.contextmanager
def _registry_of_podman(host: str, at: str):
    with tempfile.TemporaryDirectory(prefix="sglang-ops-") as directory:
        path = os.path.join(directory, "registries.conf")
        write_atomic(path, '[[registry]]\nprefix = "%s"\nlocation = "%s"\ninsecure = true\n' % (host, at))
        before = os.environ.get("CONTAINERS_REGISTRIES_CONF")
        os.environ["CONTAINERS_REGISTRIES_CONF"] = path  # read by the service that `api.serving` starts
        try:
            yield
        finally:
            del os.environ["CONTAINERS_REGISTRIES_CONF"]
            if before is not None:
                os.environ["CONTAINERS_REGISTRIES_CONF"] = before


@contextlib.contextmanager
def _mirror_of_docker(at: str):
    before = read_text(DAEMON_JSON)
    settings = parsed(before)
    theirs, after = without_ours(settings, before)
    ours = "http://%s/" % at
    try:
        _configure(json.dumps(dict(settings, **{_MIRRORS: [ours]})), lambda mirrors: mirrors == [ours])
        yield
    finally:
        # A reload takes over what the file names and leaves the rest as it is: first say that there is none.
        gone = json.dumps(dict(settings, **{_MIRRORS: theirs}))
        with contextlib.suppress(RedirectError):  # the load is over; what it came to is told by others
            _configure(gone, lambda mirrors: ours not in mirrors)
        if after is None:
            os.unlink(DAEMON_JSON)
        else:
            write_atomic(DAEMON_JSON, after, _mode())


def parsed(text: str | None) -> dict:
    """daemon.json as settings. Raises RedirectError."""
    try:
        settings = json.loads(text) if (text or "").strip() else {}
    except ValueError as error:
        raise RedirectError("%s is not valid: %s. Correct it, then load again." % (DAEMON_JSON, error)) from error
    if not isinstance(settings, dict):
        raise RedirectError("%s holds no JSON object. Correct it, then load again." % DAEMON_JSON)
    return settings


def without_ours(settings: dict, text: str | None) -> tuple:
    """(mirrors of others, the text that daemon.json shall have in the end; None is no file). Pure.

    A load that was killed may have left its mirror behind; docker passes over it, and this takes it away.
    """
    mirrors = settings.get(_MIRRORS, [])
    theirs = [mirror for mirror in mirrors if not mirror.startswith("http://%s:" % ADDRESS)]
    if theirs == mirrors:
        return theirs, text
    kept = {name: value for name, value in settings.items() if name != _MIRRORS}
    if theirs:
        kept[_MIRRORS] = theirs
    return theirs, json.dumps(kept, indent=2) + "\n" if kept else None


def _configure(text: str, is_so) -> None:
    write_atomic(DAEMON_JSON, text, _mode())
    done = run("systemctl", "reload", "docker")
    deadline = time.monotonic() + _RELOAD_SECONDS
    while done.ok and time.monotonic() < deadline:
        with contextlib.suppress(api.ApiError):
            told = (api.get(api.DOCKER_SOCKET, "/info") or {}).get("RegistryConfig") or {}
            if is_so(told.get("Mirrors") or []):
                return
        time.sleep(0.1)
    why = "" if done.ok else " (%s)" % done.error
    message = "docker does not take over registry-mirrors from %s%s. See `journalctl -u docker`, then load again."
    raise RedirectError(message % (DAEMON_JSON, why))


def _mode() -> int:
    return stat.S_IMODE(os.stat(DAEMON_JSON).st_mode) if os.path.exists(DAEMON_JSON) else 0o644
