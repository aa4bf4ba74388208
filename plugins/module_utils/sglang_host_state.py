"""The release records on a host: the only state there is. Python 3.8, standard library.

    /var/lib/sglang-ops/services/<service>/state.json              which release is current, which is stable
    /var/lib/sglang-ops/services/<service>/releases/<id>/unit      the systemd unit of that release
    /var/lib/sglang-ops/services/<service>/releases/<id>/record.json
    /var/lib/sglang-ops/services/<service>/releases/<id>/secrets.env   mode 0600, only where there are secrets
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import tempfile

STATE = "/var/lib/sglang-ops/services"
UNITS = "/etc/systemd/system"
RUNTIME_ENV = "/etc/sglang-ops/runtime.env"
KEPT_RELEASES = 5


def fingerprint(value):
    """Same one-way mark as `sglang_ops.planning.settings.fingerprint`."""
    return hashlib.blake2b(value.encode(), digest_size=8, person=b"sglang-ops").hexdigest()


def write_atomic(path, text, mode=0o644):
    """Replace the file `path` as a whole, so that no reader and no crash ever sees half of it."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".sglang-ops-")
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_text(path):
    """The file's text, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def unit_path(service):
    return os.path.join(UNITS, service + ".service")


def release_directory(service, release):
    return os.path.join(STATE, service, "releases", release)


def names():
    """The services that this tool deployed here, in order of name."""
    try:
        return sorted(entry for entry in os.listdir(STATE) if os.path.isfile(os.path.join(STATE, entry, "state.json")))
    except FileNotFoundError:
        return []


def read_state(service):
    """{"release", "stable"} of a service, both None where it was never deployed, and "start_seconds" once known."""
    text = read_text(os.path.join(STATE, service, "state.json"))
    state = {"release": None, "stable": None}
    if text:
        state.update(json.loads(text))
    return state


def write_state(service, state):
    write_atomic(os.path.join(STATE, service, "state.json"), json.dumps(state, sort_keys=True) + "\n")


def read_record(service, release):
    """The release record, {} where there is none."""
    text = read_text(os.path.join(release_directory(service, release), "record.json")) if release else None
    return json.loads(text) if text else {}


def write_release(service, release, unit, record, secrets, files=None):
    """Keep everything needed to run this release again; `files` are texts by name that its container mounts."""
    directory = release_directory(service, release)
    write_atomic(os.path.join(directory, "unit"), unit)
    write_atomic(os.path.join(directory, "record.json"), json.dumps(record, sort_keys=True, indent=1) + "\n")
    for name, text in (files or {}).items():
        write_atomic(os.path.join(directory, name), text)
    if secrets:
        lines = ["export %s=%s\n" % (name, shlex.quote(value)) for name, value in sorted(secrets.items())]
        write_atomic(os.path.join(directory, "secrets.env"), "".join(lines), mode=0o600)


def secret(service, release, name):
    """The value of a secret of a release, "" where it has none of that name."""
    words = shlex.split(read_text(os.path.join(release_directory(service, release), "secrets.env")) or "")
    values = dict(word.split("=", 1) for word in words[1::2])  # export NAME=VALUE, a value may have several lines
    return values.get(name, "")


def release_unit(service, release):
    return read_text(os.path.join(release_directory(service, release), "unit"))


def releases(service):
    """The releases that are kept of a service, the newest first."""
    parent = os.path.join(STATE, service, "releases")
    found = os.listdir(parent) if os.path.isdir(parent) else []
    return sorted(found, key=lambda name: os.path.getmtime(os.path.join(parent, name)), reverse=True)


def prune_releases(service, keep):
    """Drop all but the newest releases; those in `keep` stay whatever their age."""
    for release in [name for name in releases(service) if name not in keep][KEPT_RELEASES:]:
        shutil.rmtree(release_directory(service, release), ignore_errors=True)


def forget(service):
    shutil.rmtree(os.path.join(STATE, service), ignore_errors=True)


def runtime_environment():
    """NAME=VALUE lines of the host's own environment file; quotes around a value are taken off."""
    values = {}
    for line in (read_text(RUNTIME_ENV) or "").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            words = shlex.split(value) if value[:1] in "'\"" and value else [value]
            values[name.strip()] = words[0] if words else ""
    return values
