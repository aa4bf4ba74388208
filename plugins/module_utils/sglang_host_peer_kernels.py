"""Brings compiled kernels from another host, so that the first start here need not compile them.

They arrive beside their place and take it in one step, only where there is nothing: what a server has compiled here
is never touched. Whatever goes wrong costs time and nothing else, because the server then compiles. Python 3.8,
standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import time
from urllib.parse import quote

from ansible.module_utils import sglang_host_kernels as kernels
from ansible.module_utils import sglang_host_peer_client as client
from ansible.module_utils.sglang_host_command import free_bytes, share, size
from ansible.module_utils.sglang_host_peer_trees import Arriving, Wrong

LONGEST_SECONDS = 300  # for one cache, from all hosts that have it
SPARE_BYTES = 100 * 10**6


class Late(Exception):
    """It takes too long."""


def missing(asked) -> list:
    """Of the caches that can be had, those that are empty here. `asked` is the module's parameter `peers`."""
    return [item for item in (asked or {}).get("kernels") or [] if kernels.empty(item["path"])]


def bring(item, peers, progress) -> tuple:
    """(what came, or None, [why it did not come from a host]): {"key", "giver", "files", "bytes"}."""
    until, warnings = time.monotonic() + LONGEST_SECONDS, []
    for peer in peers:
        try:
            return dict(_from(peer, item, until, progress), key=item["key"], giver=peer.name), warnings
        except Exception as error:  # noqa: BLE001 (of another host's making: nothing of it may stop this one)
            why = client.why(error) if isinstance(error, OSError) else str(error)
            warnings.append("compiled kernels cannot be had from %s: %s" % (peer.name, why))
    return None, [*warnings, "the server compiles its kernels at its first start, which takes minutes"]


def _from(peer, item, until, progress) -> dict:
    def report(count, total) -> None:
        if time.monotonic() > until:
            raise Late("they take longer than %d s" % LONGEST_SECONDS)
        progress.report("compiled kernels: %s from %s" % (share(count, total), peer.name))

    connection = peer.connect(client.CONNECT_SECONDS)
    with contextlib.closing(connection), _beside(item["path"]) as beside:
        answer = peer.first(connection, lambda: _ask(connection, item["key"]), lambda: report(0, 0))
        arriving = Arriving(answer, beside, item["parts"], report)
        free = free_bytes(beside)
        if arriving.announced + SPARE_BYTES > free:
            raise Wrong("they need %s, and %s has %s free" % (size(arriving.announced), item["path"], size(free)))
        arriving.write()
        _on_disk(beside)
        if arriving.files:
            put(beside, item["path"])
    return {"files": arriving.files, "bytes": arriving.bytes}


def _ask(connection, key):
    connection.request("GET", "/kernels/" + quote(key))
    answer = connection.getresponse()
    if answer.status != 200:
        raise client.Lost("it does not have them")
    return answer


@contextlib.contextmanager
def _beside(path):
    """A new directory on the file system of `path`; nothing of it stays, nor of one that was left by another run."""
    beside = os.path.join(os.path.dirname(path), ".%s.arriving" % os.path.basename(path))
    shutil.rmtree(beside, ignore_errors=True)
    os.makedirs(beside, mode=0o755)
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _on_disk(directory) -> None:
    """Have the files on the disk before they take their place: half a kernel would be loaded after a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(handle)


def put(arrived, path) -> None:
    """Move a directory to where there is none, or one without a file. Raises OSError where there is one by now."""
    for parent, _, _ in os.walk(path, topdown=False):
        os.rmdir(parent)
    os.rename(arrived, path)
