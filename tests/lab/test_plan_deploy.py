"""`plan` says what `deploy` then does, and does nothing itself: 32 generated situations, four hosts at a time.

Every event comes up once in the first four rounds; the others, where they meet other inventories, are slow.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Lab, ops

from sglang_ops.planning.release import short

pytestmark = pytest.mark.lab

SEED = 20261122
ROUNDS, QUICK_ROUNDS = 8, 4  # the first finds blank hosts
SERVICE = "sglang-tiny-llama"
UNIT = f"/etc/systemd/system/{SERVICE}.service"
REMOVE = (
    f"systemctl disable --now {SERVICE}; rm -rf {UNIT} /var/lib/sglang-ops/services/{SERVICE}; systemctl daemon-reload"
)
TAKE_GPU = "sed -i '0,/\"memory_used\": [0-9]*/s//\"memory_used\": 50000/' /etc/sglang-ops-lab/gpus.json"

# What has happened to a host since the last deploy, as a shell command that root runs there.
HAPPENED: dict[str, str] = {
    "nothing": "true",
    "unit edited": f"echo '# by hand' >> {UNIT}",
    "unit deleted": f"rm -f {UNIT}",
    "unit deleted and forgotten": f"rm -f {UNIT} && systemctl daemon-reload",
    "stopped": f"systemctl stop {SERVICE}",
    "failed": (
        f"mkdir -p /run/systemd/system/{SERVICE}.service.d"
        f" && printf '[Service]\\nRestart=no\\n' > /run/systemd/system/{SERVICE}.service.d/no.conf"
        f" && systemctl daemon-reload && systemctl kill --signal KILL --kill-whom main {SERVICE}; sleep 1"
        f"; rm -r /run/systemd/system/{SERVICE}.service.d && systemctl daemon-reload"
    ),
    "image removed": f"systemctl stop {SERVICE}; docker image prune --all --force",
    "model removed": "rm -rf /var/lib/sglang-ops/huggingface/hub/models--*",
    "engine stopped": "systemctl stop docker.socket docker.service",
    "removed": REMOVE,
    "GPU 0 taken": TAKE_GPU,
    "removed and GPU 0 taken": f"{REMOVE} && {TAKE_GPU}",
}
# What the inventory says of the host from then on.
VARIABLES: tuple[dict[str, Any], ...] = (
    {},
    {"sglang_server_restart_delay": 11},
    {"sglang_server_drain_timeout": 9},
    {"sglang_server_container_args": ["--label=team=a"]},
    {"deployment_overrides": {"port": 8100}},
    {"deployment_overrides": {"extra_args": "--mem-fraction-static 0.7"}},
    {"deployment_overrides": {"env_vars": {"WORDS": "a 'b' \"c\" $HOME %n"}}},
    {"deployment_overrides": {"tensor_parallel_size": 2}},
)
# Everything that a change of a host could show in; without what only lives (logs, clocks, sessions).
_LOOK = """
find /etc/systemd/system /var/lib/sglang-ops /etc/docker -type f -printf '%p %s %T@\\n' 2>/dev/null | sort
systemctl show 'sglang-*' docker.service -p Id,ActiveState,InvocationID,NRestarts --no-pager
command -v docker && docker images --quiet --no-trunc && docker ps --quiet --no-trunc
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("t-plan", hosts=4, gpus=3, server="simulator")
    yield made
    ops("lab", "down", "--name", made.name)


def situations(number: int, hosts: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """What happens to each host in a round: every event comes up once before any comes twice."""
    if number == 0:
        return dict.fromkeys(hosts, ("nothing", {}))
    draw = random.Random(SEED)  # noqa: S311
    events = [event for _ in range(ROUNDS) for event in draw.sample(list(HAPPENED), len(HAPPENED))]
    # Every second host has nothing in the inventory, so that "nothing" often is nothing.
    said = [draw.choice(VARIABLES) if draw.random() < 0.5 else {} for _ in range(ROUNDS * len(hosts))]
    mine = slice((number - 1) * len(hosts), number * len(hosts))
    return dict(zip(hosts, zip(events[mine], said[mine], strict=True), strict=True))


def with_inventory(lab: Lab, name: str) -> list[str]:
    """Arguments of plan and deploy: an inventory beside the lab's own, the lab's file, no waiting afterwards."""
    return ["-i", str(lab.folder / name), "-c", str(lab.folder / "deployment.yaml"), "-e", "sglang_server_soak=0"]


def everywhere(lab: Lab, commands: Mapping[str, str]) -> dict[str, str]:
    """What commands of root print, by host; all hosts at a time."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return dict(zip(commands, pool.map(lab.ssh, commands.values(), commands), strict=True))


def look(lab: Lab) -> dict[str, str]:
    return everywhere(lab, dict.fromkeys(lab.hosts, _LOOK))


def invocations(lab: Lab) -> dict[str, str]:
    command = f"systemctl show -p InvocationID --value {SERVICE}"
    return everywhere(lab, dict.fromkeys(lab.hosts, command))


def announced(plan: Mapping[str, Any]) -> dict[str, set[tuple[str, str]]]:
    return {host["host"]: {(step["step"], step["subject"]) for step in host["steps"]} for host in plan["hosts"]}


def done(run: Path, hosts: list[str]) -> dict[str, set[tuple[str, str]]]:
    """What the modules of a run say that they changed, in the words of a plan."""
    found: dict[str, set[tuple[str, str]]] = {host: set() for host in hosts}
    for line in (run / "events.ndjson").read_text().splitlines():
        event = json.loads(line)
        data = event["event_data"]
        result = data.get("res") or {}
        if event["event"] == "runner_on_ok" and result.get("changed") and "sglang_ops" in result:
            found[data["host"]] |= changes(result["sglang_ops"])
    return found


def changes(result: Mapping[str, Any]) -> set[tuple[str, str]]:
    match result["kind"]:
        case "engine":
            return {("engine", "docker")}
        case "image":
            return {("image", short(image["ref"])) for image in result["images"]}
        case "model":
            return {("model", model["repo"]) for model in result["models"]}
        case "service":
            return {(item["action"], item["name"]) for item in result["services"] if item["action"] != "none"}
    return set()


def neutral(unit: str) -> str:
    """A unit without what only the host, the hub and the lab's inventory tell."""
    unit = re.sub(r"release [0-9a-f]{12}", "release", unit)
    unit = re.sub(r"@sha256:[0-9a-f]{64}", ":v0.5.23", unit)
    unit = re.sub(r"/sglang-ops/jit/[^,\s]+", "/sglang-ops/jit/KEY", unit)
    return re.sub(r"    --(revision|ulimit) .* \\\n", "", unit)


def test_render_prints_the_unit_that_a_blank_host_would_get(lab: Lab) -> None:
    file = str(lab.folder / "deployment.yaml")
    rendered = ops("render", "--config", file, "--output", "unit")
    plan = lab.json("plan", "--config", file)
    (service,) = plan["hosts"][0]["services"]
    added = [line[1:] for line in service["unit_diff"].splitlines()[3:]]
    assert neutral("\n".join(added) + "\n") == neutral(rendered.stdout)


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.slow] * (number >= QUICK_ROUNDS)) for number in range(ROUNDS)]
)
def test_deploy_does_what_plan_announced(lab: Lab, number: int) -> None:
    drawn = situations(number, lab.hosts)
    said = lab.folder / "round.yml"
    said.write_text(yaml.safe_dump({"all": {"hosts": {host: variables for host, (_, variables) in drawn.items()}}}))
    everywhere(lab, {host: HAPPENED[event] for host, (event, _) in drawn.items()})
    arguments = with_inventory(lab, "round.yml")
    before = look(lab)
    plan = lab.json("plan", *arguments)
    assert plan["ok"], json.dumps(plan, indent=1)
    assert look(lab) == before, "plan changed a host"
    were = invocations(lab)
    result = lab.json("deploy", "--yes", *arguments)
    assert result["ok"], json.dumps(result, indent=1)
    are, steps = invocations(lab), announced(plan)
    assert steps == done(Path(result["run"]), lab.hosts), drawn
    assert plan["pending"] == any(steps.values())
    for host in result["hosts"]:
        name = host["host"]
        if not steps[name]:
            assert host["changed"] == 0, drawn[name]
            assert host["module_executions"] == 1
        touched = {step for step, _ in steps[name]} & {"start", "restart", "engine"}
        assert (are[name] != were[name]) == bool(touched), drawn[name]
    planned = {host["host"]: host["services"][0] for host in plan["hosts"]}
    for host in result["hosts"]:
        (service,) = host["services"]
        expected = planned[host["host"]]
        assert {key: service[key] for key in ("release", "gpus", "endpoint", "image_digest")} == {
            key: expected[key] for key in ("release", "gpus", "endpoint", "image_digest")
        }
    # What the plan showed of the unit is what the host has now.
    host = lab.hosts[number % len(lab.hosts)]
    added = [line[1:] for line in planned[host]["unit_diff"].splitlines()[2:] if line.startswith("+")]
    unit = lab.ssh(f"cat {UNIT}", host).splitlines()
    assert [line for line in added if line not in unit] == []


def test_afterwards_there_is_nothing_left_to_do(lab: Lab) -> None:
    done = lab.run("plan", *with_inventory(lab, "round.yml"), "--detailed-exitcode")
    assert done.returncode == 0, done.stdout
    assert "nothing to do" in done.stdout


def test_a_host_that_refuses_keeps_all_of_them_untouched(lab: Lab) -> None:
    said = lab.folder / "refusing.yml"
    said.write_text(
        yaml.safe_dump({"all": {"hosts": {lab.hosts[0]: {"deployment_overrides": {"tensor_parallel_size": 8}}}}})
    )
    lab.ssh(f"systemctl stop {SERVICE}", lab.hosts[1])
    arguments = with_inventory(lab, "refusing.yml")
    before = look(lab)
    plan = lab.json("plan", *arguments)
    assert plan["exit_code"] == 7
    assert [bool(host["errors"]) for host in plan["hosts"]] == [True, False, False, False]
    assert [step["step"] for step in plan["hosts"][1]["steps"]][-1:] == ["start"]
    result = lab.json("deploy", "--yes", *arguments)
    assert result["exit_code"] == 7
    assert look(lab) == before
