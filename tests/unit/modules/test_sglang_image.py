"""Pulling images: the engine's API, its progress, its errors, and the module around them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible.module_utils import sglang_host_api as api
from ansible.module_utils import sglang_host_arguments as arguments
from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_image as images
from ansible.module_utils.sglang_host_command import Output
from module_testing import FakeEngine, load, run

module = load("sglang_image")
DIGEST = "sha256:" + "5" * 64
NAME = "198.18.0.2:5000/sglang"
REF, DIGEST_REF = f"{NAME}:v1", f"{NAME}@{DIGEST}"
PULL_ROUTE = f"/images/create?fromImage=198.18.0.2%3A5000%2Fsglang&tag=sha256%3A{'5' * 64}"


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    return {"id": name, "status": status, "progressDetail": {"current": current, "total": total} if total else {}}


MB = 10**6
# What docker says while it pulls two layers, one of which is there already.
STREAM = [
    {"status": f"Pulling from {NAME}", "id": DIGEST},
    layer("a", "Already exists"),
    layer("b", "Pulling fs layer"),
    layer("c", "Pulling fs layer"),
    layer("b", "Downloading", 10 * MB, 40 * MB),
    layer("c", "Downloading", 5 * MB, 20 * MB),
    layer("b", "Verifying Checksum"),
    layer("b", "Download complete"),
    layer("c", "Download complete"),
    layer("b", "Extracting", 30 * MB, 40 * MB),
    layer("b", "Pull complete"),
    layer("c", "Extracting", 20 * MB, 20 * MB),
    layer("c", "Pull complete"),
    {"status": f"Digest: {DIGEST}"},
]


class TestTally:
    """One line out of many messages."""

    def test_docker(self) -> None:
        tally = images.Tally(90 * MB)
        told = [tally.feed(event) for event in STREAM]
        assert told[4:6] == ["10 / 40 MB", "15 / 60 MB"]  # one layer is there: the manifest's sum no longer holds
        assert told[7] == "45 / 60 MB"
        assert told[8:12] == ["unpacking 60 MB", "unpacking 30 / 60 MB", "unpacking 40 / 60 MB", "unpacking 60 / 60 MB"]

    def test_the_manifest_knows_the_sum_before_all_layers_have_begun(self) -> None:
        tally = images.Tally(700 * MB)
        assert tally.feed(layer("a", "Downloading", 12 * MB, 40 * MB)) == "12 / 700 MB"

    def test_podman_tells_no_unpacking(self) -> None:
        tally = images.Tally(40 * MB)
        tally.feed(layer("a", "Pulling fs layer"))
        assert tally.feed(layer("a", "Downloading", 8 * MB, 40 * MB)) == "8 / 40 MB"
        tally.feed(layer("a", "Downloading", 40 * MB, 40 * MB))
        assert tally.feed(layer("a", "Download complete")) == "unpacking 40 MB"

    def test_nothing_known_yet(self) -> None:
        assert images.Tally().feed({"status": "Pulling from x", "id": DIGEST}) == "asking the registry"


# Real answers of docker 20.10, docker 26.1, podman 4.3 and podman 5.4.
ANSWERS = [
    ("missing", "manifest for 198.18.0.2:5000/sglang@sha256:5 not found: manifest unknown: manifest unknown"),
    ("missing", "manifest unknown: manifest unknown"),
    ("missing", "initializing source docker://x: reading manifest sha256:5 in 198.18.0.2:5000/x: manifest unknown"),
    ("login", 'Head "http://198.18.0.2:5000/v2/x/manifests/sha256:5": no basic auth credentials'),
    ("login", "unauthorized: authentication required"),
    ("login", "pull access denied for x, repository does not exist or may require 'docker login': denied: requested"),
    ("http", 'Get "https://198.18.0.2:5000/v2/": http: server gave HTTP response to HTTPS client'),
    ("certificate", 'Get "https://198.18.0.2:5000/v2/": x509: certificate signed by unknown authority'),
    ("unreachable", 'Get "http://198.18.0.2:5000/v2/": dial tcp 198.18.0.2:5000: connect: connection refused'),
    ("unreachable", 'Get "https://nohost/v2/": dial tcp: lookup nohost on 10.0.0.1:53: no such host'),
    ("unreachable", 'Get "https://x/v2/": net/http: request canceled (Client.Timeout exceeded while awaiting headers)'),
    ("space", "failed to register layer: write /usr/lib/libcudnn.so: no space left on device"),
    ("limit", "toomanyrequests: You have reached your unauthenticated pull rate limit."),
    ("other", "filesystem layer verification failed for digest sha256:5"),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "told"), ANSWERS)
def test_every_cause_has_its_sentence(cause: str, told: str) -> None:
    error = images.explain(told, REF, DIGEST_REF, "docker")
    assert error.cause == cause
    assert "\n" not in str(error)
    assert NAME in str(error) or "198.18.0.2:5000" in str(error)


def test_the_way_to_the_cause_is_left_out() -> None:
    error = images.explain(ANSWERS[8][1], REF, DIGEST_REF, "docker")
    assert str(error).startswith("198.18.0.2:5000 cannot be reached from this host: connection refused. Where")


@pytest.mark.parametrize(
    ("ref", "registry", "full"),
    [
        ("lmsysorg/sglang:v1", "docker.io", "docker.io/lmsysorg/sglang:v1"),
        ("sglang:v1", "docker.io", "docker.io/library/sglang:v1"),
        ("docker.io/lmsysorg/sglang:v1", "docker.io", "docker.io/lmsysorg/sglang:v1"),
        ("nvcr.io/nvidia/sglang", "nvcr.io", "nvcr.io/nvidia/sglang"),
        ("localhost/sglang:v1", "localhost", "localhost/sglang:v1"),
        (REF, "198.18.0.2:5000", REF),
    ],
)
def test_names(ref: str, registry: str, full: str) -> None:
    assert images.registry(ref) == registry
    assert images.full_name(ref) == full


class TestLogin:
    """What `docker login` left is handed to the daemon."""

    def auth(self, tmp_path: Path, known: dict[str, Any], name: str) -> dict[str, str] | None:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(known))
        header = api.registry_auth(name, str(config))
        return json.loads(base64.urlsafe_b64decode(header)) if header else None

    def test_password(self, tmp_path: Path) -> None:
        known = {"auths": {"198.18.0.2:5000": {"auth": base64.b64encode(b"user:p:w").decode()}}}
        assert self.auth(tmp_path, known, NAME) == {
            "username": "user", "password": "p:w", "serveraddress": "198.18.0.2:5000",
        }  # fmt: skip
        assert self.auth(tmp_path, known, "other:5000/x") is None

    def test_docker_hub_and_identity_token(self, tmp_path: Path) -> None:
        known = {"auths": {api.DOCKER_HUB: {"identitytoken": "t"}}}
        assert self.auth(tmp_path, known, "lmsysorg/sglang") == {"identitytoken": "t", "serveraddress": api.DOCKER_HUB}

    def test_helper(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        helper = tmp_path / "docker-credential-test"
        helper.write_text('#!/bin/sh\nread -r name\necho "{\\"Username\\": \\"u\\", \\"Secret\\": \\"$name\\"}"\n')
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        known = {"credHelpers": {"nvcr.io": "test"}}
        assert self.auth(tmp_path, known, "nvcr.io/x") == {
            "username": "u", "password": "nvcr.io", "serveraddress": "nvcr.io",
        }  # fmt: skip
        assert self.auth(tmp_path, {"credsStore": "missing"}, "nvcr.io/x") is None

    def test_no_login(self, tmp_path: Path) -> None:
        assert api.registry_auth(NAME, str(tmp_path / "none.json")) is None


class Docker:
    """A docker that is not one, around every test."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        self.engine = FakeEngine(tmp_path / "docker.sock")
        self.engine.stream = list(STREAM)
        self.engine.after_pull = self.arrive
        self.tags: list[tuple[str, ...]] = []
        monkeypatch.setattr(api, "DOCKER_SOCKET", str(tmp_path / "docker.sock"))
        monkeypatch.setattr(api.registry_auth, "__defaults__", (str(tmp_path / "config.json"),))
        monkeypatch.setattr(images, "run", lambda *argv: self.tags.append(argv) or Output(0))
        monkeypatch.setattr(module.shutil, "which", lambda _: "/usr/bin/docker")
        monkeypatch.setattr(engines, "observe", lambda _: engines.Current(data_root=str(tmp_path)))
        self.images = [{"ref": REF, "digest_ref": DIGEST_REF, "size_bytes": 60 * MB}]
        with self.engine.serving():
            yield

    def arrive(self) -> None:
        self.engine.answers[f"/images/{DIGEST_REF}/json"] = (200, {"Id": "x"})


class TestModule(Docker):
    """main(), in front of it."""

    def test_a_missing_image_is_pulled_by_digest_and_tagged(self) -> None:
        left = run(module, images=self.images)
        assert not left.failed
        assert left.result["changed"]
        assert PULL_ROUTE in self.engine.asked
        assert self.tags == [("docker", "tag", DIGEST_REF, REF)]
        assert left.result["sglang_ops"] == {
            "kind": "image", "images": [{"ref": REF, "digest": DIGEST, "bytes": 60 * MB}],
        }  # fmt: skip

    def test_an_image_that_is_there_is_left_alone(self) -> None:
        self.arrive()
        left = run(module, images=self.images)
        assert (left.failed, left.result["changed"]) == (False, False)
        assert self.engine.asked == [f"/images/{DIGEST_REF}/json"]

    def test_check_mode_asks_and_does_nothing(self) -> None:
        left = run(module, check=True, images=self.images)
        assert left.result["changed"]
        assert left.result["diff"]["after"] == f"{DIGEST_REF}\n"
        assert PULL_ROUTE not in self.engine.asked

    def test_check_mode_on_a_host_without_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.shutil, "which", lambda _: None)
        monkeypatch.setattr(api, "DOCKER_SOCKET", "/nonexistent/docker.sock")
        assert run(module, check=True, images=self.images).result["changed"]
        left = run(module, images=self.images)
        assert left.failed
        assert left.result["msg"].startswith("docker is not installed here")

    @pytest.mark.parametrize("check", [True, False])
    def test_too_little_space_is_said_beforehand(self, check: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "free_bytes", lambda _: 149 * MB)
        left = run(module, check=check, images=self.images)
        assert left.failed
        assert left.result["exit_hint"] == 7
        assert "needs about 150 MB (60 MB compressed)" in left.result["msg"]
        assert "has 149 MB free" in left.result["msg"]
        assert PULL_ROUTE not in self.engine.asked

    @pytest.mark.parametrize(
        ("status", "told", "hint"),
        [(404, "manifest unknown", 7), (401, "unauthorized", 7), (500, "connection refused", None)],
    )
    def test_a_refusal_of_the_registry(self, status: int, told: str, hint: int | None) -> None:
        self.engine.refusal = (status, told)
        left = run(module, images=self.images)
        assert left.failed
        assert left.result.get("exit_hint") == hint
        assert left.result["sglang_ops"]["kind"] == "image"

    def test_an_error_in_the_middle_of_the_stream(self) -> None:
        self.engine.stream[6:] = [{"error": "write /x: no space left on device"}]
        left = run(module, images=self.images)
        assert left.result["msg"].startswith(f"{REF} does not fit")

    def test_a_daemon_that_goes_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine.after_pull = lambda: None
        left = run(module, images=self.images)
        assert left.failed
        assert "yet docker does not know" in left.result["msg"]

    def test_the_login_goes_to_the_daemon_and_nowhere_else(self, tmp_path: Path) -> None:
        auth = base64.b64encode(b"user:password").decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {"198.18.0.2:5000": {"auth": auth}}}))
        left = run(module, images=self.images)
        sent = json.loads(base64.urlsafe_b64decode(self.engine.headers["X-Registry-Auth"]))
        assert sent["password"] == "password"
        assert "password" not in json.dumps(left.result)

    def test_the_same_image_twice_is_one(self) -> None:
        run(module, images=self.images * 2)
        assert self.engine.asked.count(PULL_ROUTE) == 1


class TestAsk(Docker):
    """An image lists its arguments once it is there; no answer is no failure."""

    LISTED: ClassVar = {"sglang": "0.6.0", "options": [{"flags": ["--model-path"]}]}

    @pytest.fixture(autouse=True)
    def answers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.why_not: str | None = None
        monkeypatch.setattr(arguments, "STORE", str(tmp_path / "kept"))
        monkeypatch.setattr(arguments, "ask", self.ask)

    def ask(self, engine: str, ref: str) -> str | None:
        self.asked.append(ref)
        assert (engine, f"/images/{ref}/json" in self.engine.answers) == ("docker", True)
        if self.why_not is None:
            Path(arguments.path(ref)).parent.mkdir()
            Path(arguments.path(ref)).write_text(json.dumps(self.LISTED))
        return self.why_not

    def test_it_is_pulled_then_asked_once(self) -> None:
        for changed in (True, False):
            left = run(module, images=self.images, ask=[DIGEST_REF, DIGEST_REF])
            assert left.result["changed"] is changed
            assert left.result["sglang_ops"]["arguments"] == {DIGEST_REF: self.LISTED}
            assert left.result["warnings"] == []
        assert self.asked == [DIGEST_REF]

    def test_no_answer_is_a_warning(self) -> None:
        self.why_not = "it holds no SGLang."
        left = run(module, images=self.images, ask=[DIGEST_REF])
        assert not left.failed
        assert left.result["warnings"] == ["it holds no SGLang."]
        assert left.result["sglang_ops"]["arguments"] == {}

    def test_check_mode_asks_no_image(self) -> None:
        left = run(module, check=True, images=self.images, ask=[DIGEST_REF])
        assert left.result["sglang_ops"]["arguments"] == {}
        assert self.asked == []
