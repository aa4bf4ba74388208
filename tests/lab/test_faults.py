"""Every fault of the simulator, on a first deployment and on an upgrade: the right message, exit code and state."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from conftest import Lab

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-faults", hosts=1, gpus=2, engine="docker", os="debian13", server="simulator")
    done = made.deploy(None, *QUICK)
    assert done["ok"], done
    return made


TIMES = {"restart_delay": 1, "soak": 1, "start_timeout": 10, "drain_timeout": 5}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))
FAULTS = [
    ("crash-at-start", "RuntimeError"),
    ("crash-after:1", "exit code 137"),
    ("wrong-model", "/v1/models names"),
    ("garbage", "not JSON"),
    ("exit-zero", "exit code 0"),
    ("out-of-memory", "out of GPU memory"),
    ("never-healthy", "not serving after 10 s"),
]


def service(lab: Lab) -> dict[str, object]:
    (row,) = lab.json("status")["services"]
    return row


@pytest.mark.parametrize(("fault", "says"), FAULTS)
def test_bad_release_is_rolled_back_and_the_old_one_serves(lab: Lab, fault: str, says: str) -> None:
    before = service(lab)
    bad = lab.write("bad", env_vars={"SGLANG_SIMULATOR_FAULT": fault})
    result = lab.deploy(bad, *QUICK)
    (host,) = result["hosts"]
    assert says in host["failure"]["cause"]
    assert "Rolled back" in host["failure"]["cause"]
    assert host["failure"]["log"]
    assert result["exit_code"] == 3
    after = service(lab)
    assert after["healthy"]
    assert after["release"] == before["release"] == host["services"][0]["release"]


@pytest.mark.parametrize(("fault", "says"), [FAULTS[0], FAULTS[2]])
def test_first_deployment_that_fails_needs_hands_and_leaves_nothing_running(lab: Lab, fault: str, says: str) -> None:
    fresh = lab.write("fresh", served_model_name="fresh", port=8200, env_vars={"SGLANG_SIMULATOR_FAULT": fault})
    result = lab.deploy(fresh, *QUICK)
    assert result["exit_code"] == 4
    assert says in result["hosts"][0]["failure"]["cause"]
    assert "does not serve" in result["hosts"][0]["failure"]["cause"]
    assert "sglang-fresh" not in lab.ssh("docker ps")
    mended = lab.deploy(lab.write("fresh", served_model_name="fresh", port=8200), *QUICK)
    assert mended["ok"]
    assert lab.json("remove", "--service", "fresh", "--yes")["ok"]


def test_crash_in_the_soak_is_one_too(lab: Lab) -> None:
    late = lab.write("late", env_vars={"SGLANG_SIMULATOR_FAULT": "crash-after:6"})
    result = lab.deploy(late, *QUICK, "-e", "sglang_server_soak=30")
    assert result["exit_code"] == 3
    assert "after it had passed" in result["hosts"][0]["failure"]["cause"]


def test_crash_is_noticed_at_once_not_at_the_time_out(lab: Lab) -> None:
    bad = lab.write("bad", env_vars={"SGLANG_SIMULATOR_FAULT": "crash-at-start"})
    started = time.monotonic()
    result = lab.deploy(bad, *QUICK, "-e", "sglang_server_start_timeout=600")
    assert result["exit_code"] == 3
    assert time.monotonic() - started < 90


def test_slow_start_is_waited_for(lab: Lab) -> None:
    slow = lab.write("slow", env_vars={"SGLANG_SIMULATOR_FAULT": "slow-start:6"})
    result = lab.deploy(slow, *QUICK, "-e", "sglang_server_start_timeout=60")
    assert result["ok"], result
    assert lab.deploy(None, *QUICK)["ok"]


def test_server_that_ignores_sigterm_is_ended_after_the_drain(lab: Lab) -> None:
    stubborn = lab.write("stubborn", env_vars={"SGLANG_SIMULATOR_FAULT": "ignore-sigterm"})
    assert lab.deploy(stubborn, *QUICK)["ok"]
    started = time.monotonic()
    assert lab.deploy(None, *QUICK)["ok"]
    assert 5 <= time.monotonic() - started < 60


def test_unknown_argument_is_refused_before_a_host_is_touched(lab: Lab) -> None:
    before = service(lab)
    result = lab.deploy(lab.write("flag", extra_args="--no-such-flag"), *QUICK)
    assert result["exit_code"] == 7
    assert "--no-such-flag is not an argument of SGLang 0.5.23" in result["hosts"][0]["failure"]["cause"]
    assert service(lab)["release"] == before["release"]


def test_unknown_argument_that_only_the_server_sees_is_named_too(lab: Lab) -> None:
    words = "exec python3 -m sglang.launch_server --model-path ${deployment.hf_model_handle} --no-such-flag"
    words += " --port ${deployment.port} --served-model-name ${deployment.served_model_name}"
    result = lab.deploy(lab.write("flag", command=words), *QUICK)  # a shell's own words are not judged
    assert result["exit_code"] == 3
    assert "unrecognized arguments: --no-such-flag" in result["hosts"][0]["failure"]["cause"]


def test_crash_loop_ends_in_failed_and_status_says_so(lab: Lab) -> None:
    name = str(service(lab)["name"])
    lab.ssh(f"mkdir -p /etc/systemd/system/{name}.service.d")
    lab.ssh(f"printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' > /etc/systemd/system/{name}.service.d/x.conf")
    lab.ssh(f"systemctl daemon-reload && systemctl restart {name}")
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and service(lab)["state"] != "failed":
        time.sleep(1)
    row = service(lab)
    assert row["state"] == "failed"
    assert "crash loop" in str(row["detail"])
    lab.ssh(f"rm -r /etc/systemd/system/{name}.service.d && systemctl daemon-reload")
    assert lab.deploy(None, *QUICK)["ok"]
