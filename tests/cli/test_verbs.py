"""What the verbs print, return and keep, from what the hosts report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from conftest import DEPLOYMENT, MODULE, Shell, task

GOOD_GATE = {
    "name": "sglang-tiny",
    "release": "0123456789ab",
    "ok": True,
    "layers": [{"name": "unit", "ok": True, "detail": "active"}, {"name": "answer", "ok": True, "detail": "16 tokens"}],
    "cause": None,
    "log": [],
    "rolled_back_to": None,
}
BAD_GATE = {
    **GOOD_GATE,
    "ok": False,
    "layers": [{"name": "unit", "ok": True, "detail": "active"}, {"name": "port", "ok": False, "detail": "refused"}],
    "cause": "the server ended with exit code 1",
    "log": [f"line {number}" for number in range(30)],
}


def gate(service: dict[str, Any], **result: Any) -> dict[str, Any]:
    return task("sglang_gate", {"sglang_ops": {"kind": "gate", "services": [service]}, **result})


@pytest.fixture
def first_deploy(shell: Shell, plan: Callable[..., dict[str, Any]]) -> Shell:
    shell.inventory("one", "two")
    service = {"kind": "service", "services": [{"name": "sglang-tiny", "release": "0123456789ab", "action": "start"}]}
    shell.playbook(
        "deploy",
        task("sglang_plan", plan(action="start", healthy=False)),
        task("sglang_service", {"changed": True, "sglang_ops": service}, when="not ansible_check_mode"),
        gate(GOOD_GATE),
    )
    return shell


def test_deploy_reports_each_host_in_the_agreed_form(first_deploy: Shell) -> None:
    found = first_deploy.json("deploy", "-i", "hosts.yml")
    assert (found["ok"], found["exit_code"], first_deploy.code) == (True, 0, 0)
    host = found["hosts"][0]
    assert set(host) == {"host", "changed", "module_executions", "seconds", "services", "release", "kernels", "group"}
    assert (host["changed"], host["module_executions"]) == (1, 3)
    assert host["seconds"] > 0
    service = host["services"][0]
    assert {key: service[key] for key in ("name", "release", "endpoint", "healthy", "image_digest", "gpus")} == {
        "name": "sglang-tiny",
        "release": "0123456789ab",
        "endpoint": "http://192.0.2.1:8000/v1",
        "healthy": True,
        "image_digest": "sha256:" + "a" * 64,
        "gpus": [0, 1],
    }
    assert first_deploy.err == ""  # progress is for people


def test_deploy_shows_people_progress_services_and_the_next_command(first_deploy: Shell) -> None:
    assert first_deploy.run("deploy", "-i", "hosts.yml") == 0
    assert "http://192.0.2.1:8000/v1" in first_deploy.out
    assert "started" in first_deploy.out
    for step in ("plan", "start", "gate"):
        assert f"one {step}" in first_deploy.err
    assert "Finished in " in first_deploy.err
    assert "Next: sglang-ops status -i hosts.yml" in first_deploy.err


def test_check_announces_and_changes_nothing(first_deploy: Shell) -> None:
    assert first_deploy.run("deploy", "-i", "hosts.yml", "--check") == 0
    row = next(line for line in first_deploy.out.splitlines() if line.startswith("one"))
    assert re.split(r"  +", row.strip()) == [
        "one",
        "sglang-tiny",
        "start",
        "not deployed yet",
        "about 40 s",
    ]
    assert first_deploy.run("deploy", "-i", "hosts.yml", "--check", "--detailed-exitcode") == 2


def test_check_on_a_converged_host_says_so(shell: Shell, plan: Callable[..., dict[str, Any]]) -> None:
    shell.inventory("one")
    shell.playbook("deploy", task("sglang_plan", plan()))
    assert shell.run("deploy", "-i", "hosts.yml", "--check", "--detailed-exitcode") == 0
    assert "Nothing to do" in shell.out


def test_check_shows_differences_on_request(first_deploy: Shell) -> None:
    file = {"dest": str(first_deploy.home / "unit"), "content": "[Unit]\n", "mode": "0600"}
    first_deploy.playbook("deploy", {"ansible.builtin.copy": file})
    assert first_deploy.run("deploy", "-i", "hosts.yml", "--check", "--diff") == 0
    assert "+[Unit]" in first_deploy.out
    assert not (first_deploy.home / "unit").exists()


def test_a_second_run_reports_no_change(shell: Shell, plan: Callable[..., dict[str, Any]]) -> None:
    shell.inventory("one")
    shell.playbook("deploy", task("sglang_plan", plan()))
    host = shell.json("deploy", "-i", "hosts.yml")["hosts"][0]
    assert (host["changed"], host["module_executions"]) == (0, 1)
    assert host["services"][0]["healthy"] is True
    assert shell.run("deploy", "-i", "hosts.yml") == 0
    assert "unchanged" in shell.out


def test_what_limit_keeps_out_is_named(shell: Shell, plan: Callable[..., dict[str, Any]]) -> None:
    shell.inventory("one", "two", "three")
    told = {**plan()["sglang_ops"], "left_out": ["two", "three"]}
    shell.playbook("deploy", task("sglang_plan", {"sglang_ops": told}))
    assert shell.run("deploy", "-i", "hosts.yml", "--limit", "one") == 0
    assert "Not looked at, because of --limit: two, three. What runs there stays as it was." in shell.err
    assert "Next: sglang-ops rollout status -i hosts.yml\n" in shell.err
    assert shell.json("deploy", "-i", "hosts.yml", "--limit", "one")["left_out"] == ["two", "three"]


def test_a_refusal_lists_every_reason_and_says_that_nothing_was_touched(
    shell: Shell, plan: Callable[..., dict[str, Any]]
) -> None:
    shell.inventory("one", "two")
    reasons = ["port 8000 is taken by nginx (pid 12).", "4 GPUs are asked and 2 are there."]
    shell.playbook("deploy", task("sglang_plan", plan(action="start", errors=reasons)))
    assert shell.run("deploy", "-i", "hosts.yml") == 7
    assert all(
        shell.err.count(f"  {reason}") == 1 for reason in reasons
    )  # hosts with the same reasons share a paragraph
    assert "one, two failed at plan" in shell.err
    assert "Nothing was touched there." in shell.err


def test_hosts_that_were_fine_when_others_refused_are_not_called_deployed(
    shell: Shell, plan: Callable[..., dict[str, Any]]
) -> None:
    shell.inventory("one")
    shell.playbook(
        "deploy", task("sglang_plan", plan(action="start", healthy=False)), {"ansible.builtin.meta": "end_play"}
    )
    service = shell.json("deploy", "-i", "hosts.yml")["hosts"][0]["services"][0]
    assert (service["action"], service["healthy"]) == ("pending", False)


def test_a_failed_gate_shows_cause_log_and_what_to_type(shell: Shell, plan: Callable[..., dict[str, Any]]) -> None:
    shell.inventory("one")
    failed = gate(BAD_GATE, failed=True, msg="sglang-tiny does not serve: the server ended with exit code 1.")
    shell.playbook("deploy", task("sglang_plan", plan(action="start")), failed)
    assert shell.run("deploy", "-i", "hosts.yml") == 4
    assert "one failed at gate:\n  sglang-tiny does not serve" in shell.err
    assert "line 0" in shell.err
    assert "line 29" in shell.err
    assert f"Full log: {shell.last_run() / 'ansible.log'}" in shell.err
    assert "sglang-ops logs -i hosts.yml --limit one -n 200" in shell.err


def repairs(shell: Shell) -> list[str]:
    return [line.strip() for line in shell.err.partition("put right by:")[2].splitlines() if "sglang-ops" in line]


def test_hosts_that_serve_together_are_put_right_together_whatever_limit_was_given(
    shell: Shell, plan: Callable[..., dict[str, Any]]
) -> None:
    shell.inventory("n1", "n2", "x")
    told = plan(action="restart")
    told["sglang_ops"]["plan"]["services"][0]["group"] = ["n1", "n2"]
    alone = task("sglang_plan", plan(action="restart"), when="inventory_hostname == 'x'")
    together = task("sglang_plan", told, when="inventory_hostname != 'x'")
    shell.playbook("deploy", alone, together, gate(BAD_GATE, failed=True, msg="it does not serve."))
    assert shell.run("deploy", "-i", "hosts.yml", "-c", "deployment.yaml", "--limit", "n1,n2,x") == 4
    assert repairs(shell) == [
        "sglang-ops logs -i hosts.yml --limit n1,n2 -n 200",
        "sglang-ops rollback -i hosts.yml --limit n1,n2",
        "sglang-ops deploy -i hosts.yml -c deployment.yaml --limit n1,n2",
        "sglang-ops logs -i hosts.yml --limit x -n 200",
        "sglang-ops rollback -i hosts.yml --limit x",
        "sglang-ops deploy -i hosts.yml -c deployment.yaml --limit x",
    ]
    assert shell.json("deploy", "-i", "hosts.yml", "--limit", "n1,n2")["hosts"][0]["group"] == ["n1", "n2"]


def test_who_is_behind_no_gateway_is_undrained_with_all_that_serve_together(
    shell: Shell, plan: Callable[..., dict[str, Any]]
) -> None:
    shell.inventory("n1", "n2")
    told = plan(action="restart")
    told["sglang_ops"]["plan"]["services"][0]["group"] = ["n1", "n2"]
    own = {"kind": "gateway", "workers": []}
    failing = {"msg": "it does not list http://n1", "exit_hint": 4, "failed": True, "sglang_ops": own}
    (shell.content / "plugins/modules/sglang_gateway.py").write_text(MODULE)
    shell.playbook(
        "deploy", task("sglang_plan", told), task("sglang_gateway", failing, when="inventory_hostname == 'n1'")
    )
    assert shell.run("deploy", "-i", "hosts.yml", "-cdeployment.yaml", "-l", "all") == 4
    assert repairs(shell) == [
        "sglang-ops status -i hosts.yml",
        "sglang-ops undrain -i hosts.yml n1,n2 -c deployment.yaml",
    ]


def test_a_roll_back_has_its_own_exit_code_and_names_what_serves(
    shell: Shell, plan: Callable[..., dict[str, Any]]
) -> None:
    shell.inventory("one")
    back = gate(
        {**BAD_GATE, "rolled_back_to": "ba9876543210"}, failed=True, msg="ba9876543210 serves again.", exit_hint=3
    )
    shell.playbook("deploy", task("sglang_plan", plan(action="restart")), back)
    found = shell.json("deploy", "-i", "hosts.yml")
    assert (shell.code, found["exit_code"], found["ok"]) == (3, 3, False)
    assert found["hosts"][0]["services"][0]["release"] == "ba9876543210"
    assert found["hosts"][0]["services"][0]["healthy"] is True


def test_the_deployment_file_reaches_ansible_as_a_path_and_is_kept_redacted(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-token-1")
    shell.inventory("one")
    secrets = {"HF_TOKEN": "host:HF_TOKEN", "WANDB_API_KEY": "canary-token-2", "OMP_NUM_THREADS": "4"}
    deployment = yaml.safe_load(DEPLOYMENT)
    deployment["deployment"] |= {"env_vars": secrets, "extra_args": "--api-key canary-token-3 --log-level info"}
    (shell.home / "deployment.yaml").write_text(yaml.safe_dump(deployment))
    seen = "{{ sglang_ops_deployment_files[0] }} {{ lookup('env', 'HF_TOKEN') }} canary-token-2 canary-token-3"
    shell.playbook("deploy", {"ansible.builtin.debug": {"msg": seen}})
    assert shell.run("deploy", "-i", "hosts.yml", "-v") == 0
    assert f"{shell.home / 'deployment.yaml'} canary-token-1" in shell.err  # what the user's own terminal may show
    for path in shell.last_run().iterdir():
        assert "canary-token" not in path.read_text(), path.name
    kept = yaml.safe_load((shell.last_run() / "config.yaml").read_text())["deployment"]
    assert kept["env_vars"] == {"HF_TOKEN": "host:HF_TOKEN", "WANDB_API_KEY": "(hidden)", "OMP_NUM_THREADS": "4"}
    assert kept["extra_args"] == ["--api-key", "(hidden)", "--log-level", "info"]


def test_keys_of_the_file_can_be_overridden(shell: Shell) -> None:
    shell.inventory("one")
    show = "{{ lookup('file', sglang_ops_deployment_files[0]) }} {{ other | type_debug }}"
    shell.playbook("deploy", {"ansible.builtin.debug": {"msg": show}})
    words = ["-e", "deployment.port=9000", "-e", '{"deployment": {"env_vars": {"A": "b"}}}', "-e", "other=true"]
    assert shell.run("deploy", "-i", "hosts.yml", "-v", *words) == 0
    assert "port: 9000" in shell.err
    assert "A: b" in shell.err
    assert "served_model_name: tiny" in shell.err
    assert "bool" in shell.err
    assert "9000" not in (shell.home / "deployment.yaml").read_text()


def test_the_inventory_may_hold_the_deployment(shell: Shell) -> None:
    (shell.home / "deployment.yaml").unlink()
    shell.inventory("one", "two", deployment=yaml.safe_load(DEPLOYMENT)["deployment"])
    shell.playbook("deploy", {"ansible.builtin.debug": {"msg": "{{ lookup('file', sglang_ops_deployment_files[0]) }}"}})
    assert shell.run("deploy", "-i", "hosts.yml", "-v") == 0
    assert "served_model_name: tiny" in shell.err


def test_one_run_deploys_one_thing(shell: Shell) -> None:
    (shell.home / "deployment.yaml").unlink()
    first = yaml.safe_load(DEPLOYMENT)["deployment"]
    hosts = {"one": {"deployment": first}, "two": {"deployment": {**first, "port": 9000}}}
    (shell.home / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    assert shell.run("deploy", "-i", "hosts.yml") == 7
    assert "differs between hosts" in shell.err


def test_the_file_beside_the_inventory_is_found(shell: Shell) -> None:
    (shell.home / "fleet").mkdir()
    (shell.home / "deployment.yaml").rename(shell.home / "fleet" / "deployment.yaml")
    shell.inventory("one").rename(shell.home / "fleet" / "hosts.yml")
    shell.playbook("deploy", {"ansible.builtin.debug": {"msg": "{{ sglang_ops_deployment_files[0] }}"}})
    assert shell.run("deploy", "-i", "fleet/hosts.yml", "-v") == 0
    assert str(shell.home / "fleet" / "deployment.yaml") in shell.err


def test_verify_tells_every_layer(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("verify", gate(BAD_GATE, failed=True, msg="it does not serve"))
    found = shell.json("verify", "-i", "hosts.yml")
    assert found["ok"] is False
    assert found["checks"] == [
        {"host": "one", "service": "sglang-tiny", "name": "unit", "ok": True, "detail": "active"},
        {"host": "one", "service": "sglang-tiny", "name": "port", "ok": False, "detail": "refused"},
    ]
    shell.playbook("verify", gate(GOOD_GATE))
    assert shell.run("verify", "-i", "hosts.yml") == 0
    assert "16 tokens" in shell.out


def test_verify_counts_a_bad_layer_even_if_the_task_did_not_fail(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("verify", gate(BAD_GATE))
    assert shell.run("verify", "-i", "hosts.yml") == 1


def test_verify_of_a_host_that_is_gone_is_not_ok(shell: Shell) -> None:
    inventory = {"all": {"hosts": {"gone": {"ansible_host": "127.0.0.1", "ansible_port": 1}}}}
    (shell.home / "hosts.yml").write_text(json.dumps(inventory))
    shell.playbook("verify", gate(GOOD_GATE))
    found = shell.json("verify", "-i", "hosts.yml")
    assert (shell.code, found["ok"]) == (6, False)
    assert "connection refused" in found["checks"][0]["detail"]


STATUS = {
    "name": "sglang-tiny",
    "release": "0123456789ab",
    "endpoint": "http://192.0.2.1:8000/v1",
    "healthy": True,
    "state": "active",
    "image_digest": "sha256:" + "a" * 64,
    "gpus": [0],
    "uptime_seconds": 93784,
    "restarts": 2,
    "running": 3,
    "queued": 1,
    "tokens_per_second": 1234.5,
    "gpu_memory": [{"gpu": 0, "used_mib": 40960, "total_mib": 81920}],
}


def test_status_is_the_hosts_own_words(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("status", task("sglang_status", {"sglang_ops": {"kind": "status", "services": [STATUS]}}))
    assert shell.json("status", "-i", "hosts.yml")["services"] == [{"host": "one", **STATUS}]
    assert shell.run("status", "-i", "hosts.yml") == 0
    for shown in ("healthy", "0123456789ab", "1d2h", "3/1", "1234", "0:40/80G", "aaaaaaaaaaaa"):
        assert shown in shell.out


def test_status_of_nothing_says_what_to_type(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("status", task("sglang_status", {"sglang_ops": {"kind": "status", "services": []}}))
    assert shell.run("status", "-i", "hosts.yml") == 0
    assert "No service is deployed" in shell.err
    assert "sglang-ops deploy -i hosts.yml" in shell.err


def test_logs_of_all_hosts_come_in_order(shell: Shell) -> None:
    shell.inventory("one", "two")
    lines = [
        {
            "service": "sglang-tiny",
            "time": "2026-11-22T10:00:0{{ 1 if inventory_hostname == 'two' else 2 }}+00:00",
            "text": "up",
        }
    ]
    shell.playbook("logs", task("sglang_logs", {"sglang_ops": {"kind": "logs", "lines": lines, "cursor": "c"}}))
    assert [line["host"] for line in shell.json("logs", "-i", "hosts.yml")["lines"]] == ["two", "one"]
    assert shell.run("logs", "-i", "hosts.yml") == 0
    assert [line.split()[0] for line in shell.out.splitlines()] == ["two", "one"]


@pytest.mark.parametrize(("given", "passed"), [("10m", "-10m"), ("2h30m", "-2h30m"), ("yesterday", "yesterday")])
def test_logs_since_takes_spans_as_kubectl_does(given: str, passed: str, shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("logs", {"ansible.builtin.debug": {"msg": "[{{ sglang_health_logs_since }}]"}})
    assert shell.run("logs", "-i", "hosts.yml", "--since", given) == 0
    assert f"[{passed}]" in (shell.last_run() / "ansible.log").read_text()


@pytest.mark.parametrize("verb", ["restart", "stop", "remove"])
def test_verbs_act_on_the_named_service(verb: str, shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook(verb, {"ansible.builtin.debug": {"msg": "{{ sglang_ops_services }}"}})
    yes = ["--yes"] if verb == "remove" else []
    assert shell.run(verb, "-i", "hosts.yml", "--service", "tiny", *yes) == 0
    assert '"sglang-tiny"' in (shell.last_run() / "ansible.log").read_text()
    assert shell.run(verb, "-i", "hosts.yml", *yes) == 0  # without a name, the deployment file tells
    assert '"sglang-tiny"' in (shell.last_run() / "ansible.log").read_text()


def test_history_lists_what_changed_and_on_request_what_looked(first_deploy: Shell) -> None:
    first_deploy.playbook("status", task("sglang_status", {"sglang_ops": {"kind": "status", "services": []}}))
    first_deploy.run("deploy", "-i", "hosts.yml")
    first_deploy.run("status", "-i", "hosts.yml")
    runs = first_deploy.json("history")["runs"]
    assert [(run["verb"], run["exit_code"], run["hosts"]) for run in runs] == [("deploy", 0, 2)]
    assert len(first_deploy.json("history", "--all")["runs"]) == 2
    assert first_deploy.run("history") == 0
    assert "done" in first_deploy.out


def test_a_run_that_could_not_begin_is_in_history_too(shell: Shell) -> None:
    shell.inventory("one")
    shell.playbook("deploy", {"no.such.module": {}})
    assert shell.run("deploy", "-i", "hosts.yml") == 1
    assert "no.such.module" in shell.err
    assert shell.json("history")["runs"][0]["exit_code"] == 1


def test_validate_reports_errors_by_line(shell: Shell) -> None:
    (shell.home / "deployment.yaml").write_text(
        "deployment:\n  served_model_name: x\n  hf_model_handle: a/b\n  prot: 1\n"
    )
    found = shell.json("validate")
    assert (shell.code, found["ok"]) == (7, False)
    assert found["errors"] == [
        {"path": "deployment.prot", "line": 4, "message": found["errors"][0]["message"], "fix": "Did you mean 'port'?"}
    ]


def test_validate_accepts_and_warns(shell: Shell) -> None:
    (shell.home / "deployment.yaml").write_text(DEPLOYMENT + "  env_vars: {HF_TOKEN: hf_plain}\n")
    found = shell.json("validate", "--config", "deployment.yaml")
    assert (shell.code, found["ok"], found["errors"]) == (0, True, [])
    assert "host:HF_TOKEN" in found["warnings"][0]
    assert "hf_plain" not in shell.out
