"""Container images on a host: pulled by digest, with progress and with errors that people understand.

Python 3.8, standard library.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from dataclasses import dataclass

from ansible.module_utils import sglang_host_api as api
from ansible.module_utils.sglang_host_command import run, share, size

UNPACKED_PER_PULLED = 2.5  # the compressed layers and what they unpack to lie side by side for a while

# What registries and Go's HTTP client say, and what it means. First match wins; order matters ("denied" is
# also what Docker Hub says of a repository that does not exist).
_CAUSES = (
    ("space", r"no space left on device|disk quota exceeded"),
    ("limit", r"toomanyrequests|rate limit|too many requests"),
    ("http", r"server gave HTTP response to HTTPS client"),
    ("certificate", r"x509:|certificate (signed by|is not|has expired)|tls: failed to verify"),
    ("login", r"unauthori[sz]ed|authentication required|no basic auth|denied|status code 40[13]|\b403\b"),
    ("missing", r"manifest unknown|not found|name unknown|name_unknown|does not exist|no such image|\b404\b"),
    ("unreachable", r"dial tcp|no (such|route to) host|connection (refused|reset)|time(out|d out)|deadline|\bEOF\b"),
)
_ROUTE = re.compile(r'^.*(?:Get|Head|Post) "[^"]*": (?:dial tcp [\d.]+:\d+: (?:connect: )?)?')  # how it got there
_SENTENCES = {
    "space": "%(ref)s does not fit: the disk of %(engine)s is full. Free space there, then deploy again.",
    "limit": "%(registry)s refuses more pulls for now. Wait, or run `sudo %(engine)s login %(registry)s` on the host.",
    "http": "%(registry)s speaks plain HTTP, which %(engine)s refuses. Add it to container_engine_insecure_registries.",
    "certificate": "%(engine)s does not trust the certificate of %(registry)s (%(told)s). Install its CA on the host.",
    "login": "%(registry)s refuses %(ref)s without a login. Run `sudo %(engine)s login %(registry)s` on the host, "
             "or check that the image exists.",
    "missing": "%(ref)s does not exist (%(digest)s). Check the name and the tag.",
    "unreachable": "%(registry)s cannot be reached from this host: %(told)s. Where there is no way to it, bring the "
                   "image with `sglang-ops images load`.",
    "other": "%(ref)s cannot be pulled: %(told)s",
}


class PullError(Exception):
    """A pull that failed; `cause` is one of the words of `_CAUSES`, or "other"."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def parts(digest_ref: str) -> tuple[str, str]:
    """``registry/name@sha256:…`` as (name, digest)."""
    name, _, digest = digest_ref.partition("@")
    return name, digest


def registry(name: str) -> str:
    """The registry that an image name points to, as engines read it."""
    first = name.partition("/")[0]
    return first if "/" in name and ("." in first or ":" in first or first == "localhost") else "docker.io"


def full_name(ref: str) -> str:
    """A name with its registry spelled out; podman would file a short one under localhost/."""
    if registry(ref) != "docker.io" or ref.startswith("docker.io/"):
        return ref
    return "docker.io/" + (ref if "/" in ref else "library/" + ref)


def present(engine: str, refs, data_root: str = "/var/lib/docker") -> dict[str, bool]:
    """Which of the images (by digest) are on the host. Of a docker that is stopped, its own records tell."""
    if engine == "docker":
        return {ref: _known_to_docker(ref, data_root) for ref in refs}  # a tenth of the time that its client needs
    return {ref: run("podman", "image", "exists", ref).ok for ref in refs}


def _known_to_docker(ref: str, data_root: str) -> bool:
    try:
        return api.get(api.DOCKER_SOCKET, "/images/%s/json" % ref) is not None
    except api.ApiError:
        return any(ref in names for names in _recorded(data_root))


def _recorded(data_root: str):
    """The references that docker keeps of each repository. Its containerd store keeps them elsewhere: then none."""
    for path in glob.glob(os.path.join(data_root, "image", "*", "repositories.json")):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as stream:
            yield from json.load(stream)["Repositories"].values()


def explain(told: str, ref: str, digest_ref: str, engine: str) -> PullError:
    """The engine's words as one sentence that says what to do. Pure."""
    name, digest = parts(digest_ref)
    told = _ROUTE.sub("", " ".join(told.split()))
    cause = next((cause for cause, pattern in _CAUSES if re.search(pattern, told, re.IGNORECASE)), "other")
    values = {"ref": ref, "digest": digest, "registry": registry(name), "engine": engine, "told": told}
    return PullError(cause, _SENTENCES[cause] % values)


@dataclass
class _Layer:
    total: int = 0
    downloaded: int = 0
    unpacked: int = 0
    there: bool = False
    done: bool = False


class Tally:
    """Adds up the engine's messages about single layers. `expected` is the compressed size from the manifest."""

    def __init__(self, expected: int = 0) -> None:
        self._expected = expected
        self._layers = {}  # type: dict[str, _Layer]

    def feed(self, event: dict) -> str:
        """Take one message in; returns what is going on."""
        status, name = event.get("status") or "", event.get("id") or ""
        detail = event.get("progressDetail") or {}
        current, total = detail.get("current") or 0, detail.get("total") or 0
        if status == "Already exists":
            self._layers.setdefault(name, _Layer()).there = True
        elif status == "Pulling fs layer":
            self._layers.setdefault(name, _Layer())
        elif name in self._layers or status == "Downloading":
            self._update(self._layers.setdefault(name, _Layer()), status, current, total)
        return self.text()

    @staticmethod
    def _update(layer: _Layer, status: str, current: int, total: int) -> None:
        if status == "Downloading":
            layer.total = max(layer.total, total)
            layer.downloaded = max(layer.downloaded, current)
        elif status in ("Verifying Checksum", "Download complete", "Extracting", "Pull complete"):
            layer.downloaded = layer.total = max(layer.total, layer.downloaded)
            layer.unpacked = max(layer.unpacked, current if status == "Extracting" else 0)
            layer.done = layer.done or status != "Verifying Checksum"
            if status == "Pull complete":
                layer.unpacked = layer.total

    def text(self) -> str:
        layers = [layer for layer in self._layers.values() if not layer.there]
        if layers and all(layer.done for layer in layers):
            unpacked, total = sum(layer.unpacked for layer in layers), sum(layer.total for layer in layers)
            return "unpacking " + (share(unpacked, total) if unpacked else size(total))  # podman does not tell
        known = sum(layer.total for layer in layers)
        whole = known if any(layer.there for layer in self._layers.values()) else max(known, self._expected)
        return share(sum(layer.downloaded for layer in layers), whole) if whole else "asking the registry"


def check_space(ref: str, expected: int, free: int, root: str) -> None:
    """Refuse before the pull what cannot fit. Sizes in bytes; nothing is known of an image without a size."""
    need = int(expected * UNPACKED_PER_PULLED)
    if need > free:
        message = "%s needs about %s (%s compressed) in %s, which has %s free. Free space, or move the engine's data."
        raise PullError("space", message % (ref, size(need), size(expected), root, size(free)))


def pull(engine: str, ref: str, digest_ref: str, expected: int, report) -> None:
    """Pull by digest, and keep the tag as a name by which people find the image. Raises PullError.

    `report` is called with what is going on.
    """
    name, digest = parts(digest_ref)
    auth = api.registry_auth(name) if engine == "docker" else None
    tally = Tally(expected)
    try:
        with api.serving(engine) as socket, contextlib.closing(api.pull(socket, name, digest, auth)) as events:
            for event in events:
                report(tally.feed(event))
    except api.ApiError as error:
        raise explain(str(error), ref, digest_ref, engine) from error
    if not present(engine, [digest_ref])[digest_ref]:
        raise PullError("other", "%s was pulled, yet %s does not know %s." % (ref, engine, digest_ref))
    if "@" not in ref:
        run(engine, "tag", digest_ref, full_name(ref))
