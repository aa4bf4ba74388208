"""The gateway in a plan: its unit, its reasons, who is behind it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from situations import IMAGE, deployment
from situations import host as bare

from sglang_ops.planning import HostPlan, ResolvedImage, Secrets, Settings, Wanted, WantedGateway, Worker, plan
from sglang_ops.planning.facts import HostFacts
from sglang_ops.planning.gateway import _FIRST_PAUSE, _GROWTH, _JITTER, _LONGEST_PAUSE, tries
from sglang_ops.planning.gateway_launcher import API_KEY, NOBODY, words
from sglang_ops.spec import gateway as spec

ROUTER = ResolvedImage("lmsysorg/sgl-model-gateway:v0.3.2", "lmsysorg/sgl-model-gateway@sha256:" + "ef" * 32, 9)
URLS = ("http://10.0.0.1:8000", "http://10.0.0.2:8000")


def host(**changes: Any) -> HostFacts:
    """A host that has both images."""
    return bare(**{"images": {IMAGE.digest_ref: True, ROUTER.digest_ref: True}} | changes)


def wanted(urls: tuple[str, ...] = URLS, key: str = "", **gateway: Any) -> WantedGateway:
    item = deployment(gateway={"hosts": "edge", **gateway}).replicas[0]
    assert item.gateway
    workers = tuple(Worker(f"gpu-{number}", url) for number, url in enumerate(urls))
    secrets = Secrets.of(item.gateway, {"KEY": key} if key else {})
    return WantedGateway(item.gateway, item, ROUTER, workers, secrets)


def planned(item: WantedGateway, facts: HostFacts, *more: WantedGateway, servers: tuple[Wanted, ...] = ()) -> HostPlan:
    return plan(servers, facts, Settings(), [item, *more])


def running(made: HostPlan, **changes: Any) -> dict[str, Any]:
    """The gateway of `made` as facts tell of it later: in order, with all of its servers."""
    service = made.services[0]
    layers = [{"name": name, "ok": True} for name in ("unit", "port", "ready")]
    return {
        "name": service.name, "release": service.release, "state": "active", "unit": service.unit,
        "record": {"port": service.port, "content": service.content, "gpus": []},
        "probe": {"ok": True, "layers": layers},
        "workers": [{"url": url, "healthy": True} for url in URLS], "members": dict.fromkeys(URLS, "in"), **changes,
    }


def test_gateway_has_a_unit_of_its_own() -> None:
    item = wanted(
        address="10.0.0.9", health_interval=7, health_timeout=30, health_failures=4, request_timeout=99,
        policy="round_robin", extra_args="--log-level warn",
    )
    made = planned(item, bare())
    assert not made.errors
    (service,) = made.services
    assert (service.kind, service.name) == ("gateway", f"{item.deployment.service_name}-gateway")
    for flags in (
        "--host 10.0.0.9", "--policy round_robin", "--health-check-interval-secs 7", "--health-check-timeout-secs 30",
        "--health-failure-threshold 4", "--request-timeout-secs 99", "--log-level warn", "--prometheus-host 10.0.0.9",
    ):
        assert flags in service.unit
    assert "--device" not in service.unit
    assert ROUTER.digest_ref in service.unit
    assert [step.step for step in made.steps] == ["image", "start"]
    assert not made.wants_cdi


def test_converged_gateway_gets_nothing_and_a_lost_server_is_named() -> None:
    first = planned(wanted(), host())
    assert planned(wanted(), host(services=[running(first)])).steps == ()
    lost = running(first, workers=[{"url": URLS[0], "healthy": True}])
    again = planned(wanted(), host(services=[lost]))
    assert [(step.step, step.why) for step in again.steps] == [("join", f"{URLS[1]} is not registered")]
    assert again.services[0].members == {"wanted": list(URLS), "join": [URLS[1]], "leave": []}


def test_drained_servers_stay_out_and_strangers_leave() -> None:
    first = planned(wanted(), host())
    drained = running(first, workers=[{"url": URLS[0]}], members={URLS[0]: "in", URLS[1]: "drained"})
    assert planned(wanted(), host(services=[drained])).steps == ()
    (step,) = planned(wanted(URLS[:1]), host(services=[running(first)])).steps
    assert f"{URLS[1]} is not in the inventory any more" in step.why


def test_servers_that_do_not_serve_are_no_reason_to_touch_the_gateway() -> None:
    first = planned(wanted(), host())
    layers = [{"name": name, "ok": name != "workers"} for name in ("unit", "port", "ready", "workers")]
    idle = running(first, probe={"ok": False, "layers": layers})
    assert planned(wanted(), host(services=[idle])).steps == ()
    closed = [{"name": "unit", "ok": True}, {"name": "port", "ok": False, "detail": "refused"}]
    ill = running(first, probe={"ok": False, "layers": closed})
    assert [step.step for step in planned(wanted(), host(services=[ill])).steps] == ["check"]


def test_more_servers_do_not_restart_the_gateway() -> None:
    first = planned(wanted(URLS[:1]), host())
    again = planned(wanted(), host(services=[running(first, workers=[{"url": URLS[0]}])]))
    assert [step.step for step in again.steps] == ["join"]


def test_key_changes_the_release_and_is_not_in_the_plan() -> None:
    one = planned(wanted(key="canary-1", api_key="host:KEY"), host())
    two = planned(wanted(key="canary-2", api_key="host:KEY"), host())
    assert one.services[0].release != two.services[0].release
    assert "canary" not in str(one)
    unset = planned(wanted(api_key="host:KEY"), host())
    assert [error.message for error in unset.errors] == [
        "gateway.api_key refers to host:KEY, but KEY is not set where sglang-ops runs. Export it."
    ]


def test_two_gateways_on_one_port_are_refused() -> None:
    other = wanted(name="other", prometheus_port=29001)
    (problem,) = planned(wanted(), host(), other).errors
    assert problem.message == (
        f"port 30000 on {host().host} belongs to {wanted().name}, and sglang-other wants it. "
        "Set gateway.port to a free one."
    )
    (clash,) = planned(wanted(), host(), wanted(name="other", port=30001)).errors
    assert "29000" in clash.message
    assert "gateway.prometheus_port" in clash.message


def test_gateway_on_the_port_of_a_server_is_refused() -> None:
    server = Wanted(deployment(), IMAGE)
    item = wanted(port=server.deployment.port)
    problems = planned(item, host(), servers=(server,)).errors
    assert any(f"port {server.deployment.port}" in problem.message for problem in problems)
    assert not planned(wanted(), host(), servers=(server,)).errors


def test_power_of_two_needs_two_servers() -> None:
    (problem,) = planned(wanted(URLS[:1], policy="power_of_two"), host()).errors
    assert "has 1" in problem.message
    assert not planned(wanted(policy="power_of_two"), host()).errors


def test_server_knows_the_gateways_in_front_of_it() -> None:
    item = deployment(gateway={"hosts": "edge"}).replicas[0]
    server = Wanted(item, IMAGE, gateways=("edge-1",))
    facts = host()
    (service,) = plan([server], facts, Settings()).services
    url = f"http://{facts.address}:{item.port}"
    assert service.gateways == ({"host": "edge-1", "service": f"{item.service_name}-gateway", "url": url},)
    (drained,) = plan([server], facts.model_copy(update={"drained": True}), Settings()).services
    assert drained.gateways == ()
    assert drained.release == service.release
    bound = replace(server, deployment=item.model_copy(update={"extra_args": ("--host", "10.9.9.9")}))
    assert plan([bound], facts, Settings()).services[0].gateways[0]["url"] == f"http://10.9.9.9:{item.port}"


@pytest.mark.parametrize("hold", [1, 30, 60, 3600])
def test_pauses_add_up_to_the_hold(hold: int) -> None:
    pauses = [min(_FIRST_PAUSE * _GROWTH ** min(number, 99), _LONGEST_PAUSE) for number in range(tries(hold))]
    assert hold * 1000 <= sum(pauses) * (1 - _JITTER) <= hold * 1000 + _LONGEST_PAUSE
    assert f"--retry-max-retries {tries(hold)}" in planned(wanted(hold=hold), host()).services[0].unit


def test_without_hold_nothing_is_tried_again() -> None:
    unit = planned(wanted(hold=0), host()).services[0].unit
    assert "--disable-retries" in unit
    assert "--retry-max" not in unit


def test_launcher_adds_what_must_not_be_seen(tmp_path: Any) -> None:
    (tmp_path / "control-plane.key").write_text("secret\n")
    assert words(["--port", "1"], tmp_path, {}) == [
        "--port", "1", "--control-plane-api-keys", "sglang-ops:sglang-ops:admin:secret",
    ]
    (tmp_path / "members.json").write_text('{"http://a:1": "in", "http://b:1": "out", "http://c:1": "drained"}')
    assert words([], tmp_path, {API_KEY: "k"})[2:] == ["--api-key", "k", "--worker-urls", "http://a:1"]
    assert words(["power_of_two"], tmp_path, {})[-2:] == ["http://a:1", NOBODY[0]]
    assert API_KEY == spec.API_KEY


def test_a_server_that_stands_beside_another_for_now_is_spared() -> None:
    item = wanted()
    beside, gone = "http://10.0.0.1:9000", "http://10.0.0.9:8000"
    workers = [{"url": url, "healthy": url != gone} for url in (*URLS, beside, gone)]
    members = dict.fromkeys((*URLS, beside, gone), "in")
    now = host(services=[running(planned(item, host()), workers=workers, members=members)])
    (service,) = planned(item, now).services
    assert service.members == {"wanted": [*URLS, beside], "join": [], "leave": [gone]}
