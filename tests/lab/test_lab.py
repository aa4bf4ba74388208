"""The lab itself: it comes up, behaves like a fleet, and goes without a trace, however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, ops
from waiting import wait_until

from sglang_ops.lab import disk, processes
from sglang_ops.lab.settings import Folder, folder

pytestmark = pytest.mark.lab

SIMULATED = ("--server", "simulator")


def traces(lab: Folder) -> list[str]:
    """Everything on this machine that belongs to a lab, its plan's network read while there is one."""
    name = lab.root.name
    plan = lab.load_plan()
    found = [f"process {pid}" for pid in processes.marked(lab)]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(lab.root) in line]
    found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").rglob(f"sglang-ops-lab-{name}")]
    found += [line for line in output("nft", "list", "tables").splitlines() if f"sglang-ops-lab-{name}" in line]
    found += [line for line in output("iptables", "-S").splitlines() if f"sglang-ops-lab-{name}" in line]
    found += [f"interface {plan.uplink}"] if plan and plan.uplink in interfaces() else []
    found += [f"loop device of {file}" for file in disk.attached() if lab.root in file.parents]
    return found + ([f"directory {lab.root}"] if lab.root.exists() else [])


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def lab_up(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return ops("lab", "up", "--name", name, *SIMULATED, *arguments, env=environment, timeout=600)


def status(name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ops("lab", "status", "--name", name, "--output", "json").stdout)
    return answer


def on(name: str, host: int, command: str) -> str:
    """Output of a command on a host of a lab, over the lab's own `ssh -F` configuration."""
    return output("ssh", "-F", str(folder(name).ssh / "config"), f"{name}-{host}", command).strip()


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    """A lab of two hosts with three GPUs each, for the tests that only look or that mend what they break."""
    name = f"t{os.getpid()}"
    done = lab_up(name, "--gpus", "3", "--engine", "podman")
    try:
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(folder(name).inventory)
        assert "needs root for" in done.stderr
        yield name
    finally:
        ops("lab", "down", "--name", name)


def test_status_tells_all(name: str) -> None:
    lab = status(name)
    assert lab["running"] is True
    assert Path(lab["inventory"]).is_file()
    assert [(host["name"], host["state"], host["os"], host["engine"]) for host in lab["hosts"]] == [
        (f"{name}-1", "running", "debian13", "podman"),
        (f"{name}-2", "running", "debian13", "podman"),
    ]
    with urllib.request.urlopen(f"http://{lab['registry']}/v2/") as answer:
        assert answer.status == 200


def test_same_shape_again_changes_nothing(name: str) -> None:
    before = processes.find_supervisor(folder(name))
    done = lab_up(name, "--gpus", "3", "--engine", "podman")
    assert done.returncode == 0
    assert "already up" in done.stderr
    assert processes.find_supervisor(folder(name)) == before


def test_another_shape_is_refused(name: str) -> None:
    done = lab_up(name, "--hosts", "3")
    assert done.returncode == 7
    assert f"lab down --name {name}" in done.stderr
    assert status(name)["running"] is True


def test_hosts_are_systemd_hosts_without_an_engine(name: str) -> None:
    assert on(name, 1, "systemctl is-system-running --wait") == "running"
    assert on(name, 2, "hostname; sudo id -u; command -v docker podman || echo none") == f"{name}-2\n0\nnone"
    nosudo = ["ssh", "-F", str(folder(name).ssh / "config"), "-l", "nosudo", f"{name}-1", "sudo -n true"]
    done = subprocess.run(nosudo, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "password is required" in done.stderr


def test_gpus_can_be_made_to_fail(name: str) -> None:
    assert len(on(name, 1, "nvidia-smi -L").splitlines()) == 3
    assert on(name, 1, "stat -c %t:%T /dev/nvidia2") == "1:3"
    change = 'sudo sed -i \'0,/"lost": false/s//"lost": true/\' /etc/sglang-ops-lab/gpus.json'
    assert "GPU is lost" in on(name, 1, f"{change}; nvidia-smi -L || true")
    assert len(on(name, 2, "nvidia-smi -L").splitlines()) == 3


def test_ansible_reaches_the_hosts(name: str) -> None:
    command = [str(Path(sys.executable).with_name("ansible")), "all", "-i", str(folder(name).inventory), "-m", "ping"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.count('"ping": "pong"') == 2, done.stdout + done.stderr


def test_ssh_verb(name: str) -> None:
    done = ops("lab", "ssh", "--name", name, f"{name}-2", "--", "sh", "-c", "'exit 9'")
    assert done.returncode == 9
    assert ops("lab", "ssh", "--name", name, "nobody-1").returncode == 7


@pytest.mark.parametrize("hard", [(), ("--hard",)], ids=["soft", "hard"])
def test_reboot_keeps_the_disk(name: str, hard: tuple[str, ...]) -> None:
    boot = on(name, 2, "touch ~/kept; cat /proc/sys/kernel/random/boot_id")
    done = ops("lab", "reboot", f"{name}-2", "--name", name, *hard)
    assert done.returncode == 0, done.stderr
    kept, boot_now = on(name, 2, "ls ~; cat /proc/sys/kernel/random/boot_id").splitlines()
    assert kept == "kept"
    assert boot_now != boot


def test_reboot_from_inside(name: str) -> None:
    boot = on(name, 1, "cat /proc/sys/kernel/random/boot_id; (sleep 0.2; sudo reboot) >/dev/null 2>&1 &")

    def rebooted() -> bool:
        with suppress(subprocess.CalledProcessError):
            return on(name, 1, "cat /proc/sys/kernel/random/boot_id") != boot
        return False

    wait_until(rebooted)


def test_power_off_and_on(name: str) -> None:
    assert ops("lab", "poweroff", f"{name}-1", "--name", name, "--hard").returncode == 0
    assert [host["state"] for host in status(name)["hosts"]] == ["off", "running"]
    assert ops("lab", "reboot", f"{name}-1", "--name", name).returncode == 1
    assert ops("lab", "poweron", f"{name}-1", "--name", name).returncode == 0
    assert on(name, 1, "hostname") == f"{name}-1"


def test_a_second_lab_lives_beside_the_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's, too: in another state directory, but on the same machine with its networks and settings."""
    other, limit = f"{name}b", Path("/proc/sys/fs/inotify/max_user_instances")
    registry, instances = status(name)["registry"], int(limit.read_text())
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("SGLANG_OPS_LAB_STATE", str(tmp_path / "labs"))
        try:
            done = lab_up(other, "--hosts", "1", "--gpus", "0", "--os", "debian12")
            assert done.returncode == 0, done.stderr
            assert "bookworm" in on(other, 1, "cat /etc/os-release; ls /usr/bin/nvidia-smi || true")
            assert status(other)["registry"] != registry
        finally:
            ops("lab", "down", "--name", other)
        assert traces(folder(other)) == []
    assert on(name, 1, "hostname") == f"{name}-1"
    assert int(limit.read_text()) >= instances, "what the first lab needs is not put back with the second"


def test_inventory_is_ordinary_yaml(name: str) -> None:
    hosts = yaml.safe_load(folder(name).inventory.read_text())["all"]["hosts"]
    assert [host["ansible_host"] for host in hosts.values()] == [host["address"] for host in status(name)["hosts"]]


def test_killing_the_supervisor_ends_everything(name: str) -> None:
    """Last of the tests of this lab: afterwards it is gone."""
    lab = folder(name)
    plan = lab.load_plan()
    assert plan
    inside = [pid for pid in processes.marked(lab) if len(processes.pid_in_namespaces(pid)) > 1]
    assert len(inside) >= 5  # supervisor, registry, model source, two hosts
    supervisor = processes.find_supervisor(lab)
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not processes.marked(lab))
    wait_until(lambda: plan.uplink not in interfaces())
    assert status(name)["running"] is False
    assert {host["state"] for host in status(name)["hosts"]} == {"off"}
    assert traces(lab) != []  # rule, control groups and directory are still there ...
    assert ops("lab", "down", "--name", name).returncode == 0
    assert traces(lab) == []  # ... and now they are not
    assert ops("lab", "down", "--name", name).returncode == 0


_BEHIND_A_FIREWALL = """
import subprocess
from sglang_ops.lab import network
from sglang_ops.lab.settings import Plan, Shape

def state():
    commands = ("iptables", "-S"), ("nft", "list", "ruleset"), ("ip", "link"), ("ip", "address")
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]

subprocess.run(["iptables", "-P", "FORWARD", "DROP"], check=True)
plan = Plan(Shape(name="walled"), "198.18.200", 1500, "", "", "")
with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as other:
    try:
        before = state()
        while subprocess.run(["cmp", "-s", "/proc/self/ns/net", f"/proc/{other.pid}/ns/net"]).returncode == 0:
            pass
        network.connect(plan, other.pid)
        print(state()[0].count("198.18.200.0/24"))
        network.disconnect("walled", plan)
        print(state() == before)
    finally:
        other.kill()
"""


def test_machine_that_drops_what_it_forwards() -> None:
    """Docker and ufw set FORWARD to DROP: the lab makes its exceptions, and takes them back (in a namespace)."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", _BEHIND_A_FIREWALL],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.split() == ["2", "True"], done.stderr


def supervisor_is_there(lab: Folder) -> bool:
    return processes.find_supervisor(lab) is not None


def hosts_are_booting(lab: Folder) -> bool:
    return lab.log(f"{lab.root.name}-1").exists()


@pytest.mark.parametrize("moment", [Folder.load_plan, supervisor_is_there, hosts_are_booting])
def test_killed_in_the_middle(moment: Callable[[Folder], object]) -> None:
    """`lab up` is killed at some moment: `lab down` clears up, also what went on without it."""
    name = f"t{os.getpid()}k"
    lab = folder(name)
    start = [sys.executable, "-m", "sglang_ops", "lab", "up", "--name", name, *SIMULATED]
    with subprocess.Popen(start, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}) as up:
        wait_until(lambda: moment(lab), every=0.02)
        up.kill()
    assert traces(lab) != []
    uplink = lab.load_plan().uplink  # type: ignore[union-attr]
    assert ops("lab", "down", "--name", name).returncode == 0
    assert traces(lab) == []
    assert uplink not in interfaces()


def test_killed_while_the_tree_is_built(tmp_path: Path) -> None:
    """A build that outlives its `lab up` is found by its mark and ended, too."""
    name = f"t{os.getpid()}c"
    lab = folder(name)
    environment = {"SGLANG_OPS_LAB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", "sglang_ops", "lab", "up", "--name", name, *SIMULATED]
    with subprocess.Popen(start, stderr=subprocess.DEVNULL, env=os.environ | environment) as up:
        wait_until(lambda: list((tmp_path / "cache" / "trees").glob(".partial-*/etc")), every=0.02)
        up.kill()
    assert processes.marked(lab) != []
    assert ops("lab", "down", "--name", name, env=environment).returncode == 0
    assert traces(lab) == []
    assert not list((tmp_path / "cache" / "trees").glob("debian*"))


def test_a_disk_can_be_written_where_a_loop_device_was_read_only_last(tmp_path: Path) -> None:
    device = subprocess.check_output(["losetup", "--find"], text=True).strip()
    image, mounted = tmp_path / "disk.img", tmp_path / "mounted"
    mounted.mkdir()
    disk.make(image)
    subprocess.run(["blockdev", "--setro", device], check=True)
    disk.mount(image, mounted)
    try:
        (mounted / "file").write_text("written")
    finally:
        subprocess.run(["umount", mounted], check=True)
