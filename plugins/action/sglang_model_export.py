"""Fetch models from the first host that has them into a bundle of this machine."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import bundle_models
from sglang_ops.action_inputs import hubs_of, plain
from sglang_ops.bundle import check_space, receive
from sglang_ops.bundle_models import Model
from sglang_ops.errors import OpsError
from sglang_ops.saving import shown
from sglang_ops.sending import SendingAction


class ActionModule(SendingAction):
    """Arguments: `path` of the bundle's directory, `models` as {"repo", "revision"}, `hub` and `hf_home` as for import.

    Every host says which of the models it has; each model comes from the first that says so.
    """

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        variables = task_vars or {}
        given = plain(self._task.args)
        items: list[dict[str, Any]] = []
        try:
            hubs = hubs_of(variables, self._templar, given["hf_home"])
            for wanted in given["models"]:
                hub = given.get("hub") or hubs.get(wanted["repo"], f"{given['hf_home']}/hub")
                asked = {"hub": hub, **wanted}
                answer = dict(self._execute_module("sglang_model_export", module_args=asked, task_vars=variables))
                if answer.get("failed") or answer.get("unreachable"):
                    return result | answer
                items.append(self._export(Path(given["path"]), wanted, answer.get("model"), variables))
        except OpsError as error:
            return result | self.failed(error)
        report = {"kind": "bundle", "items": items, "executions": len(items)}
        return result | {"changed": False, "sglang_ops": report}

    def _export(
        self, directory: Path, wanted: dict[str, str], told: dict[str, Any] | None, variables: dict[str, Any]
    ) -> dict[str, Any]:
        item = {"name": wanted["repo"], "digest": "", "bytes": 0, "sent": 0, "action": "absent"}
        if told is None:
            return item
        paths = {entry["blob"]: str(entry.pop("path")) for entry in told["files"]}
        model = _model(told)
        item |= {"digest": model.commit, "bytes": model.size, "action": "there"}
        if model in bundle_models.known(directory):
            return item
        if not _first(f"{directory} {model.repo} {model.revision}"):
            return item | {"action": "elsewhere"}
        host = str(variables["inventory_hostname"])
        moved = self._fetch(directory, model, paths, self.noting(host, "model_export"))
        bundle_models.add(directory, model)
        return item | {"action": "export", "sent": moved}

    def _fetch(self, directory: Path, model: Model, paths: dict[str, str], note: Any) -> int:
        places = {blob: directory / model.blob_name(blob) for blob in model.blobs}
        missing = [item for blob, item in model.blobs.items() if not _is_whole(places[blob], item.size)]
        check_space(directory, sum(item.size - _held(places[item.blob]) for item in missing))
        done, moved = model.size - sum(item.size for item in missing), 0
        for item in missing:
            moved += item.size - _held(places[item.blob])

            def pieces(offset: int, path: str = paths[item.blob], size: int = item.size) -> Iterator[bytes]:
                return self.take(path, offset, size)

            def progress(count: int, before: int = done) -> None:
                note(shown(before + count, model.size))

            receive(places[item.blob], item.size, item.sha256, pieces, progress)
            done += item.size
        return moved


def _model(told: dict[str, Any]) -> Model:
    try:
        return Model.of(told)
    except (ValueError, KeyError, TypeError) as error:
        raise OpsError(f"the host describes the model in a way that is not understood: {error}.") from error


def _first(what: str) -> bool:
    """Whether this worker is the first of the run that wants to do it; the run's own directory keeps the claims."""
    claim = Path(C.DEFAULT_LOCAL_TMP) / f"sglang-ops-claim-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _is_whole(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _held(path: Path) -> int:
    part = path.with_name(f"{path.name}.part")
    return part.stat().st_size if part.exists() else 0
