"""From an image's tag to its digest, asked of the registry by the OCI distribution protocol.

The controller asks once, so that every host of the fleet gets the same image. Logins are those of
``docker login`` or ``podman login`` on this machine. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sglang_ops.errors import ExitCode, OpsError, UsageError
from sglang_ops.registry_login import DOCKER_HUB, Login, login_for

if TYPE_CHECKING:
    import ssl

TIMEOUT_SECONDS = 5  # of one request
_HUB_HOST = "registry-1.docker.io"
_MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
# The grammar of references: github.com/distribution/reference
_REFERENCE = re.compile(
    r"(?:(?P<host>localhost(?::\d+)?|[\w.-]+(?:\.[\w-]+|:\d+)|\[[\da-fA-F:]+\](?::\d+)?)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)


class RegistryError(OpsError):
    """The image's digest is not to be had. Nothing was touched."""

    exit_code = ExitCode.REFUSED


class ImageNotFound(RegistryError):
    """The registry answers, and has no such image."""


class RegistryRefused(RegistryError):
    """The registry wants a login, or the login has no right to this image."""


class RegistryUnreachable(RegistryError):
    """No answer, or none that helps (TLS, overload, rate limit)."""


@dataclass(frozen=True)
class Reference:
    """An image name taken apart. `repository` stays as the user spelled it: engines know it by that name."""

    repository: str
    host: str
    path: str
    tag: str | None
    digest: str | None


@dataclass(frozen=True)
class ResolvedImage:
    """What a tag stands for now. `digest` is the index's where there is one, so that every platform fits.

    `size_bytes` is the compressed size of one platform's config and layers, what a pull moves; None where the
    registry was not asked or did not say.
    """

    repository: str
    tag: str | None
    digest: str
    size_bytes: int | None = None
    platforms: tuple[str, ...] = ()

    @property
    def digest_ref(self) -> str:
        """The name under which an engine pulls exactly this image."""
        return f"{self.repository}@{self.digest}"


def parse(image: str) -> Reference:
    """Take an image name apart. Raises UsageError for what no engine would take."""
    match = _REFERENCE.fullmatch(image)
    if not match:
        fix = "Write it like lmsysorg/sglang:v0.5.23, in lower case."
        raise UsageError(f"'{image}' is not an image name.", fix=fix)
    host, path, tag, digest = match.group("host", "path", "tag", "digest")
    repository = f"{host}/{path}" if host else path
    host = host or DOCKER_HUB
    if host == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return Reference(repository, host, path, tag or (None if digest else "latest"), digest)


def resolve(image: str, *, insecure: Sequence[str] = (), platform: str = "linux/amd64") -> ResolvedImage:
    """Find the digest that `image` stands for. An image that names its digest is taken as it is, unasked.

    `insecure` lists registries (``host:port``) that need no valid TLS; those on this machine never do.
    Raises UsageError, ImageNotFound, RegistryRefused, RegistryUnreachable.
    """
    reference = parse(image)
    if reference.digest:
        return ResolvedImage(reference.repository, reference.tag, reference.digest)
    registry = _Registry(reference, insecure)
    digest = _digest(registry, str(reference.tag))
    try:
        size, platforms = _size(registry, digest, platform)
    except RegistryError:  # Docker Hub counts GET, not HEAD, towards its rate limit
        size, platforms = None, ()
    return ResolvedImage(reference.repository, reference.tag, digest, size, platforms)


def mirrored(image: str, mirrors: Mapping[str, str]) -> str:
    """`image` as the mirror of its registry has it: {"docker.io": "mirror:5000"} makes lmsysorg/sglang:v1 into
    mirror:5000/lmsysorg/sglang:v1. A registry without a mirror stays."""
    reference = parse(image)
    mirror = mirrors.get(reference.host)
    if mirror is None:
        return image
    tag = f":{reference.tag}" if reference.tag else ""
    digest = f"@{reference.digest}" if reference.digest else ""
    return f"{mirror.rstrip('/')}/{reference.path}{tag}{digest}"


def twin(image: str, digest: str, tags: Iterable[str], *, insecure: Sequence[str] = ()) -> str | None:
    """The first of `tags` in the repository of `image` that stands for the same digest: what `latest` really is."""
    registry = _Registry(parse(image), insecure)
    for tag in tags:
        with contextlib.suppress(RegistryError):
            if _digest(registry, tag) == digest:
                return tag
    return None


def _digest(registry: _Registry, tag: str) -> str:
    answer = registry.manifest(tag, "HEAD")
    named = answer.headers.get("docker-content-digest")  # allowed to be absent
    return named or f"sha256:{hashlib.sha256(registry.manifest(tag).body).hexdigest()}"


def _size(registry: _Registry, digest: str, platform: str) -> tuple[int | None, tuple[str, ...]]:
    manifest = json.loads(registry.manifest(digest).body)
    entries = {_platform(entry): entry["digest"] for entry in manifest.get("manifests", ())}
    entries.pop("unknown/unknown", None)  # attestations, not images
    if entries:
        manifest = json.loads(registry.manifest(entries.get(platform, next(iter(entries.values())))).body)
    blobs = [manifest.get("config", {}), *manifest.get("layers", ())]
    return sum(blob.get("size", 0) for blob in blobs) or None, tuple(entries)


def _platform(entry: Mapping[str, Any]) -> str:
    platform = entry.get("platform") or {}
    return f"{platform.get('os', 'unknown')}/{platform.get('architecture', 'unknown')}"


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class _Registry:
    """One repository of one registry, with the authorization that it asked for."""

    def __init__(self, reference: Reference, insecure: Sequence[str]) -> None:
        self._reference = reference
        self._lenient = reference.host in insecure or _is_local(reference.host)
        self._base = ""
        self._authorization: str | None = None

    def manifest(self, name: str, method: str = "GET") -> _Answer:
        """The manifest of a tag or digest. Raises ImageNotFound, RegistryRefused, RegistryUnreachable."""
        accept = {"Accept": ", ".join(_MANIFEST_TYPES)}
        answer = self._ask(method, f"/v2/{self._reference.path}/manifests/{name}", accept)
        if answer.status == 401 and not self._authorization:
            self._authorization = self._authorize(answer.headers.get("www-authenticate", ""))
            answer = self._ask(method, f"/v2/{self._reference.path}/manifests/{name}", accept)
        if answer.status != 200:
            raise self._error(answer, name)
        return answer

    def _ask(self, method: str, route: str, headers: Mapping[str, str]) -> _Answer:
        headers = dict(headers) | ({"Authorization": self._authorization} if self._authorization else {})
        failure: OSError | None = None
        for base in [self._base] if self._base else self._bases():
            try:
                answer = _http(method, base + route, headers, verify=not self._lenient)
            except OSError as error:
                failure = failure or error
                continue
            self._base = base
            return answer
        raise self._unreachable(failure)

    def _bases(self) -> Iterator[str]:
        host = _HUB_HOST if self._reference.host == DOCKER_HUB else self._reference.host
        yield f"https://{host}"
        if self._lenient:
            yield f"http://{host}"

    def _authorize(self, challenge: str) -> str | None:
        """The Authorization header that answers a challenge; None where there is no way to answer it."""
        scheme, _, rest = challenge.partition(" ")
        login = login_for(self._reference.host)
        if scheme.lower() == "basic":
            return f"Basic {login.basic}" if login and login.basic else None
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or "realm" not in asked:
            return None
        words = {"service": asked.get("service", ""), "scope": f"repository:{self._reference.path}:pull"}
        try:
            answer = _token(asked["realm"], words, login, verify=not self._lenient)
        except OSError as error:
            raise self._unreachable(error) from error
        if answer.status >= 500 or answer.status == 429:
            raise self._error(answer, str(self._reference.tag))
        granted = json.loads(answer.body) if answer.status == 200 else {}
        value = granted.get("token") or granted.get("access_token")
        return f"Bearer {value}" if value else None

    def _error(self, answer: _Answer, name: str) -> RegistryError:
        host, separator = self._reference.host, "@" if ":" in name else ":"
        image = f"{self._reference.repository}{separator}{name}"
        if answer.status == 404:
            return ImageNotFound(f"{host} has no image {image}.", fix="Check the name and the tag.")
        if answer.status in {401, 403}:
            message = f"{host} refuses {image}: it does not exist, or needs a login."
            fix = f"Check the name, or run `docker login {host}` here and on the hosts."
            return RegistryRefused(message, fix=fix)
        if answer.status == 429:
            fix = f"Wait, or run `docker login {host}` here."
            return RegistryUnreachable(f"{host} refuses more requests for now (429).", fix=fix)
        return RegistryUnreachable(f"{host} answers {answer.status} when asked for {image}.")

    def _unreachable(self, error: OSError | None) -> RegistryUnreachable:
        host = self._reference.host
        cause = getattr(error, "reason", error)
        reason = str(getattr(cause, "strerror", None) or cause)
        fix = None
        if "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason:
            reason, fix = "it speaks plain HTTP", f"Name {host} in container_engine_insecure_registries."
        elif "CERTIFICATE_VERIFY_FAILED" in reason:
            fix = "Add its authority to this machine's certificates, or name the bundle in SSL_CERT_FILE."
        return RegistryUnreachable(f"registry {host} cannot be reached: {reason}.", fix=fix)


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] or host
    return name in {"localhost", "[::1]"} or name.startswith("127.")


def _token(realm: str, words: dict[str, str], login: Login | None, *, verify: bool) -> _Answer:
    """Ask the registry's token service; without a login it grants what anybody may read."""
    from urllib.parse import urlencode  # noqa: PLC0415 - see _http

    if login and login.token:
        words |= {"grant_type": "refresh_token", "refresh_token": login.token, "client_id": "sglang-ops"}
        return _http("POST", realm, {}, verify=verify, data=urlencode(words).encode())
    headers = {"Authorization": f"Basic {login.basic}"} if login and login.basic else {}
    return _http("GET", f"{realm}{'&' if '?' in realm else '?'}{urlencode(words)}", headers, verify=verify)


def _http(method: str, url: str, headers: Mapping[str, str], *, verify: bool, data: bytes | None = None) -> _Answer:
    """One request, through the proxies of the environment. Raises OSError where there is no answer."""
    # Imported here, because whoever only renders or validates needs no network and 50 ms more.
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import HTTPError  # noqa: PLC0415
    from urllib.request import HTTPSHandler, Request, build_opener  # noqa: PLC0415

    request = Request(url, data=data, method=method)  # noqa: S310 - https, or http where the user allows it
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a redirect leads to other hosts: not with our token
    opener = build_opener(HTTPSHandler(context=_tls(verify=verify)))
    try:
        try:
            response = opener.open(request, timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            response = error
        with response:
            names = {name.lower(): value for name, value in response.headers.items()}
            return _Answer(response.status, names, response.read())
    except HTTPException as error:
        raise OSError(f"no HTTP answer ({error or type(error).__name__})") from error


@cache
def _tls(*, verify: bool) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415 - see _http

    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
