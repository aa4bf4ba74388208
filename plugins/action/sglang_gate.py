"""Ask the gate's questions with the module of the same name, showing what it waits for.

Where the roll-out's gate has a policy, the canary is evaluated between "it serves" and "it is stable", and the module
is told what came of it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import base_of, deployments_of, evaluated_file, plain
from sglang_ops.ansible_action import ProgressAction
from sglang_ops.errors import OpsError
from sglang_ops.spec import Deployment

HF_HOME = "/var/lib/sglang-ops/huggingface"  # as the role `evaluation` has it


class ActionModule(ProgressAction):
    """The module `sglang_gate`, in two parts where a policy judges what lies between them."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        given, variables = dict(self._task.args), task_vars or {}
        quality = plain(given.get("quality") or {})
        if not quality.get("policy") or self._task.check_mode:
            return dict(super().run(tmp, task_vars))
        passed = plain(given.get("passed") or [])
        if given.get("phase", "all") == "all":
            first = self.execute_with_progress(
                module_args=given | {"phase": "gate", "quality": {}}, task_vars=variables
            )
            if first.get("failed") or first.get("unreachable"):
                return first
            passed = first["sglang_ops"]["services"]
        asked = [one for one in plain(given.get("services") or []) if not one.get("rank")]
        names = [str(one["name"]) for one in asked]
        word, why = self._judged(quality, names, variables)
        told = {"phase": "soak", "passed": passed, "quality": {"verdict": word, "why": why}}
        return self.execute_with_progress(module_args=given | told, task_vars=variables)

    def _judged(self, quality: dict[str, Any], names: list[str], variables: dict[str, Any]) -> tuple[str, str]:
        """The worst word on the deployments that the services `names` belong to, and why."""
        meant = [
            item
            for item in deployments_of(variables, self._templar)
            if any(replica.service_name in names for replica in item.replicas)
        ]
        found = [self._evaluated(quality, item, names, variables) for item in meant]
        for worst in ("no-go", "inconclusive"):
            if any(word == worst for word, _ in found):
                return next(pair for pair in found if pair[0] == worst)
        return found[0] if found else ("go", "the first host of its group is evaluated")

    def _evaluated(
        self, quality: dict[str, Any], deployment: Deployment, names: list[str], variables: dict[str, Any]
    ) -> tuple[str, str]:
        """Evaluate, bring the results home and judge them. That nothing can be measured says nothing of the release."""
        from sglang_ops.evaluation import release_gate, run_results

        base = base_of(variables)
        host = str(variables["inventory_hostname"])
        try:
            gate = release_gate.read(quality, evaluated_file(variables, self._templar, deployment), deployment, base)
            name = gate.work.run
            work = gate.work.variables()
            work["job"] = work["job"] | {"only": names}  # of several replicas, those that have changed by now
            folder = gate.output / f"{name}-{host}"
            try:
                self._evaluation("started", work, variables)
                with tempfile.TemporaryDirectory(prefix="sglang-ops-") as private:
                    ended = self._evaluation("waited", {"run": name}, variables, fetch=private)
                    (one,) = ended["sglang_ops"]["runs"]
                    unpacked = run_results.unpack(Path(private) / f"{host}.tar.gz", Path(private) / host)
                    part = run_results.Part(host, unpacked, str(one["state"]), str(one.get("why") or ""))
                    run_results.assemble(folder, folder.name, [part], {})
            finally:  # a gate that failed leaves no unit that asks, and no secrets
                with contextlib.suppress(OpsError):  # it may not have got so far
                    self._evaluation("absent", {"run": name}, variables)
            return gate.decide(folder)
        except OpsError as error:
            return "inconclusive", error.message

    def _evaluation(self, do: str, work: dict[str, Any], variables: dict[str, Any], fetch: str = "") -> dict[str, Any]:
        """What the action `sglang_evaluation` says. Raises OpsError where it fails."""
        task = self._task.copy()
        task.action = "sglang_evaluation"
        task.args = {
            "do": do,
            "work": work,
            "fetch": fetch,
            "image": variables.get("evaluation_harness_image", ""),
            "hf_home": variables.get("evaluation_hf_home", HF_HOME),
            "settings": {
                "container_engine": variables.get("container_engine", "docker"),
                "insecure_registries": variables.get("container_engine_insecure_registries", []),
                "registry_mirrors": variables.get("evaluation_registry_mirrors", {}),
            },
        }
        action = self._shared_loader_obj.action_loader.get(
            "sglang_evaluation", task=task, connection=self._connection, play_context=self._play_context,
            loader=self._loader, templar=self._templar, shared_loader_obj=self._shared_loader_obj,
        )  # fmt: skip
        done: dict[str, Any] = action.run(task_vars=variables)
        if done.get("failed") or done.get("unreachable"):
            raise OpsError(f"it could not be evaluated: {done.get('msg') or 'the host did not answer'}")
        return done
