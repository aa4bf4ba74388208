"""Hub models: what of one is in a host's cache, and what the hub says of it. Python 3.8, standard library.

The cache is huggingface_hub's own: `hub/models--ORG--NAME/` with `refs/BRANCH` (a commit), `snapshots/COMMIT/` (links)
and `blobs/` (content by hash, `*.incomplete` while it is being downloaded). It does not say whether a snapshot
is whole, so what this tool has downloaded, and whose checksums it has found right, is recorded beside it, in
`.sglang-ops/COMMIT.json`; until then `COMMIT.wanted` says what shall be there.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import os
import re
import time

from ansible.module_utils.sglang_host_state import read_text, write_atomic

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_SECONDS = 15
# Waits before a question is asked again that the hub answered with 429 or a failure of its own; more where it says so.
PAUSES = (1, 2, 4, 8)
PATIENCE_SECONDS = 20
ABANDONED_SECONDS = 1800  # without a byte: whoever downloaded this is gone
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Weights in formats that the server never reads, beside the ones it does; they can double a download.
_UNUSED = ("original/*", "onnx/*", "openvino/*", "coreml/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.tflite")
_UNUSED_BESIDE_SAFETENSORS = ("pytorch_model*.bin", "*.pth")


# huggingface_hub 2 downloads each file into one that only its own process knows (BLOB.1a2b3c4d.incomplete) and
# begins anew after an interruption; older ones continue BLOB.incomplete.
PRIVATE_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.incomplete$")


class SourceError(Exception):
    """The hub does not give the model. `kind`: not-found, needs-token, rate-limited, unreachable.

    `wait` is after how many seconds asking again may help; None where the hub said nothing of that kind.
    """

    def __init__(self, kind: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.wait = wait


def directory(hub: str, repo: str) -> str:
    return os.path.join(hub, "models--" + repo.replace("/", "--"))


def origin(endpoint: str | None) -> str:
    """The hub's name for people: of a mirror, host and port. Pure."""
    return endpoint.partition("://")[2].partition("/")[0] if endpoint else "the hub"


def cached(hub: str, repo: str, revision: str) -> dict:
    """{"commit", "path", "complete", "bytes"} of a revision (branch, tag or commit) in the cache; asks nobody.

    One that this tool began counts as complete once its checksums were found right; one that others downloaded where
    no link dangles, no shard that its index names is missing and no download is under way.
    """
    home = directory(hub, repo)
    branch = "" if _COMMIT.fullmatch(revision) else read_text(os.path.join(home, "refs", revision)) or ""
    commit = branch.strip() or (revision if _COMMIT.fullmatch(revision) else "")
    path = os.path.join(home, "snapshots", commit)
    if not commit or not os.path.isdir(path):
        return {"commit": commit or None, "path": None, "complete": False, "bytes": 0}
    sizes = _sizes(path)
    wanted, right = files_of(home, commit)
    if wanted:
        complete = right and all(sizes.get(name) == size for name, size in wanted.items())
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


def needed(files) -> list:
    """The files of a repository that a server reads: all but weights in formats of other frameworks. Pure."""
    whole = any(fnmatch.fnmatch(item["name"], "model*.safetensors") for item in files)
    unused = _UNUSED + (_UNUSED_BESIDE_SAFETENSORS if whole else ())
    return [item for item in files if not any(fnmatch.fnmatch(item["name"], pattern) for pattern in unused)]


def _record(home: str, commit: str, ending: str = ".json") -> str:
    return os.path.join(home, ".sglang-ops", commit + ending)


def files_of(home: str, commit: str) -> tuple:
    """({name: size} of the files that belong to a commit as far as this tool knows, whether all were found right)."""
    for ending in (".json", ".wanted"):
        text = read_text(_record(home, commit, ending))
        if text is not None:
            return json.loads(text), ending == ".json"
    return {}, False


def intend(hub: str, repo: str, source: dict) -> None:
    """Note what a download is to bring, so that an interrupted one can be told from a whole one."""
    path = _record(directory(hub, repo), source["commit"], ".wanted")
    write_atomic(path, json.dumps({item["name"]: item["size"] for item in source["files"]}))


def remember(hub: str, repo: str, revision: str, source: dict) -> None:
    """Record a whole snapshot, and the branch it is of, which a download by commit does not write.

    Without the branch an offline server would not find a model that is named without its commit.
    """
    home = directory(hub, repo)
    write_atomic(_record(home, source["commit"]), json.dumps({item["name"]: item["size"] for item in source["files"]}))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_record(home, source["commit"], ".wanted"))
    if not _COMMIT.fullmatch(revision):
        write_atomic(os.path.join(home, "refs", revision), source["commit"])


def trusted(home: str) -> set:
    """The blobs of all snapshots whose files this tool has found right."""
    found = set()
    for record in glob.glob(os.path.join(home, ".sglang-ops", "*.json")):
        snapshot = os.path.join(home, "snapshots", os.path.basename(record)[: -len(".json")])
        found |= {os.path.realpath(os.path.join(snapshot, name)) for name in json.loads(read_text(record) or "{}")}
    return found


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

    `files` are those that a server needs (see `needed`), `all` says whether that is all there are. Asks for one
    file too: the hub describes gated models to everybody and gives them to few.
    """
    from urllib.parse import quote  # here, because the cache alone is looked at far more often

    base = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    route = "%s/api/models/%s/revision/%s?blobs=true" % (base, quote(repo), quote(revision, safe=""))
    told = json.loads(_ask(repo, revision, base, "GET", route, token))
    there = [{"name": entry["rfilename"], "size": entry.get("size") or 0,
              "blob": (entry.get("lfs") or {}).get("sha256") or entry.get("blobId") or ""}
             for entry in told.get("siblings", [])]
    files = needed(there)
    if not files:
        raise SourceError("not-found", "%s has no files at revision %s." % (repo, revision))
    largest = max(files, key=lambda item: item["size"])["name"]  # a README may be open where the weights are not
    _ask(repo, revision, base, "HEAD", "%s/%s/resolve/%s/%s" % (base, quote(repo), told["sha"], quote(largest)), token)
    total = sum(item["size"] for item in files)
    return {"commit": told["sha"], "files": files, "all": len(files) == len(there), "bytes": total}


def available(repo: str, source: dict, names, endpoint: str | None = None, token: str | None = None) -> None:
    """Ask once whether the hub gives these files. Raises SourceError for the first that it does not."""
    from urllib.parse import quote

    base = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    for name in names:
        route = "%s/%s/resolve/%s/%s" % (base, quote(repo), source["commit"], quote(name))
        _ask_once(repo, source["commit"], base, "HEAD", route, token)


def text_of(repo: str, commit: str, name: str, endpoint: str | None = None, token: str | None = None) -> str:
    """A small file of the repository, at most a MiB of it. Raises SourceError."""
    from urllib.parse import quote

    base = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    route = "%s/%s/resolve/%s/%s" % (base, quote(repo), commit, quote(name))
    return _ask(repo, commit, base, "GET", route, token, 2**20).decode("utf-8", "replace")


def _ask(
    repo: str, revision: str, base: str, method: str, url: str, token: str | None, most: int | None = None
) -> bytes:
    """The hub's answer, asked for again as long as that may help and patience lasts. Raises SourceError."""
    waited = 0.0
    for pause in PAUSES:
        try:
            return _ask_once(repo, revision, base, method, url, token, most)
        except SourceError as error:
            if error.wait is None or waited + max(pause, error.wait) > PATIENCE_SECONDS:
                raise
            time.sleep(max(pause, error.wait))
            waited += max(pause, error.wait)
    return _ask_once(repo, revision, base, method, url, token, most)


def _ask_once(
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
            code, wait = error.headers.get("X-Error-Code", ""), error.headers.get("Retry-After", "")
            seconds = int(wait) if wait.isdigit() else 0
            raise refusal(repo, revision, base, error.code, code, bool(token), seconds) from error
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)
        why = getattr(cause, "strerror", None) or cause
        message = "%s cannot be reached from this host: %s. Set HF_ENDPOINT to a mirror, or give a checkpoint_path."
        raise SourceError("unreachable", message % (base, why)) from error


def refusal(
    repo: str, revision: str, base: str, status: int, code: str, with_token: bool, wait: int = 0
) -> SourceError:
    """An HTTP status of the hub, its X-Error-Code and Retry-After (seconds) as one sentence with what to do. Pure."""
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
        asks = ", and asks to wait %d s" % wait if wait else ""
        message = "%s refuses more requests for now (429)%s. Try again later, or %s." % (
            base, asks, "use a mirror (HF_ENDPOINT)" if with_token else "set HF_TOKEN in env_vars")
        return SourceError("rate-limited", message, wait)
    message = "%s answers %d when asked for %s. Try again later, or set HF_ENDPOINT to a mirror." % (base, status, repo)
    return SourceError("unreachable", message, wait if status >= 500 else None)
