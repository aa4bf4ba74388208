"""Bringing a hub model into a host's cache, whole and right. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import os
import time

from ansible.module_utils import sglang_host_checksums as checksums
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.sglang_host_command import free_bytes, share, size
from ansible.module_utils.sglang_host_download import LONGEST_WAIT, Download, FetchError, Stalled, Unlucky

_SPARE_BYTES = 100 * 10**6
SHARED = "another host's download"  # into a cache that both use
PAUSES = (5, 20, 60)  # seconds before the second, third and fourth attempt; the downloader tries by itself within each


def missing_bytes(hub: str, repo: str, source: dict) -> int:
    return source["bytes"] - models.held(hub, repo, source["files"], reusable=True)


def check_space(hub: str, repo: str, source: dict) -> None:
    """Refuse what cannot fit. Raises FetchError."""
    need, free = missing_bytes(hub, repo, source), free_bytes(hub)
    if need + _SPARE_BYTES > free:
        raise FetchError("%s needs %s more in %s, which has %s free. Free space there, or set HF_HOME in env_vars to a "
                         "larger disk." % (repo, size(need), hub, size(free)))


@contextlib.contextmanager
def alone(model: dict, source: dict, progress):
    """Nobody else writes this model into this cache meanwhile. Gives a Claim, or None where another host, which shares
    the cache, has just brought it. Raises FetchError if this host loses the right."""
    repo, hub = model["repo"], model["hub"]
    home = models.directory(hub, repo)

    def waiting(host: str) -> None:
        held = models.held(hub, repo, source["files"])
        progress.report("%s downloads it into this cache: %s" % (host, share(held, source["bytes"])))

    os.makedirs(hub, mode=0o755, exist_ok=True)
    try:
        with claims.holding(hub, os.path.basename(home), waiting) as claim:
            known = models.files_of(home, source["commit"])[1]
            if known and models.cached(hub, repo, source["commit"])["complete"]:
                models.remember(hub, repo, model["revision"], source)
                yield None
                return
            models.intend(hub, repo, source)
            yield claim
            claim.check()
    except claims.Lost:
        raise FetchError("%s: this host stood still for more than %d s, and another one has taken over. Run this again "
                         "to see how far it is." % (repo, claims.STALE_SECONDS)) from None


def fetch(engine: str, image: str, model: dict, source: dict, token: str | None, stall_seconds: float, progress):
    """Bring one model into the cache, see that it is what the hub says, and record that. Raises FetchError.

    Returns from where it came.
    """
    with alone(model, source, progress) as claim:
        if claim:
            _bring(Download(engine, image, model, source, token, stall_seconds, progress, claim.check))
            claim.check()
            models.remember(model["hub"], model["repo"], model["revision"], source)
    return models.origin(model.get("endpoint")) if claim else SHARED


def _bring(download: Download) -> None:
    """Attempts until every file is there and right. Raises FetchError.

    A download that stands still is tried once more without xet, whose transfers are known to hang; a hub that fails is
    asked again after a while; a file with wrong content is deleted and fetched once more. What is whole stays.
    """
    pauses, xet, suspects = iter(PAUSES), True, None
    while True:
        try:
            download.attempt(xet)
        except Stalled:
            if not xet:
                raise FetchError("%s stands still: no data for %d s, twice. Check the network, or set HF_ENDPOINT to a "
                                 "mirror. Files that are whole are kept." % (
                                     download.model["repo"], download.stall_seconds)) from None
            xet = False
        except Unlucky as error:
            pause = next(pauses, None)
            if pause is None or error.wait > LONGEST_WAIT:
                tried = " (%d attempts)" % (1 + len(PAUSES)) if pause is None else ""
                raise FetchError("%s%s Files that are whole are kept." % (error, tried)) from None
            _sleep(max(pause, error.wait), str(error), download)
        else:
            faults = _faults(download.model, download.source, suspects, download.progress)
            for path in faults:
                os.unlink(path)
            if not faults:
                return
            if suspects:
                raise FetchError(_corrupt(download.model, download.source, faults))
            suspects = set(faults)


def _paths(model: dict, source: dict) -> dict:
    """{where a file's content is: what the hub says of it}."""
    snapshot = os.path.join(models.directory(model["hub"], model["repo"]), "snapshots", source["commit"])
    return {os.path.realpath(os.path.join(snapshot, item["name"])): item for item in source["files"]}


def _faults(model: dict, source: dict, suspects, progress) -> dict:
    """{path: why} of files that are not what the hub says: of the suspects, or at first of all that nobody looked at.

    The downloader takes a file that has its place for whole. Raises FetchError where one is not there at all.
    """
    paths = _paths(model, source)
    held = {path: os.path.getsize(path) if os.path.exists(path) else None for path in paths}
    absent = sorted(item["name"] for path, item in paths.items() if held[path] is None)
    if absent:
        raise FetchError("%s was downloaded to %s, yet %s is missing." % (model["repo"], model["hub"], absent[0]))
    sizes = {path: "it has %d bytes instead of %d" % (held[path], item["size"])
             for path, item in paths.items() if held[path] != item["size"]}
    known = models.trusted(models.directory(model["hub"], model["repo"])) if suspects is None else set(paths) - suspects
    unread = {path: item["blob"] for path, item in paths.items() if path not in known and path not in sizes}
    return dict(sizes, **checksums.wrong(unread, progress.report))


def _corrupt(model: dict, source: dict, faults: dict) -> str:
    paths = _paths(model, source)
    told = ["%s should be %s, and %s" % (paths[path]["name"], paths[path]["blob"], why) for path, why in faults.items()]
    return ("%s arrives corrupt, twice: %s. The hub or a proxy on the way alters what it sends; set HF_ENDPOINT to "
            "another. The corrupt files were deleted." % (model["repo"], "; ".join(sorted(told))))


def _sleep(seconds: float, why: str, download: Download) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        download.check()
        download.progress.report("%s Again in %d s." % (why, until - time.monotonic() + 1))
        time.sleep(min(1, max(0.0, until - time.monotonic())))
