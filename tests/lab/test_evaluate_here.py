"""`execution: local` and groups of tasks: the harness on this machine asks the servers of two lab hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_ops.lab import harness
from sglang_ops.lab.images import recipes
from sglang_ops.lab.settings import cache_root
from tests.lab import evaluation_data as data
from tests.lab.conftest import ROOT, Lab, ops

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the packages of the lab's image are for Python 3.11"),
]

CANARY = "hf_canary_of_this_machine"
EXPECTED = {"ifeval": 0.75, "gpqa_diamond": 0.5, "capitals": 1.0, "rivers": 0.0}
GROUP = {
    "group": "geography",
    "task": ["capitals", "rivers"],
    "aggregate_metric_list": [{"metric": "exact_match", "aggregation": "mean", "weight_by_size": True}],
}


def python_with_harness(lab: Lab, place: Path) -> Path:
    """A Python of this machine that has the packages of the lab's harness."""
    done = ops("lab", "harness", "--name", lab.name, timeout=600)
    assert done.returncode == 0, done.stderr
    layer = cache_root() / "images/layers" / harness._recipe(harness.UPSTREAM).key / "layer.tar"
    (place / "packages").mkdir()
    subprocess.run(["tar", "-C", place / "packages", "-xf", layer], check=True)
    venv.create(place / "venv", with_pip=False, symlinks=True)
    site = next((place / "venv/lib").iterdir()) / "site-packages"
    (site / "harness.pth").write_text(f"{place / 'packages' / recipes.SITE}\n")
    return place / "venv/bin/python"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = make_lab("t-here", hosts=2, gpus=1, server="simulator")
    python = python_with_harness(lab, tmp_path_factory.mktemp("harness"))
    lab.env |= {"LAB_EVALUATION_CANARY": CANARY, "SGLANG_OPS_HARNESS_PYTHON": str(python)}
    data.write(lab.folder)
    (lab.folder / "geography").mkdir()
    for name in ("capitals", "rivers"):
        for path in (lab.folder / name).iterdir():
            (lab.folder / "geography" / path.name).write_bytes(path.read_bytes())
    (lab.folder / "geography" / "geography.yaml").write_text(yaml.safe_dump(GROUP))
    for host in lab.hosts:
        copy = f"tar -C {lab.folder} -cf - srv | ssh -F {lab.folder}/ssh/config {host} sudo tar -C / -xf -"
        subprocess.run(["bash", "-c", copy], check=True, timeout=60)
    serve(lab, "answers.jsonl")
    return lab


def serve(lab: Lab, answers: str) -> None:
    config = lab.write(
        "deployment",
        env_vars={"SGLANG_SIMULATOR_ANSWERS": f"/answers/{answers}"},
        mounts={"/srv/answers": "/answers:ro"},
    )
    content = yaml.safe_load(config.read_text()) | data.evaluation(4 if answers == "answers.jsonl" else 1)
    content["execution"] = {"type": "local"}
    content["evaluation"]["env_vars"]["NLTK_DATA"] = str(lab.folder / "srv/nltk")
    named = [task for task in content["evaluation"]["tasks"] if task["name"] not in GROUP["task"]]
    content["evaluation"]["tasks"] = [*named, {"name": "geography", "dataset_dir": "geography"}]
    config.write_text(yaml.safe_dump(content))
    deployed = lab.deploy(config)
    assert deployed["ok"], deployed


def command(lab: Lab, *arguments: str, verb: str = "") -> list[str]:
    words = ["evaluate", *([verb] if verb else []), "-i", str(lab.inventory), *arguments]
    return [*words, "--output-dir", str(lab.folder / "results"), "--output", "json"]


def evaluate(lab: Lab, *arguments: str, verb: str = "") -> dict[str, Any]:
    done = ops(*command(lab, *arguments, verb=verb), env=lab.env, timeout=280)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_harness_runs_here_and_asks_the_servers_of_the_fleet(lab: Lab) -> None:
    checked = evaluate(lab, "--name", "never", "--check")
    assert checked["ok"], checked
    assert not (Path(lab.env["SGLANG_OPS_STATE"]) / "evaluations").exists()
    done = evaluate(lab, "--name", "here")
    assert done["ok"], done
    assert {task["name"]: task["score"] for task in done["tasks"]} == EXPECTED
    folder = lab.folder / "results" / "here"
    run = json.loads((folder / "run.json").read_text())
    assert (run["complete"], sorted(run["hosts"])) == (True, sorted(lab.hosts))
    lines = [json.loads(line) for line in (folder / "ifeval" / "samples.jsonl").read_text().splitlines()]
    assert {line["host"] for line in lines} == set(lab.hosts), "both servers were asked"
    for host in lab.hosts:
        assert "evaluation" not in lab.ssh("ls /var/lib/sglang-ops /etc/systemd/system; docker ps -a", host)
    told = [path for path in Path(lab.env["SGLANG_OPS_STATE"]).rglob("*") if path.is_file()]
    secret = [path for path in (*told, *folder.rglob("*")) if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert [(path.name, path.stat().st_mode & 0o777) for path in secret] == [("secrets.json", 0o600)]
    assert evaluate(lab, "--name", "here")["exit_code"] == 7, "there are results of that name"


def test_a_group_has_the_results_of_its_tasks_and_its_mean(lab: Lab) -> None:
    folder = lab.folder / "results" / "here"
    assert json.loads((folder / "capitals" / "results.json").read_text())["score"] == 1.0
    (group,) = json.loads((folder / "run.json").read_text())["groups"]
    assert (group["name"], group["tasks"], group["complete"]) == ("geography", ["capitals", "rivers"], True)
    (mean,) = group["metrics"]
    assert (mean["name"], mean["score"], mean["items"]) == ("exact_match", 0.5, 8)


def begin(lab: Lab, name: str) -> tuple[subprocess.Popen[str], Path]:
    """A run whose command is at work, once three answers are there; and its status."""
    words = [sys.executable, "-m", "sglang_ops", *command(lab, "--name", name, "-t", "ifeval")]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | lab.env
    running = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    status = Path(lab.env["SGLANG_OPS_STATE"]) / "evaluations" / name / "status.json"
    deadline = time.monotonic() + 120
    while not status.exists() or json.loads(status.read_text()).get("done", 0) < 3:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.2)
    return running, status


def test_it_goes_on_after_ctrl_c_and_asks_only_what_is_missing(lab: Lab) -> None:
    serve(lab, "slow.jsonl")
    running, status = begin(lab, "hurt")
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 130, told
    before = json.loads(status.read_text())["done"]
    done = evaluate(lab, "hurt", verb="resume")
    assert done["ok"], done
    assert {task["name"]: task["score"] for task in done["tasks"]} == {"ifeval": 0.75}
    assert json.loads(status.read_text())["requests"] <= 12 - before + 1, "one more measures the server's speed"
    assert evaluate(lab, "hurt", verb="rm")["states"] == {"controller": "removed"}
    assert not status.exists()


def test_a_run_whose_command_was_killed_is_seen_watched_and_cancelled(lab: Lab) -> None:
    """The program has outlived its command; two of them never share a run."""
    serve(lab, "slowest.jsonl")
    running, status = begin(lab, "alone")
    running.kill()
    running.communicate(timeout=60)
    for verb in ("resume", "rm"):
        refused = ops(*command(lab, "alone", verb=verb), env=lab.env)
        assert (refused.returncode, "is at work on this machine" in refused.stdout + refused.stderr) == (7, True)
    listed = ops("evaluate", "ls", "-i", str(lab.inventory), "alone", "--output", "json", env=lab.env)
    (row,) = json.loads(listed.stdout)["runs"]
    assert (row["host"], row["state"], row["total"]) == ("controller", "running", 12)
    assert evaluate(lab, "alone", verb="cancel")["states"] == {"controller": "cancelled"}
    answered = json.loads(status.read_text())["done"]
    time.sleep(5)
    assert json.loads(status.read_text())["done"] == answered < 12
    stopped = evaluate(lab, "alone", verb="wait")
    assert (stopped["exit_code"], stopped["states"]) == (1, {"controller": "cancelled"})
    assert ops("evaluate", "logs", "-i", str(lab.inventory), "alone", env=lab.env).returncode == 0
    assert evaluate(lab, "alone", verb="rm")["states"] == {"controller": "removed"}


def test_what_cannot_run_here_is_told_before_anything_is_asked(lab: Lab) -> None:
    content = yaml.safe_load((lab.folder / "deployment.yaml").read_text())
    content["evaluation"]["harness"] = "nvidia"
    path = lab.folder / "nvidia.yaml"
    path.write_text(yaml.safe_dump(content))
    done = ops(*command(lab, "-c", str(path)), env=lab.env)
    assert done.returncode == 7
    assert "runs on the hosts" in done.stdout + done.stderr
    done = ops(*command(lab), env=lab.env | {"SGLANG_OPS_HARNESS_PYTHON": "/usr/bin/false"})
    assert done.returncode == 7
    assert "/usr/bin/false has no lm_eval" in done.stdout + done.stderr
    assert ops(*command(lab, "--detach"), env=lab.env).returncode == 7
