"""From tags to digests, against registries on loopback that behave like real ones."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sglang_ops import registry, registry_client
from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.registry import ImageNotFound, RegistryRefused, RegistryUnreachable, parse, resolve
from sglang_ops.registry_login import Login, login_for

DIGEST = "sha256:" + "0" * 64


def document(content: dict[str, Any]) -> tuple[bytes, str]:
    body = json.dumps(content).encode()
    return body, f"sha256:{hashlib.sha256(body).hexdigest()}"


AMD, AMD_DIGEST = document({"config": {"size": 10}, "layers": [{"size": 300}, {"size": 4000}]})
ARM, ARM_DIGEST = document({"config": {"size": 1}, "layers": [{"size": 2}]})
INDEX, INDEX_DIGEST = document({
    "manifests": [
        {"digest": ARM_DIGEST, "platform": {"os": "linux", "architecture": "arm64"}},
        {"digest": AMD_DIGEST, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": DIGEST, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
})  # fmt: skip
MANIFESTS = {"multi": INDEX, "single": AMD, INDEX_DIGEST: INDEX, AMD_DIGEST: AMD, ARM_DIGEST: ARM}


class Server(ThreadingHTTPServer):
    """A registry; `auth` is none, basic, bearer (anonymous tokens) or private (tokens for user:password)."""

    auth = "none"
    tells_digest = True
    get_status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))
        url = urlsplit(self.path)
        if url.path == "/token":
            self.grant(parse_qs(url.query))
        elif not self.authorized():
            challenge = 'Basic realm="x"' if self.server.auth == "basic" else (
                f'Bearer realm="http://{self.server.host}/token",service="reg",scope="repository:x:pull"'
            )  # fmt: skip
            self.answer(401, {"WWW-Authenticate": challenge})
        else:
            self.manifest(url.path)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked.append((self.command, f"{self.path} {form['grant_type'][0]} {form['scope'][0]}"))
        body = json.dumps({"access_token": "granted"}).encode() if form["refresh_token"] == ["refresh"] else b"{}"
        self.answer(200, {}, body)

    def grant(self, query: dict[str, list[str]]) -> None:
        assert query["service"] == ["reg"]
        assert query["scope"] == ["repository:team/sglang:pull"]
        login = base64.b64decode(self.headers.get("Authorization", "Basic ").removeprefix("Basic "))
        allowed = self.server.auth == "bearer" or login == b"user:password"
        self.answer(200, {}, json.dumps({"token": "granted" if allowed else "nothing"}).encode())

    def authorized(self) -> bool:
        given = self.headers.get("Authorization")
        if self.server.auth == "basic":
            return given == "Basic " + base64.b64encode(b"user:password").decode()
        return self.server.auth == "none" or given == "Bearer granted"

    def manifest(self, path: str) -> None:
        assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
        name = path.removeprefix("/v2/team/sglang/manifests/")
        if self.command == "GET" and self.server.get_status != 200:
            self.answer(self.server.get_status)
        elif name in MANIFESTS:
            digest = f"sha256:{hashlib.sha256(MANIFESTS[name]).hexdigest()}"
            self.answer(200, {"Docker-Content-Digest": digest} if self.server.tells_digest else {}, MANIFESTS[name])
        else:
            self.answer({"limited": 429, "broken": 503}.get(name, 404))

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


def log_in(tmp_path: Path, host: str, **entry: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: entry}}))


PASSWORD = base64.b64encode(b"user:password").decode()


class TestParse:
    """Image names, taken apart as engines do."""

    @pytest.mark.parametrize(
        ("image", "repository", "host", "path", "tag", "digest"),
        [
            ("lmsysorg/sglang:v0.5.23", "lmsysorg/sglang", "docker.io", "lmsysorg/sglang", "v0.5.23", None),
            ("lmsysorg/sglang", "lmsysorg/sglang", "docker.io", "lmsysorg/sglang", "latest", None),
            ("sglang", "sglang", "docker.io", "library/sglang", "latest", None),
            ("docker.io/sglang:x", "docker.io/sglang", "docker.io", "library/sglang", "x", None),
            ("nvcr.io/nvidia/sglang:26.1", "nvcr.io/nvidia/sglang", "nvcr.io", "nvidia/sglang", "26.1", None),
            ("198.18.0.2:5000/sglang:v1", "198.18.0.2:5000/sglang", "198.18.0.2:5000", "sglang", "v1", None),
            ("localhost/sglang:v1", "localhost/sglang", "localhost", "sglang", "v1", None),
            (f"a.b/c/d@{DIGEST}", "a.b/c/d", "a.b", "c/d", None, DIGEST),
            (f"lmsysorg/sglang:v1@{DIGEST}", "lmsysorg/sglang", "docker.io", "lmsysorg/sglang", "v1", DIGEST),
        ],
    )
    def test_names(
        self, image: str, repository: str, host: str, path: str, tag: str | None, digest: str | None
    ) -> None:
        assert parse(image) == registry.Reference(repository, host, path, tag, digest)

    @pytest.mark.parametrize("image", ["", "UPPER/x", "a b", "x:", "x@sha256:12", "https://a.b/c", "a//b", "-x"])
    def test_what_is_none(self, image: str) -> None:
        with pytest.raises(UsageError, match="is not an image name"):
            parse(image)


class TestResolve:
    """Digests, sizes and platforms."""

    def test_a_pinned_image_is_taken_as_it_is(self) -> None:
        found = resolve(f"registry.invalid/x:v1@{DIGEST}")
        assert (found.digest, found.tag, found.size_bytes) == (DIGEST, "v1", None)
        assert found.digest_ref == f"registry.invalid/x@{DIGEST}"

    def test_the_index_is_pinned_and_one_platform_measured(self, server: Server) -> None:
        found = resolve(f"{server.host}/team/sglang:multi")
        assert found == registry.ResolvedImage(
            f"{server.host}/team/sglang", "multi", INDEX_DIGEST, 4310, ("linux/arm64", "linux/amd64")
        )
        assert resolve(f"{server.host}/team/sglang:multi", platform="linux/arm64").size_bytes == 3

    def test_an_image_for_one_platform(self, server: Server) -> None:
        found = resolve(f"{server.host}/team/sglang:single")
        assert (found.digest, found.size_bytes, found.platforms) == (AMD_DIGEST, 4310, ())

    def test_a_registry_that_does_not_tell_the_digest(self, server: Server) -> None:
        server.tells_digest = False
        assert resolve(f"{server.host}/team/sglang:single").digest == AMD_DIGEST

    def test_the_digest_does_not_depend_on_what_counts_as_a_pull(self, server: Server) -> None:
        server.get_status = 429
        found = resolve(f"{server.host}/team/sglang:multi")
        assert (found.digest, found.size_bytes) == (INDEX_DIGEST, None)

    @pytest.mark.parametrize(
        ("tag", "error", "words"),
        [
            ("v9", ImageNotFound, "has no image"),
            ("limited", RegistryUnreachable, "429"),
            ("broken", RegistryUnreachable, "answers 503"),
        ],
    )
    def test_refusals(self, server: Server, tag: str, error: type[registry.RegistryError], words: str) -> None:
        with pytest.raises(error, match=words) as caught:
            resolve(f"{server.host}/team/sglang:{tag}")
        assert caught.value.exit_code == ExitCode.REFUSED
        assert server.host in caught.value.message


class TestLogin:
    """Registries that ask who is there."""

    def test_anonymous_token(self, server: Server) -> None:
        server.auth = "bearer"
        assert resolve(f"{server.host}/team/sglang:multi").size_bytes == 4310
        assert [path for _, path in server.asked].count("/v2/team/sglang/manifests/multi") == 2
        assert sum(path.startswith("/token") for _, path in server.asked) == 1

    @pytest.mark.parametrize("auth", ["basic", "private"])
    def test_password(self, server: Server, tmp_path: Path, auth: str) -> None:
        server.auth = auth
        log_in(tmp_path, server.host, auth=PASSWORD)
        assert resolve(f"{server.host}/team/sglang:multi").digest == INDEX_DIGEST

    def test_refresh_token(self, server: Server, tmp_path: Path) -> None:
        server.auth = "private"
        log_in(tmp_path, server.host, identitytoken="refresh")
        assert resolve(f"{server.host}/team/sglang:multi").digest == INDEX_DIGEST
        assert ("POST", "/token refresh_token repository:team/sglang:pull") in server.asked

    @pytest.mark.parametrize("auth", ["basic", "private"])
    def test_no_login_or_a_wrong_one(self, server: Server, tmp_path: Path, auth: str) -> None:
        server.auth = auth
        with pytest.raises(RegistryRefused, match="it does not exist, or needs a login") as caught:
            resolve(f"{server.host}/team/sglang:multi")
        assert f"docker login {server.host}" in str(caught.value.fix)
        log_in(tmp_path, server.host, auth=base64.b64encode(b"user:wrong").decode())
        with pytest.raises(RegistryRefused):
            resolve(f"{server.host}/team/sglang:multi")

    def test_where_logins_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert login_for("a.b") is None
        (tmp_path / "run" / "containers").mkdir(parents=True)
        (tmp_path / "run" / "containers" / "auth.json").write_text('{"auths": {"a.b": {"auth": "podman"}}}')
        assert login_for("a.b") == Login("podman")
        log_in(tmp_path, "https://index.docker.io/v1/", auth="hub")
        assert login_for("docker.io") == Login("hub")
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "mine.json"))
        (tmp_path / "mine.json").write_text('{"auths": {"a.b": {"auth": "mine"}}}')
        assert login_for("a.b") == Login("mine")

    def test_helpers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        helper = tmp_path / "docker-credential-vault"
        answer = '{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"$name\\"}'
        helper.write_text(f'#!/bin/sh\nread -r name\necho "{answer}"\n')
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        (tmp_path / "config.json").write_text('{"credHelpers": {"a.b": "vault", "c.d": "missing"}}')
        assert login_for("a.b") == Login(token="a.b")
        assert login_for("c.d") is None

    def test_secrets_do_not_show(self) -> None:
        assert "secret" not in repr(Login("secret", "secret"))


@contextmanager
def tls_server(tmp_path: Path) -> Iterator[Server]:
    """A registry whose certificate nobody signed."""
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=x",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server() as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


class TestReach:
    """TLS, plain HTTP, and nobody there."""

    @pytest.fixture(autouse=True)
    def strict_about_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry_client, "is_local", lambda _: False)

    def test_plain_http_must_be_allowed(self, server: Server) -> None:
        with pytest.raises(RegistryUnreachable, match="it speaks plain HTTP") as caught:
            resolve(f"{server.host}/team/sglang:multi")
        assert caught.value.fix == f"Name {server.host} in container_engine_insecure_registries."
        assert resolve(f"{server.host}/team/sglang:multi", insecure=[server.host]).digest == INDEX_DIGEST

    def test_an_unknown_certificate_must_be_allowed(self, tmp_path: Path) -> None:
        with tls_server(tmp_path) as server:
            with pytest.raises(RegistryUnreachable) as caught:
                resolve(f"{server.host}/team/sglang:multi")
            assert "SSL_CERT_FILE" in str(caught.value.fix)
            assert resolve(f"{server.host}/team/sglang:multi", insecure=[server.host]).digest == INDEX_DIGEST

    @pytest.mark.parametrize("insecure", [[], ["127.0.0.1:9"]])
    def test_nobody_there(self, insecure: list[str]) -> None:
        with pytest.raises(RegistryUnreachable) as caught:
            resolve("127.0.0.1:9/team/sglang:multi", insecure=insecure)
        assert caught.value.message == "registry 127.0.0.1:9 cannot be reached: Connection refused."


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True), ("[::1]:5000", True), ("a.b", False)],
)
def test_registries_of_this_machine(host: str, local: bool) -> None:
    assert registry_client.is_local(host) is local


def test_importing_it_is_cheap() -> None:
    code = "import sys, sglang_ops.registry; print([m for m in ('ssl', 'http.client', 'httpx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
