"""Three hosts, one download: models go from host to host while they come, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Lab, ops
from waiting import wait_until

from sglang_ops import content, runner
from sglang_ops.lab.model import model_files
from sglang_ops.lab.settings import cache_root

pytestmark = pytest.mark.lab

PORT = 7437
CACHE = "/var/lib/sglang-ops/huggingface/hub"
JIT = "/var/lib/sglang-ops/jit"
SHARD = 25 << 20  # the hub's tool writes 10 MB at a time
SHARDS = 2
LEFT = f"""
systemctl list-units --all --no-legend --no-pager 'sglang-ops-peers*'
ls /run/sglang-ops | grep -vx -e lock -e work
pgrep -af 'told = json.loa[d]'
ss -Hltn 'sport = :{PORT}'
find {CACHE} -name '*.incomplete'
"""
# Whatever holds a key in PEM, where a run could have left one.
KEYS = "grep -rlsI 'BEGIN PRIVATE KEY' /run /tmp /var/tmp /var/log /root /home /etc/systemd /var/lib/sglang-ops"


@dataclass
class Brought:
    """What bringing a model to the hosts came to."""

    givers: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)
    bytes_from_hub: int = 0


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("t-fan", hosts=3, gpus=1, server="simulator")
    yield made
    ops("lab", "down", "--name", made.name)


@pytest.fixture
def model() -> Iterator[str]:
    """A model of some shards in the lab's hub, another one for each test."""
    name = f"t-fan/m{time.monotonic_ns()}"
    directory = cache_root() / "models" / name
    directory.mkdir(parents=True)
    for file, text in model_files().items():
        (directory / file).write_bytes(text)
    for number in range(SHARDS):
        (directory / f"weights-{number}.safetensors").write_bytes(os.urandom(SHARD))
    yield name
    shutil.rmtree(directory.parent)


def hub(lab: Lab, path: str, method: str = "GET", body: object = None) -> Any:
    address = yaml.safe_load(lab.inventory.read_text())["all"]["vars"]["sglang_server_hf_endpoint"]
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/-/{path}", method=method, data=data)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def slow(lab: Lab, model: str, seconds: float) -> None:
    """The hub takes `seconds` for a shard; it sends them side by side."""
    fault = {"path": "weights-*", "bytes_per_second": int(SHARD / seconds)}
    hub(lab, f"faults/{model}", "PUT", [fault])


def size(model: str) -> int:
    return sum(path.stat().st_size for path in (cache_root() / "models" / model).iterdir())


def bring(lab: Lab, model: str, tmp_path: Path, meanwhile: Callable[[], None] | None = None) -> Brought:
    """`models pull` on every host; the bytes that planning itself reads are not counted."""
    told = tmp_path / "progress"
    told.touch()
    done = Brought()

    def on_event(event: dict[str, Any]) -> None:
        data = event.get("event_data") or {}
        result = (data.get("res") or {}).get("sglang_ops") or {}
        if event["event"] == "runner_on_failed":
            done.failed.append(data["host"])
        if event["event"] == "runner_on_ok" and result.get("kind") == "model":
            done.givers.update((data["host"], giver) for giver in (result.get("peers") or {}).values())
            done.warnings += [f"{data['host']}: {text}" for text in result.get("warnings") or []]

    thread = threading.Thread(target=meanwhile) if meanwhile else None
    if thread:
        thread.start()
    environment = {"SGLANG_OPS_PROGRESS": str(told)}
    configured = {"sglang_ops_deployment_files": [str(lab.write("fan", hf_model_handle=model))]}
    pull = content.playbook("models_pull")
    runner.run(pull, [str(lab.inventory)], on_event=on_event, extravars=configured, env=environment)
    if thread:
        thread.join()
    done.progress = [json.loads(line)["detail"] for line in told.read_text().splitlines()]
    config = (cache_root() / "models" / model / "config.json").stat().st_size
    done.bytes_from_hub = hub(lab, "traffic")[model]["bytes"] - len(lab.hosts) * config
    return done


def cache(lab: Lab, host: str, model: str) -> str:
    """The model's part of the cache: names, links, sizes; and the large files by their real hashes.

    Left out is what the hub's tool remembers of its questions (`trees`, `.no_exist`); it can do without.
    """
    home = f"{CACHE}/models--{model.replace('/', '--')}"
    listed = f"cd {home} && find blobs refs snapshots .sglang-ops ! -type d -printf '%p %s %l\\n' | sort"
    return lab.ssh(f"{listed}; cd blobs && sha256sum $(ls | grep -E '^.{{64}}$')", host)


def assert_whole(lab: Lab, model: str, hosts: list[str]) -> None:
    """Every host has what the first one got from the hub's own tool, and every file is what its name says."""
    caches = {host: cache(lab, host, model) for host in hosts}
    assert len(set(caches.values())) == 1, caches
    sums = [line.split() for line in caches[hosts[0]].splitlines() if "  " in line]
    assert len(sums) == SHARDS + 1
    assert all(digest == name for digest, name in sums)


def bytes_at(lab: Lab, host: str, model: str) -> int:
    folder = f"{CACHE}/models--{model.replace('/', '--')}/blobs"
    return int(lab.ssh(f"du -sb {folder} 2>/dev/null | cut -f1", host).strip() or 0)


QUICK = ("-e", "sglang_server_soak=0")


@pytest.fixture(scope="module")
def deployed(lab: Lab) -> Lab:
    """All hosts serve."""
    assert lab.deploy(None, *QUICK)["ok"]
    return lab


def test_hosts_that_need_nothing_share_and_are_left_alone_otherwise(deployed: Lab) -> None:
    """One host has lost its model, and gets it from one that has it."""
    lab, quick = deployed, QUICK
    was = hub(lab, "traffic")["lab/tiny-llama"]["bytes"]
    last = lab.hosts[-1]
    lab.ssh(f"systemctl stop sglang-tiny-llama; rm -rf {CACHE}", last)
    result = lab.deploy(None, *quick)
    assert result["ok"], json.dumps(result, indent=1)
    assert result["warnings"] == []
    assert "PRIVATE KEY" not in (Path(result["run"]) / "events.ndjson").read_text()
    before = {host["host"]: host for host in result["hosts"]}
    assert [before[host]["module_executions"] for host in lab.hosts[:-1]] == [1, 1]
    assert [before[host]["changed"] for host in lab.hosts[:-1]] == [0, 0]
    config = len(model_files()["config.json"])
    assert hub(lab, "traffic")["lab/tiny-llama"]["bytes"] - was == config  # what its plan read
    again = lab.deploy(None, *quick)
    assert [host["module_executions"] for host in again["hosts"]] == [1, 1, 1]


def compile_something(lab: Lab, host: str) -> None:
    """What a server leaves in its cache: files of libraries, a lock, what is true of this server alone, and a link."""
    inside = (
        "mkdir -p $TRITON_CACHE_DIR/AB $FLASHINFER_WORKSPACE_BASE/ops $SGLANG_CACHE_DIR; cd $TRITON_CACHE_DIR; "
        "head -c 5000000 /dev/urandom > AB/kernel.cubin; echo {} > AB/kernel.json; "
        "touch lock; ln -s /etc/shadow stolen; "
        "echo elf > $FLASHINFER_WORKSPACE_BASE/ops/ops.so; chmod 755 $FLASHINFER_WORKSPACE_BASE/ops/ops.so; "
        "echo {} > $SGLANG_CACHE_DIR/p2p.json"
    )
    lab.ssh(f"docker exec $(docker ps -q --filter name=sglang-tiny-llama) sh -c {shlex.quote(inside)}", host)


def kernels(lab: Lab, host: str) -> list[str]:
    """What there is of compiled kernels, with content, mode and time."""
    look = "find . ! -type d -exec sha256sum {} + ; find . ! -type d -printf '%P %m %T@\\n'"
    return sorted(lab.ssh(f"cd {JIT}/*-lab-tiny-llama && {look}", host).splitlines())


def test_a_host_that_is_deployed_later_gets_compiled_kernels(deployed: Lab) -> None:
    """It has image and model already: nothing but these is brought to it, before its server starts."""
    lab, quick = deployed, QUICK
    first, second, last = lab.hosts
    lab.run("remove", "--yes", "--limit", last)
    lab.ssh(f"rm -rf {JIT}/*", last)
    compile_something(lab, first)
    (announced,) = [step for step in lab.deploy(None, *quick, "--check")["steps"] if step["step"] == "kernels"]
    assert (announced["host"], announced["why"]) == (last, f"none here, compiled on {first}")
    assert "No such file" in lab.ssh(f"ls {JIT}/*/*", last)
    rule = f"INPUT -p tcp --dport {PORT} ! -i lo -j DROP"
    lab.ssh(f"iptables -I {rule}", first)
    in_vain = lab.deploy(None, *quick)
    lab.ssh(f"iptables -D {rule}", first)
    assert in_vain["ok"], in_vain
    assert f"compiled kernels cannot be had from {first}: it does not answer" in in_vain["warnings"][0]
    assert in_vain["warnings"][1:] == [
        f"{last}: the server compiles its kernels at its first start, which takes minutes"
    ]
    lab.run("remove", "--yes", "--limit", last)
    result = lab.deploy(None, *quick)
    assert result["ok"], json.dumps(result, indent=1)
    assert result["warnings"] == []
    told = {host["host"]: host for host in result["hosts"]}
    (came,) = told[last]["kernels"]
    assert (came["giver"], came["files"]) == (first, 3)
    assert [told[host]["module_executions"] for host in (first, second)] == [1, 1]
    assert told[last]["module_executions"] <= 12
    assert [told[host]["changed"] for host in (first, second)] == [0, 0]
    there = [line for line in kernels(lab, first) if not any(word in line for word in ("lock", "stolen", "p2p"))]
    assert kernels(lab, last) == there
    assert len(there) == 6
    inside = "docker exec $(docker ps -q --filter name=sglang-tiny-llama) sh -c 'cat $TRITON_CACHE_DIR/AB/kernel.json'"
    assert lab.ssh(inside, last).strip() == "{}"
    assert [host["module_executions"] for host in lab.deploy(None, *quick)["hosts"]] == [1, 1, 1]
    wait_until(lambda: [lab.ssh(LEFT, host).strip() for host in lab.hosts] == ["", "", ""], 10)


def test_one_host_with_the_model_is_enough_where_no_hub_is(deployed: Lab) -> None:
    """The others plan with what it has, and get it from it."""
    lab = deployed
    first, _, last = lab.hosts
    lab.run("remove", "--yes", "--limit", last)
    lab.ssh(f"rm -rf {CACHE}", last)
    rule = "OUTPUT -p tcp --dport 8080 -j REJECT"
    lab.ssh(f"iptables -I {rule}", last)
    try:
        alone = lab.json("plan", "--limit", last)
        assert alone["exit_code"] == 7
        assert "cannot be reached from this host" in alone["hosts"][0]["errors"][0]["message"]
        steps = {step["step"]: step["why"] for step in lab.json("plan")["hosts"][-1]["steps"]}
        assert steps["model"] == "not in the cache, 0.2 MB, which another host has"
        assert lab.deploy(None, *QUICK, "--check")["ok"]
        assert lab.ssh(f"ls {CACHE} 2>&1 | grep -v 'No such'", last) == ""
        result = lab.deploy(None, *QUICK)
    finally:
        lab.ssh(f"iptables -D {rule}", last)
    assert result["ok"], json.dumps(result, indent=1)
    assert [host["module_executions"] for host in result["hosts"][:-1]] == [1, 1]
    assert [host["changed"] for host in result["hosts"][:-1]] == [0, 0]
    assert len({cache(lab, host, "lab/tiny-llama") for host in (first, last)}) == 1
    assert [host["changed"] for host in lab.deploy(None, *QUICK)["hosts"]] == [0, 0, 0]


def test_the_hub_sends_a_model_once(lab: Lab, model: str, tmp_path: Path) -> None:
    slow(lab, model, seconds=3)
    first, second, third = lab.hosts
    done = bring(lab, model, tmp_path)
    assert done.failed == []
    assert done.warnings == []
    assert done.bytes_from_hub == size(model)
    assert done.givers == {second: first, third: second}
    assert any(f"from {first}" in text for text in done.progress)
    assert_whole(lab, model, lab.hosts)
    # All were told that nobody needs them any more, so nothing waits for its time to run out.
    wait_until(lambda: [lab.ssh(LEFT, host).strip() for host in lab.hosts] == ["", "", ""], 10)
    assert [lab.ssh(KEYS, host) for host in lab.hosts] == ["", "", ""]


def test_a_peer_is_killed_while_it_serves(lab: Lab, model: str, tmp_path: Path) -> None:
    slow(lab, model, seconds=6)
    first, second, third = lab.hosts

    def kill() -> None:
        wait_until(lambda: bytes_at(lab, third, model) > SHARD // 2)
        lab.ssh("systemctl kill --signal=KILL sglang-ops-peers", second)

    done = bring(lab, model, tmp_path, kill)
    assert done.failed == []
    assert done.givers == {second: first, third: first}
    assert [text for text in done.warnings if text.startswith(third) and second in text] == done.warnings
    assert done.bytes_from_hub == size(model)
    assert_whole(lab, model, lab.hosts)


def kill_all(mark: str) -> None:
    """Kill the controller's processes, workers and connections included: those with `mark` in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_controller_leaves_no_work_and_the_next_run_goes_on(lab: Lab, model: str, tmp_path: Path) -> None:
    slow(lab, model, seconds=12)
    third = lab.hosts[-1]
    mark = f"FANOUT_TEST={model}"
    config = lab.write("fan", hf_model_handle=model)
    controller = subprocess.Popen(
        [sys.executable, "-m", "sglang_ops", "models", "pull", "-i", str(lab.inventory), "--config", str(config)],
        env=os.environ | lab.env | {"PYTHONPATH": str(ROOT), "FANOUT_TEST": model},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: bytes_at(lab, third, model) > SHARD // 2)
    kill_all(mark)
    controller.wait(10)
    working = "docker ps --quiet --filter name=sglang-ops-fetch; pgrep -af 'BECOME-SUCCES[S]'"
    wait_until(lambda: not any(lab.ssh(working, host).strip() for host in lab.hosts), 15)
    kept = bytes_at(lab, third, model)
    assert kept > SHARD // 2
    before = hub(lab, "traffic")[model]["bytes"]
    hub(lab, f"faults/{model}", "DELETE")
    done = bring(lab, model, tmp_path)  # against servers of the killed run, which have another key
    assert done.failed == []
    # A host may be met just as it replaces the server of the killed run; whoever met it turns to another one.
    assert [text for text in done.warnings if not text.endswith("it has ended")] == []
    assert set(done.givers) == set(lab.hosts[1:])
    assert hub(lab, "traffic")[model]["bytes"] - before <= size(model) + len(lab.hosts) * 1000
    assert_whole(lab, model, lab.hosts)
    wait_until(lambda: [lab.ssh(LEFT, host).strip() for host in lab.hosts] == ["", "", ""], 10)


@pytest.mark.slow
def test_a_closed_port_is_passed_over_and_named(lab: Lab, model: str, tmp_path: Path) -> None:
    first, second, third = lab.hosts
    rule = f"INPUT -p tcp --dport {PORT} ! -i lo -j DROP"
    lab.ssh(f"iptables -I {rule}", second)
    try:
        done = bring(lab, model, tmp_path)
    finally:
        lab.ssh(f"iptables -D {rule}", second)
    assert done.failed == []
    assert done.givers == {second: first, third: first}
    assert len(done.warnings) == 1
    assert f"{second} (" in done.warnings[0]
    assert str(PORT) in done.warnings[0]
    assert done.bytes_from_hub == size(model)
    assert_whole(lab, model, lab.hosts)


@pytest.mark.slow
def test_the_next_host_asks_the_hub_when_the_first_one_dies(lab: Lab, model: str, tmp_path: Path) -> None:
    slow(lab, model, seconds=6)
    first, second, third = lab.hosts

    def die() -> None:
        wait_until(lambda: bytes_at(lab, third, model) > SHARD // 2)
        lab.ssh("kill -9 $(ps -o ppid= -C docker | sort -u)", first)  # the module, which runs `docker run … hf`

    done = bring(lab, model, tmp_path, die)
    lab.ssh("docker rm --force $(docker ps --quiet --filter name=sglang-ops-fetch)", first)
    assert done.failed == [first]
    assert second not in done.givers
    assert done.givers == {third: second}
    assert done.bytes_from_hub <= 2.2 * size(model)
    assert_whole(lab, model, [second, third])
