"""One attempt to download a hub model, with the `hf` of the engine's own image. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time

from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.sglang_host_command import run, share

LONGEST_WAIT = 120  # seconds that a hub may ask to wait; more is the operator's decision
_ENGINE_FAILED = (125, 126, 127)  # docker-run(1): not the program in the container
_WAITING = re.compile(r"Waiting (\d+)")  # huggingface_hub at a 429: "Rate limited. Waiting 61.0s before retry"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PRIVATE = "/run/sglang-ops"
_QUIET = dict.fromkeys(("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK"), "1")
# The token comes on standard input and lives in the container's own memory: it is in no argument, no variable,
# no `inspect` and no file of the host, and gone with the container. Older images have huggingface-cli only.
_SCRIPT = """
set -eu
if [ -n "${HF_TOKEN_PATH:-}" ]; then (umask 077; cat > "$HF_TOKEN_PATH"); fi
for tool in hf huggingface-cli; do
  if command -v "$tool" > /dev/null; then exec "$tool" download "$@"; fi
done
echo "the image has neither hf nor huggingface-cli" >&2
exit 127
"""


class FetchError(Exception):
    """The model is not in the cache, and why."""


class Stalled(Exception):
    """No byte has come for too long."""


class Unlucky(Exception):
    """An attempt failed, and the next one may not. `wait` is how many seconds the hub wants to be left alone."""

    def __init__(self, message: str, wait: float = 0) -> None:
        super().__init__(message)
        self.wait = wait


def container_name(hub: str, repo: str) -> str:
    """One per model and cache, so that a container left by a host that lost power is found again."""
    return "sglang-ops-fetch-" + hashlib.sha256((hub + "\n" + repo).encode()).hexdigest()[:12]


def command(engine: str, image: str, model: dict, source: dict, with_token: bool, xet: bool) -> list:
    """The container that downloads; what is secret is not in it. Pure."""
    hub = model["hub"]
    home = os.path.dirname(hub) if os.path.basename(hub) == "hub" else hub  # where the transfer keeps its own files
    variables = dict(_QUIET, HF_HOME=home, HF_HUB_CACHE=hub)
    if model.get("endpoint"):
        variables["HF_ENDPOINT"] = model["endpoint"]
    if not xet:
        variables["HF_HUB_DISABLE_XET"] = "1"
    argv = [engine, "run", "--rm", "--name", container_name(hub, model["repo"]), "--interactive", "--init",
            "--pull=never", "--network=host", "--log-driver=none", "--volume", "%s:%s" % (home, home)]
    if with_token:
        argv += ["--tmpfs", _PRIVATE]
        variables["HF_TOKEN_PATH"] = _PRIVATE + "/token"
    for name in sorted(variables):
        argv += ["--env", "%s=%s" % (name, variables[name])]
    argv += ["--entrypoint", "/bin/sh", image, "-c", _SCRIPT, "sh", "--revision", source["commit"], model["repo"]]
    return argv if source["all"] else [*argv, *(item["name"] for item in source["files"])]


class Watch:
    """Follows the bytes in the cache; raises Stalled when none came for `stall_seconds`."""

    def __init__(self, count, total: int, stall_seconds: float, report, clock=time.monotonic) -> None:
        self._count, self._total, self._stall, self._report, self._clock = count, total, stall_seconds, report, clock
        self._seen, self._since = -1, clock()

    def excuse(self, seconds: float) -> None:
        """The downloader itself waits for so long."""
        self._since = self._clock() + seconds

    def tick(self) -> None:
        held = self._count()
        if held != self._seen:  # a file that is begun anew makes it less
            self._seen, self._since = held, self._clock()
        elif self._clock() - self._since > self._stall:
            raise Stalled
        self._report(share(held, self._total))


class Download:
    """Downloads one model: `attempt` as often as need be. `check` is asked every second and may raise."""

    def __init__(self, engine, image, model, source, token, stall_seconds, progress, check) -> None:
        self.engine, self.image, self.model, self.source, self.token = engine, image, model, source, token
        self.stall_seconds, self.progress, self.check = stall_seconds, progress, check

    def attempt(self, xet: bool) -> None:
        """Run the downloader once. Raises Stalled, Unlucky, FetchError."""
        repo, hub = self.model["repo"], self.model["hub"]
        count = functools.partial(models.held, hub, repo, self.source["files"])
        watch = Watch(count, self.source["bytes"], self.stall_seconds, self._report)

        def tick() -> None:
            self.check()
            watch.tick()

        argv = command(self.engine, self.image, self.model, self.source, bool(self.token), xet)
        with _no_container_left(self.engine, container_name(hub, repo)), _no_partial_left(hub, repo):
            done = self.progress.run_child(argv, on_tick=tick, on_line=functools.partial(self._line, watch),
                                           stdin=self.token or "")
        if not done.ok:
            raise self._failed(done)

    def _report(self, text: str) -> None:
        self.progress.report("%s from %s" % (text, models.origin(self.model.get("endpoint"))))

    def _line(self, watch: Watch, text: str) -> None:
        """The downloader obeys a hub that asks it to wait, for however long."""
        wait = int((_WAITING.search(text) or [0, 0])[1])
        if wait > LONGEST_WAIT:
            base = (self.model.get("endpoint") or models.DEFAULT_ENDPOINT).rstrip("/")
            raise Unlucky(str(models.refusal(self.model["repo"], "", base, 429, "", bool(self.token), wait)), wait)
        if wait:
            watch.excuse(wait)

    def _failed(self, done) -> Exception:
        """What to raise. The downloader's words differ from version to version, so the hub is asked once more."""
        model, source = self.model, self.source
        final = explain(model["repo"], model["hub"], done)
        if final:
            return FetchError(final)
        missing = [item["name"] for item in source["files"] if not models.held(model["hub"], model["repo"], [item])]
        try:
            models.available(model["repo"], source, missing, model.get("endpoint"), self.token)
        except models.SourceError as error:
            final = error.kind in ("not-found", "needs-token")
            return FetchError(str(error)) if final else Unlucky(str(error), error.wait or 0)
        return Unlucky("%s cannot be downloaded: %s." % (model["repo"], said(done.stdout) or done.error))


@contextlib.contextmanager
def _no_container_left(engine: str, name: str):
    """No container of this name before and after, whatever happens in between."""
    run(engine, "rm", "--force", name)
    try:
        yield
    finally:
        run(engine, "rm", "--force", name)


@contextlib.contextmanager
def _no_partial_left(hub: str, repo: str):
    """No partial files that nobody can continue: ours when we end, forgotten ones when we begin."""
    directory = models.blobs(hub, repo)
    before = _private_partials(directory)
    # Whoever wrote before this host was switched on is gone, unless it was another host.
    dead = 0.0 if claims.sharing(hub) else claims.switched_on()
    for path, modified in before.items():
        if modified < max(dead, time.time() - models.ABANDONED_SECONDS):
            _remove(path)
    try:
        yield
    finally:
        for path in set(_private_partials(directory)) - set(before):
            _remove(path)


def _private_partials(directory: str) -> dict:
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if models.PRIVATE_PARTIAL.search(entry.name):
                found[entry.path] = entry.stat().st_mtime
    return found


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def said(text: str) -> str:
    """What the downloader gave as its reason: its last line with "Error", else its last line at all. Pure."""
    lines = [_COLOURS.sub("", line).strip() for line in text.splitlines()]
    lines = [line.rstrip(".") for line in lines if line and not line.startswith("Hint:")]
    errors = [line for line in lines if re.search(r"\b\w*Error\b", line)]
    return (errors or lines or [""])[-1]


def explain(repo: str, hub: str, done) -> str:
    """Why another attempt is of no use, as one sentence; "" where it may be. Pure."""
    if "No space left on device" in done.stdout:
        return ("%s does not fit into %s: the disk is full. Free space there, then run this again; files that are "
                "whole are kept." % (repo, hub))
    if "neither hf nor huggingface-cli" in done.stdout:
        return "%s cannot be downloaded: %s. Download it into %s yourself." % (repo, done.error, hub)
    if done.rc in _ENGINE_FAILED:
        return "%s cannot be downloaded: %s" % (repo, done.error)
    return ""
