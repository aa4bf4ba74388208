"""`evaluate` against modules that say what the test tells them: refusals, results, and exit codes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEPLOYMENT, MODULE, Shell

EVALUATION = {"evaluation": {"tasks": [{"name": "ifeval"}]}}


@pytest.fixture(autouse=True)
def _hosts(shell: Shell) -> None:
    shell.inventory("one")
    (shell.home / "deployment.yaml").write_text(DEPLOYMENT + yaml.safe_dump(EVALUATION))
    (shell.content / "plugins" / "modules" / "sglang_evaluation.py").write_text(MODULE)


def told(state: str, **more: Any) -> dict[str, Any]:
    row = {"run": "r", "state": state, "service": "sglang-tiny", "done": 1, "total": 2, "shards": [[0, 1]], **more}
    return {"sglang_ops": {"kind": "evaluation", "runs": [row], "warnings": ["2 requests at once"]}}


def answers(shell: Shell, start: dict[str, Any], end: dict[str, Any] | None = None) -> None:
    """What the module says when a run is started, and when it is waited for; then results lie ready."""
    shell.playbook(
        "evaluate",
        {
            "name": "a",
            "sglang_evaluation": {"result": start},
            "when": "sglang_ops_evaluation.do in ['started', 'resumed']",
        },
        {
            "name": "b",
            "ansible.builtin.copy": {
                "src": str(shell.home / "one.tar.gz"),
                "dest": "{{ sglang_ops_evaluation.fetch }}/one.tar.gz",
                "mode": "0600",
            },
            "when": "sglang_ops_evaluation.do in ['waited', 'collected']",
        },
        {
            "name": "c",
            "sglang_evaluation": {"result": end or start},
            "when": "sglang_ops_evaluation.do not in ['started', 'resumed']",
        },
    )


def archive(home: Path, items: int = 2, **more: Any) -> None:
    samples = [
        {"id": str(item), "repeat": 0, "host": "one", "prompt": "p", "answer": "a", "scores": {"acc": item}}
        for item in range(2)
    ]
    job = {
        "tasks": [{"name": "ifeval", "harness_task": "ifeval", "generation": {}}],
        "server": {"argv": ["sglang"], "image_digest": "sha256:1", "model": {"repo": "a/b", "commit": "c"}},
        "created": 1e9,
        "deployment": "sglang-tiny",
        "model": "tiny",
        "concurrency": 2,
        "image": "i",
        **more,
    }
    found = {"items": items, "repeats": 1, "primary": "acc", "dataset": {"name": "d", "sha256": "0" * 64}}
    files = {
        "job.json": json.dumps(job),
        "checked.json": json.dumps({"harness": {"name": "h", "version": "1"}, "tasks": {"ifeval": found}}),
        "results/ifeval/samples.jsonl": "".join(json.dumps(one) + "\n" for one in samples),
    }
    for name, text in files.items():
        (home / "packed" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "packed" / name).write_text(text)
    with tarfile.open(home / "one.tar.gz", "w:gz") as packed:
        for name in files:
            packed.add(home / "packed" / name, arcname=name)


def test_results_are_brought_shown_and_said_to_programs(shell: Shell) -> None:
    archive(shell.home)
    answers(shell, told("running"), told("done"))
    said = shell.json("evaluate", "-i", "hosts.yml", "--name", "r")
    assert (said["ok"], said["exit_code"], said["run"]) == (True, 0, "r")
    assert said["output_dir"] == str(shell.home / "results" / "r")
    (task,) = said["tasks"]
    assert {key: task[key] for key in ("name", "score", "items", "failed")} == {
        "name": "ifeval", "score": 0.5, "items": 2, "failed": 0,
    }  # fmt: skip
    assert task["interval"][0] < 0.5 < task["interval"][1]
    assert "Warning: 2 requests at once" in shell.err
    assert shell.run("evaluate", "wait", "-i", "hosts.yml", "r") == 0
    assert "50.0 %" in shell.out


def test_an_incomplete_result_is_no_success(shell: Shell) -> None:
    archive(shell.home, items=3)
    answers(shell, told("running"), told("stalled", why="the server has not answered for 1800 s"))
    assert shell.run("evaluate", "-i", "hosts.yml", "--name", "r") == 1
    assert "1 answers are missing (one: the server has not answered for 1800 s)" in shell.out
    assert "evaluate resume -i hosts.yml r" in shell.err


def test_a_detached_run_is_left_alone(shell: Shell) -> None:
    answers(shell, told("running"))
    assert shell.run("evaluate", "-i", "hosts.yml", "--name", "r", "--detach") == 0
    assert not (shell.home / "results").exists()
    assert "evaluate wait -i hosts.yml r" in shell.err
    listed = shell.json("evaluate", "ls", "-i", "hosts.yml")
    assert [(row["host"], row["run"], row["state"]) for row in listed["runs"]] == [("one", "r", "running")]
    assert shell.run("evaluate", "status", "-i", "hosts.yml", "r") == 0
    assert "1/2" in shell.out


def test_what_the_host_refuses_is_refused(shell: Shell) -> None:
    refusal = {"failed": True, "msg": "sglang-tiny is not deployed here", "exit_hint": 7}
    answers(shell, refusal | {"sglang_ops": {"kind": "evaluation", "runs": []}})
    assert shell.run("evaluate", "-i", "hosts.yml") == 7
    assert "is not deployed here" in shell.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-t", "ifevall"], "Did you mean 'ifeval'?"),
        (["-t", "mmlu"], "needs probabilities"),
        (["--name", "No Good"], "A run cannot be called 'No Good'."),
        (["--name", "there"], "There are results of a run there"),
        (["--output-dir", "file"], "is, or lies in, a file"),
        (["--output-dir", "file/below"], "is, or lies in, a file"),
        (["--service", "other"], "has no deployment other"),
        (["--limit-samples", "0"], "--limit-samples"),
        (["-o", "evaluation.tasks.ifeval.nemo_evaluator_config.config.params.parallelism=0"], "parallelism: 0 must be"),
        (["-o", "evaluation.env_vars.HF_TOKEN=host:NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["-o", "evaluation.tasks.ifeval.dataset_dir=nowhere"], "dataset_dir nowhere is no directory"),
    ],
)
def test_bad_input_is_told_before_a_host_is_touched(words: list[str], message: str, shell: Shell) -> None:
    (shell.home / "file").touch()
    (shell.home / "results" / "there").mkdir(parents=True)
    shell.playbook("evaluate", {"ansible.builtin.file": {"path": str(shell.home / "touched"), "state": "touch"}})
    assert shell.run("evaluate", "-i", "hosts.yml", *words) == 7
    assert message in shell.err
    assert not (shell.home / "touched").exists()


def test_a_full_disk_is_told_beforehand(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5_000_000}))
    assert shell.run("evaluate", "-i", "hosts.yml") == 7
    assert "has 5 MB free, results may need 100 MB" in shell.err


def test_tasks_are_listed_without_a_host(shell: Shell) -> None:
    listed = shell.json("evaluate", "tasks")
    names = [task["name"] for task in listed["tasks"]]
    assert names[:2] == ["gpqa_diamond", "ifeval"]
    assert len(names) > 4000
    assert shell.run("evaluate", "tasks", "gpqa_diamond") == 0
    assert "HF_TOKEN, or dataset_dir" in shell.out


def test_without_hosts_it_says_so(shell: Shell) -> None:
    assert shell.run("evaluate") == 7
    assert "Which hosts?" in shell.err


def test_a_run_that_no_host_has_is_named(shell: Shell) -> None:
    archive(shell.home)
    nothing: dict[str, Any] = {"sglang_ops": {"kind": "evaluation", "runs": [], "warnings": []}}
    answers(shell, nothing, nothing)
    assert shell.run("evaluate", "wait", "-i", "hosts.yml", "gone") == 7
    assert "No host has a run gone" in shell.err


def test_stopping_and_removing_say_nothing_of_results_that_were_brought_before(shell: Shell) -> None:
    archive(shell.home, items=3)
    answers(shell, told("running"), told("cancelled"))
    assert shell.run("evaluate", "fetch", "-i", "hosts.yml", "r") == 1
    assert "1 answers are missing" in shell.out
    said = shell.json("evaluate", "cancel", "-i", "hosts.yml", "r")
    assert (said["ok"], said["tasks"], said["states"]) == (True, [], {"one": "cancelled"})
    answers(shell, told("running"), told("removed"))
    assert shell.run("evaluate", "rm", "-i", "hosts.yml", "r") == 0
    assert "removed" in shell.out


def test_each_host_has_a_folder_of_its_own_and_a_lost_one_is_no_success(shell: Shell) -> None:
    archive(shell.home, repeat_on_hosts=True)
    lost = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts = {"all": {"hosts": {"one": {"ansible_connection": "local"}, "two": lost}}}
    (shell.home / "hosts.yml").write_text(yaml.safe_dump(hosts))
    answers(shell, told("running"), told("done"))
    said = shell.json("evaluate", "wait", "-i", "hosts.yml", "r")
    assert (said["ok"], said["exit_code"]) == (False, 6), said
    assert [task["run"] for task in said["tasks"]] == ["r-one"]
    assert [path.name for path in (shell.home / "results").iterdir()] == ["r-one"]
    shell.inventory("one")
    again = shell.json("evaluate", "wait", "-i", "hosts.yml", "r")
    assert (again["ok"], [task["run"] for task in again["tasks"]]) == (True, ["r-one"])
    shell.playbook("evaluate", {"ansible.builtin.file": {"path": str(shell.home / "touched"), "state": "touch"}})
    assert shell.run("evaluate", "-i", "hosts.yml", "--name", "r", "--each") == 7
    assert "There are results of a run r in" in shell.err
    assert not (shell.home / "touched").exists()


def test_the_next_command_finds_the_same_place(shell: Shell) -> None:
    archive(shell.home)
    written = DEPLOYMENT + yaml.safe_dump({**EVALUATION, "execution": {"output_dir": "elsewhere"}})
    (shell.home / "files").mkdir()
    (shell.home / "files/other.yaml").write_text(written)
    answers(shell, told("running"), told("done"))
    assert shell.run("evaluate", "-i", "hosts.yml", "-c", "files/other.yaml", "--name", "r", "--detach") == 0
    assert "evaluate wait -i hosts.yml -c files/other.yaml r" in shell.err
    assert shell.run("evaluate", "wait", "-i", "hosts.yml", "-c", "files/other.yaml", "r") == 0
    assert (shell.home / "files/elsewhere/r/run.json").exists(), "beside the file, like its other paths"
    assert not (shell.home / "results").exists()
    assert shell.run("evaluate", "-i", "hosts.yml", "--output-dir", "third", "--name", "q", "--detach") == 0
    assert "evaluate wait -i hosts.yml --output-dir third q" in shell.err


def test_logs_take_the_service_that_they_ask_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"hf_model_handle": "lab/m", "image": "r.example/s:v0.5.23"}
    two = {name: {**common, "served_model_name": name, "port": port} for name, port in (("a", 8000), ("b", 8001))}
    (shell.home / "deployment.yaml").write_text(yaml.safe_dump({"deployments": two, **EVALUATION}))
    shown: list[str] = []
    monkeypatch.setattr("sglang_ops.commands.logs.logs", lambda *_, service, **__: shown.append(service))
    assert shell.run("evaluate", "logs", "-i", "hosts.yml", "r") == 7
    assert "Name it with --service" in shell.err
    shell.run("evaluate", "logs", "-i", "hosts.yml", "--service", "b", "r")
    assert shown == ["sglang-b-evaluation-r"]


def test_hosts_with_different_data_share_no_items(shell: Shell) -> None:
    shell.inventory("one", "two")
    rows = "{'run': 'r', 'state': 'running', 'data': {'ifeval': 'ab' if inventory_hostname == 'one' else 'cd'}}"
    result = {"sglang_ops": {"kind": "evaluation", "runs": ["{{ " + rows + " }}"], "warnings": []}}
    shell.playbook("evaluate", {"name": "a", "sglang_evaluation": {"result": result}})
    assert shell.run("evaluate", "-i", "hosts.yml", "--name", "r") == 7
    assert "ifeval: the hosts do not have the same data: one has ab, two has cd (SHA-256)." in shell.err
