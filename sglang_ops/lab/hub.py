"""The lab's model source: as much of the Hugging Face hub's HTTP API as `hf download` needs.

`python -m sglang_ops.lab.hub --root CACHE/models --host ADDRESS --port 8080 --token TOKEN` serves every
directory ROOT/OWNER/NAME as a model repository with one branch, `main`. Its commit id follows from the
content, so it changes only where a file does. A client is pointed here with HF_ENDPOINT. Faults of a hub are
switched on over HTTP (see `hub_faults`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sglang_ops.lab.hub_faults import TRAFFIC, Board, Fault, send
from sglang_ops.lab.model import GATED_MODEL

_BRANCH = "main"
_SENT_AT_ONCE = 1024 * 1024

_INFORMATION = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_REFERENCES = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/refs")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Blob:
    """One file of a repository, as git and its large-file storage name it."""

    path: str
    file: Path
    size: int
    git_id: str
    sha256: str

    @property
    def large(self) -> bool:
        """Whether the hub would keep it in large-file storage, where the ETag is the SHA-256."""
        return self.path.endswith((".safetensors", ".bin", ".gguf"))

    @property
    def etag(self) -> str:
        """What identifies the content to a client."""
        return self.sha256 if self.large else self.git_id

    def described(self, path_key: str) -> dict[str, Any]:
        """The file as the API lists it, its path under `path_key`."""
        entry: dict[str, Any] = {path_key: self.path, "size": self.size}
        entry["blobId" if path_key == "rfilename" else "oid"] = self.git_id
        if self.large:
            entry["lfs"] = {"sha256": self.sha256, "oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Repository:
    """One model repository at its only commit."""

    name: str
    blobs: Mapping[str, Blob]

    @property
    def commit(self) -> str:
        """40 hex digits that follow from the files."""
        listing = "\n".join(f"{blob.git_id} {path}" for path, blob in sorted(self.blobs.items()))
        return hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    @property
    def gated(self) -> bool:
        """Whether its files need a token."""
        return self.name == GATED_MODEL

    def information(self) -> dict[str, Any]:
        """What /api/models/NAME answers; open to everyone, as on the hub."""
        return {
            "_id": self.commit[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.split("/", maxsplit=1)[0],
            "sha": self.commit,
            "private": False,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": ["safetensors", "llama"],
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "usedStorage": sum(blob.size for blob in self.blobs.values()),
            "siblings": [blob.described("rfilename") for blob in self.blobs.values()],
        }


class Problem(Exception):
    """An answer that is an error, with the codes by which huggingface_hub knows it."""

    def __init__(self, status: int, code: str | None, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def find_repository(root: Path, name: str) -> Repository:
    """The repository in ROOT/NAME. Raises Problem 404 RepoNotFound."""
    directory = root / name
    if ".." in name or not directory.is_dir():
        raise Problem(404, "RepoNotFound", "Repository not found")
    files = (file for file in sorted(directory.rglob("*")) if file.is_file() and not file.name.startswith("."))
    blobs = (_blob(directory, file, (status := file.stat()).st_size, status.st_mtime_ns) for file in files)
    return Repository(name, {blob.path: blob for blob in blobs})


@lru_cache(maxsize=1024)
def _blob(directory: Path, file: Path, size: int, _modified: int) -> Blob:
    """Hash one file; the cache notices a change by size and time."""
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    plain = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(_SENT_AT_ONCE):
            git.update(part)
            plain.update(part)
    return Blob(file.relative_to(directory).as_posix(), file, size, git.hexdigest(), plain.hexdigest())


class HubHandler(BaseHTTPRequestHandler):
    """One connection; `HubServer` sets what is served."""

    protocol_version = "HTTP/1.1"
    server_version = "sglang-ops-lab-hub"
    root: Path
    token: str
    board: Board

    def do_GET(self) -> None:
        """Answer a GET, or a HEAD, which is a GET without a body."""
        try:
            self._route(unquote(urlsplit(self.path).path))
        except Problem as problem:
            headers = {"X-Error-Message": " ".join(problem.message.encode("ascii", "replace").decode().split())}
            if problem.code:
                headers["X-Error-Code"] = problem.code
            if problem.retry_after:
                headers["Retry-After"] = str(problem.retry_after)
            self._send_json({"error": problem.message}, problem.status, headers)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """Switch faults on, or with a DELETE off."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer = self.board.told(unquote(self.path), body)
        self._send_json(answer, status)

    do_DELETE = do_PUT  # noqa: N815

    def _route(self, path: str) -> None:
        if matched := _TREE.fullmatch(path):
            repository = self._repository(matched)
            self._send_json([{"type": "file", **blob.described("path")} for blob in repository.blobs.values()])
        elif matched := _REFERENCES.fullmatch(path):
            branch = {"name": _BRANCH, "ref": f"refs/heads/{_BRANCH}", "targetCommit": self._repository(matched).commit}
            self._send_json({"branches": [branch], "tags": [], "converts": []})
        elif matched := _INFORMATION.fullmatch(path):
            self._send_json(self._repository(matched).information())
        elif matched := _FILE.fullmatch(path):
            self._send_file(self._repository(matched), matched["path"])
        elif path == TRAFFIC:
            self._send_json(self.board.traffic())
        elif path == "/api/whoami-v2":
            self._require_token(Problem(401, None, "Invalid username or password."))
            self._send_json({"type": "user", "name": "lab", "orgs": [], "auth": {"accessToken": {"role": "read"}}})
        else:
            raise Problem(404, None, f"Not found: {path}")

    def _fault(self, repo: str, on: str, path: str = "") -> Fault:
        """What happens to this request; a HEAD meets refusals only. Raises Problem for a refusal."""
        fault = self.board.take(repo, on, path, refusals_only=self.command == "HEAD")
        if fault.status:
            raise Problem(fault.status, fault.code or None, f"switched on: {fault.status}", fault.retry_after)
        return fault

    def _repository(self, matched: re.Match[str]) -> Repository:
        repository = find_repository(self.root, matched["repo"])
        if "path" not in matched.groupdict():
            self._fault(repository.name, "api")
        revision = matched.groupdict().get("revision")
        if revision not in (None, _BRANCH, f"refs/heads/{_BRANCH}", repository.commit):
            raise Problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    def _require_token(self, without: Problem) -> None:
        """Go on only with the right token. Raises `without` where there is none, and a Problem for a wrong one."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise without
        if token != self.token:
            raise Problem(401, None, "Invalid credentials in Authorization header")

    def _send_file(self, repository: Repository, path: str) -> None:
        if repository.gated:
            self._require_token(Problem(401, "GatedRepo", f"Access to model {repository.name} is restricted."))
        blob = repository.blobs.get(path)
        if blob is None:
            raise Problem(404, "EntryNotFound", "Entry not found")
        fault = self._fault(repository.name, "file", path)
        start, end = self._range(blob)
        partial = (start, end) != (0, blob.size)
        self.send_response(206 if partial else 200)
        headers = {
            "Content-Length": str(end - start),
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f'inline; filename="{blob.file.name}"',
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob.etag}"',
            "X-Repo-Commit": repository.commit,
        }
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
        if blob.large:
            headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.etag}"'}
        self._end_headers(headers)
        if self.command == "GET":
            with blob.file.open("rb") as opened:
                sent = send(self.connection, opened, (start, end, blob.size), fault)
            self.board.count(repository.name, sent)
            self.close_connection = sent < end - start

    def _range(self, blob: Blob) -> tuple[int, int]:
        """The bytes asked for, from and up to; all of them where there is no such header."""
        matched = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not matched:
            return 0, blob.size
        start, end = int(matched[1]), min(blob.size, int(matched[2] or blob.size) + 1)
        if start >= blob.size:
            raise Problem(416, None, f"the file has {blob.size} bytes")
        return start, end

    def _send_json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self._end_headers({"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _end_headers(self, headers: Mapping[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class HubServer(ThreadingHTTPServer):
    """Serves the repositories below `root`; the files of gated ones to who has `token`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, host: str, port: int, token: str | None) -> None:
        self.board = Board()
        served = {"root": root, "token": token or "", "board": self.board}
        super().__init__((host, port), type("Handler", (HubHandler,), served))


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m sglang_ops.lab.hub", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="directory with OWNER/NAME below it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--token", help="opens gated models; without it they are closed")
    given = parser.parse_args(argv)
    if not given.root.is_dir():
        sys.exit(f"{given.root} is no directory")
    with HubServer(given.root, given.host, given.port, given.token) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
