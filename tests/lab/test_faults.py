"""Every fault of the simulator, on a first deployment and on an upgrade: the right message, exit code and state.

Faults that show at once are put into services of one host side by side: one deploy, each told for its own service.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Lab
from waiting import wait_until

pytestmark = pytest.mark.lab

TIMES = {"restart_delay": 1, "soak": 1, "drain_timeout": 5}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))
# What only the server can see of its command line: a shell's own words are not judged before.
WRONG_COMMAND = "exec python3 -m sglang.launch_server --model-path lab/tiny-llama --port {port} --no-such-flag"
FAULTS = {
    "crash-at-start": "RuntimeError",
    "crash-after:1": "exit code 137",
    "wrong-model": "/v1/models names",
    "garbage": "not JSON",
    "exit-zero": "exit code 0",
    "out-of-memory": "out of GPU memory",
    "wrong-command": "unrecognized arguments: --no-such-flag",
}


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab]) -> Lab:
    made = share_lab(hosts=1)
    done = made.deploy(services_of(made, *FAULTS), *QUICK)
    assert done["ok"], done
    return made


def name_of(fault: str) -> str:
    return "sglang-" + fault.replace(":", "-")


def port_of(fault: str) -> int:
    return 8100 + list(FAULTS).index(fault)


def services_of(lab: Lab, *names: str, faults: bool = False, first_port: int = 8100) -> Path:
    """A deployment file with a service for each of FAULTS; with `faults` they have them."""
    body = lab.deployment["deployment"]
    deployments: dict[str, Any] = {}
    for port, fault in enumerate(names, first_port):
        one = body | {"served_model_name": fault.replace(":", "-"), "port": port}
        if faults and fault == "wrong-command":
            one["command"] = WRONG_COMMAND.format(port=port)
        elif faults:
            one["env_vars"] = body["env_vars"] | {"SGLANG_SIMULATOR_FAULT": fault}
        deployments[fault.replace(":", "-")] = one
    path = lab.folder / "faults.yaml"
    path.write_text(yaml.safe_dump({"deployments": deployments}))
    return path


def rows(lab: Lab) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in lab.json("status")["services"]}


def told_of(fault: str, cause: str) -> str:
    """What a host's cause says of one service."""
    return cause.partition(f"{name_of(fault)}: ")[2].partition("; sglang-")[0]


def test_bad_releases_are_rolled_back_and_the_old_ones_serve(lab: Lab) -> None:
    before = rows(lab)
    result = lab.deploy(services_of(lab, *FAULTS, faults=True), *QUICK, "-e", "sglang_server_start_timeout=900")
    assert result["exit_code"] == 3, result
    (host,) = result["hosts"]
    assert host["seconds"] < 300, "crashes are noticed at once, not at the time-out"
    assert host["failure"]["log"]
    cause = host["failure"]["cause"]
    _, _, rolled_back = cause.partition("Rolled back")
    after, told = rows(lab), {service["name"]: service for service in host["services"]}
    for fault, says in FAULTS.items():
        assert says in told_of(fault, cause), f"{fault}: {cause}"
        name, release = name_of(fault), before[name_of(fault)]["release"]
        assert f"{name} serves release {release}" in rolled_back
        assert (after[name]["healthy"], after[name]["release"]) == (True, release)
        assert told[name]["release"] == release


def test_first_deployments_that_fail_need_hands_and_leave_nothing_running(lab: Lab) -> None:
    fresh = ("crash-at-start", "wrong-model")

    def file(*, faults: bool) -> Path:
        data = yaml.safe_load(services_of(lab, *fresh, faults=faults, first_port=8200).read_text())
        renamed = {f"fresh-{name}": body | {"served_model_name": name} for name, body in data["deployments"].items()}
        path = lab.folder / "fresh.yaml"
        path.write_text(yaml.safe_dump({"deployments": renamed}))
        return path

    result = lab.deploy(file(faults=True), *QUICK)
    assert result["exit_code"] == 4, result
    cause = result["hosts"][0]["failure"]["cause"]
    for fault in fresh:
        assert FAULTS[fault] in told_of(f"fresh-{fault}", cause), cause
    assert "does not serve" in cause
    assert "sglang-fresh" not in lab.ssh("docker ps")
    mended = lab.deploy(file(faults=False), *QUICK)
    assert mended["ok"], mended


def test_server_that_never_serves_is_given_up_at_the_time_out(lab: Lab) -> None:
    before = rows(lab)[name_of("exit-zero")]
    fault = {"SGLANG_SIMULATOR_FAULT": "never-healthy"}
    config = lab.write("never", served_model_name="exit-zero", port=port_of("exit-zero"), env_vars=fault)
    result = lab.deploy(config, *QUICK, "-e", "sglang_server_start_timeout=20")
    assert "not serving after 20 s" in result["hosts"][0]["failure"]["cause"]
    assert result["exit_code"] == 3
    after = rows(lab)[name_of("exit-zero")]
    assert (after["healthy"], after["release"]) == (True, before["release"])


def test_crash_in_the_soak_is_one_too(lab: Lab) -> None:
    fault = {"SGLANG_SIMULATOR_FAULT": "crash-after:6"}
    config = lab.write("late", served_model_name="exit-zero", port=port_of("exit-zero"), env_vars=fault)
    result = lab.deploy(config, *QUICK, "-e", "sglang_server_soak=60")
    assert result["exit_code"] == 3
    assert "after it had passed" in result["hosts"][0]["failure"]["cause"]


def test_a_slow_start_is_waited_for_and_a_server_that_ignores_sigterm_is_ended_after_the_drain(lab: Lab) -> None:
    body = lab.deployment["deployment"]

    def file(**env_vars: dict[str, str]) -> Path:
        names = {"exit-zero": "slow", "out-of-memory": "stubborn"}
        both = {
            name: body
            | {"served_model_name": name, "port": port_of(name)}
            | {"env_vars": body["env_vars"] | env_vars.get(alias, {})}
            for name, alias in names.items()
        }
        path = lab.folder / "two.yaml"
        path.write_text(yaml.safe_dump({"deployments": both}))
        return path

    faults = {"slow": "slow-start:6", "stubborn": "ignore-sigterm"}
    begun = lab.deploy(file(**{key: {"SGLANG_SIMULATOR_FAULT": fault} for key, fault in faults.items()}), *QUICK)
    assert begun["ok"], begun
    started = time.monotonic()
    ended = lab.deploy(file(), *QUICK)
    assert ended["ok"], ended
    assert time.monotonic() - started >= 5


def test_unknown_argument_is_refused_before_a_host_is_touched(lab: Lab) -> None:
    before = rows(lab)
    result = lab.deploy(
        lab.write("flag", served_model_name="exit-zero", port=port_of("exit-zero"), extra_args="--no-such-flag"), *QUICK
    )
    assert result["exit_code"] == 7
    assert "--no-such-flag is not an argument of SGLang 0.5.23" in result["hosts"][0]["failure"]["cause"]
    assert rows(lab)[name_of("exit-zero")]["release"] == before[name_of("exit-zero")]["release"]


def test_crash_loop_ends_in_failed_and_status_says_so(lab: Lab) -> None:
    name = name_of("wrong-model")
    lab.ssh(f"mkdir -p /etc/systemd/system/{name}.service.d")
    lab.ssh(f"printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' > /etc/systemd/system/{name}.service.d/x.conf")
    lab.ssh(f"systemctl daemon-reload && systemctl restart {name}")
    wait_until(lambda: lab.ssh(f"systemctl is-failed {name}").strip() == "failed", what="failed", every=1)
    row = rows(lab)[name]
    assert row["state"] == "failed"
    assert "crash loop" in str(row["detail"])
    lab.ssh(f"rm -r /etc/systemd/system/{name}.service.d && systemctl daemon-reload")
    mended = lab.deploy(services_of(lab, *FAULTS), *QUICK)
    assert mended["ok"], mended
