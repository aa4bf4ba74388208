"""Hub models: what of one is in a host's cache, and what the hub says of it. Python 3.8, standard library.

The cache is huggingface_hub's own: `hub/models--ORG--NAME/` with `refs/BRANCH` (a commit), `snapshots/COMMIT/` (links)
and `blobs/` (content by hash, `*.incomplete` while it is being downloaded). It does not say whether a snapshot
is whole, so what this tool has downloaded is recorded beside it, in `.sglang-ops/COMMIT.json`.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re

from ansible.module_utils.sglang_host_state import read_text, write_atomic

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_SECONDS = 15
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Weights in formats that the server never reads, beside the ones it does; they can double a download.
_UNUSED = ("original/*", "onnx/*", "openvino/*", "coreml/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.tflite")
_UNUSED_BESIDE_SAFETENSORS = ("pytorch_model*.bin", "*.pth")


# huggingface_hub 2 downloads each file into one that only its own process knows (BLOB.1a2b3c4d.incomplete) and
# begins anew after an interruption; older ones continue BLOB.incomplete.
PRIVATE_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.incomplete$")


class SourceError(Exception):
    """The hub does not give the model. `kind`: not-found, needs-token, rate-limited, unreachable."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def directory(hub: str, repo: str) -> str:
    return os.path.join(hub, "models--" + repo.replace("/", "--"))


def cached(hub: str, repo: str, revision: str) -> dict:
    """{"commit", "path", "complete", "bytes"} of a revision (branch, tag or commit) in the cache; asks nobody.

    A snapshot that others downloaded counts as complete where no link dangles, no shard that its index names is
    missing and no download is under way.
    """
    home = directory(hub, repo)
    branch = "" if _COMMIT.fullmatch(revision) else read_text(os.path.join(home, "refs", revision)) or ""
    commit = branch.strip() or (revision if _COMMIT.fullmatch(revision) else "")
    path = os.path.join(home, "snapshots", commit)
    if not commit or not os.path.isdir(path):
        return {"commit": commit or None, "path": None, "complete": False, "bytes": 0}
    sizes = _sizes(path)
    record = read_text(_record(home, commit))
    if record is not None:
        complete = all(sizes.get(name) == size for name, size in json.loads(record).items())
    else:
        complete = _looks_whole(home, path, sizes)
    return {"commit": commit, "path": path, "complete": complete, "bytes": sum(filter(None, sizes.values()))}


def _sizes(path: str) -> dict:
    """Size of each file of a snapshot by name; None for a link that leads nowhere."""
    sizes = {}
    for parent, _, names in os.walk(path):
        for name in names:
            full = os.path.join(parent, name)
            sizes[os.path.relpath(full, path)] = os.path.getsize(full) if os.path.exists(full) else None
    return sizes


def _looks_whole(home: str, path: str, sizes: dict) -> bool:
    if "config.json" not in sizes or None in sizes.values() or glob.glob(os.path.join(home, "blobs", "*.incomplete")):
        return False
    for index in glob.glob(os.path.join(path, "*.index.json")):
        try:
            named = set(json.loads(read_text(index) or "{}").get("weight_map", {}).values())
        except ValueError:
            return False
        if not named <= set(sizes):
            return False
    return any(name.endswith((".safetensors", ".bin", ".gguf", ".pt")) for name in sizes)


def wanted(files) -> list:
    """The files of a repository that a server reads: all but weights in formats of other frameworks. Pure."""
    whole = any(fnmatch.fnmatch(item["name"], "model*.safetensors") for item in files)
    unused = _UNUSED + (_UNUSED_BESIDE_SAFETENSORS if whole else ())
    return [item for item in files if not any(fnmatch.fnmatch(item["name"], pattern) for pattern in unused)]


def _record(home: str, commit: str) -> str:
    return os.path.join(home, ".sglang-ops", commit + ".json")


def remember(hub: str, repo: str, revision: str, source: dict) -> None:
    """Record a whole snapshot, and the branch it is of, which a download by commit does not write.

    Without the branch an offline server would not find a model that is named without its commit.
    """
    home = directory(hub, repo)
    write_atomic(_record(home, source["commit"]), json.dumps({item["name"]: item["size"] for item in source["files"]}))
    if not _COMMIT.fullmatch(revision):
        write_atomic(os.path.join(home, "refs", revision), source["commit"])


def blobs(hub: str, repo: str) -> str:
    return os.path.join(directory(hub, repo), "blobs")


def held(hub: str, repo: str, files, reusable: bool = False) -> int:
    """Bytes of `files` that are in the cache, files under way included; with `reusable`, only what the next
    download will not fetch again."""
    present = {}  # type: dict[str, int]
    home = blobs(hub, repo)
    for name in os.listdir(home) if os.path.isdir(home) else ():
        blob = name.partition(".")[0]
        if not (reusable and PRIVATE_PARTIAL.search(name)):
            present[blob] = max(present.get(blob, 0), _written(os.path.join(home, name)))
    return sum(min(present.get(item["blob"], 0), item["size"]) for item in files)


def _written(path: str) -> int:
    """Bytes that a blob really holds: xet writes files with holes, and renames them when they are whole."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return 0
    return min(state.st_size, state.st_blocks * 512) if path.endswith(".incomplete") else state.st_size


def inspect_source(repo: str, revision: str, endpoint: str | None = None, token: str | None = None) -> dict:
    """{"commit", "files": [{"name", "size", "blob"}], "all", "bytes"} as the hub has it. Raises SourceError.

    `files` are those that a server needs (see `wanted`), `all` says whether that is all there are. Asks for one
    file too: the hub describes gated models to everybody and gives them to few.
    """
    from urllib.parse import quote  # here, because the cache alone is looked at far more often

    base = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    route = "%s/api/models/%s/revision/%s?blobs=true" % (base, quote(repo), quote(revision, safe=""))
    told = json.loads(_ask(repo, revision, base, "GET", route, token))
    there = [{"name": entry["rfilename"], "size": entry.get("size") or 0,
              "blob": (entry.get("lfs") or {}).get("sha256") or entry.get("blobId") or ""}
             for entry in told.get("siblings", [])]
    files = wanted(there)
    if not files:
        raise SourceError("not-found", "%s has no files at revision %s." % (repo, revision))
    largest = max(files, key=lambda item: item["size"])["name"]  # a README may be open where the weights are not
    _ask(repo, revision, base, "HEAD", "%s/%s/resolve/%s/%s" % (base, quote(repo), told["sha"], quote(largest)), token)
    total = sum(item["size"] for item in files)
    return {"commit": told["sha"], "files": files, "all": len(files) == len(there), "bytes": total}


def text_of(repo: str, commit: str, name: str, endpoint: str | None = None, token: str | None = None) -> str:
    """A small file of the repository, at most a MiB of it. Raises SourceError."""
    from urllib.parse import quote

    base = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    route = "%s/%s/resolve/%s/%s" % (base, quote(repo), commit, quote(name))
    return _ask(repo, commit, base, "GET", route, token, 2**20).decode("utf-8", "replace")


def _ask(
    repo: str, revision: str, base: str, method: str, url: str, token: str | None, most: int | None = None
) -> bytes:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class NoRedirect(HTTPRedirectHandler):
        def redirect_request(self, *_unused, **_options):
            return None

    request = Request(url, method=method, headers={"User-Agent": "sglang-ops"})
    if token:
        request.add_unredirected_header("Authorization", "Bearer " + token)
    opener = build_opener(NoRedirect()) if method == "HEAD" else build_opener()
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return response.read(most)
    except HTTPError as error:
        with error:
            if method == "HEAD" and 300 <= error.code < 400:
                return b""  # on its way to where the content is: we may have it
            code = error.headers.get("X-Error-Code", "")
            raise refusal(repo, revision, base, error.code, code, bool(token)) from error
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)
        why = getattr(cause, "strerror", None) or cause
        message = "%s cannot be reached from this host: %s. Set HF_ENDPOINT to a mirror, or give a checkpoint_path."
        raise SourceError("unreachable", message % (base, why)) from error


def refusal(repo: str, revision: str, base: str, status: int, code: str, with_token: bool) -> SourceError:
    """An HTTP status of the hub, and its X-Error-Code, as one sentence with what to do. Pure."""
    if code == "RevisionNotFound" or (status == 404 and code == "EntryNotFound"):
        return SourceError("not-found", "%s has no revision %s at %s. Check the revision." % (repo, revision, base))
    if status == 404 or (status == 401 and code == "RepoNotFound" and with_token):
        return SourceError("not-found", "%s does not exist at %s. Check hf_model_handle." % (repo, base))
    if status == 401 and code == "RepoNotFound":
        message = "%s does not exist at %s, or is private. Check hf_model_handle, or set HF_TOKEN in env_vars."
        return SourceError("not-found", message % (repo, base))
    if status in (401, 403):
        remedy = "Set HF_TOKEN in env_vars"
        if with_token:
            remedy = "Check that HF_TOKEN is valid, and ask for access with its account"
        return SourceError("needs-token", "%s is gated (%d from %s). %s." % (repo, status, base, remedy))
    if status == 429:
        return SourceError("rate-limited", "%s refuses more requests for now (429). Wait, or set HF_TOKEN." % base)
    return SourceError("unreachable", "%s answers %d when asked for %s." % (base, status, repo))
