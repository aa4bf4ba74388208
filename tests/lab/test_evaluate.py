"""Evaluations on lab hosts: a scripted answer server, the harness's real scorers, and no network."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_ops import processes
from tests.lab import evaluation_data as data
from tests.lab.conftest import ROOT, Lab, ops

pytestmark = pytest.mark.lab

CANARY = "hf_canary_of_the_evaluation"
KEY = "sk_canary_of_the_server"
SERVER = "sglang-tiny-llama"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Two hosts that serve scripted answers, with the harness's image in their registry and data beside the file."""
    lab = make_lab("t-eval", hosts=2, gpus=1, server="simulator")
    lab.env |= {"LAB_EVALUATION_CANARY": CANARY, "LAB_SERVER_KEY": KEY}
    done = ops("lab", "harness", "--name", lab.name, timeout=600)
    assert done.returncode == 0, done.stderr
    data.write(lab.folder)
    for host in lab.hosts:
        copy = f"tar -C {lab.folder} -cf - srv hand | ssh -F {lab.folder}/ssh/config {host} sudo tar -C / -xf -"
        subprocess.run(["bash", "-c", copy], check=True, timeout=60)
    serve(lab, "answers.jsonl")
    return lab


def serve(lab: Lab, answers: str, **changes: Any) -> None:
    config = lab.write(
        "deployment",
        **changes,
        env_vars={"SGLANG_SIMULATOR_ANSWERS": f"/answers/{answers}"},
        mounts={"/srv/answers": "/answers:ro"},
    )
    content = yaml.safe_load(config.read_text()) | data.evaluation(4 if answers == "answers.jsonl" else 1)
    content["evaluation"]["tasks"].append({"name": "verses", "dataset_dir": "verses"})
    config.write_text(yaml.safe_dump(content))
    deployed = lab.deploy(config, "--lock-wait", "60")  # what a killed controller had begun on a host may go on
    assert deployed["ok"], deployed


def evaluate(lab: Lab, *arguments: str, verb: str = "") -> dict[str, Any]:
    words = ["evaluate", *([verb] if verb else []), "-i", str(lab.inventory), *arguments]
    done = ops(*words, "--output-dir", str(lab.folder / "results"), "--output", "json", env=lab.env, timeout=280)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def asked(lab: Lab) -> int:
    """Chat requests that the servers of all hosts have answered or refused, as they say themselves."""
    count = f"journalctl -q --no-pager -o cat -t {SERVER} | grep -c 'POST /v1/chat/completions'"
    return sum(int(lab.ssh(count, host).split()[0]) for host in lab.hosts)


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {task["name"]: task["score"] for task in answer["tasks"]}


EXPECTED = {"ifeval": 0.75, "gpqa_diamond": 0.5, "capitals": 1.0, "rivers": 0.0}


@pytest.fixture(scope="module")
def home(lab: Lab) -> tuple[dict[str, Any], int]:
    """A run without a way out of the hosts, and how many requests it cost."""
    before = asked(lab)
    for host in lab.hosts:
        lab.ssh("ip route show default > /root/route; ip route del default", host)
    try:
        done = evaluate(lab, "--name", "home")
    finally:
        for host in lab.hosts:
            lab.ssh("ip route add $(cat /root/route)", host)
    assert done["ok"], done
    return done, asked(lab) - before


def test_tasks_are_scored_beside_the_servers_and_brought_home(lab: Lab, home: tuple[dict[str, Any], int]) -> None:
    """Five tasks, one server each, no way out of the hosts; what is asked, what it costs, where secrets are."""
    done, requests = home
    assert scores(done).items() > EXPECTED.items()
    assert done["output_dir"] == str(lab.folder / "results" / "home")
    by_name = {task["name"]: task for task in done["tasks"]}
    assert {name: task["items"] for name, task in by_name.items()} == {
        "ifeval": 12,
        "gpqa_diamond": 12,
        "capitals": 4,
        "rivers": 4,
        "verses": 4,
    }
    rivers = by_name["rivers"]
    assert (rivers["failed"], rivers["empty"], rivers["reasoning_only"]) == (1, 1, 1)
    # On each host one question of the gate, and one that measures its speed; one capital took three attempts.
    assert requests == 36 + 2 + len(lab.hosts) * 2
    folder = lab.folder / "results" / "home"
    lines = [json.loads(line) for line in (folder / "gpqa_diamond" / "samples.jsonl").read_text().splitlines()]
    assert {line["host"] for line in lines} == set(lab.hosts), "hosts share the items"
    assert {line["category"] for line in lines} == set(data.DOMAINS)
    assert all(line["latency_seconds"] > 0 and line["completion_tokens"] > 0 for line in lines)
    run = json.loads((folder / "run.json").read_text())
    assert run["complete"]
    assert run["model"]["repo"] == "lab/tiny-llama"
    assert "@sha256:" in run["harness"]["image"]
    for host in lab.hosts:
        assert lab.ssh(f"systemctl show -p NRestarts --value {SERVER}", host).strip() == "0"
        # sudo logs this very command: the expression does not match itself.
        words = f"grep -rls --devices=skip {CANARY[:-1]}[{CANARY[-1]}] /etc /var/lib/sglang-ops /run/systemd /var/log"
        told = lab.ssh(words, host).split()
        assert told == ["/var/lib/sglang-ops/evaluations/home/secrets.json"], told
        assert lab.ssh(f"stat -c %a {told[0]}", host).strip() == "600"
    kept = [path for path in (*folder.rglob("*"), *Path(lab.env["SGLANG_OPS_STATE"]).rglob("*")) if path.is_file()]
    assert not [path for path in kept if CANARY.encode() in path.read_bytes()]
    same_name = evaluate(lab, "--name", "home")
    assert same_name["exit_code"] == 7, same_name


@pytest.mark.usefixtures("home")
def test_what_is_judged_together_is_asked_by_one_host_and_is_the_harness_own(lab: Lab) -> None:
    """bleu and chrf have no value by item; what each item adds has the harness's value as its mean."""
    folder = lab.folder / "results" / "home" / "verses"
    result = json.loads((folder / "results.json").read_text())
    assert result["hosts"] == [lab.hosts[0]]
    (told,) = json.loads((folder / f"harness-{lab.hosts[0]}.json").read_text())["results"]
    metrics = {metric["name"]: metric for metric in result["metrics"]}
    assert list(metrics) == ["bleu", "chrf"]
    for name, metric in metrics.items():
        assert metric["score"] == pytest.approx(told["verses"][f"{name},none"], abs=1e-9)
        assert 0 < metric["score"] < 100
        assert metric["interval"][0] < metric["score"] < metric["interval"][1]
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    added = [line["scores"]["bleu"] for line in lines]
    assert added == sorted(added, reverse=True), "each verse is worse than the one before"
    assert len(set(added)) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_scores_are_those_of_the_harness_run_by_hand(lab: Lab) -> None:
    image = lab.ssh("docker image ls --digests --format '{{.Repository}}@{{.Digest}}' | grep lm-eval").split()[0]
    command = (
        f"docker run --rm --network host -v /srv/nltk:/nltk:ro -v /hand:/hand -w /hand -e NLTK_DATA=/nltk "
        f"-e HF_HUB_OFFLINE=1 -e HF_DATASETS_OFFLINE=1 {image} python3 -m lm_eval run --model local-chat-completions "
        "--model_args base_url=http://127.0.0.1:8000/v1/chat/completions,model=tiny-llama,num_concurrent=4 "
        "--tasks ifeval,gpqa_diamond_cot_zeroshot --apply_chat_template --output_path /hand/out "
        "--gen_kwargs max_gen_toks=512 && cat /hand/out/*/*.json"
    )
    said = lab.ssh(command, timeout=280)
    assert '{\n  "results"' in said, said[-3000:]
    by_hand = json.JSONDecoder().raw_decode(said, said.index('{\n  "results"'))[0]["results"]
    ours = lab.folder / "results" / "home"
    for task, theirs in (("ifeval", "ifeval"), ("gpqa_diamond", "gpqa_diamond_cot_zeroshot")):
        metrics = json.loads((ours / task / "results.json").read_text())["metrics"]
        assert len(metrics) >= 2
        for metric in metrics:
            name = metric["name"] if "," in metric["name"] else f"{metric['name']},none"
            assert metric["score"] == pytest.approx(by_hand[theirs][name], abs=1e-12), metric["name"]


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_what_is_wrong_is_told_before_anything_is_asked(lab: Lab) -> None:
    before = asked(lab)
    missing = lab.folder / "missing.yaml"
    content = yaml.safe_load((lab.folder / "deployment.yaml").read_text())
    content["execution"] = {"output_dir": str(lab.folder / "results")}
    content["evaluation"]["env_vars"] = {"HF_HUB_OFFLINE": "1"}
    content["evaluation"]["tasks"] = [{"name": "ifeval", "dataset_dir": "ifeval_data"}, {"name": "gpqa_diamond"}]
    missing.write_text(yaml.safe_dump(content))
    done = ops(
        "evaluate", "-i", str(lab.inventory), "-c", str(missing), "--name", "bad", "-l", lab.hosts[0], env=lab.env
    )
    assert done.returncode == 7, done.stderr
    assert "punkt_tab" in done.stderr
    assert "Idavidrein/gpqa" in done.stderr
    assert "evaluations/bad" not in lab.ssh("ls -d /var/lib/sglang-ops/evaluations/* /etc/systemd/system/*bad*")
    assert asked(lab) - before <= 2, "only the gate and the measurement"


def interrupted(lab: Lab, name: str) -> subprocess.Popen[str]:
    """A run of which about a third is answered."""
    command = [sys.executable, "-m", "sglang_ops", "evaluate", "-i", str(lab.inventory), "--name", name, "-t", "ifeval",
               "-t", "gpqa_diamond", "--output-dir", str(lab.folder / "results")]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT)} | lab.env
    running = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    wait_for(lambda: progress(lab, name) >= 4)
    return running


def progress(lab: Lab, name: str) -> int:
    told = lab.ssh(f"cat /var/lib/sglang-ops/evaluations/{name}/status.json 2>/dev/null")
    return int(json.loads(told)["done"]) if told.startswith("{") else -1


def wait_for(condition: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.3)


@pytest.mark.slow
def test_a_run_outlives_ten_controllers_a_server_and_a_host(lab: Lab) -> None:
    """Ten controllers killed with all their processes, a server restarted, a host without power in the middle."""
    serve(lab, "slower.jsonl")
    before = answered(lab)
    points: list[str] = []
    only = ["-t", "ifeval", "-t", "gpqa_diamond"]
    for place, (condition, text) in enumerate(POINTS):
        there = ["hurt" in runs(lab, host) for host in lab.hosts]
        # A start that was killed before all hosts were at work is gone on from once; after that, the run has all items.
        begun = all(at_work(lab, host) for host in lab.hosts) or any(point.startswith("resume") for point in points)
        words = ["wait", "hurt"] if begun else ["resume", "hurt"] if any(there) else ["--name", "hurt", *only]
        killed(lab, words, condition)
        points.append(f"{' '.join(words[:2])}: {text}, {max(progress(lab, 'hurt'), 0)} of 12 answered on a host")
        if place == 3:
            seen = lab.ssh("docker inspect $(docker ps -q); ps -eo args; systemctl cat 'sglang-*'")
            assert "hurt" in seen, points
            assert CANARY not in seen
        if place == 5:
            lab.ssh(f"systemctl restart {SERVER}", lab.hosts[1])
        if place == 7:
            done = ops("lab", "reboot", "--name", lab.name, "--hard", lab.hosts[0], timeout=200)
            assert done.returncode == 0, done.stderr
    result = evaluate(lab, "hurt", verb="wait")
    assert result["ok"], result
    assert scores(result) == {name: EXPECTED[name] for name in ("ifeval", "gpqa_diamond")}
    asked_for = answered(lab) - before
    again = {item: times - 1 for item, times in asked_for.items() if times > 1}
    print("\n".join([*points, f"{sum(asked_for.values())} requests for {len(asked_for)} items, again: {again}"]))
    assert len(asked_for) == 24
    assert sum(again.values()) <= 2, "one at a time is under way on each host; what was answered is not asked again"


def killed(lab: Lab, words: list[str], condition: Callable[[Lab], bool]) -> None:
    """A command that dies with everything that belongs to it, as when its machine does, once `condition` holds."""
    verb = words if words[0].startswith("-") else words[1:]
    command = ["evaluate", *([] if words[0].startswith("-") else words[:1]), "-i", str(lab.inventory), *verb]
    command += ["--output-dir", str(lab.folder / "results")]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | lab.env
    child = subprocess.Popen(
        [sys.executable, "-m", "sglang_ops", *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: condition(lab) or child.poll() is not None)
    finally:
        processes.kill(processes.tree([child.pid]))
        child.wait()


def after(seconds: float) -> Callable[[Lab], bool]:
    began: list[float] = []

    def over(_: Lab) -> bool:
        began.append(time.monotonic())
        return began[-1] - began[0] >= seconds

    return over


def at(count: int) -> Callable[[Lab], bool]:
    return lambda lab: progress(lab, "hurt") >= count


POINTS: list[tuple[Callable[[Lab], bool], str]] = [
    (after(1), "after 1 s"),
    (after(6), "after 6 s"),
    (lambda lab: "hurt" in runs(lab, lab.hosts[0]), "when the run was there"),
    (at(1), "at the first answer"),
    *((at(count), f"at {count} answers") for count in (2, 4, 6, 7, 9, 11)),
]


def runs(lab: Lab, host: str) -> list[str]:
    return lab.ssh("ls /var/lib/sglang-ops/evaluations 2>/dev/null", host).split()


def at_work(lab: Lab, host: str) -> bool:
    return bool(lab.ssh("ls /var/lib/sglang-ops/evaluations/hurt/status.json 2>/dev/null", host))


def answered(lab: Lab) -> Counter[str]:
    """How often each scripted question came, as the servers say themselves."""
    words = f"journalctl -q --no-pager -o cat -t {SERVER} | grep -o 'Scripted answer to .*'"
    return Counter(line for host in lab.hosts for line in lab.ssh(words, host).splitlines() if "Scripted" in line)


@pytest.mark.slow
def test_two_models_are_never_scored_as_one(lab: Lab) -> None:
    """Another release in the middle of a run: refused, and where it is insisted on, the run says so and ends."""
    serve(lab, "slower.jsonl")
    assert evaluate(lab, "--name", "mixed", "--detach", "-t", "ifeval")["ok"]
    wait_for(lambda: progress(lab, "mixed") >= 1)
    other = lab.write(
        "other",
        env_vars={"SGLANG_SIMULATOR_ANSWERS": "/answers/slower.jsonl"},
        mounts={"/srv/answers": "/answers:ro"},
        extra_args="--log-level info",
    )
    refused = lab.deploy(other)
    assert refused["exit_code"] == 7, refused
    assert "evaluation mixed of sglang-tiny-llama is at work" in json.dumps(refused)
    assert lab.deploy(other, "--interrupt-evaluations")["ok"]
    ended = evaluate(lab, "mixed", verb="wait")
    assert ended["exit_code"] == 1
    assert set(ended["states"].values()) == {"replaced"}, ended
    whole = json.loads((lab.folder / "results" / "mixed" / "ifeval" / "results.json").read_text())
    assert not whole["complete"]
    assert "sglang-tiny-llama was release" in whole["incomplete_because"], whole["incomplete_because"]
    resumed = lab.run("evaluate resume", "mixed", "--output-dir", str(lab.folder / "results"))
    assert resumed.returncode == 7, resumed.stderr
    assert "two models are not scored as one" in resumed.stderr
    lab.ssh("flock /run/sglang-ops/lock sleep 30 >/dev/null 2>&1 &")
    busy = evaluate(lab, "--name", "busy", "-t", "ifeval", "-l", lab.hosts[0])
    assert busy["exit_code"] == 5, busy
    assert "busy" not in runs(lab, lab.hosts[0])


@pytest.mark.slow
def test_a_lost_hosts_items_are_taken_over(lab: Lab) -> None:
    serve(lab, "slow.jsonl")
    running = interrupted(lab, "lost")
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 130, told
    assert "The run goes on where it has begun." in told
    assert ops("lab", "poweroff", "--name", lab.name, "--hard", lab.hosts[1], timeout=100).returncode == 0
    try:
        part = evaluate(lab, "lost", verb="wait")
        assert not part["ok"]
        whole = json.loads((lab.folder / "results" / "lost" / "ifeval" / "results.json").read_text())
        assert not whole["complete"]
        assert lab.hosts[1] in whole["incomplete_because"]
        assert evaluate(lab, "lost", verb="resume")["ok"], "nothing is missing any more"
        whole = json.loads((lab.folder / "results" / "lost" / "ifeval" / "results.json").read_text())
        assert whole["complete"]
        assert whole["score"] == EXPECTED["ifeval"]
        assert whole["hosts"] == [lab.hosts[0]]
    finally:
        ops("lab", "poweron", "--name", lab.name, lab.hosts[1], timeout=200)
    # What the lost host had begun goes on there by itself, and keeps deploys away until it has ended.
    ended = evaluate(lab, "lost", "-l", lab.hosts[1], verb="cancel")
    assert (ended["ok"], ended["states"]) == (True, {lab.hosts[1]: "cancelled"}), ended


@pytest.mark.slow
def test_each_host_is_asked_all_items_and_one_that_is_off_is_no_success(lab: Lab) -> None:
    serve(lab, "answers.jsonl")
    only = ["-t", "capitals"]
    both = evaluate(lab, "--name", "pair", "--each", *only)
    assert both["ok"], both
    assert [(task["run"], task["items"]) for task in both["tasks"]] == [(f"pair-{host}", 4) for host in lab.hosts]
    again = lab.run("evaluate", "--name", "pair", *only, "--output-dir", str(lab.folder / "results"))
    assert (again.returncode, "There are results of a run pair" in again.stderr) == (7, True), again.stderr
    serve(lab, "slow.jsonl")
    assert evaluate(lab, "--name", "apart", "--each", "--detach", "-t", "ifeval")["ok"]
    assert ops("lab", "poweroff", "--name", lab.name, "--hard", lab.hosts[1], timeout=100).returncode == 0
    try:
        part = evaluate(lab, "apart", verb="wait")
        assert (part["ok"], part["exit_code"]) == (False, 6), part
        assert [(task["run"], task["complete"]) for task in part["tasks"]] == [(f"apart-{lab.hosts[0]}", True)]
        assert not (lab.folder / "results" / "apart").exists()
    finally:
        ops("lab", "poweron", "--name", lab.name, lab.hosts[1], timeout=200)
    whole = evaluate(lab, "apart", verb="wait")  # it went on by itself when its host was there again
    assert whole["ok"], whole
    assert [(task["run"], task["score"]) for task in whole["tasks"]] == [
        (f"apart-{host}", EXPECTED["ifeval"]) for host in lab.hosts
    ]


@pytest.mark.slow
def test_runs_are_listed_cancelled_resumed_and_removed(lab: Lab) -> None:
    serve(lab, "slow.jsonl")
    begun = evaluate(lab, "--name", "verbs", "--detach", "-l", lab.hosts[0], "-t", "ifeval")
    assert begun["ok"]
    assert begun["tasks"] == []
    only = ["-l", lab.hosts[0]]
    assert evaluate(lab, "verbs", *only, verb="cancel")["states"] == {lab.hosts[0]: "cancelled"}
    listed = json.loads(ops("evaluate", "ls", "-i", str(lab.inventory), *only, "--output", "json", env=lab.env).stdout)
    assert {one["run"]: one["state"] for one in listed["runs"]}["verbs"] == "cancelled"
    resumed = evaluate(lab, "verbs", *only, verb="resume")
    assert resumed["ok"]
    assert scores(resumed) == {"ifeval": EXPECTED["ifeval"]}
    logs = ops("evaluate", "logs", "-i", str(lab.inventory), *only, "verbs", env=lab.env).stdout
    assert "Requesting API" in logs
    evaluate(lab, "verbs", *only, verb="rm")
    left = lab.ssh("ls /var/lib/sglang-ops/evaluations /etc/systemd/system")
    assert "verbs" not in left


@pytest.mark.slow
def test_check_says_what_would_run_and_changes_nothing(lab: Lab) -> None:
    look = f"find /var/lib/sglang-ops /etc/systemd -newer /tmp/mark; {shlex.join(['docker', 'ps', '-aq'])} | wc -l"
    lab.ssh("touch /tmp/mark; sleep 1")
    done = evaluate(lab, "--check", "--name", "never")
    assert done["ok"]
    assert set(done["states"].values()) == {"planned"}
    assert lab.ssh(look).split() == ["1"]


@pytest.mark.slow
def test_a_policy_decides_whether_a_release_goes_on(lab: Lab) -> None:
    """GO: every host changes. NO-GO: the canary goes back. INCONCLUSIVE: the roll-out is paused."""
    serve(lab, "answers.jsonl")
    results = lab.folder / "results"

    def deploy(level: str, confidence: float, least: float) -> dict[str, Any]:
        policy = {"confidence": confidence, "tasks": {"ifeval": {"min_score": least}}}
        (lab.folder / "policy.yaml").write_text(yaml.safe_dump(policy))
        content = yaml.safe_load((lab.folder / "deployment.yaml").read_text())
        content["deployment"]["extra_args"] = f"--log-level {level}"
        content["rollout"] = {"gate": {"policy": "policy.yaml"}, "soak": 0}
        config = lab.folder / "gated.yaml"
        config.write_text(yaml.safe_dump(content))
        return lab.deploy(config)

    went = deploy("info", 0.5, 0.7)
    assert went["ok"], went
    (first,) = results.glob("gate-*")
    assert json.loads((first / "ifeval" / "results.json").read_text())["score"] == EXPECTED["ifeval"]
    back = deploy("error", 0.5, 0.8)
    assert back["exit_code"] == 3, back
    assert "ifeval: prompt_level_strict_acc 0.750" in json.dumps(back)
    paused = deploy("warning", 0.95, 0.7)
    assert paused["exit_code"] == 2, paused
    assert len(list(results.glob("gate-*"))) == 3, "each canary alone was evaluated"
    assert not [run for host in lab.hosts for run in runs(lab, host) if run.startswith("gate-")]
    refused = lab.run("evaluate", "--name", "between", "--output-dir", str(results))
    assert refused.returncode == 7
    assert "has not finished here" in refused.stderr
    assert lab.run("rollout undo").returncode == 0


@pytest.mark.slow
def test_a_server_with_a_key_is_measured_and_nobody_sees_it(lab: Lab) -> None:
    """Gate, status, evaluation and benchmark send the key; neither it nor the token is anywhere to be read."""
    serve(lab, "slow.jsonl", api_key="host:LAB_SERVER_KEY")
    assert all(service["healthy"] for service in lab.json("status")["services"])
    url = "http://127.0.0.1:8000/v1/chat/completions"
    words = f"python3 -c \"import urllib.request as r; r.urlopen(r.Request('{url}', data=b'{{}}'))\""
    assert "401" in lab.ssh(words)
    begun = evaluate(lab, "--name", "keyed", "--detach", "-t", "ifeval", "-t", "capitals")
    assert begun["ok"], begun
    wait_for(lambda: progress(lab, "keyed") >= 1)
    seen = "ps -eo args; docker inspect $(docker ps -q); systemctl cat 'sglang-*'; systemctl show 'sglang-*'"
    for host in lab.hosts:
        told = lab.ssh(f"{seen}; journalctl -q --no-pager", host)
        assert "keyed" in told
        assert CANARY not in told
        assert KEY not in told
    done = evaluate(lab, "keyed", verb="wait")
    assert scores(done) == {"ifeval": EXPECTED["ifeval"], "capitals": 1.0}, done
    measured = lab.run("bench", "--concurrency", "1", "--prompts", "1", "--output-dir", str(lab.folder / "results"))
    assert "No module named" in measured.stdout + measured.stderr, "the simulator's image has no benchmark"
    folder = lab.folder / "results" / "keyed"
    for form in ("json", "csv", "junit"):
        exported = ops("evaluate", "export", str(folder), "--format", form, "--to", str(lab.folder / f"x-{form}"))
        assert exported.returncode == 0, exported.stderr
    assert ops("evaluate", "report", str(folder)).returncode == 0
    for host in lab.hosts:
        # sudo logs this very command: the expressions do not match themselves.
        hidden = "|".join(f"{word[:-1]}[{word[-1]}]" for word in (CANARY, KEY))
        found = lab.ssh(
            f"grep -rlsE --devices=skip '{hidden}' /etc /var/lib/sglang-ops /run/systemd /var/log /tmp /run/sglang-ops",
            host,
        ).split()
        assert found
        for path in found:
            assert Path(path).name in ("secrets.json", "secrets.env"), path
            assert lab.ssh(f"stat -c '%a %U' {path}", host).strip() == "600 root", path
    places = [lab.folder / "results", Path(lab.env["SGLANG_OPS_STATE"]), *lab.folder.glob("x-*")]
    kept = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    assert any(path.name == "report.html" for path in kept)
    assert not [path for path in kept if CANARY.encode() in path.read_bytes() or KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_of_hosts_that_serve_together_the_first_is_asked(lab: Lab) -> None:
    """Last in this file: what `serve` changes stays in the lab's deployment file."""
    serve(lab, "answers.jsonl", nodes=2, tensor_parallel_size=2)
    try:
        done = evaluate(lab, "--name", "group", "-t", "ifeval", "-t", "capitals")
        assert done["ok"], done
        assert scores(done) == {name: EXPECTED[name] for name in ("ifeval", "capitals")}
        run = json.loads((lab.folder / "results" / "group" / "run.json").read_text())
        assert run["hosts"] == [lab.hosts[0]]
        assert "group" not in runs(lab, lab.hosts[1])
        resumed = evaluate(lab, "group", verb="resume")
        assert resumed["ok"], resumed
    finally:
        lab.write("deployment", nodes=None, tensor_parallel_size=None)
