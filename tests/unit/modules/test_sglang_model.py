"""Models: the cache, the hub, the download, and the module around them."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from ansible.module_utils import sglang_host_checksums as checksums
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_download as download
from ansible.module_utils import sglang_host_fetch as fetching
from ansible.module_utils import sglang_host_image as images
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.sglang_host_progress import Progress
from module_testing import MODULES, http_server, load, run

module = load("sglang_model")
REPO, COMMIT, IMAGE = "lab/tiny", "c" * 40, "registry:5000/sglang@sha256:" + "5" * 64
CONFIG, WEIGHTS = b"{}", b"w" * 5000
CONFIG_BLOB, WEIGHTS_BLOB = hashlib.sha1(b"blob 2\0{}").hexdigest(), hashlib.sha256(WEIGHTS).hexdigest()  # noqa: S324
FILES = [
    {"name": "config.json", "size": len(CONFIG), "blob": CONFIG_BLOB},
    {"name": "model.safetensors", "size": len(WEIGHTS), "blob": WEIGHTS_BLOB},
]
SOURCE = {"commit": COMMIT, "files": FILES, "all": True, "bytes": len(CONFIG) + len(WEIGHTS)}
CONTENT = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


def place(hub: Path, *names: str, branch: str | None = None) -> Path:
    """Files of the model in the cache, as huggingface_hub lays them out. Returns the repository's directory."""
    home = Path(models.directory(str(hub), REPO))
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (home / "blobs").mkdir(exist_ok=True)
    for file in FILES:
        if file["name"] in names:
            (home / "blobs" / str(file["blob"])).write_bytes(CONTENT[str(file["name"])])
            (snapshot / str(file["name"])).symlink_to(f"../../blobs/{file['blob']}")
    if branch:
        (home / "refs").mkdir()
        (home / "refs" / branch).write_text(COMMIT)
    return home


def cached(hub: Path, revision: str = "main") -> dict[str, Any]:
    found: dict[str, Any] = models.cached(str(hub), REPO, revision)
    return found


class TestCache:
    """What is there, without asking anybody."""

    def test_nothing(self, tmp_path: Path) -> None:
        assert cached(tmp_path) == {"commit": None, "path": None, "complete": False, "bytes": 0}
        assert cached(tmp_path, COMMIT)["commit"] == COMMIT

    @pytest.mark.parametrize("revision", ["main", COMMIT])
    def test_a_model_that_others_downloaded(self, tmp_path: Path, revision: str) -> None:
        home = place(tmp_path, *CONTENT, branch="main")
        assert cached(tmp_path, revision) == {
            "commit": COMMIT, "path": str(home / "snapshots" / COMMIT), "complete": True, "bytes": 5002,
        }  # fmt: skip

    def test_a_file_under_way(self, tmp_path: Path) -> None:
        home = place(tmp_path, *CONTENT, branch="main")
        (home / "blobs" / ("d" * 64 + ".incomplete")).touch()
        assert not cached(tmp_path)["complete"]

    def test_a_link_that_leads_nowhere(self, tmp_path: Path) -> None:
        home = place(tmp_path, *CONTENT, branch="main")
        (home / "blobs" / (WEIGHTS_BLOB)).unlink()
        assert cached(tmp_path)["complete"] is False
        assert cached(tmp_path)["bytes"] == 2

    def test_only_small_files(self, tmp_path: Path) -> None:
        place(tmp_path, "config.json", branch="main")
        assert not cached(tmp_path)["complete"]

    @pytest.mark.parametrize(
        ("shards", "complete"), [(["model.safetensors"], True), (["model.safetensors", "x.safetensors"], False)]
    )
    def test_shards_that_the_index_names(self, tmp_path: Path, shards: list[str], complete: bool) -> None:
        home = place(tmp_path, *CONTENT, branch="main")
        index = {"weight_map": {f"layer.{number}": name for number, name in enumerate(shards)}}
        (home / "snapshots" / COMMIT / "model.safetensors.index.json").write_text(json.dumps(index))
        assert cached(tmp_path)["complete"] is complete

    def test_our_own_record_is_believed_more_than_appearances(self, tmp_path: Path) -> None:
        home = place(tmp_path, *CONTENT)
        models.remember(str(tmp_path), REPO, "main", SOURCE)
        (home / "blobs" / ("d" * 64 + ".incomplete")).touch()  # of another revision
        assert cached(tmp_path)["complete"]
        (home / "snapshots" / COMMIT / "config.json").unlink()
        assert not cached(tmp_path)["complete"]

    def test_a_download_by_commit_is_found_by_its_branch(self, tmp_path: Path) -> None:
        place(tmp_path, *CONTENT)
        models.remember(str(tmp_path), REPO, "refs/pr/1", SOURCE)
        assert cached(tmp_path, "refs/pr/1")["commit"] == COMMIT

    def test_bytes_held(self, tmp_path: Path) -> None:
        home = place(tmp_path, "config.json")
        assert models.held(str(tmp_path), REPO, FILES) == 2
        partial = home / "blobs" / (WEIGHTS_BLOB + ".1a2b3c4d.incomplete")
        partial.write_bytes(b"w" * 1000)
        assert models.held(str(tmp_path), REPO, FILES) == 1002
        assert models.held(str(tmp_path), REPO, FILES, reusable=True) == 2
        partial.rename(home / "blobs" / (WEIGHTS_BLOB + ".incomplete"))  # as older versions name it, and continue it
        assert models.held(str(tmp_path), REPO, FILES, reusable=True) == 1002

    def test_holes_are_not_counted(self, tmp_path: Path) -> None:
        home = place(tmp_path, "config.json")
        with (home / "blobs" / (WEIGHTS_BLOB + ".1a2b3c4d.incomplete")).open("wb") as partial:
            partial.truncate(5000)
        assert models.held(str(tmp_path), REPO, FILES) == 2


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["config.json", "model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin", "tf_model.h5"],
         ["config.json", "model-00001-of-00002.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (["model.safetensors", "original/consolidated.00.pth", "onnx/model.onnx"], ["model.safetensors"]),
        (["consolidated.safetensors", "model.safetensors"], ["consolidated.safetensors", "model.safetensors"]),
    ],
)  # fmt: skip
def test_weights_of_other_frameworks_are_left_out(names: list[str], kept: list[str]) -> None:
    assert [item["name"] for item in models.needed([{"name": name} for name in names])] == kept


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as is asked here."""

    def do_GET(self) -> None:
        route = unquote(self.path)
        if "/broken/" in route:
            self.answer(503)
        elif "/limited/" in route:
            self.answer(429)
        elif "/none/" in route:
            self.answer(401, "RepoNotFound")
        elif "/revision/main" not in route:
            self.answer(404, "RevisionNotFound")
        else:
            siblings = [{"rfilename": "config.json", "size": 2, "blobId": CONFIG_BLOB}]
            if "/empty/" not in route:
                lfs = {"sha256": WEIGHTS_BLOB, "size": 5000}
                siblings.append({"rfilename": "model.safetensors", "size": 5000, "blobId": "e" * 40, "lfs": lfs})
            self.answer(200, body={"sha": COMMIT, "siblings": [] if "/empty/" in route else siblings})

    def do_HEAD(self) -> None:
        assert f"/resolve/{COMMIT}/" in self.path
        authorized = self.headers.get("Authorization") == "Bearer good"
        if "gated/" in self.path and self.path.endswith(".safetensors") and not authorized:  # only the largest file is
            self.answer(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        else:
            self.send_response(302)  # to a content server that must not be asked
            self.send_header("Location", "http://127.0.0.1:9/content")
            self.end_headers()

    def answer(self, status: int, code: str = "", body: Any = None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() if body else b"")

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PAUSES", (0, 0))
    monkeypatch.setattr(fetching, "PAUSES", (0, 0))


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with http_server(Hub) as address:
        yield f"http://{address}"


class TestSource:
    """What the hub says."""

    def test_it_is_asked_again_as_long_as_it_asks_for_that(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = iter([("rate-limited", 3), ("unreachable", 0), None])
        waited: list[float] = []

        def ask_once(*_: Any) -> bytes:
            answer = next(answers)
            if answer:
                raise models.SourceError(answer[0], "not now", answer[1])
            return b"{}"

        monkeypatch.setattr(models, "PAUSES", (1, 2, 4))
        monkeypatch.setattr(models, "_ask_once", ask_once)
        monkeypatch.setattr(models.time, "sleep", waited.append)
        assert models._ask("lab/tiny", "main", "http://hub", "GET", "http://hub/x", None) == b"{}"
        assert waited == [3, 2]

    @pytest.mark.parametrize("wait", [None, 600])
    def test_it_is_not_asked_again_where_that_is_of_no_use(
        self, wait: float | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []

        def ask_once(*_: Any) -> bytes:
            asked.append(1)
            raise models.SourceError("rate-limited", "not now", wait)

        monkeypatch.setattr(models, "_ask_once", ask_once)
        with pytest.raises(models.SourceError):
            models._ask("lab/tiny", "main", "http://hub", "GET", "http://hub/x", None)
        assert asked == [1]

    def test_what_a_failure_says(self) -> None:
        limited = models.refusal("lab/tiny", "main", "http://hub", 429, "", False, 600)
        assert (limited.kind, limited.wait) == ("rate-limited", 600)
        assert str(limited) == (
            "http://hub refuses more requests for now (429), and asks to wait 600 s. Try again later, or set HF_TOKEN "
            "in env_vars."
        )
        assert models.refusal("lab/tiny", "main", "http://hub", 502, "", False).wait == 0
        assert models.refusal("lab/tiny", "main", "http://hub", 418, "", False).wait is None

    def test_a_model(self, hub: str) -> None:
        assert models.inspect_source("lab/tiny", "main", hub, None) == SOURCE

    def test_a_gated_model_with_access(self, hub: str) -> None:
        assert models.inspect_source("gated/tiny", "main", f"{hub}/", "good")["commit"] == COMMIT

    @pytest.mark.parametrize(
        ("repo", "revision", "token", "kind", "words"),
        [
            ("gated/tiny", "main", None, "needs-token", "is gated (401 from http://"),
            ("gated/tiny", "main", None, "needs-token", "Set HF_TOKEN in env_vars"),
            ("gated/tiny", "main", "bad", "needs-token", "ask for access with its account"),
            ("lab/tiny", "v9", None, "not-found", "has no revision v9"),
            ("none/tiny", "main", None, "not-found", "does not exist at http://"),
            ("none/tiny", "main", None, "not-found", "or is private"),
            ("none/tiny", "main", "good", "not-found", "Check hf_model_handle."),
            ("empty/tiny", "main", None, "not-found", "has no files at revision main"),
            ("limited/tiny", "main", None, "rate-limited", "429"),
            ("broken/tiny", "main", None, "unreachable", "answers 503"),
        ],
    )
    def test_what_it_refuses(self, hub: str, repo: str, revision: str, token: str, kind: str, words: str) -> None:
        with pytest.raises(models.SourceError) as caught:
            models.inspect_source(repo, revision, hub, token)
        assert caught.value.kind == kind
        assert words in str(caught.value)
        assert "bad" not in str(caught.value)

    def test_nobody_there(self) -> None:
        with pytest.raises(models.SourceError, match="cannot be reached from this host: Connection refused") as caught:
            models.inspect_source("lab/tiny", "main", "http://127.0.0.1:9", None)
        assert caught.value.kind == "unreachable"


MODEL = {"repo": REPO, "revision": "main", "hub": "/data/hf/hub", "endpoint": "http://hub:8080"}


class TestCommand:
    """The container that downloads."""

    def test_it_is_pinned_and_needs_nothing_but_the_image(self) -> None:
        argv = download.command("docker", IMAGE, MODEL, SOURCE, with_token=False, xet=True)
        assert argv[:3] == ["docker", "run", "--rm"]
        assert {"--init", "--pull=never", "--network=host", "--interactive"} <= set(argv)
        assert argv[argv.index("--volume") + 1] == "/data/hf:/data/hf"
        assert {"HF_HOME=/data/hf", "HF_HUB_CACHE=/data/hf/hub", "HF_ENDPOINT=http://hub:8080"} <= set(argv)
        assert argv[-3:] == ["--revision", COMMIT, REPO]
        assert not {word for word in argv if "TOKEN" in word and word != download._SCRIPT}
        assert "HF_HUB_DISABLE_XET=1" not in argv

    def test_a_cache_of_its_own_name_is_all_that_it_sees(self) -> None:
        argv = download.command("docker", IMAGE, MODEL | {"hub": "/fast"}, SOURCE, with_token=False, xet=True)
        assert argv[argv.index("--volume") + 1] == "/fast:/fast"
        assert {"HF_HOME=/fast", "HF_HUB_CACHE=/fast"} <= set(argv)

    def test_without_xet_and_with_some_of_the_files(self) -> None:
        argv = download.command("podman", IMAGE, MODEL, SOURCE | {"all": False}, with_token=True, xet=False)
        assert "HF_HUB_DISABLE_XET=1" in argv
        assert argv[argv.index("--tmpfs") + 1] == "/run/sglang-ops"
        assert "HF_TOKEN_PATH=/run/sglang-ops/token" in argv
        assert argv[-4:] == [COMMIT, REPO, "config.json", "model.safetensors"]  # options first: older CLIs insist

    @pytest.mark.parametrize("tool", ["hf", "huggingface-cli"])
    def test_the_script_finds_the_tool_and_keeps_the_token_private(self, tmp_path: Path, tool: str) -> None:
        (tmp_path / tool).write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/args\nstat -c %a "$HF_TOKEN_PATH"\n')
        (tmp_path / tool).chmod(0o755)
        token = tmp_path / "token"
        environment = {"HF_TOKEN_PATH": str(token), "PATH": f"{tmp_path}:/usr/bin:/bin"}
        argv = ["sh", "-c", download._SCRIPT, "sh", "--revision", COMMIT, REPO]
        with Progress(None) as progress:
            done = progress.run_child(argv, stdin="hf_secret", env=environment)
        assert done.stdout == "600"
        assert token.read_text() == "hf_secret"
        assert (tmp_path / "args").read_text() == f"download --revision {COMMIT} {REPO}\n"

    def test_an_image_without_the_tool(self) -> None:
        with Progress(None) as progress:
            done = progress.run_child(["/bin/sh", "-c", download._SCRIPT], env={"PATH": "/nonexistent"})
        assert done.rc == 127
        assert "neither hf nor huggingface-cli" in download.explain(REPO, "/data", done)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\x1b[1m\x1b[31mError: Access denied.\x1b[0m\n\x1b[90mHint: set HF_DEBUG=1\x1b[0m\n", "Error: Access denied"),
        ("Traceback\n  File x\nhttpx2.RemoteProtocolError: peer closed\n", "httpx2.RemoteProtocolError: peer closed"),
        ("something else\n", "something else"),
        ("", ""),
    ],
)
def test_the_downloader_s_own_reason(text: str, reason: str) -> None:
    assert download.said(text) == reason


def test_no_byte_for_too_long_is_a_stall() -> None:
    counts = iter([0, 10, 10, 4, 4, 4])
    clock = iter(range(0, 1000, 30))
    told: list[str] = []
    watch = download.Watch(lambda: next(counts), 100, 50, told.append, clock=lambda: next(clock))
    for _ in range(5):
        watch.tick()  # the fourth sees a file begun anew: fewer bytes, but life
    with pytest.raises(download.Stalled):
        watch.tick()
    assert told[:2] == ["0 / 100 bytes", "10 / 100 bytes"]


# The module's download, in a process of its own, with the same engine on PATH.
RUN = f"""
import sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1] + "/../module_utils")
from ansible.module_utils import sglang_host_fetch as fetching
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.sglang_host_progress import Progress
model = {{"hub": sys.argv[2], "repo": "{REPO}", "revision": "main", "endpoint": sys.argv[3]}}
with Progress(None) as progress:
    source = models.inspect_source("{REPO}", "main", sys.argv[3])
    fetching.fetch("docker", "{IMAGE}", model, source, None, 60, progress)
"""


class TestModule:
    """main(), with an engine that downloads from a directory."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
        """An engine whose container is a script; `$HF_HUB_CACHE` is the cache, `fake` says how it behaves."""
        self.home = tmp_path / "cache"
        self.log = tmp_path / "log"
        self.fake = tmp_path / "fake"
        self.fake.write_text("exit 0")
        snapshot, blobs = f"snapshots/{COMMIT}", models.blobs(str(self.home), REPO)
        directory = models.directory(str(self.home), REPO)
        engine = tmp_path / "docker"
        engine.write_text(
            "#!/bin/sh\n"
            f'printf "%s\\n" "$*" | head -1 >> {self.log}\n'
            '[ "$1" = run ] || exit 0\n'
            f"cat > {tmp_path}/stdin\n"
            f"mkdir -p {shlex.quote(blobs)} {directory}/{snapshot}; cd {directory}\n"
            f". {self.fake}\n"
        )
        engine.chmod(0o755)
        self.whole = "".join(
            f"printf %s {shlex.quote(CONTENT[str(file['name'])].decode())} > blobs/{file['blob']}; "
            f"ln -sf ../../blobs/{file['blob']} {snapshot}/{file['name']}\n"
            for file in FILES
        )
        self.partial = WEIGHTS_BLOB + ".1a2b3c4d.incomplete"
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(images, "present", lambda _engine, refs: dict.fromkeys(refs, True))
        monkeypatch.setattr(fetching, "_SPARE_BYTES", 0)
        self.arguments: dict[str, Any] = {
            "models": [{"image": IMAGE, "repo": REPO, "hub": str(self.home), "endpoint": hub}],
        }  # fmt: skip

    def runs(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith("run")]

    def test_a_missing_model_is_downloaded_and_recorded(self) -> None:
        self.fake.write_text(self.whole)
        left = run(module, **self.arguments)
        assert not left.failed
        assert left.result["changed"]
        path = str(self.home / "models--lab--tiny" / "snapshots" / COMMIT)
        hub = self.arguments["models"][0]["endpoint"].partition("://")[2]
        assert left.result["sglang_ops"] == {
            "kind": "model", "models": [{"repo": REPO, "revision": COMMIT, "path": path, "bytes": 5002}],
            "peers": {}, "origins": {REPO: hub}, "kernels": [], "warnings": [],
        }  # fmt: skip
        assert cached(self.home)["complete"]

    def test_a_second_run_asks_nobody(self) -> None:
        place(self.home, *CONTENT, branch="main")
        self.arguments["models"][0]["endpoint"] = "http://127.0.0.1:9"
        left = run(module, **self.arguments)
        assert (left.failed, left.result["changed"], self.runs()) == (False, False, [])

    def test_check_mode_says_how_much_and_does_nothing(self) -> None:
        left = run(module, check=True, **self.arguments)
        assert left.result["changed"]
        assert left.result["diff"]["after"] == f"{REPO}@cccccccccccc: 5 kB to download\n"
        assert (self.runs(), self.home.exists()) == ([], False)

    def test_the_token_travels_on_standard_input_only(self, tmp_path: Path) -> None:
        self.fake.write_text(self.whole)
        left = run(module, tokens=["hf_secret"], **self.arguments)
        assert (tmp_path / "stdin").read_text() == "hf_secret"
        assert "hf_secret" not in self.log.read_text()
        assert "hf_secret" not in json.dumps(left.result)
        assert [file for file in self.home.rglob("*") if file.is_file() and "hf_secret" in file.read_text()] == []

    def test_a_stall_is_tried_once_more_without_xet(self) -> None:
        self.fake.write_text(f'case "$*" in *DISABLE_XET*) {self.whole};; *) sleep 60;; esac')
        left = run(module, stall_seconds=0, **self.arguments)
        assert not left.failed
        assert ["HF_HUB_DISABLE_XET=1" in line for line in self.runs()] == [False, True]

    def test_two_stalls_are_an_error(self) -> None:
        self.fake.write_text(f"echo x > blobs/{self.partial}; sleep 60")
        left = run(module, stall_seconds=0, **self.arguments)
        assert left.failed
        assert "no data for 0 s, twice" in left.result["msg"]
        assert not (Path(models.blobs(str(self.home), REPO)) / self.partial).exists()
        assert self.log.read_text().splitlines()[-1].startswith("rm --force sglang-ops-fetch-")

    def test_partial_files_of_others_stay_unless_forgotten(self) -> None:
        home = place(self.home)
        recent, old = (home / "blobs" / ("e" * 64 + f".{mark}.incomplete") for mark in ("11111111", "22222222"))
        for file in (recent, old):
            file.write_bytes(b"x")
        os.utime(old, (time.time() - 7200,) * 2)
        self.fake.write_text(self.whole)
        assert not run(module, **self.arguments).failed
        assert (recent.exists(), old.exists()) == (True, False)

    @pytest.mark.parametrize("others", [[], ["gpu-2"]], ids=["own", "shared"])
    def test_what_a_loss_of_power_left_is_gone_at_once(
        self, monkeypatch: pytest.MonkeyPatch, others: list[str]
    ) -> None:
        """Its process did not survive; of another host that shares the cache nobody knows that."""
        partial = place(self.home) / "blobs" / ("e" * 64 + ".11111111.incomplete")
        partial.write_bytes(b"x")
        monkeypatch.setattr(claims, "switched_on", lambda: time.time() + 1)
        monkeypatch.setattr(claims, "sharing", lambda _: others)
        self.fake.write_text(self.whole)
        assert not run(module, **self.arguments).failed
        assert partial.exists() == bool(others)

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("echo 'OSError: [Errno 28] No space left on device'; exit 1", "does not fit into"),
            ("echo 'httpx.ConnectError: refused'; exit 1", "cannot be downloaded: httpx.ConnectError: refused. (3 att"),
            ("exit 0", "yet config.json is missing"),
        ],
    )
    def test_a_download_that_fails(self, script: str, words: str) -> None:
        self.fake.write_text(script)
        left = run(module, **self.arguments)
        assert left.failed
        assert words in left.result["msg"]

    @pytest.mark.parametrize("wrong", ["x", "v" * len(WEIGHTS)], ids=["short", "altered"])
    def test_a_wrong_file_is_fetched_once_more(self, wrong: str) -> None:
        self.fake.write_text(f"{self.whole}[ -e once ] || printf {wrong} > blobs/{WEIGHTS_BLOB}; touch once")
        left = run(module, **self.arguments)
        assert not left.failed, left.result
        assert len(self.runs()) == 2
        assert (Path(models.blobs(str(self.home), REPO)) / WEIGHTS_BLOB).read_bytes() == WEIGHTS

    def test_one_that_is_corrupt_each_time_is_named_and_deleted(self) -> None:
        wrong = "v" * len(WEIGHTS)
        self.fake.write_text(f"{self.whole}printf {wrong} > blobs/{WEIGHTS_BLOB}")
        left = run(module, **self.arguments)
        digest = hashlib.sha256(wrong.encode()).hexdigest()
        said = f"arrives corrupt, twice: model.safetensors should be {WEIGHTS_BLOB}, and its SHA-256 is {digest}."
        assert said in left.result["msg"]
        assert len(self.runs()) == 2
        assert os.listdir(models.blobs(str(self.home), REPO)) == [CONFIG_BLOB]  # noqa: PTH208
        assert not cached(self.home, COMMIT)["complete"]

    def test_what_was_found_right_before_is_not_read_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake.write_text(self.whole)
        assert not run(module, **self.arguments).failed
        (self.home / "models--lab--tiny" / "snapshots" / COMMIT / "config.json").unlink()
        read: list[str] = []
        monkeypatch.setattr(checksums._Reader, "fault", lambda _self, path, _name: read.append(path) or "")
        assert not run(module, **self.arguments).failed
        assert [Path(path).name for path in read] == [], "both are blobs of a snapshot that is recorded"

    def test_an_interrupted_download_is_not_taken_for_a_whole_one(self) -> None:
        place(self.home, *CONTENT, branch="main")
        assert cached(self.home)["complete"]
        models.intend(str(self.home), REPO, SOURCE)
        assert not cached(self.home)["complete"], "its checksums have not been compared"
        self.fake.write_text("exit 0")
        assert not run(module, **self.arguments).failed
        assert cached(self.home)["complete"]

    def test_a_long_wait_is_refused_at_once(self) -> None:
        self.fake.write_text("echo 'Rate limited. Waiting 601.0s before retry [Retry 1/5].'; sleep 60")
        left = run(module, **self.arguments)
        assert "(429), and asks to wait 601 s. Try again later" in left.result["msg"]
        assert len(self.runs()) == 1

    def test_a_failure_that_passes_is_survived(self) -> None:
        self.fake.write_text(f"[ -e twice ] || {{ [ ! -e once ] || touch twice; touch once; exit 1; }}\n{self.whole}")
        assert not run(module, **self.arguments).failed
        assert len(self.runs()) == 3

    def test_two_that_share_a_cache_fetch_once(self) -> None:
        self.fake.write_text(f"sleep 1\n{self.whole}")
        first = subprocess.Popen(
            [sys.executable, "-c", RUN, *map(str, (MODULES, self.home, self.arguments["models"][0]["endpoint"]))],
            env=os.environ | {"PYTHONPATH": ":".join(map(str, (MODULES.parents[1], *sys.path)))},
        )
        deadline = time.monotonic() + 20
        while not self.runs() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not run(module, **self.arguments).failed
        assert first.wait(20) == 0
        assert len(self.runs()) == 1

    @pytest.mark.parametrize("check", [True, False])
    def test_too_little_space_is_said_beforehand(self, check: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetching, "free_bytes", lambda _: 4000)
        left = run(module, check=check, **self.arguments)
        assert left.result["exit_hint"] == 7
        assert f"needs 5 kB more in {self.home}, which has 4 kB free" in left.result["msg"]
        assert self.runs() == []

    def test_a_hub_that_refuses(self) -> None:
        self.arguments["models"][0]["repo"] = "gated/tiny"
        left = run(module, **self.arguments)
        assert (left.failed, left.result["exit_hint"]) == (True, 7)

    def test_an_image_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "present", lambda _engine, refs: dict.fromkeys(refs, False))
        left = run(module, **self.arguments)
        assert left.failed
        assert "is not on the host" in left.result["msg"]
