"""`evaluate` with the real engine: the lab's own deployment file and data, scored by the harness's own scorers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sglang_ops.lab import questions
from tests.lab import evaluation_data as data
from tests.lab.conftest import Lab, ops

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.engine]

SERVER = "sglang-tiny-llama"
TASKS = {"gpqa_diamond": "gpqa_diamond_cot_zeroshot", "ifeval": "ifeval"}
# What the launcher has for these tasks, and the lab's file: greedy, so that the same question has the same answer.
GENERATION = {
    "gpqa_diamond": "temperature=0.0,top_p=1e-5,max_gen_toks=256",
    "ifeval": "temperature=1e-7,top_p=0.9999999,max_gen_toks=256",
}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """One host that serves the tiny model, and has no way out once the image of the harness is there."""
    lab = make_lab("t-eval-real", hosts=1, gpus=1, engine="docker", os="debian13", server="real")
    done = ops("lab", "harness", "--name", lab.name, timeout=600)
    assert done.returncode == 0, done.stderr
    deployed = lab.deploy()
    assert deployed["ok"], deployed
    data.write(lab.folder)
    copy = f"tar -C {lab.folder} -cf - hand | ssh -F {lab.folder}/ssh/config {lab.hosts[0]} sudo tar -C / -xf -"
    subprocess.run(["bash", "-c", copy], check=True, timeout=60)
    lab.ssh("ip route show default > /root/route; ip route del default")
    yield lab
    lab.ssh("ip route add $(cat /root/route)")


def loads(lab: Lab) -> int:
    """How often the engine has loaded a model since the host began, as its own log tells."""
    return int(lab.ssh(f"journalctl -q --no-pager -o cat -t {SERVER} | grep -c 'Load weight end'"))


def results(lab: Lab, task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.folder / "results/real" / task / "results.json").read_text())
    return found


def test_both_tasks_of_the_labs_own_file_are_scored_with_one_load_of_the_model(lab: Lab) -> None:
    words = ["evaluate", "-i", str(lab.inventory), "--name", "real", "--output-dir", str(lab.folder / "results")]
    done = ops(*words, "--output", "json", env=lab.env, timeout=900)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"], told
    assert [task["name"] for task in told["tasks"]] == list(TASKS)
    for task in TASKS:
        found = results(lab, task)
        assert (found["items"], found["answered"], found["failed"]) == (questions.ITEMS, questions.ITEMS, 0)
        assert found["complete"]
        lines = (lab.folder / "results/real" / task / "samples.jsonl").read_text().splitlines()
        assert all(json.loads(line)["completion_tokens"] > 0 for line in lines)
    assert loads(lab) == 1, "two tasks, one load"
    assert lab.ssh(f"systemctl show --value -p NRestarts {SERVER}").strip() == "0"


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_the_harness_run_by_hand(lab: Lab, task: str) -> None:
    """The same image with its own command, against the same server: answers and every metric are the same."""
    image = lab.ssh("docker image ls --digests --format '{{.Repository}}@{{.Digest}}' | grep lm-eval").split()[0]
    out = f"/hand/out-{task}"
    command = (
        f"docker run --rm --network host -v /hand:/hand -w /hand -e NLTK_DATA={questions.IN_IMAGE} "
        f"-e HF_HUB_OFFLINE=1 -e HF_DATASETS_OFFLINE=1 {image} python3 -m lm_eval run --model local-chat-completions "
        "--model_args base_url=http://127.0.0.1:8000/v1/chat/completions,model=tiny-llama,num_concurrent=12 "
        f"--tasks {TASKS[task]} --apply_chat_template --output_path {out} --log_samples "
        f"--gen_kwargs {GENERATION[task]} >{out}.log 2>&1; cat {out}/*/results_*.json || tail -n 20 {out}.log >&2"
    )
    said = lab.ssh(command, timeout=600)
    assert said.startswith("{"), said[-3000:]
    by_hand = json.loads(said)["results"][TASKS[task]]
    metrics = results(lab, task)["metrics"]
    assert len(metrics) >= 2
    for metric in metrics:
        name = metric["name"] if "," in metric["name"] else f"{metric['name']},none"
        assert metric["score"] == pytest.approx(by_hand[name], abs=1e-12), metric["name"]
    theirs = [json.loads(line) for line in lab.ssh(f"cat {out}/*/samples_*.jsonl").splitlines()]
    texts = {str(line["doc_id"]): line["resps"][0][0] for line in theirs}
    ours = map(json.loads, (lab.folder / "results/real" / task / "samples.jsonl").read_text().splitlines())
    assert {line["id"]: line["answer"] for line in ours} == texts
    assert loads(lab) == 1
