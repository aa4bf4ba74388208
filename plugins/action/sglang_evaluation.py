"""Start, watch and fetch evaluations: the harness's image and the module of the same name, results over SSH."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 - as Ansible writes it
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import deployments_of, evaluated_file, hosts_of, plain, resolve_once
from sglang_ops.bundle import receive
from sglang_ops.errors import OpsError, PreflightError
from sglang_ops.evaluation import harness, run
from sglang_ops.planning import ResolvedImage, Settings
from sglang_ops.planning.command import Mount
from sglang_ops.planning.nodes import answering
from sglang_ops.saving import shown
from sglang_ops.sending import SendingAction
from sglang_ops.spec import Deployment

NO_IMAGE = (
    "There is no image with the harness. Build one (FROM python:3.11-slim, RUN pip install 'lm_eval[api,ifeval]==%s'), "
    "push it to a registry and name it in evaluation.harness_image."
)


class ActionModule(SendingAction):
    """Arguments: `do` is the module's state, `work` what sglang_ops.evaluation.run made, `settings`, `hf_home`, `image`
    of the inventory, `fetch` the directory for results."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        variables = task_vars or {}
        given = plain(self._task.args)
        try:
            if given["do"] in ("started", "described"):
                return result | self._start(given, variables)
            return result | self._other(given, variables)
        except OpsError as error:
            told = self.failed(error)
            return result | told | {"sglang_ops": {"kind": "evaluation", "runs": []}}

    def _start(self, given: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        work, host = given["work"], str(variables["inventory_hostname"])
        deployments = deployments_of(variables, self._templar)
        deployment = next((item for item in deployments if item.service_name == work["job"]["deployment"]), None)
        if deployment is None or host not in self._asked(deployment, variables):  # it is meant for other hosts
            return {"changed": False, "sglang_ops": {"kind": "evaluation", "runs": [], "executions": 0}}
        if given["do"] == "described":
            return self._describe(work, deployment, variables)
        settings = Settings.model_validate(given["settings"])
        engine = settings.container_engine
        images = [self._image(ref or given["image"], settings) for ref in work["images"]]
        asked = [{"ref": one.ref, "digest_ref": one.digest_ref, "size_bytes": one.size_bytes} for one in images]
        pulled = self.execute_with_progress("sglang_image", {"engine": engine, "images": asked}, variables)
        if pulled.get("failed") or pulled.get("unreachable"):
            return pulled
        file = evaluated_file(variables, self._templar, deployment)
        tasks = self._shared(work["job"], deployment, variables)
        digests = [one.digest_ref for one in images]
        job = dict(work["job"], host=host, images=digests, tasks=tasks)
        container = harness.Container(
            run=work["run"], service=deployment.service_name, images=digests, engine=engine,
            hf_home=given["hf_home"], mounts=[Mount(*mount) for mount in work["mounts"]],
            environment={"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if job["offline"] else {},
        )  # fmt: skip
        files = {name: Path(path).read_bytes() for name, path in work["files"].items()}
        script = container.script()
        programs = {"agent.pyz": harness.program()} | ({harness.SCRIPT: script.encode()} if script else {})
        arguments = {
            "state": "started",
            "run": work["run"],
            "job": job | {"unit": container.unit_name},
            "unit": container.unit(),
            "files": {name: base64.b64encode(content).decode() for name, content in {**files, **programs}.items()},
            "secrets": run.environment(file, deployment, Path(work["base"])),
        }
        done = self.execute_with_progress("sglang_evaluation", arguments, variables)
        done.get("sglang_ops", {})["executions"] = 2
        if done.get("failed"):  # refused is refused, whether its image was there or had to come
            return done
        return done | {"changed": bool(done.get("changed") or pulled.get("changed"))}

    def _describe(self, work: dict[str, Any], deployment: Deployment, variables: dict[str, Any]) -> dict[str, Any]:
        """What the servers of this host allow, and where the controller finds them."""
        file = evaluated_file(variables, self._templar, deployment)
        secrets = run.environment(file, deployment, Path(work["base"]))
        arguments = {"state": "described", "run": work["run"], "job": work["job"], "secrets": secrets}
        done = self.execute_with_progress("sglang_evaluation", arguments, variables)
        for one in (done.get("sglang_ops") or {}).get("runs", []):
            for server in one["job"]["upstreams"]:
                if server["address"] == "127.0.0.1":  # of a server that listens on every address
                    server["address"] = str(variables.get("ansible_host") or server["address"])
        return done | {"changed": False}

    @staticmethod
    def _image(ref: str, settings: Settings) -> ResolvedImage:
        if not ref:
            raise PreflightError(NO_IMAGE % "0.4.13")
        return resolve_once(ref, settings, Path(C.DEFAULT_LOCAL_TMP))

    @staticmethod
    def _asked(deployment: Deployment, variables: dict[str, Any]) -> list[str]:
        """The hosts whose servers are asked: of those that serve a model together, only the first answers."""
        return answering(deployment, hosts_of(deployment, variables))

    @staticmethod
    def _shared(job: dict[str, Any], deployment: Deployment, variables: dict[str, Any]) -> list[dict[str, Any]]:
        """The tasks with this host's share of the items: every n-th, by its place among the hosts that are asked."""
        meant = ActionModule._asked(deployment, variables)
        hosts = [str(host) for host in variables["ansible_play_hosts_all"] if str(host) in meant]
        share = [0, 1] if job["repeat_on_hosts"] else [hosts.index(str(variables["inventory_hostname"])), len(hosts)]
        return [dict(task, shards=[share]) for task in job["tasks"]]

    def _other(self, given: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        host = str(variables["inventory_hostname"])
        arguments = {"state": given["do"], "run": given["work"].get("run", "")}
        added = (given["work"].get("shards") or {}).get(host)
        if added:
            arguments["job"] = {"shards": added}
        done = self.execute_with_progress("sglang_evaluation", arguments, variables)
        archive = next((one.get("archive") for one in (done.get("sglang_ops") or {}).get("runs", [])), None)
        if archive and given.get("fetch"):
            note = self.noting(host, "evaluation")
            receive(
                Path(given["fetch"]) / f"{host}.tar.gz",
                archive["size"],
                archive["sha256"],
                lambda offset: self.take(archive["path"], offset, archive["size"]),
                lambda count: note(f"fetching {shown(count, archive['size'])}"),
            )
        return done
