"""NVIDIA's evaluation containers on a lab host: the images are made of NVIDIA's packages, the answers are scripted."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import evaluation_data as data
from tests.lab.conftest import Lab, ops

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SERVER = "sglang-tiny-llama"
CANARY = "hf_canary_of_nvidias"
ITEMS = 12
# Of each data set, how many answers are right: half, all, none.
RIGHT = {"gpqa_diamond": 6, "gpqa_main": ITEMS, "gpqa_extended": 0}
EXPECTED = {"gpqa_diamond": 0.5, "gpqa_main": 1.0, "gpqa_extended": 0.0, "ifeval": 0.75}
HARNESSES = {"gpqa_diamond": "nvidia-simple-evals", "ifeval": "nvidia-lm-eval"}
IMAGES = "nvidia/eval-factory/{}"


def gpqa(name: str) -> str:
    """A file of Idavidrein/gpqa's kind, whose right answers have numbers of their own."""
    out = io.StringIO()
    writer = csv.writer(out)
    wrong = [f"Incorrect Answer {number}" for number in (1, 2, 3)]
    writer.writerow(["Question", "Correct Answer", *wrong, "High-level domain"])
    for number in range(ITEMS):
        words = [f"{metal} {name} {number:02d}" for metal in ("osmium", "gallium", "thulium", "yttrium")]
        writer.writerow([f"Riddle of {name} {number:02d}: which metal is it?", *words, "Physics"])
    return out.getvalue()


def answers() -> str:
    """simple-evals wants the letter, wherever it has put the right answer; ifeval's are as in the other test."""
    lines = [line for line in data.answers().splitlines() if "Riddle" not in line]
    for name, right in RIGHT.items():
        for number in range(ITEMS):
            metal = "osmium" if number < right else "gallium"
            lines += [
                json.dumps({"contains": f"{letter}) {metal} {name} {number:02d}", "answer": f"Answer: {letter}"})
                for letter in "ABCD"
            ]
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    data.write(folder)
    (folder / "srv/answers/nvidia.jsonl").write_text(answers())
    head = (folder / "hand/Idavidrein/gpqa/README.md").read_text()
    for name in RIGHT:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{name}.csv").write_text(gpqa(name))
        (folder / "hand/Idavidrein/gpqa" / f"{name}.csv").write_text(gpqa(name))
    configs = [{"config_name": n, "data_files": [{"split": "train", "path": f"{n}.csv"}]} for n in RIGHT]
    assert head
    (folder / "hand/Idavidrein/gpqa/README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """One host that serves scripted answers and logs what it is asked, NVIDIA's images in its registry."""
    lab = make_lab("t-nvidia", hosts=1, gpus=1, server="simulator")
    lab.env |= {"LAB_EVALUATION_CANARY": CANARY}
    done = ops("lab", "harness", "--nvidia", "--name", lab.name, timeout=900)
    assert done.returncode == 0, done.stderr
    write(lab.folder)
    copy = f"tar -C {lab.folder} -cf - srv hand | ssh -F {lab.folder}/ssh/config {lab.hosts[0]} sudo tar -C / -xf -"
    subprocess.run(["bash", "-c", copy], check=True, timeout=60)
    config = lab.write(
        "deployment",
        env_vars={"SGLANG_SIMULATOR_ANSWERS": "/answers/nvidia.jsonl"},
        mounts={"/srv/answers": "/answers:ro"},
        extra_args="--log-level debug",
    )
    content = yaml.safe_load(config.read_text())
    content |= {
        "execution": {"mounts": {"evaluation": {"/srv/nltk": "/nltk:ro"}}},
        "evaluation": {
            "harness": "nvidia",
            "nemo_evaluator_config": {"config": {"params": {"parallelism": 4, "max_new_tokens": 512}}},
            "env_vars": {"NLTK_DATA": "/nltk", "HF_TOKEN": "host:LAB_EVALUATION_CANARY"},
            "tasks": [
                {"name": "gpqa_diamond", "dataset_dir": "gpqa_diamond"},
                {"name": "ifeval", "dataset_dir": "ifeval_data"},
                {"name": "simple_evals.gpqa_main", "dataset_dir": "gpqa_main"},
                {"name": "simple_evals.gpqa_extended", "dataset_dir": "gpqa_extended"},
            ],
        },
    }
    config.write_text(yaml.safe_dump(content))
    deployed = lab.deploy(config)
    assert deployed["ok"], deployed
    return lab


def evaluate(lab: Lab, *arguments: str) -> dict[str, Any]:
    words = ["evaluate", "-i", str(lab.inventory), *arguments, "--output-dir", str(lab.folder / "results")]
    done = ops(*words, "--output", "json", env=lab.env, timeout=400)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def bodies(lab: Lab, since: int) -> list[dict[str, Any]]:
    """What the server was asked in chats, after so many requests."""
    logged = lab.ssh(f"journalctl -q --no-pager -o cat -t {SERVER} | grep 'Asked /v1/chat/completions: '")
    return [json.loads(line.partition("completions: ")[2]) for line in logged.splitlines()][since:]


def test_the_launchers_tasks_are_run_by_nvidias_containers(lab: Lab) -> None:
    """Both images, one run, no way out of the host; scores, items, harness, image and secrets."""
    lab.ssh("ip route show default > /root/route; ip route del default")
    try:
        done = evaluate(lab, "--name", "both")
    finally:
        lab.ssh("ip route add $(cat /root/route)")
    assert done["ok"], done
    assert {task["name"]: task["score"] for task in done["tasks"]} == EXPECTED
    folder = lab.folder / "results" / "both"
    for task, harness in HARNESSES.items():
        result = json.loads((folder / task / "results.json").read_text())
        assert (result["harness"]["name"], result["harness"]["version"]) == (harness, "26.3")
        assert "/nvidia/eval-factory/" in result["harness"]["image"]
        assert "@sha256:" in result["harness"]["image"]
        assert (result["items"], result["answered"], result["failed"]) == (ITEMS, ITEMS, 0)
        assert (result["complete"], result["dataset"]["sha256"] != "0" * 64) == (True, True)
        lines = [json.loads(line) for line in (folder / task / "samples.jsonl").read_text().splitlines()]
        assert sorted(int(line["id"]) for line in lines) == list(range(ITEMS))
        assert all(line["latency_seconds"] > 0 and line["completion_tokens"] > 0 and line["prompt"] for line in lines)
    assert {line["expected"] for line in map(json.loads, _lines(folder / "gpqa_diamond"))} <= set("ABCD")
    theirs = yaml.safe_load((folder / "gpqa_diamond" / f"results-{lab.hosts[0]}.yml").read_text())
    assert theirs["results"]["tasks"]["gpqa_diamond"]["metrics"]["score"]["scores"]["micro"]["value"] == 0.5
    words = f"grep -rls --devices=skip {CANARY[:-1]}[{CANARY[-1]}] /etc /var/lib/sglang-ops /run/systemd /var/log"
    assert lab.ssh(words).split() == ["/var/lib/sglang-ops/evaluations/both/secrets.json"]
    kept = [path for path in (*folder.rglob("*"), *Path(lab.env["SGLANG_OPS_STATE"]).rglob("*")) if path.is_file()]
    assert not [path for path in kept if CANARY.encode() in path.read_bytes()]
    for words in (
        ("report", str(folder)),
        ("export", str(folder), "--format", "junit", "--to", str(lab.folder / "j.xml")),
    ):
        shown = ops("evaluate", *words, env=lab.env)
        assert shown.returncode == 0, shown.stderr


def _lines(folder: Path) -> list[str]:
    return (folder / "samples.jsonl").read_text().splitlines()


@pytest.mark.parametrize(("task", "image"), [("gpqa_diamond", "simple-evals"), ("ifeval", "lm-evaluation-harness")])
def test_scores_are_those_of_the_container_run_by_hand(lab: Lab, task: str, image: str) -> None:
    """The same image with its own command, against the same server: every metric is the same."""
    name = IMAGES.format(image)
    ref = lab.ssh(
        f"docker image ls --digests --format '{{{{.Repository}}}}@{{{{.Digest}}}}' | grep {name}@sha256"
    ).split()[0]
    command = (
        "docker run --rm --network host -v /srv/nltk:/nltk:ro -v /hand:/hand -w /hand -e NLTK_DATA=/nltk "
        f"-e NO_KEY=none -e HF_HUB_OFFLINE=1 -e NEMO_EVALUATOR_TELEMETRY_LEVEL=0 -e ADAPTER_SERVER_THREADS=8 {ref} "
        f"nemo-evaluator run_eval --eval_type {task} "
        "--model_id tiny-llama --model_url http://127.0.0.1:8000/v1/chat/completions --model_type chat "
        f"--api_key_name NO_KEY --output_dir /hand/out-{task} "
        "--overrides 'config.params.parallelism=2,config.params.max_new_tokens=512' >/hand/log 2>&1; "
        f"cat /hand/out-{task}/results.yml || tail -n 20 /hand/log >&2"
    )
    by_hand = yaml.safe_load(lab.ssh(f"timeout 250 {command}", timeout=280))["results"]["tasks"][task]["metrics"]
    metrics = json.loads((lab.folder / "results/both" / task / "results.json").read_text())["metrics"]
    values = {name: next(iter(one["scores"].values()))["value"] for name, one in by_hand.items()}
    assert {metric["name"]: metric["score"] for metric in metrics} == pytest.approx(values, abs=1e-12)


def test_every_parameter_reaches_the_server(lab: Lab) -> None:
    content = yaml.safe_load((lab.folder / "deployment.yaml").read_text())
    params = {"limit_samples": 3, "parallelism": 2, "temperature": 0.25, "top_p": 0.75, "max_new_tokens": 99}
    extra = {"n_samples": 2, "add_system_prompt": True, "args": "--seed 7"}
    content["evaluation"]["nemo_evaluator_config"] = {"config": {"params": params}}
    content["evaluation"]["tasks"] = [
        {"name": "gpqa_diamond", "dataset_dir": "gpqa_diamond",
         "nemo_evaluator_config": {"config": {"params": {"extra": extra}}}},
        {"name": "ifeval", "dataset_dir": "ifeval_data",
         "nemo_evaluator_config": {"config": {"params": {"extra": {"args": "--system_instruction Briefly."}}}}},
    ]  # fmt: skip
    path = lab.folder / "parameters.yaml"
    path.write_text(yaml.safe_dump(content))
    before = len(bodies(lab, 0))
    done = evaluate(lab, "--name", "parameters", "-c", str(path))
    assert done["ok"], done
    assert {task["name"]: task["items"] for task in done["tasks"]} == {"gpqa_diamond": 3, "ifeval": 3}
    asked = [body for body in bodies(lab, before) if body["max_tokens"] == 99]
    assert len(asked) == 3 * 2 + 3
    assert {(body["temperature"], body["top_p"]) for body in asked} == {(0.25, 0.75)}
    systems = sorted(body["messages"][0]["content"] for body in asked if body["messages"][0]["role"] == "system")
    assert systems == ["Briefly."] * 3 + ["You are a helpful assistant."] * 6
    lines = [json.loads(line) for line in _lines(lab.folder / "results/parameters/gpqa_diamond")]
    assert sorted((line["id"], line["repeat"]) for line in lines) == [(str(i), r) for i in range(3) for r in range(2)]


def test_what_is_wrong_is_told_before_anything_is_asked(lab: Lab) -> None:
    """The second image's task cannot be scored: the first image's was not asked."""
    content = yaml.safe_load((lab.folder / "deployment.yaml").read_text())
    content["evaluation"]["env_vars"] = {"HF_HUB_OFFLINE": "1"}
    path = lab.folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(content))
    before = len(bodies(lab, 0))
    words = ["evaluate", "-i", str(lab.inventory), "-c", str(path), "--name", "wrong"]
    done = ops(*words, "--output-dir", str(lab.folder / "results"), env=lab.env, timeout=200)
    assert done.returncode == 7, done.stderr
    assert "punkt_tab" in done.stderr
    assert len(bodies(lab, before)) <= 1, "only the gate's question"
    assert "wrong" not in lab.ssh("ls /var/lib/sglang-ops/evaluations /etc/systemd/system")
