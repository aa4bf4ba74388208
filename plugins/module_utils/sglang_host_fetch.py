"""Downloading a hub model into a host's cache with the `hf` of the engine's own image. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time

from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.sglang_host_command import free_bytes, run, share, size

_SPARE_BYTES = 100 * 10**6
_FORGOTTEN_SECONDS = 3600  # without a byte: whoever downloaded this is gone
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


def missing_bytes(hub: str, repo: str, source: dict) -> int:
    return source["bytes"] - models.held(hub, repo, source["files"], reusable=True)


def check_space(hub: str, repo: str, source: dict) -> None:
    """Refuse what cannot fit. Raises FetchError."""
    need, free = missing_bytes(hub, repo, source), free_bytes(hub)
    if need + _SPARE_BYTES > free:
        raise FetchError("%s needs %s more in %s, which has %s free. Free space there, or set HF_HOME in env_vars to a "
                         "larger disk." % (repo, size(need), hub, size(free)))


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

    def tick(self) -> None:
        held = self._count()
        if held != self._seen:  # a file that is begun anew makes it less
            self._seen, self._since = held, self._clock()
        elif self._clock() - self._since > self._stall:
            raise Stalled
        self._report(share(held, self._total))


def fetch(engine: str, image: str, model: dict, source: dict, token: str | None, stall_seconds: float, progress):
    """Bring one model into the cache and record that it is whole. Raises FetchError.

    A download that stands still is tried once more without xet, whose transfers are known to hang.
    """
    repo, hub = model["repo"], model["hub"]
    os.makedirs(hub, mode=0o755, exist_ok=True)
    for xet in (True, False):
        count = functools.partial(models.held, hub, repo, source["files"])
        watch = Watch(count, source["bytes"], stall_seconds, progress.report)
        try:
            with _no_container_left(engine, container_name(hub, repo)), _no_partial_left(models.blobs(hub, repo)):
                argv = command(engine, image, model, source, bool(token), xet)
                done = progress.run_child(argv, on_tick=watch.tick, stdin=token or "")
        except Stalled:
            progress.report("no data for %d s" % stall_seconds)
            continue
        if not done.ok:
            raise FetchError(explain(repo, hub, done))
        models.remember(hub, repo, model["revision"], source)
        if not models.cached(hub, repo, source["commit"])["complete"]:
            raise FetchError("%s was downloaded to %s, yet files are missing or have the wrong size." % (repo, hub))
        return
    raise FetchError("%s stands still: no data for %d s, twice. Check the network, or set HF_ENDPOINT to a mirror. "
                     "Files that are whole are kept, and the next deploy continues." % (repo, stall_seconds))


@contextlib.contextmanager
def _no_container_left(engine: str, name: str):
    """No container of this name before and after, whatever happens in between."""
    run(engine, "rm", "--force", name)
    try:
        yield
    finally:
        run(engine, "rm", "--force", name)


@contextlib.contextmanager
def _no_partial_left(directory: str):
    """No partial files that nobody can continue: ours when we end, forgotten ones when we begin."""
    before = _private_partials(directory)
    for path, modified in before.items():
        if time.time() - modified > _FORGOTTEN_SECONDS:
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


def explain(repo: str, hub: str, done) -> str:
    """The downloader's last words as one sentence. Pure."""
    text = done.stdout
    if "No space left on device" in text:
        return "%s does not fit into %s: the disk is full. Free space there, then deploy again." % (repo, hub)
    if "neither hf nor huggingface-cli" in text:
        return "%s cannot be downloaded: %s. Download it into %s yourself." % (repo, done.error, hub)
    return "%s cannot be downloaded: %s" % (repo, done.error)
