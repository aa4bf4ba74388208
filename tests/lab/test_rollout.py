"""A good release goes from host to host; a bad one touches one host; whoever pauses, kills or undoes finds a way on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Lab

pytestmark = pytest.mark.lab
QUICK = ("--soak", "0")
RELEASES = "/var/lib/sglang-ops/services/sglang-tiny-llama/releases"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab("t-croll", hosts=3, gpus=1, engine="docker", os="debian13", server="simulator")
    first = lab.deploy(release(lab, 1), *QUICK)
    assert first["ok"], first
    assert first["rollout"]["result"] == "done"
    assert [sorted(batch) for batch in first["rollout"]["batches"]] == [lab.hosts]  # nothing served: all at once
    assert max(host["module_executions"] for host in first["hosts"]) <= 12
    return lab


def release(lab: Lab, number: int, fault: str = "", **keys: Any) -> Path:
    """A deployment file whose release differs from the others by its number."""
    variables = {"RELEASE_NUMBER": str(number), "SGLANG_SIMULATOR_DRAIN_POLL": "0.2"}
    return lab.write(f"r{number}", env_vars=variables | ({"SGLANG_SIMULATOR_FAULT": fault} if fault else {}), **keys)


def running(lab: Lab) -> dict[str, str]:
    """{host: release} as the hosts themselves say."""
    return {row["host"]: row["release"] for row in lab.json("rollout status")["services"]}


def begun(lab: Lab, config: Path, until: str, *flags: str) -> subprocess.Popen[str]:
    """A deploy of its own that has come to the line `until`."""
    words = ["deploy", "-i", str(lab.inventory), "-c", str(config), "--yes", *(flags or QUICK)]
    command = [sys.executable, "-m", "sglang_ops", *words]
    environment = os.environ | lab.env | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until in line:
            return process
    pytest.fail(f"the deploy ended before '{until}'")


def test_bad_release_touches_the_canary_and_goes_back(lab: Lab) -> None:
    before = running(lab)
    started = time.monotonic()
    result = lab.deploy(release(lab, 2, "garbage"), *QUICK)
    assert time.monotonic() - started < 90
    assert (result["exit_code"], result["rollout"]["result"]) == (3, "rolled-back")
    assert result["rollout"]["batches"] == [[lab.hosts[0]]]
    assert result["rollout"]["waiting"] == lab.hosts[1:]
    assert {host["host"]: host["release"] for host in result["hosts"]} == before == running(lab)
    refused = lab.run("rollout resume", "-c", str(release(lab, 2, "garbage")))
    assert refused.returncode == 7
    assert f"failed on {lab.hosts[0]}" in refused.stderr


@pytest.mark.slow
def test_pause_from_elsewhere_holds_the_next_batch_and_resume_finishes(lab: Lab, tmp_path: Path) -> None:
    old = running(lab)
    config = release(lab, 3)
    process = begun(lab, config, f"{lab.hosts[0]} start")
    other = Lab(lab.name, lab.inventory, lab.hosts, lab.folder, {"SGLANG_OPS_STATE": str(tmp_path)})
    assert other.run("rollout pause").returncode == 0
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "Paused by" in output
    now = running(lab)
    assert now[lab.hosts[0]] != old[lab.hosts[0]]
    assert now[lab.hosts[2]] == old[lab.hosts[2]]
    told = lab.json("rollout status")
    assert (told["exit_code"], told["rollouts"][0]["paused"]["why"]) == (2, "asked for")
    assert told["rollouts"][0]["options"] == {"soak": 0}  # what the deploy was given, for whoever resumes

    changed = lab.run("rollout resume", "-c", str(release(lab, 4, port=8100)))
    assert changed.returncode == 7
    assert "port 8000 → 8100" in changed.stderr
    assert lab.json("rollout status")["exit_code"] == 2  # still paused

    done = lab.json("rollout resume", "-c", str(config))
    assert (done["ok"], done["rollout"]["result"]) == (True, "done")
    assert {name for batch in done["rollout"]["batches"] for name in batch} == set(lab.hosts) - {
        host for host in lab.hosts if now[host] != old[host]
    }
    assert len(set(running(lab).values())) == 1
    assert lab.json("rollout status")["rollouts"] == []


def killed(lab: Lab, config: Path) -> None:
    """A deploy whose controller died when the first host was done and the second began."""
    process = begun(lab, config, f"{lab.hosts[1]} start")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_controller_is_finished_by_the_same_command(lab: Lab) -> None:
    config = release(lab, 5)
    killed(lab, config)
    first = running(lab)[lab.hosts[0]]
    finished = lab.deploy(config, *QUICK, "--lock-wait", "60")
    assert finished["ok"], finished
    assert lab.hosts[0] not in {name for batch in finished["rollout"]["batches"] for name in batch}
    assert set(running(lab).values()) == {first}
    assert lab.deploy(config)["rollout"] is None


@pytest.mark.slow
def test_killed_controller_is_undone(lab: Lab) -> None:
    old = running(lab)
    killed(lab, release(lab, 8))
    time.sleep(3)  # whatever the host was told last comes to its end there
    (unfinished,) = lab.json("rollout status")["rollouts"]
    assert lab.hosts[2] in unfinished["waiting"]
    undone = lab.json("rollout undo")
    assert undone["ok"], undone
    assert running(lab) == old
    assert lab.json("rollout status")["rollouts"] == []


@pytest.mark.slow
def test_undo_forgets_nothing_until_every_host_is_back(lab: Lab) -> None:
    """Somebody is at work; then the image of before is gone; then the server of before does not start."""
    canary, old = lab.hosts[0], running(lab)
    process = begun(lab, release(lab, 9), f"{canary} gate", "--soak", "600")
    assert lab.run("rollout undo").returncode == 5
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    def unfinished() -> list[str]:
        """The hosts that wait; the canary has not gone back while it is not among the others."""
        (one,) = lab.json("rollout status")["rollouts"]
        return [*one["changed"], *one["waiting"]]

    now = running(lab)
    assert now[canary] != old[canary]
    image = json.loads(lab.ssh(f"cat {RELEASES}/{old[canary]}/record.json", canary))["content"]["image"]
    lab.ssh(f"docker tag {image} kept:1 && docker image rm {image}", canary)
    since = lab.ssh("systemctl show -P ActiveEnterTimestamp 'sglang-*.service'", canary)
    for verb in ("rollback", "rollout undo"):
        refused = lab.run(verb)
        assert refused.returncode == 7, refused.stderr
        assert f"The image of release {old[canary]} of sglang-tiny-llama is gone from this host" in refused.stderr
        assert f"`docker pull {image}`" in refused.stderr
    assert lab.ssh("systemctl show -P ActiveEnterTimestamp 'sglang-*.service'", canary) == since  # nothing stopped
    assert running(lab) == now
    assert set(unfinished()) == set(lab.hosts)
    lab.ssh(f"docker pull {image} && docker image rm kept:1", canary)

    drop_in = "/etc/systemd/system/sglang-tiny-llama.service.d"
    lab.ssh(f"mkdir {drop_in} && printf '[Service]\\nExecStartPre=/bin/false\\n' > {drop_in}/broken.conf", canary)
    failed = lab.run("rollout undo")
    assert failed.returncode == 4, failed.stderr
    assert f"sglang-ops rollback -i {lab.inventory} --limit {canary}" in failed.stderr
    assert "keep the roll-out on record" in failed.stderr
    assert lab.hosts[2] in unfinished()
    lab.ssh(f"rm -r {drop_in} && systemctl daemon-reload", canary)
    undone = lab.json("rollout undo")
    assert undone["ok"], undone
    assert running(lab) == old
    assert lab.json("rollout status")["rollouts"] == []


@pytest.mark.slow
def test_rollback_without_a_name_returns_to_the_last_stable_release(lab: Lab) -> None:
    changes = lab.json("history", "--releases", "-n", "100")["releases"]
    mine = [change for change in changes if change["host"] == lab.hosts[2]]  # it never had a release that was undone
    assert {"stable"} <= {change["result"] for change in mine} <= {"stable", "failed"}
    assert all(change["image_digest"].startswith("sha256:") and change["model"] and change["who"] for change in mine)
    assert "RELEASE_NUMBER" in mine[0]["differences"]
    now = running(lab)
    before = next(c["release"] for c in mine if c["result"] == "stable" and c["release"] != now[lab.hosts[2]])

    unknown = lab.run("rollback", "ffffffffffff")
    assert unknown.returncode == 7
    assert "has no release ffffffffffff here; it keeps" in unknown.stderr
    assert running(lab) == now

    result = lab.json("rollback", "--batch", "100%")
    assert result["ok"], result
    assert set(running(lab).values()) == {before}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--canary", "4"), "canary is 4, and there are 3 hosts"),
        (("--batch", "0"), "--batch: 0 is no number of hosts"),
        (("--batch", "130%"), "--batch: 130% is no number of hosts"),
        (("--soak=-1",), "--soak"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_host_is_touched(
    lab: Lab, arguments: tuple[str, ...], says: str
) -> None:
    done = lab.run("deploy", "--yes", "-c", str(release(lab, 6)), *arguments)
    assert done.returncode == 7, done.stderr
    assert says in done.stderr


@pytest.mark.slow
def test_quality_gate_sends_a_canary_back_that_serves_nonsense(lab: Lab) -> None:
    old = running(lab)
    config = release(lab, 7)
    config.write_text(config.read_text() + "rollout:\n  gate: {prompt: 'What is 2+2?', expect: 'no such words'}\n")
    result = lab.deploy(config, *QUICK)
    assert (result["exit_code"], result["rollout"]["result"]) == (3, "rolled-back")
    assert "no-go" in result["hosts"][0]["failure"]["cause"]
    assert running(lab) == old
