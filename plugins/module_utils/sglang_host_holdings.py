"""What a cache of hub models holds, which services use it, and removing what none does. Python 3.8, standard library.

Nothing outside `HUB/models--*` is ever removed: these directories, and `blobs` and `snapshots` in them, must be
directories themselves, no links, and what links lead to is removed only where it lies in the same `blobs`.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import stat

from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils.sglang_host_state import read_text

_MOUNTS = re.compile(r"^RequiresMountsFor=(.*)$", re.MULTILINE)
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def uses() -> list:
    """What the deployed services use, in what runs and in what they would be rolled back to: [{"service", "repo",
    "commit", "text"}], where `text` is everything else that names a model, such as a draft model's argument."""
    found = []
    for service in store.names():
        state = store.read_state(service)
        for release in sorted({state["release"], state["stable"]} - {None}):
            content = store.read_record(service, release).get("content") or {}
            model = content.get("model") or {}
            text = json.dumps([content.get("argv"), content.get("environment"), model.get("directory")])
            text += store.release_unit(service, release) or ""  # what it mounts
            found.append({"service": service, "repo": model.get("repo"), "commit": model.get("commit"), "text": text})
    return found


def users(repo: str, commit: str, used: list) -> list:
    """The services that use a revision. One that names the repository elsewhere may use any of its revisions. Pure."""
    name = r"(?:(?<![\w./-])%s|\bmodels--%s)(?![\w.-])" % (re.escape(repo), re.escape(repo.replace("/", "--")))
    found = set()
    for use in used:
        own = use["repo"] == repo
        if (own and use["commit"] in (commit, None, "")) or (not own and re.search(name, use["text"])):
            found.add(use["service"])
    return sorted(found)


def hubs_of_units() -> list:
    """Directories of models among what the units of deployed services mount."""
    found = []
    for service in store.names():
        unit = read_text(store.unit_path(service)) or ""
        for quoted, plain in _WORD.findall(" ".join(_MOUNTS.findall(unit))):
            path = (quoted or plain).replace("%%", "%")
            found += [os.path.join(path, *below) for below in ((), ("hub",), ("huggingface", "hub"))]
    return [path for path in found if os.path.isdir(path) and repositories(path)]


def repositories(hub: str) -> list:
    """Names of the models in a cache, in order. A link in the place of a directory is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(hub) as entries:
        names = [item.name for item in entries if item.is_dir(follow_symlinks=False)]
        return sorted(name[len("models--"):].replace("--", "/") for name in names if name.startswith("models--"))
    return []


def survey(hub: str, used: list, now: float) -> list:
    """Every model of a cache, as `holding` gives it."""
    return [holding(hub, repo, used, now) for repo in repositories(hub)]


def holding(hub: str, repo: str, used: list, now: float) -> dict:
    """One model: {"hub", "repo", "bytes", "revisions": [...], "left": {path: bytes}, "young": [path], "foreign": bool}.

    `left` are partial files, and content that no snapshot has; `young` those of them that got a byte lately. A foreign
    model has a link where a directory belongs: it is shown, and left alone.
    """
    home = models.directory(hub, repo)
    stats = _files(os.path.join(home, "blobs"))
    revisions = [_revision(hub, repo, commit, used) for commit in _commits(home)]
    referred = {path for revision in revisions for path in revision["blobs"]}
    left = {path: status for path, status in stats.items() if path not in referred}
    old = now - models.ABANDONED_SECONDS
    own = (os.path.join(home, name) for name in ("", "blobs", "snapshots"))
    return {
        "hub": hub, "repo": repo, "revisions": revisions,
        "bytes": sum(status.st_blocks * 512 for status in stats.values()),
        "left": {path: item.st_blocks * 512 for path, item in left.items() if item.st_mtime < old},
        "young": sorted(path for path, item in left.items() if item.st_mtime >= old),
        "foreign": any(os.path.islink(path.rstrip("/")) for path in own),
    }


def _files(directory: str) -> dict:
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
        for item in entries:
            with contextlib.suppress(FileNotFoundError):  # renamed since
                if item.is_file(follow_symlinks=False):
                    found[os.path.join(os.path.realpath(directory), item.name)] = item.stat(follow_symlinks=False)
    return found


def _commits(home: str) -> list:
    """Those that are there, in whole or in part, and those of which a download was only just begun."""
    begun, snapshots = os.path.join(home, ".sglang-ops", "*.wanted"), os.path.join(home, "snapshots")
    found = {os.path.basename(path)[: -len(".wanted")] for path in glob.glob(begun)}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(snapshots) as entries:
        found |= {item.name for item in entries if item.is_dir(follow_symlinks=False)}
    return sorted(found)


def _refs(home: str) -> dict:
    """{path of a branch or tag: commit}."""
    top = os.path.join(home, "refs")
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(top) for name in names]
    return {path: (read_text(path) or "").strip() for path in paths if not os.path.islink(path)}


def _revision(hub: str, repo: str, commit: str, used: list) -> dict:
    home = models.directory(hub, repo)
    snapshot = os.path.join(home, "snapshots", commit)
    names = [os.path.join(parent, name) for parent, _, found in os.walk(snapshot) for name in found]
    blobs, sizes, last = {}, {}, 0.0
    for path in names:
        real = os.path.realpath(path)
        blobs.setdefault(real, []).append(os.path.relpath(path, snapshot))
        with contextlib.suppress(OSError):
            status = os.stat(real)
            sizes[os.path.relpath(path, snapshot)] = status.st_size
            last = max(last, status.st_atime, status.st_mtime)
    wanted, _ = models.files_of(home, commit)
    complete = models.cached(hub, repo, commit)["complete"]
    lacking = sum(count for name, count in wanted.items() if sizes.get(name) != count)
    refs = [os.path.relpath(path, os.path.join(home, "refs")) for path, found in _refs(home).items() if found == commit]
    return {
        "commit": commit, "refs": sorted(refs), "bytes": sum(sizes.values()), "blobs": blobs, "complete": complete,
        "missing": 0 if complete else lacking or None, "last_used": int(last), "used_by": users(repo, commit, used),
    }


def unused(holdings: list, keep) -> list:
    """What pruning removes of each model: [{"hub", "repo", "commits", "files": {path: bytes}, "bytes", "whole"}]. Pure
    but for sizes of files. `whole`: nothing of the model remains."""
    found = []
    for item in holdings:
        drop = [revision for revision in item["revisions"] if not revision["used_by"] and item["repo"] not in keep]
        stay = [revision for revision in item["revisions"] if revision not in drop]
        needed = {path for revision in stay for path in revision["blobs"]}
        home = os.path.realpath(models.directory(item["hub"], item["repo"]))
        inside = (os.path.join(home, "blobs") + os.sep, os.path.join(home, "snapshots") + os.sep)
        files = dict(item["left"])
        for path in {path for revision in drop for path in revision["blobs"]} - needed:
            if path.startswith(inside) and os.path.exists(path):
                files[path] = os.stat(path).st_blocks * 512
        if item["foreign"] or not (drop or files or not item["revisions"]):
            continue
        found.append({"hub": item["hub"], "repo": item["repo"], "commits": [entry["commit"] for entry in drop],
                      "files": files, "bytes": sum(files.values()), "whole": not stay and not item["young"]})
    return found


def busy(hub: str, holdings: list) -> str:
    """Why nothing may be removed now, "" if nothing is under way."""
    for name, host in sorted(claims.holders(hub).items()):
        return "%s is being downloaded by %s" % (name[len("models--"):].replace("--", "/"), host)
    for item in holdings:
        if item["young"]:
            minutes = models.ABANDONED_SECONDS // 60
            return "%s has a file that got data in the last %d minutes, so it may be under way (%s)" % (
                item["repo"], minutes, item["young"][0])
    return ""


def remove(item: dict) -> None:
    """Remove what `unused` found of one model; names first, content last. Raises claims.Busy."""
    home = models.directory(item["hub"], item["repo"])
    with claims.holding(item["hub"], os.path.basename(home)):
        for path in [path for path, commit in _refs(home).items() if commit in item["commits"]]:
            os.unlink(path)
        for commit in item["commits"]:
            for ending in (".json", ".wanted"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(home, ".sglang-ops", commit + ending))
            if os.path.isdir(os.path.join(home, "snapshots", commit)):
                shutil.rmtree(os.path.join(home, "snapshots", commit))  # follows no links
        for path in item["files"]:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    os.unlink(path)
        if item["whole"]:
            shutil.rmtree(home)
