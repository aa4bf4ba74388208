"""A fleet that is not as it was left: status names each host that is not, and the next deploy changes it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from conftest import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]
QUICK = ("--soak", "0")
UNIT = "/etc/systemd/system/sglang-tiny-llama.service"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Three servers and a gateway, of which the inventory has two servers at first."""
    made = make_lab("t-cdrift", hosts=3, gpus=1, engine="docker", os="debian13", server="simulator", gateway=True)
    made.write("drift")
    everyone = yaml.safe_load(made.inventory.read_text())
    (made.folder / "everyone.yml").write_text(yaml.safe_dump(everyone))
    inventory_without(made, made.hosts[2])
    result = deployed(made)
    assert result["ok"], result
    return made


def inventory_without(lab: Lab, *names: str) -> None:
    """The lab's inventory, less these hosts."""

    def less(part: Any) -> Any:
        return {k: less(v) for k, v in part.items() if k not in names} if isinstance(part, dict) else part

    everyone = yaml.safe_load((lab.folder / "everyone.yml").read_text())
    lab.inventory.write_text(yaml.safe_dump(less(everyone), sort_keys=False))


def deployed(lab: Lab) -> dict[str, Any]:
    return lab.deploy(lab.folder / "drift.yaml", *QUICK)


def named(lab: Lab) -> list[tuple[str, str]]:
    return [(item["host"], item["what"]) for item in lab.json("status")["drift"]]


def touched(result: dict[str, Any]) -> dict[str, str]:
    """{host: action} of the services that were changed."""
    found = {host["host"]: service["action"] for host in result["hosts"] for service in host["services"]}
    return {host: action for host, action in found.items() if action != "none"}


def test_a_host_that_was_added(lab: Lab) -> None:
    assert named(lab) == []
    inventory_without(lab)
    assert named(lab) == [(lab.hosts[2], "is not deployed here, and is on 2 other hosts")]
    result = deployed(lab)
    assert (result["ok"], touched(result)) == (True, {lab.hosts[2]: "start"}), result
    assert named(lab) == []


def test_a_host_that_was_changed_by_hand(lab: Lab) -> None:
    lab.ssh(f"echo '# mine' >> {UNIT}; systemctl daemon-reload", lab.hosts[0])
    assert named(lab) == [(lab.hosts[0], "its unit was changed by hand")]
    result = deployed(lab)
    assert (result["ok"], touched(result)) == (True, {lab.hosts[0]: "restart"}), result
    assert named(lab) == []


def test_a_host_that_was_installed_anew(lab: Lab) -> None:
    lab.ssh(f"systemctl disable --now sglang-tiny-llama; rm -rf /var/lib/sglang-ops {UNIT}; systemctl daemon-reload",
            lab.hosts[1])  # fmt: skip
    assert named(lab) == [(lab.hosts[1], "is not deployed here, and is on 2 other hosts")]
    result = deployed(lab)
    assert (result["ok"], touched(result)) == (True, {lab.hosts[1]: "start"}), result
    assert named(lab) == []


def test_a_host_that_left_the_inventory(lab: Lab) -> None:
    (front,) = lab.json("status")["gateways"]
    gone = next(row["url"] for row in front["workers"] if row["url"] == endpoint(lab, lab.hosts[2]))
    inventory_without(lab, lab.hosts[2])
    assert named(lab) == [(lab.hosts[-1], f"still has {gone}, which no host of the inventory is")]
    shown = lab.run("status")
    assert "Drift:" in shown.stderr
    result = deployed(lab)
    assert (result["ok"], touched(result)) == (True, {}), result
    (front,) = lab.json("status")["gateways"]
    assert gone not in {row["url"] for row in front["workers"]}
    assert named(lab) == []


def endpoint(lab: Lab, host: str) -> str:
    return next(row["endpoint"] for row in lab.json("status")["services"] if row["host"] == host)
