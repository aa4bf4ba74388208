"""SGLang's real router in front of a server that simulates: deployed, with keys, and a server that changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Lab
from gateways import KEY, QUICK, addresses, ask, clients, door, gateway, states, written

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-b-gw", hosts=1, gpus=2, engine="docker", os="debian13", server="simulator", gateway=True)
    made.env["GATEWAY_KEY"] = KEY
    return made


def test_first_deploy_serves_through_the_gateway_and_the_second_changes_nothing(lab: Lab) -> None:
    result = lab.deploy(written(lab), *QUICK)
    assert result["ok"], result
    assert max(host["module_executions"] for host in result["hosts"]) <= 12
    front = gateway(lab)
    assert front["host"] == door(lab)
    assert states(lab) == {f"http://{address}:8000": "healthy" for address in addresses(lab)[:-1]}
    assert ask(front["endpoint"])[0] == 200
    again = lab.deploy(written(lab), *QUICK)
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1)] * 2


def test_clients_need_the_key_and_nobody_sees_it(lab: Lab) -> None:
    endpoint = gateway(lab)["endpoint"]
    assert ask(endpoint, key="wrong")[0] == 401
    assert ask(endpoint, path="/workers")[0] in (401, 403)  # the clients' key opens no control plane
    control = lab.ssh("cat /var/lib/sglang-ops/services/*/gateway/control-plane.key", door(lab)).strip()
    assert len(control) == 48
    assert ask(endpoint, key=control, path="/workers")[0] == 200
    looked = lab.ssh(
        "docker inspect $(docker ps -aq); systemctl cat 'sglang-*'; ps -eo args; "
        "journalctl --no-pager -t sglang-tiny-llama-gateway; cat /proc/[0-9]*/cmdline | tr '\\000' ' '",
        door(lab),
    )
    assert "sglang-tiny-llama-gateway" in looked
    for secret in (KEY, control):
        assert secret not in looked
        first, last = secret[:9], secret[9:]  # in two pieces, because sudo logs the commands that this test runs
        holding = lab.ssh(f"grep -srl {first}'{last}' /etc /var/lib/sglang-ops /tmp /root", door(lab)).split()
        modes = {lab.ssh(f"stat -c '%a %U' {path}", door(lab)).strip() for path in holding}
        assert modes == {"600 root"}, holding
    assert not lab.ssh(f"grep -rl {control} /var/lib/sglang-ops /etc 2>/dev/null", lab.hosts[0]).strip()


def test_server_changes_with_a_second_one_beside_it_and_nobody_waits(lab: Lab) -> None:
    with clients(lab) as load:
        result = lab.deploy(written(lab, extra_args="--log-level warning"), *QUICK)
    assert result["ok"], result
    assert load.longest() < 5
    assert states(lab) == {f"http://{addresses(lab)[0]}:8000": "healthy"}
    assert [row["name"] for row in lab.json("status")["services"]] == ["sglang-tiny-llama", "sglang-tiny-llama-gateway"]
