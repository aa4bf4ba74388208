"""One repository of an OCI registry: its manifests and blobs, and whatever authorization it asks for.

Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sglang_ops.errors import ExitCode, OpsError
from sglang_ops.registry_login import DOCKER_HUB, Login, login_for

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPResponse

TIMEOUT_SECONDS = 5  # of one request
BLOB_SECONDS = 60  # without a byte of a blob
BLOB_PIECE = 1024 * 1024
_HUB_HOST = "registry-1.docker.io"
_MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class RegistryError(OpsError):
    """The image, or its digest, is not to be had. Nothing was touched."""

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
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Registry:
    """One repository of one registry, with the authorization that it asked for."""

    def __init__(self, reference: Reference, insecure: Sequence[str]) -> None:
        self._reference = reference
        self._lenient = reference.host in insecure or is_local(reference.host)
        self._base = ""
        self._authorization: str | None = None

    def manifest(self, name: str, method: str = "GET") -> Answer:
        """The manifest of a tag or digest. Raises ImageNotFound, RegistryRefused, RegistryUnreachable."""
        accept = {"Accept": ", ".join(_MANIFEST_TYPES)}
        answer = self._ask(method, f"/v2/{self._reference.path}/manifests/{name}", accept)
        if answer.status == 401 and not self._authorization:
            self._authorization = self._authorize(answer.headers.get("www-authenticate", ""))
            answer = self._ask(method, f"/v2/{self._reference.path}/manifests/{name}", accept)
        if answer.status != 200:
            raise self._error(answer, name)
        return answer

    def blob(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on, as they come; whether they are all is for the caller to check.

        Raises ImageNotFound, RegistryRefused, RegistryUnreachable. To be asked for after a manifest.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        for again in (False, True):
            authorization = {"Authorization": self._authorization} if self._authorization else {}
            url = f"{self._base}/v2/{self._reference.path}/blobs/{digest}"
            opened = _opened("GET", url, headers | authorization, verify=not self._lenient, timeout=BLOB_SECONDS)
            try:
                with opened as response:
                    if response.status == 401 and not again:  # tokens last for minutes, layers may take hours
                        self._authorization = self._authorize(response.headers.get("www-authenticate", ""))
                        continue
                    if response.status not in {200, 206}:
                        raise self._error(Answer(response.status, {}, b""), digest)
                    if response.status == 200 and offset:  # it knows no ranges: pass over what is there already
                        while offset > 0:
                            offset -= len(response.read(min(offset, BLOB_PIECE))) or offset
                    while piece := response.read(BLOB_PIECE):
                        yield piece
            except OSError as error:
                raise self._unreachable(error) from error
            return

    def _ask(self, method: str, route: str, headers: Mapping[str, str]) -> Answer:
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

    def _error(self, answer: Answer, name: str) -> RegistryError:
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


def is_local(host: str) -> bool:
    name = host.rpartition(":")[0] or host
    return name in {"localhost", "[::1]"} or name.startswith("127.")


def _token(realm: str, words: dict[str, str], login: Login | None, *, verify: bool) -> Answer:
    """Ask the registry's token service; without a login it grants what anybody may read."""
    from urllib.parse import urlencode  # noqa: PLC0415 - see _http

    if login and login.token:
        words |= {"grant_type": "refresh_token", "refresh_token": login.token, "client_id": "sglang-ops"}
        return _http("POST", realm, {}, verify=verify, data=urlencode(words).encode())
    headers = {"Authorization": f"Basic {login.basic}"} if login and login.basic else {}
    return _http("GET", f"{realm}{'&' if '?' in realm else '?'}{urlencode(words)}", headers, verify=verify)


def _http(method: str, url: str, headers: Mapping[str, str], *, verify: bool, data: bytes | None = None) -> Answer:
    """One request with a small answer. Raises OSError where there is none."""
    with _opened(method, url, headers, verify=verify, data=data) as response:
        names = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, names, response.read())


@contextmanager
def _opened(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    verify: bool,
    data: bytes | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Iterator[HTTPResponse]:
    """One request, through the proxies of the environment. Raises OSError where there is no answer."""
    # Imported here, because whoever only renders or validates needs no network and 50 ms more.
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import HTTPError  # noqa: PLC0415
    from urllib.request import HTTPSHandler, Request, build_opener  # noqa: PLC0415

    request = Request(url, data=data, method=method)  # noqa: S310 - https, or http where the user allows it
    for name, value in headers.items():
        if name == "Range":
            request.add_header(name, value)
        else:
            request.add_unredirected_header(name, value)  # a redirect leads to other hosts: not with our token
    opener = build_opener(HTTPSHandler(context=_tls(verify=verify)))
    try:
        try:
            response = opener.open(request, timeout=timeout)
        except HTTPError as error:
            response = error
        with response:
            yield response
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
