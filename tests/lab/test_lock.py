"""One operation per fleet: who comes second is told who has it, and whatever dies, nobody has a lock to break."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Lab, ops

pytestmark = pytest.mark.lab
LOCKED = 5
SOURCE = ROOT / "plugins" / "module_utils" / "sglang_host_lock.py"
HOLD = Path(__file__).parent / "hold.yml"
STARTS = count(15)  # seconds that a service takes to start: never the same, so that every deploy has work to do


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab("t-dlock", hosts=3, gpus=1, engine="docker", os="debian13", server="simulator")
    script = base64.b64encode(f"{SOURCE.read_text()}\nprint(json.dumps(current()))\n".encode()).decode()
    for host in lab.hosts:
        lab.ssh(f"echo {script} | base64 -d > /root/lock.py", host)
    return lab


@pytest.fixture(scope="module")
def served(lab: Lab) -> Lab:
    """The same hosts with servers, which takes its time."""
    assert lab.deploy()["ok"]
    return lab


def holders(lab: Lab) -> list[dict[str, Any]]:
    """Who holds the lock of each host, asked without Ansible."""
    return [dict(json.loads(lab.ssh("python3 /root/lock.py", host).splitlines()[-1])) for host in lab.hosts]


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def begin(lab: Lab, *command: str) -> subprocess.Popen[str]:
    """A command of a second operator, that runs beside ours."""
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env=os.environ | lab.env | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )


def begin_verb(lab: Lab, verb: str, *words: str) -> subprocess.Popen[str]:
    return begin(lab, sys.executable, "-m", "sglang_ops", verb, "-i", str(lab.inventory), *words)


def lock(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return ops("lock", words[0], "-i", str(lab.inventory), *words[1:], env=lab.env)


def states(lab: Lab, *words: str) -> list[dict[str, Any]]:
    """The hosts as `lock status` or `lock release` describes them."""
    hosts: list[dict[str, Any]] = json.loads(lock(lab, *words, "--output", "json").stdout)["hosts"]
    return hosts


@contextmanager
def deploying(lab: Lab, fault: str = "") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Somebody who deploys a service that takes its time, from when both hosts are locked."""
    config = lab.write("slow", env_vars={"SGLANG_SIMULATOR_FAULT": fault or f"slow-start:{next(STARTS)}"})
    process = begin_verb(lab, "deploy", "--yes", "-c", str(config))
    try:
        until(lambda: all(holders(lab)), 60, "a deploy has locked its hosts")
        yield process, config
    except BaseException:
        with_signal(process, signal.SIGKILL)
        print(process.communicate()[0])
        raise
    process.communicate(timeout=300)


def hold(lab: Lab, name: str, *words: str) -> subprocess.Popen[str]:
    """Plain ansible-playbook with the lock, until `go`."""
    program = str(Path(sys.executable).parent / "ansible-playbook")
    return begin(lab, program, "-i", str(lab.inventory), str(HOLD), "-e", f"me={name}", *words)


@contextmanager
def holding(lab: Lab, name: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Somebody at work on both hosts."""
    clear(lab)
    process = hold(lab, name, *words)
    try:
        until(lambda: holders(lab)[1] and (words or all(holders(lab))), 60, "somebody has the lock")
        yield process
    finally:
        go(lab)
        if process.poll() is None:
            process.communicate(timeout=120)


def clear(lab: Lab) -> None:
    for host in lab.hosts:
        lab.ssh("rm -f /tmp/go /tmp/work", host)


def go(lab: Lab) -> None:
    for host in lab.hosts:
        lab.ssh("touch /tmp/go", host)


def with_signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To the command and everything below it, as when its machine goes."""
    for pid in [process.pid, *children(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    process.wait()


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    direct = [int(word) for word in found.stdout.split()]
    return direct + [deeper for child in direct for deeper in children(child)]


def test_who_comes_second_is_told(lab: Lab) -> None:
    with holding(lab, "ana"):
        refused = lab.run("restart", "--service", "tiny-llama")
        status = states(lab, "status")
    assert refused.returncode == LOCKED
    assert [(host["held"], host["verb"]) for host in status] == [(True, "hold")] * 3
    assert f"{lab.hosts[0]} is locked by {status[0]['who']} since " in refused.stderr
    assert ", hold. Wait for it with --lock-wait" in refused.stderr
    assert holders(lab) == [{}, {}, {}]


@pytest.mark.slow
def test_a_dry_run_needs_no_lock(served: Lab) -> None:
    with holding(served, "ana"):
        looked = served.run("deploy", "--check", "-c", str(served.write("other", port=8700)))
    assert looked.returncode == 0, looked.stderr


@pytest.mark.slow
def test_who_waits_says_for_whom_and_then_goes_on(served: Lab) -> None:
    lab = served
    with holding(lab, "ana") as first:
        second = begin_verb(lab, "restart", "--service", "tiny-llama", "--lock-wait", "300")
        assert second.stdout
        said = ""
        while "waiting for " not in said:
            line = second.stdout.readline()
            assert line, said
            said += line
        assert ", hold" in said
        assert first.poll() is None
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0, output


@pytest.mark.slow
def test_who_waited_plans_again_and_does_nothing_twice(served: Lab) -> None:
    lab = served
    with deploying(lab) as (first, config):
        second = begin_verb(lab, "deploy", "--yes", "-c", str(config), "--lock-wait", "300", "--output", "json")
        output, _ = second.communicate(timeout=300)
        assert first.poll() == 0, "it went on before the other had ended"
    result = json.loads(output)
    assert (result["ok"], [host["changed"] for host in result["hosts"]]) == (True, [0, 0, 0])
    assert [len(host["services"]) for host in result["hosts"]] == [1, 1, 1]


@pytest.mark.slow
def test_somebody_on_another_host_stops_all_and_a_dead_host_only_itself(served: Lab) -> None:
    lab = served
    with holding(lab, "ana", "--limit", lab.hosts[1]):
        assert holders(lab)[0] == {}
        stopped = lab.json("stop", "--service", "tiny-llama")
        assert stopped["exit_code"] == LOCKED
        assert lab.ssh("systemctl is-active sglang-tiny-llama").strip() == "active"
    text = lab.inventory.read_text()
    data = yaml.safe_load(text)
    data["all"]["hosts"] = {"a-dead-one": {"ansible_host": "127.0.0.1", "ansible_port": 9}, **data["all"]["hosts"]}
    lab.inventory.write_text(yaml.safe_dump(data, sort_keys=False))
    try:
        restarted = lab.json("restart", "--service", "tiny-llama")
    finally:
        lab.inventory.write_text(text)
    assert restarted["exit_code"] == 6
    actions = {host["host"]: [service["action"] for service in host["services"]] for host in restarted["hosts"]}
    assert [actions[host] for host in lab.hosts] == [["restart"]] * 3


def race(lab: Lab, number: int, *wanted: str) -> None:
    """Two operators at almost the same moment: one works on all of its hosts, the other has touched none.

    `wanted` are the numbers of the hosts that each of them is limited to.
    """
    clear(lab)
    chance = random.Random(number)  # noqa: S311 - which of them is first shall vary
    sets = {f"{name}{number}": [lab.hosts[int(index) - 1] for index in hosts]
            for name, hosts in zip(("ana", "bob"), wanted, strict=True)}  # fmt: skip
    pair: dict[str, subprocess.Popen[str]] = {}
    for name in chance.sample(list(sets), 2):
        time.sleep(chance.uniform(0, 0.5) if pair else 0)
        pair[name] = hold(lab, name, "--limit", ",".join(sets[name]))
    until(lambda: any(process.poll() is not None for process in pair.values()), 120, "one of two is refused")
    time.sleep(1)
    ended = {name: process.poll() for name, process in pair.items()}
    go(lab)
    said = {name: process.communicate(timeout=120)[0] for name, process in pair.items()}
    # Plain Ansible ends with 0 where a play was ended on purpose; which of them worked tells.
    assert sorted(code is None for code in ended.values()) == [False, True], said
    (winner,) = [name for name, code in ended.items() if code is None]
    (loser,) = [name for name, code in ended.items() if code is not None]
    assert pair[winner].returncode == 0, said[winner]
    assert " is locked by " in said[loser]
    for host in lab.hosts:
        work = lab.ssh("cat /tmp/work 2>/dev/null", host).split()
        assert work == ([winner, "begins", winner, "ends"] if host in sets[winner] else [])


def test_of_two_operators_exactly_one_proceeds(lab: Lab) -> None:
    race(lab, 1, "123", "123")


def test_of_two_operators_with_some_hosts_in_common_exactly_one_proceeds(lab: Lab) -> None:
    race(lab, 2, "123", "23")


@pytest.mark.slow
def test_many_races(lab: Lab) -> None:
    for number, wanted in enumerate([("123", "123"), ("123", "23"), ("12", "23"), ("13", "23")] * 5):
        race(lab, 100 + number, *wanted)


@pytest.mark.slow
def test_a_killed_controller_leaves_no_lock_and_nothing_at_work(served: Lab) -> None:
    lab = served
    with deploying(lab, "never-healthy") as (process, _):
        time.sleep(1)  # the service starts, or the gate waits for it
        with_signal(process, signal.SIGKILL)
        until(lambda: holders(lab) == [{}, {}, {}], 10, "the lock is free")
    result = lab.deploy()
    assert result["ok"], result


@pytest.mark.slow
def test_only_ansible_killed(lab: Lab) -> None:
    """Its workers go on by themselves; whoever comes next must not meet them."""
    clear(lab)
    process = hold(lab, "ana")
    until(lambda: lab.ssh("cat /tmp/work", lab.hosts[1]).startswith("ana"), 60, "a run is at work")
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: holders(lab) == [{}, {}, {}], 10, "the lock is free")
    alive = subprocess.run(["ps", "-o", "pid=,stat=", *map(str, workers)], capture_output=True, text=True, check=False)
    assert [line for line in alive.stdout.splitlines() if "Z" not in line] == []
    go(lab)


@pytest.mark.slow
def test_a_rebooted_host_is_locked_again_for_the_same_run(lab: Lab) -> None:
    clear(lab)
    process = hold(lab, "ana")
    until(lambda: all(holders(lab)), 60, "a run has the lock")
    boot = "cat /proc/sys/kernel/random/boot_id; stat -c %Y /proc/1"
    before = lab.ssh(boot, lab.hosts[1])
    lab.ssh("systemctl reboot", lab.hosts[1])
    until(lambda: (now := lab.ssh(boot, lab.hosts[1])).count("\n") == 2 and now != before, 90, "it has rebooted")
    until(lambda: holders(lab)[1], 60, "it is locked again")
    assert holders(lab)[1]["pid"] == process.pid
    with_signal(process, signal.SIGKILL)
    until(lambda: holders(lab) == [{}, {}, {}], 10, "the lock is free")


@pytest.mark.slow
def test_a_lock_is_taken_away_only_on_purpose_and_its_run_ends(served: Lab) -> None:
    lab = served
    with deploying(lab, "never-healthy") as (process, _):
        refused = lock(lab, "release")
        assert refused.returncode == LOCKED
        assert "is alive on this machine" in refused.stderr
        assert "Ctrl-C" in refused.stderr
        assert all(holders(lab))
        released = states(lab, "release", "--yes")
        assert [host["held"] for host in released] == [False, False, False]
        assert any(host["released"] for host in released), "the first that goes takes the run with it"
        output, _ = process.communicate(timeout=30)
        assert process.returncode == LOCKED, output
        assert "it was released by hand" in output
    assert holders(lab) == [{}, {}, {}]
    assert lab.deploy()["ok"]
    assert states(lab, "release")[0]["released"] is False


@pytest.mark.slow
def test_link_cut_and_controller_gone(lab: Lab) -> None:
    """Nothing tells the host; its holder gives up when it has heard nothing for longer than ssh would bear."""
    clear(lab)
    process = hold(lab, "ana")
    until(lambda: all(holders(lab)), 60, "a run has the lock")
    watch = "for i in $(seq 110); do python3 /root/lock.py >> /root/seen; sleep 1; done"
    host = lab.hosts[1]
    lab.ssh(f"systemd-run --unit=cut sh -c 'sleep 1; ip link set host0 down; {watch}; ip link set host0 up'", host)
    time.sleep(3)
    with_signal(process, signal.SIGKILL)
    until(lambda: "there" in lab.ssh("echo there", host, timeout=150), 200, "the link is back")
    seen = [json.loads(line) for line in lab.ssh("cat /root/seen", host).splitlines()]
    held = [bool(line) for line in seen]
    assert held[0] is True
    assert 60 <= held.index(False) <= 95, held
    assert not any(held[held.index(False) :])
