"""Several deployments on hosts that differ: who runs what, on which GPUs, and that neighbours are left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Lab

pytestmark = pytest.mark.lab

TIMES = {"restart_delay": 1, "soak": 1, "start_timeout": 120, "drain_timeout": 5}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab]) -> Lab:
    return share_lab(hosts=2)


def fleet(lab: Lab, **changes: dict[str, Any]) -> Path:
    """`small` on every host, `large` on the second only."""
    body = lab.deployment["deployment"]
    large = {"served_model_name": "large", "port": 8001, "hosts": lab.hosts[1]}
    both = {"small": body | {"served_model_name": "small"}, "large": body | large}
    for name, change in changes.items():
        env_vars = {"env_vars": both[name].get("env_vars", {}) | change.pop("env_vars", {})}
        both[name] |= change | env_vars
    path = lab.folder / "fleet.yaml"
    path.write_text(yaml.safe_dump({"deployments": both}))
    return path


def services(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(host["host"], item["name"]): item for host in result["hosts"] for item in host["services"]}


def rows(lab: Lab) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["host"], row["name"]): row for row in lab.json("status")["services"]}


def test_each_host_runs_what_is_meant_for_it(lab: Lab) -> None:
    first, second = lab.hosts
    result = lab.deploy(fleet(lab), *QUICK)
    assert result["ok"], result
    assert set(services(result)) == {(first, "sglang-small"), (second, "sglang-small"), (second, "sglang-large")}
    assert all(row["healthy"] for row in rows(lab).values())
    assert max(host["module_executions"] for host in result["hosts"]) <= 12
    neighbours = [rows(lab)[second, name]["gpus"] for name in ("sglang-small", "sglang-large")]
    assert sorted(neighbours) == [[0], [1]]


def test_second_run_costs_one_execution_for_both(lab: Lab) -> None:
    again = lab.deploy(fleet(lab), *QUICK)
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1), (0, 1)]


def test_host_variables_are_laid_over_the_file(lab: Lab) -> None:
    first, second = lab.hosts
    variables = {"deployment_overrides": {"small": {"port": 8080, "extra_args": "--log-level warning"}}}
    folder = lab.inventory.parent / "host_vars"
    folder.mkdir(exist_ok=True)
    (folder / f"{first}.yml").write_text(yaml.safe_dump(variables))
    try:
        result = lab.deploy(fleet(lab), *QUICK)
    finally:
        (folder / f"{first}.yml").unlink()
    assert result["ok"], result
    assert services(result)[first, "sglang-small"]["endpoint"].endswith(":8080")
    assert "--log-level warning" in lab.ssh("cat /etc/systemd/system/sglang-small.service", first)
    assert "--log-level" not in lab.ssh("cat /etc/systemd/system/sglang-small.service", second)
    assert [host["changed"] for host in result["hosts"]] != [0, 0]


def test_bad_neighbour_goes_back_alone(lab: Lab) -> None:
    second = lab.hosts[1]
    assert lab.deploy(fleet(lab), *QUICK)["ok"]
    before = rows(lab)[second, "sglang-large"]
    changes = {"small": {"extra_args": "--log-level debug"},
               "large": {"env_vars": {"SGLANG_SIMULATOR_FAULT": "wrong-model"}}}
    result = lab.deploy(fleet(lab, **changes), *QUICK)
    assert result["exit_code"] == 3, result
    failed = next(host for host in result["hosts"] if host["host"] == second)
    assert "sglang-large serves release" in failed["failure"]["cause"]
    assert "sglang-small serves release" not in failed["failure"]["cause"]
    after = rows(lab)
    assert after[second, "sglang-large"]["release"] == before["release"]
    assert after[second, "sglang-large"]["healthy"]
    assert "--log-level debug" in lab.ssh("cat /etc/systemd/system/sglang-small.service", second)


def test_two_files_and_a_clash_between_them(lab: Lab) -> None:
    one = lab.write("one", served_model_name="small")
    two = lab.write("two", served_model_name="other", port=lab.deployment["deployment"]["port"])
    refused = lab.deploy(one, "--config", str(two), *QUICK)
    assert refused["exit_code"] == 7
    assert "belongs to sglang-" in refused["hosts"][0]["failure"]["cause"]
    twin = lab.write("twin", served_model_name="small")
    same = lab.run("deploy", "--yes", "--config", str(one), "--config", str(twin))
    assert same.returncode == 7
    assert "sglang-small" in same.stderr


def test_pattern_that_matches_no_host_is_refused(lab: Lab) -> None:
    refused = lab.deploy(fleet(lab, large={"hosts": "gpu-farm"}), *QUICK)
    assert refused["exit_code"] == 7
    assert "'gpu-farm'" in refused["hosts"][0]["failure"]["cause"]
