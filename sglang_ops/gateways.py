"""Which gateways a host runs, and which are in front of its servers: read from the inventory, without any host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang_ops.action_inputs import FILES_VARIABLE, deployments_of, files_of, matching, written
from sglang_ops.addresses import address_of
from sglang_ops.errors import PreflightError
from sglang_ops.planning import Worker, worker_url
from sglang_ops.spec import Deployment, Gateway


def fronts_of(deployment: Deployment, task_vars: Mapping[str, Any]) -> tuple[str, ...]:
    """Hosts that run the gateway of `deployment`, () where it has none. Raises PreflightError where none matches."""
    if deployment.gateway is None:
        return ()
    pattern = deployment.gateway.hosts
    hosts = matching(pattern, task_vars)
    if not hosts:
        fix = "Write a pattern of hosts or groups that the inventory has."
        message = f"gateway.hosts: '{pattern}' of {deployment.service_name} matches no host."
        raise PreflightError(message, fix=fix)
    return tuple(hosts)


def served_by(deployment: Deployment, task_vars: Mapping[str, Any]) -> list[str]:
    """The hosts at which `deployment` answers: of hosts that serve one model together the first of each group."""
    return matching(deployment.hosts, task_vars)[:: deployment.nodes]


def before(deployment: Deployment, task_vars: Mapping[str, Any]) -> tuple[str, ...]:
    """Hosts of the gateways that send requests to this host for `deployment`. Raises PreflightError."""
    fronts = fronts_of(deployment, task_vars)
    return fronts if fronts and str(task_vars["inventory_hostname"]) in served_by(deployment, task_vars) else ()


def gateways_of(task_vars: Mapping[str, Any], templar: Any) -> list[tuple[Gateway, Deployment, tuple[Worker, ...]]]:
    """The gateways that this host runs, each with one of the deployments that it is in front of, and its servers."""
    host = str(task_vars["inventory_hostname"])
    every = written(files_of(task_vars, templar))
    found: dict[str, tuple[Gateway, Deployment]] = {}
    for deployment in every:
        if deployment.gateway and host in fronts_of(deployment, task_vars):
            found.setdefault(deployment.gateway.service_name, (deployment.gateway, deployment))
    return [(*pair, _workers(name, every, task_vars, templar)) for name, pair in found.items()]


def _workers(
    gateway: str, every: Sequence[Deployment], task_vars: Mapping[str, Any], templar: Any
) -> tuple[Worker, ...]:
    """Every server of the inventory that stands behind `gateway`, whether it runs or not."""
    members = [item for item in every if item.gateway and item.gateway.service_name == gateway]
    hosts = dict.fromkeys(host for item in members for host in served_by(item, task_vars))
    found = []
    for host in hosts:
        variables = task_vars["hostvars"][host]
        own = deployments_of(variables, templar)
        address = address_of(host, variables)
        found += [
            Worker(host, worker_url(item, address))
            for item in own
            if item.gateway and item.gateway.service_name == gateway and host in served_by(item, task_vars)
        ]
    return tuple(found)


def entries_of(task_vars: Mapping[str, Any], templar: Any) -> list[dict[str, str]]:
    """The servers of this host that stand behind gateways, as a plan has them; [] where there is no deployment file."""
    if not task_vars.get(FILES_VARIABLE) and not {"deployment", "deployments"} & set(task_vars):
        return []
    host = str(task_vars["inventory_hostname"])
    address = address_of(host, task_vars)
    return [
        {"host": front, "service": item.gateway.service_name, "url": worker_url(item, address)}
        for item in deployments_of(task_vars, templar)
        if item.gateway
        for front in before(item, task_vars)
    ]
