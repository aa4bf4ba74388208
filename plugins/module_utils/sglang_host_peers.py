"""One download for all hosts of a run: each gets a model from the host before it, while that one still gets it.

Compiled kernels come the same way, from hosts that run with them.

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
from ansible.module_utils import sglang_host_peer_kernels as kernels
from ansible.module_utils import sglang_host_peer_server as server
from ansible.module_utils import sglang_host_peer_trees as trees
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
import json, os, sys, types
with open(sys.argv[1]) as stream: told = json.load(stream)
os.unlink(sys.argv[1])
for name, text in told.pop("code"):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.serve(told)
"""
PROGRAM = [(module.__name__, inspect.getsource(module)) for module in (trees, server)]

# The parameter `peers` of modules, as `sglang_ops.peers` fills it in; nothing for a host that is alone.
ARGUMENT = {"type": "dict", "options": {
    "identity": {"type": "str", "required": True, "no_log": True},
    "port": {"type": "int", "required": True},
    "address": {"type": "str", "default": ""},
    "name": {"type": "str", "required": True},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "holds": {"type": "list", "elements": "dict", "default": []},
    "follow": {"type": "list", "elements": "dict", "default": []},
    "kernels": {"type": "list", "elements": "dict", "default": []},
    "compiled": {"type": "list", "elements": "dict", "default": []},
}}


@contextlib.contextmanager
def sharing(asked, missing, stall_seconds):
    """Hand on what is got within the block. `asked` is the module's parameter `peers`; without it nothing is
    started. `missing`: [(model, source)] that will be brought into the cache.
    """
    shared = Shared(asked, stall_seconds)
    coming = [_shelved(model, source["commit"], source["files"]) for model, source in missing]
    if asked and asked["hosts"]:
        shared.warnings += serve(asked, coming, os.getpid())
    yield shared
    shared.leave()


class Shared:
    """`follow` gets a model from other hosts, `bring_kernels` what they have compiled; `warnings` says what did not
    work, `givers` who gave what in the end, `origins` where else it came from, `kernels` what came of these."""

    def __init__(self, asked, stall_seconds) -> None:
        self._asked, self._stall = asked, stall_seconds
        self._lost = set()  # type: set[str]
        self.warnings = []  # type: list[str]
        self.givers = {}  # type: dict[str, str]
        self.origins = {}  # type: dict[str, str]
        self.kernels = []  # type: list[dict]

    def bring_kernels(self, progress) -> None:
        """Before the models, which may take longer than those who have kernels wait."""
        for item in kernels.missing(self._asked):
            brought, warnings = kernels.bring(item, map(self._peer, item["sources"]), progress)
            self.kernels += [brought] if brought and brought["files"] else []
            self.warnings += warnings

    def require(self, model, source, progress) -> None:
        """Get a model that no hub gives. Raises FetchError, OSError."""
        if not self.follow(model, source, progress):
            why = self.warnings[-1] if self.warnings else "another process brings it into this cache"
            raise fetching.FetchError("%s cannot be had: the hub is out of reach, and no other host gave all of it "
                                      "(%s). Run this again." % (model["repo"], why))

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
        if not whole and not model.get("offered"):
            _discard(models.blobs(model["hub"], model["repo"]))
        return whole

    def _follow(self, turn, model, source, progress) -> bool:
        hub, repo = model["hub"], model["repo"]
        home, blobs = models.directory(hub, repo), models.blobs(hub, repo)
        sizes = {item["blob"]: item["size"] for item in source["files"]}
        with fetching.alone(model, source, progress) as claim:
            if not claim:  # it shares its cache with a host that has just got it
                self.origins[repo] = fetching.SHARED
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
        given = self._asked["kernels"] if self._asked else []
        everyone = {source["name"]: source for turn in [*self._turns(), *given] for source in turn["sources"]}
        for source in everyone.values():
            if source["name"] not in self._lost:
                self._peer(source).done(self._asked["name"])

    def _turns(self):
        return self._asked["follow"] if self._asked else ()

    def _peer(self, source):
        return _peer(self._asked, source)

    def _from_one_of(self, sources, follower, repo) -> bool:
        for source in sources:
            try:
                follower.follow(self._peer(source))
            except client.Lost as why:
                self._lost.add(source["name"])
                self.warnings.append("%s cannot be had from %s (%s:%d): %s" % (
                    repo, source["name"], source["address"], source["port"], why))
                continue
            self.givers[repo] = self.origins[repo] = source["name"]
            return True
        return False


def _peer(asked, source):
    context = server.context(asked["identity"], ssl.PROTOCOL_TLS_CLIENT)
    return client.Peer(source["name"], source["address"], source["port"], context)


def serve(asked, coming=(), downloader=None) -> list:
    """Start the server of this host, in place of one of an earlier run. Returns what did not work, as sentences.

    `coming`: models that this process (`downloader`) gets; those that are whole already are in `asked`.
    """
    held = [_shelved(item, item["commit"], _files(item)) for item in asked["holds"]]
    told = {"identity": asked["identity"], "address": asked["address"], "port": asked["port"], "pid": downloader,
            "hosts": asked["hosts"], "models": [*held, *coming], "compiled": asked["compiled"], "code": PROGRAM}
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


def listing(asked, model) -> dict:
    """What a host of the run has of a model that the hub does not tell of, as the hub would say it. Raises FetchError.

    Whoever has it whole is among the sources; those that are still to get it do not answer yet.
    """
    wanted, why = (model["repo"], model["commit"]), "no host of the run offers it"
    turns = [turn for turn in (asked or {}).get("follow") or [] if (turn["repo"], turn["commit"]) == wanted]
    for source in [source for turn in turns for source in turn["sources"]]:
        peer = _peer(asked, source)
        connection = peer.connect(client.CONNECT_SECONDS)
        with contextlib.closing(connection):
            try:
                found = peer.first(connection, lambda: peer.files(connection, "%s@%s" % wanted), lambda: None, 0)  # noqa: B023
            except client.Lost as error:
                why = "%s: %s" % (source["name"], error)
                continue
        if found and all(checksums.kind(item["blob"]) and trees.is_inside(item["name"]) for item in found):
            total = sum(item["size"] for item in found)
            return {"commit": model["commit"], "files": found, "all": True, "bytes": total}
    raise fetching.FetchError("%s cannot be had: the hub is out of reach, and %s." % (model["repo"], why))


def _shelved(model, commit, listed) -> dict:
    """A model as the server knows it."""
    return {
        "key": "%s@%s" % (model["repo"], commit), "blobs": models.blobs(model["hub"], model["repo"]),
        "files": {item["blob"]: item["size"] for item in listed},
        "names": {item["name"]: item["blob"] for item in listed},
    }


def _files(item) -> list:
    """The files of a snapshot in the cache: [{"name", "size", "blob"}]."""
    found = []
    snapshot = os.path.join(models.directory(item["hub"], item["repo"]), "snapshots", item["commit"])
    for parent, _, names in os.walk(snapshot):
        for name in names:
            link = os.path.join(parent, name)
            path = os.path.realpath(link)
            if checksums.kind(os.path.basename(path)) and os.path.exists(path):
                found.append({"name": os.path.relpath(link, snapshot), "size": os.path.getsize(path),
                              "blob": os.path.basename(path)})
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
