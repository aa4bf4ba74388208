"""What the action plugins need from a run: the deployment, its secrets, the digest of its image."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang_ops import catalog, registry
from sglang_ops.addresses import address_of
from sglang_ops.errors import OpsError, PreflightError
from sglang_ops.groups import joined
from sglang_ops.planning import ResolvedImage, Secrets, Settings
from sglang_ops.planning.command import hub_cache
from sglang_ops.planning.nodes import Group, group_of
from sglang_ops.planning.questions import repository
from sglang_ops.rollout import changes, described
from sglang_ops.spec import Deployment, DeploymentFile, Gateway, check_names, divided, load, load_mapping

FILES_VARIABLE = "sglang_ops_deployment_files"
BASE_VARIABLE = "sglang_ops_deployment_base"  # where relative paths of these files begin
_NEWEST = 3  # releases whose tags are compared with that of `latest`
# What hosts that serve a model together may each have their own of: interfaces, and where things lie.
OWN = {"env_vars", "mounts", "checkpoint_path"}
# What a host's variables may say, in the words of the deployment file; one of the first two must be there.
SECTIONS = ("deployment", "deployments", "env_vars", "execution", "rollout")
ROLLOUT_VARIABLE = "sglang_ops_rollout"  # what the command line adds: {"options", "resume", "judged", "digests"}


def deployments_of(task_vars: Mapping[str, Any], templar: Any) -> tuple[Deployment, ...]:
    """The deployments of this host: of the files that the command line names, else of the host's variables.

    `deployment_overrides` of the host is laid over them; `hosts` of a deployment says whether it is meant for this
    one. Raises SpecErrors, PreflightError.
    """
    return meant_for(files_of(task_vars, templar), task_vars)


def files_of(task_vars: Mapping[str, Any], templar: Any) -> tuple[DeploymentFile, ...]:
    """The deployment files behind `deployments_of`. Raises SpecErrors, PreflightError."""
    overrides = plain(templar.template(task_vars.get("deployment_overrides") or {}))
    paths = plain(templar.template(task_vars.get(FILES_VARIABLE) or []))
    if not paths:
        given = {key: plain(templar.template(task_vars[key])) for key in SECTIONS if key in task_vars}
        if not given.keys() & set(SECTIONS[:2]):
            fix = "Pass a file with --config (or -e @deployment.yaml), or set the variable `deployment`."
            raise PreflightError("there is no deployment to work on.", fix=fix)
        return (load_mapping(given, f"variable `{next(iter(given))}`", host_overrides=overrides),)
    files = [load(Path(path)) for path in paths]
    if overrides:  # which of them changes which file is known only once the files are
        parts = divided(files, overrides)
        files = [load(Path(path), host_overrides=part) for path, part in zip(paths, parts, strict=True)]
    return tuple(files)


def meant_for(files: Sequence[DeploymentFile], task_vars: Mapping[str, Any]) -> tuple[Deployment, ...]:
    """The deployments of `files` for this host. Raises SpecErrors, PreflightError."""
    return tuple(item for item in written(files) if _meant_for(item, task_vars))


def written(files: Sequence[DeploymentFile]) -> tuple[Deployment, ...]:
    """Every deployment of `files`, whatever hosts it is meant for. Raises SpecErrors."""
    found = [deployment for file in files for deployment in file.services]
    check_names(found)
    return tuple(found)


def base_of(task_vars: Mapping[str, Any]) -> Path:
    """Where relative paths of the deployment begin: beside its file, else where ansible-playbook was started."""
    return Path(str(task_vars.get(BASE_VARIABLE) or Path.cwd()))


def evaluated_file(task_vars: Mapping[str, Any], templar: Any, deployment: Deployment) -> DeploymentFile:
    """The file that the deployment stands in, for its `evaluation:`. Raises SpecErrors, PreflightError."""
    for path in plain(templar.template(task_vars.get(FILES_VARIABLE) or [])):
        file = load(Path(path))
        if any(item.service_name == deployment.service_name for item in file.services):
            return file
    given = {key: plain(templar.template(task_vars[key])) for key in (*SECTIONS, "evaluation") if key in task_vars}
    return load_mapping(given, "the variable `evaluation`")


def hubs_of(task_vars: Mapping[str, Any], templar: Any, hf_home: str) -> dict[str, str]:
    """Where the deployments of this host have their models: the hub's directory on the host, by repository."""
    if not task_vars.get(FILES_VARIABLE):
        return {}
    settings = Settings.model_validate({"hf_home": hf_home})
    named = [(item, repository(item)[0]) for item in deployments_of(task_vars, templar)]
    return {repo: hub_cache(item, settings) for item, repo in named if repo}


def group_for(deployment: Deployment, task_vars: Mapping[str, Any], templar: Any) -> Group | None:
    """The group that this host belongs to where the deployment spreads over several hosts. Raises PreflightError."""
    if deployment.nodes == 1:
        return None
    host, playing = str(task_vars["inventory_hostname"]), list(map(str, task_vars["ansible_play_hosts_all"]))
    hosts = group_of(deployment, host, hosts_of(deployment, task_vars), playing)
    others = task_vars["hostvars"]
    if not task_vars.get(FILES_VARIABLE) or any("deployment_overrides" in others[name] for name in hosts):
        for name in hosts:
            if name != host:
                _agree(deployment, host, name, deployments_of(others[name], templar))
    return Group({name: address_of(name, others[name]) for name in hosts})


def _agree(deployment: Deployment, host: str, other: str, theirs: Sequence[Deployment]) -> None:
    """Raise PreflightError where `other` would serve something else than `host`, together with which it serves."""
    name, fix = deployment.service_name, "deployment_overrides and variables of all hosts of a group must be the same."
    twin = next((item for item in theirs if item.service_name == name), None)
    if twin is None:
        raise PreflightError(f"{host} and {other} serve {name} together, and {other} is told of none.", fix=fix)
    pair = [{key: value for key, value in described(item).items() if key not in OWN} for item in (deployment, twin)]
    found = changes(*pair)
    if found:
        raise PreflightError(f"{host} and {other} serve {name} together, and differ: {'; '.join(found)}.", fix=fix)


def _meant_for(deployment: Deployment, task_vars: Mapping[str, Any]) -> bool:
    """Whether the pattern `hosts` of the deployment, read as Ansible reads patterns, names this host."""
    return str(task_vars["inventory_hostname"]) in hosts_of(deployment, task_vars)


def left_out(files: Sequence[DeploymentFile], task_vars: Mapping[str, Any]) -> list[str]:
    """The hosts that the deployments and their gateways name and that this run, limited as it is, does not look at."""
    playing = set(map(str, task_vars["ansible_play_hosts_all"]))
    if len(playing) >= len(task_vars["groups"]["all"]):
        return []
    every = written(files)
    patterns = [item.hosts for item in every] + [item.gateway.hosts for item in every if item.gateway]
    named = dict.fromkeys(host for pattern in dict.fromkeys(patterns) for host in matching(pattern, task_vars))
    return [host for host in named if host not in playing]


def hosts_of(deployment: Deployment, task_vars: Mapping[str, Any]) -> list[str]:
    """The hosts that the pattern `hosts` of the deployment names. Raises PreflightError where there is none."""
    names = matching(deployment.hosts, task_vars)
    if not names:
        fix = "Write a pattern of hosts or groups that the inventory has."
        raise PreflightError(f"hosts: '{deployment.hosts}' of {deployment.service_name} matches no host.", fix=fix)
    return names


def fleet_of(files: Sequence[DeploymentFile], task_vars: Mapping[str, Any]) -> list[list[str]]:
    """The hosts that the deployments are meant for, those side by side that change together.

    Hosts that run a gateway and no server are none of them; those that --limit keeps out are.
    """
    mates: dict[str, set[str]] = {}
    for item in written(files):
        hosts = hosts_of(item, task_vars)
        for position, host in enumerate(hosts):
            start = position // item.nodes * item.nodes
            mates.setdefault(host, set()).update(hosts[start : start + item.nodes])
    return joined(list(mates), mates)


def matching(pattern: str, task_vars: Mapping[str, Any]) -> list[str]:
    """The hosts that `pattern`, read as Ansible reads patterns, names, in the order of the inventory."""
    everyone = [str(host) for host in task_vars["groups"]["all"]]
    if pattern == "all":
        return everyone
    from ansible.inventory.manager import InventoryManager  # noqa: PLC0415 (only plays know Ansible)
    from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415

    inventory = InventoryManager(DataLoader(), parse=False)
    for group, hosts in task_vars["groups"].items():
        inventory.add_group(group)
        for host in hosts:
            inventory.add_host(host, group=group)
    names = {str(host.name) for host in inventory.get_hosts(pattern)}
    return [host for host in everyone if host in names]


def plain(value: Any) -> Any:
    """Ansible's tagged values as ordinary ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def secrets_for(service: Mapping[str, Any], deployment: Deployment | Gateway) -> dict[str, str]:
    """Values of the secrets that this planned service gets, from the operator's environment."""
    known = Secrets.of(deployment, os.environ).values
    return {name: known[name] for name in service["secrets"] if name in known}


def hub_token(deployment: Deployment) -> str:
    """HF_TOKEN of the deployment, "" where it has none."""
    return Secrets.of(deployment, os.environ).values.get("HF_TOKEN", "")


def runtime_for(service: Mapping[str, Any], deployment: Deployment | Gateway) -> list[dict[str, str]]:
    """Variables that the host itself knows, as {"name": in the container, "source": on the host}."""
    references = deployment.env_vars
    return [
        {"name": name, "source": references[name].value}
        for name in service["secrets"]
        if name in references and references[name].kind == "runtime"
    ]


def resolve_once(image: str, settings: Settings, run_directory: Path) -> ResolvedImage:
    """The image's digest, asked (its mirror, if it has one) once per run: every host of the fleet gets the same one.

    `run_directory` is Ansible's own temporary directory, private to the run and shared by its workers.
    Raises the registry's error, the same one for every host.
    """
    ref = registry.mirrored(image, settings.registry_mirrors)
    name = hashlib.sha256(ref.encode()).hexdigest()[:16]
    answer = run_directory / f"sglang-ops-image-{name}.json"
    with (run_directory / f"sglang-ops-image-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            answer.write_text(json.dumps(_resolve(ref, settings.insecure_registries)))
        known = json.loads(answer.read_text())
    if "error" in known:
        error: type[OpsError] = getattr(registry, known["error"], OpsError)
        raise error(known["message"], fix=known["fix"])
    return replace(ResolvedImage(**known), ref=image)


def tagged(image: str, settings: Settings) -> str:
    """The image (its mirror's name, if it has one) with its tag, by which it may have been loaded from files."""
    reference = registry.parse(registry.mirrored(image, settings.registry_mirrors))
    return f"{reference.repository}:{reference.tag}"


def _resolve(ref: str, insecure: Sequence[str]) -> dict[str, Any]:
    try:
        found = registry.resolve(ref, insecure=insecure)
    except OpsError as error:
        return {"error": type(error).__name__, "message": error.message, "fix": error.fix}
    release = catalog.release_of(ref) or _release_behind(found, ref, insecure)
    return {
        "ref": ref,
        "digest_ref": found.digest_ref,
        "size_bytes": found.size_bytes or 0,
        "release": release,
    }


def _release_behind(found: registry.ResolvedImage, ref: str, insecure: Sequence[str]) -> str:
    """The release whose own tag has the digest of a `latest…` tag; "" where none of the newest has."""
    if not (found.tag or "").startswith("latest"):
        return ""
    variant = str(found.tag).removeprefix("latest")
    releases = list(catalog.releases())[-_NEWEST:]
    tags = {f"v{release}{variant}": release for release in reversed(releases)}
    return tags.get(registry.twin(ref, found.digest, tags, insecure=insecure) or "", "")
