"""One download for all hosts of a run: each gets a model from the host before it, while that one still gets it.

What a host gets, and what it has, it hands on over HTTPS. The server (`sglang_host_peer_server`) is a transient unit of
systemd, because hosts that come later may need it when the module has ended; it ends by itself when nobody asks any
more. Both sides show the certificate that was made for the run. Its key travels as an argument of the module, and from
the module to the server in a file that the server removes when it begins. Python 3.8, standard library.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import inspect
import json
import os
import secrets
import ssl
import sys
import time

from ansible.module_utils import sglang_host_checksums as checksums
from ansible.module_utils import sglang_host_fetch as fetching
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils import sglang_host_peer_client as client
from ansible.module_utils import sglang_host_peer_files as files
from ansible.module_utils import sglang_host_peer_server as server
from ansible.module_utils import sglang_host_probe as probe
from ansible.module_utils.sglang_host_command import run, share
from ansible.module_utils.sglang_host_progress import DIRECTORY

UNIT = "sglang-ops-peers"
LIFE_SECONDS = 24 * 3600  # whatever happens
START_SECONDS = 10
TURN_SECONDS = 30  # that a host waits longer than the one before it, which then is the first to ask the hub
_PROPERTIES = (
    "Description=Hands models to the other hosts of a run of sglang-ops", "RuntimeMaxSec=%d" % LIFE_SECONDS,
    "Nice=10", "NoNewPrivileges=yes", "CapabilityBoundingSet=CAP_DAC_READ_SEARCH", "PrivateTmp=yes",
    "ProtectSystem=strict", "ReadWritePaths=" + DIRECTORY,
)
_BOOT = """
import json, os, sys
with open(sys.argv[1]) as stream: told = json.load(stream)
os.unlink(sys.argv[1])
exec(compile(told.pop("code"), "sglang-ops-peers", "exec"))
serve(told)
"""


# The parameter `peers` of modules, as `sglang_ops.peers` fills it in; nothing for a host that is alone.
ARGUMENT = {"type": "dict", "options": {
    "identity": {"type": "str", "required": True, "no_log": True},
    "port": {"type": "int", "required": True},
    "address": {"type": "str", "default": ""},
    "name": {"type": "str", "required": True},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "holds": {"type": "list", "elements": "dict", "default": []},
    "follow": {"type": "list", "elements": "dict", "default": []},
}}


@contextlib.contextmanager
def sharing(asked, missing, stall_seconds):
    """Hand on what is got within the block. `asked` is the module's parameter `peers`; without it nothing is
    started. `missing`: [(model, source)] that will be brought into the cache.
    """
    shared = Shared(asked, stall_seconds)
    coming = [{"blobs": models.blobs(model["hub"], model["repo"]),
               "files": {item["blob"]: item["size"] for item in source["files"]}} for model, source in missing]
    if asked and asked["hosts"]:
        shared.warnings += serve(asked, coming, os.getpid())
    yield shared
    shared.leave()


class Shared:
    """`follow` gets a model from other hosts; `warnings` says what did not work, `givers` who gave what in the end."""

    def __init__(self, asked, stall_seconds) -> None:
        self._asked, self._stall = asked, stall_seconds
        self._lost = set()  # type: set[str]
        self.warnings = []  # type: list[str]
        self.givers = {}  # type: dict[str, str]

    def follow(self, model, source, progress) -> bool:
        """Whether the model is whole in the cache now; if not, the hub must be asked. Raises FetchError, OSError."""
        wanted = (model["repo"], source["commit"])
        turn = next((item for item in self._turns() if (item["repo"], item["commit"]) == wanted), None)
        whole = False
        try:
            if turn and all(checksums.kind(item["blob"]) for item in source["files"]):
                whole = self._follow(turn, model, source, progress)
        except files.Busy:  # a process that knows nothing of claims
            return False
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise fetching.FetchError("%s does not fit into %s: the disk is full. Free space there, then run this "
                                      "again: it goes on from where it is." % (model["repo"], model["hub"])) from error
        if not whole:
            _discard(models.blobs(model["hub"], model["repo"]))
        return whole

    def _follow(self, turn, model, source, progress) -> bool:
        hub, repo = model["hub"], model["repo"]
        home, blobs = models.directory(hub, repo), models.blobs(hub, repo)
        sizes = {item["blob"]: item["size"] for item in source["files"]}
        with fetching.alone(model, source, progress) as claim:
            if not claim:  # it shares its cache with a host that has just got it
                return True
            os.makedirs(blobs, mode=0o755, exist_ok=True)
            _check(home, blobs, sizes, progress)

            def report(count, giver) -> None:
                claim.check()
                progress.report("%s from %s" % (share(count, source["bytes"]), giver))

            patience = 4 * self._stall + turn["turn"] * TURN_SECONDS
            follower = client.Follower(blobs, sizes, patience, report)
            whole = follower.whole or self._from_one_of(turn["sources"], follower, repo)
            self.warnings += ["%s: %s, and was fetched again" % (repo, text) for text in follower.warnings]
            if whole:
                claim.check()
                _link(home, source)
                models.remember(hub, repo, model["revision"], source)
        return whole

    def leave(self) -> None:
        """Tell the sources that nothing more is needed, so that they need not wait."""
        everyone = {source["name"]: source for turn in self._turns() for source in turn["sources"]}
        for source in everyone.values():
            if source["name"] not in self._lost:
                self._peer(source).done(self._asked["name"])

    def _turns(self):
        return self._asked["follow"] if self._asked else ()

    def _peer(self, source):
        context = server.context(self._asked["identity"], ssl.PROTOCOL_TLS_CLIENT)
        return client.Peer(source["name"], source["address"], source["port"], context)

    def _from_one_of(self, sources, follower, repo) -> bool:
        for source in sources:
            try:
                follower.follow(self._peer(source))
            except client.Lost as why:
                self._lost.add(source["name"])
                self.warnings.append("%s cannot be had from %s (%s:%d): %s" % (
                    repo, source["name"], source["address"], source["port"], why))
                continue
            self.givers[repo] = source["name"]
            return True
        return False


def serve(asked, coming=(), downloader=None) -> list:
    """Start the server of this host, in place of one of an earlier run. Returns what did not work, as sentences.

    `coming`: models that this process (`downloader`) gets; those that are whole already are in `asked`.
    """
    held = [{"blobs": models.blobs(item["hub"], item["repo"]), "files": _files(item)} for item in asked["holds"]]
    told = {"identity": asked["identity"], "address": asked["address"], "port": asked["port"], "pid": downloader,
            "hosts": asked["hosts"], "models": [*held, *coming], "code": inspect.getsource(server)}
    run("systemctl", "stop", UNIT)
    taken = probe.listener(asked["port"])
    if taken:
        return ["models are not shared: port %d is taken by %s (pid %s). Set sglang_server_peer_port to a free one." % (
            asked["port"], taken[1] or "another process", taken[0])]
    os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    path = os.path.join(DIRECTORY, "peers-" + secrets.token_hex(8))
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            json.dump(told, stream)
        properties = [word for item in _PROPERTIES for word in ("--property", item)]
        done = run("systemd-run", "--quiet", "--collect", "--unit", UNIT, *properties,
                   sys.executable, "-I", "-c", _BOOT, path)
        if not done.ok:
            return ["models are not shared: %s" % done.error]
        return _wait_for(asked["port"])
    finally:
        with contextlib.suppress(FileNotFoundError):  # the server takes it away
            os.unlink(path)


def _wait_for(port) -> list:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if probe.listener(port):
            return []
        time.sleep(0.1)
    return ["models are not shared: the server on port %d does not start; see journalctl -u %s." % (port, UNIT)]


def _files(item) -> dict:
    """{BLOB: size} of a snapshot in the cache."""
    found = {}
    snapshot = os.path.join(models.directory(item["hub"], item["repo"]), "snapshots", item["commit"])
    for parent, _, names in os.walk(snapshot):
        for name in names:
            path = os.path.realpath(os.path.join(parent, name))
            if checksums.kind(os.path.basename(path)) and os.path.exists(path):
                found[os.path.basename(path)] = os.path.getsize(path)
    return found


def _check(home, blobs, names, progress) -> None:
    """Delete what is in the cache under a name that its content does not have."""
    there = {os.path.join(blobs, blob): blob for blob in names if os.path.exists(os.path.join(blobs, blob))}
    trusted = models.trusted(home)
    for path in checksums.wrong({path: blob for path, blob in there.items() if path not in trusted}, progress.report):
        os.unlink(path)


def _link(home, source) -> None:
    """The snapshot's links into `blobs/`, as huggingface_hub makes them."""
    snapshot = os.path.join(home, "snapshots", source["commit"])
    for item in source["files"]:
        path = os.path.join(snapshot, item["name"])
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(os.path.relpath(os.path.join(home, "blobs", item["blob"]), os.path.dirname(path)), path)


def _discard(blobs) -> None:
    """Remove what only `follow` could go on with: the hub's own tool begins those files anew."""
    for path in glob.glob(os.path.join(glob.escape(blobs), "*" + files.PARTIAL)):
        with contextlib.suppress(OSError), open(path, "rb") as stream:  # BlockingIOError: somebody is at it
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
