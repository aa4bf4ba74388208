"""The plan: nothing to do on a converged host, the right step and reason on any other."""

from __future__ import annotations

import pytest
from situations import COMMIT, IMAGE, MODEL, cdi, deployed, deployment, host, planned

from sglang_ops import fleet, registered
from sglang_ops.planning import ResolvedImage, Secrets, Settings, Wanted, plan

REFUSED = {"repo": "org/m", "hub": MODEL["hub"], "error": "needs a token"}


def steps(made: object) -> list[str]:
    return [step.step for step in made.steps]  # type: ignore[attr-defined]


def test_blank_host_gets_every_step_in_order() -> None:
    facts = host(
        images={}, models=[{**MODEL, "cached": False}],
        engine={"name": "docker", "pending": ["install docker.io"]},
    )
    made = planned(deployment(), facts)
    assert not made.errors
    assert steps(made) == ["engine", "image", "model", "start"]
    assert (made.models[0]["revision"], made.models[0]["commit"]) == ("main", COMMIT)
    assert made.images == ({"ref": IMAGE.ref, "digest_ref": IMAGE.digest_ref, "size_bytes": IMAGE.size_bytes},)


def test_converged_host_gets_none() -> None:
    first = planned(deployment(), host())
    again = planned(deployment(), host(services=[deployed(first)]))
    assert steps(first) == ["start"]
    assert again.steps == ()
    assert again.services[0].release == first.services[0].release
    assert again.services[0].healthy


@pytest.mark.parametrize(
    ("changes", "step", "why"),
    [
        ({"unit": "edited"}, "restart", "changed by hand"),
        ({"unit": None}, "restart", "unit file is gone"),
        ({"state": "failed"}, "start", "the unit is failed"),
        ({"release": "0" * 12}, "restart", "content changed"),
        ({"stable": "0" * 12}, "check", "has not been up for its soak time"),
        ({"probe": {"ok": False, "layers": [{"name": "ready", "ok": False, "detail": "503"}]}}, "check", "ready: 503"),
    ],
)
def test_drift_is_named_and_mended(changes: dict[str, object], step: str, why: str) -> None:
    first = planned(deployment(), host())
    again = planned(deployment(), host(services=[deployed(first, **changes)]))
    assert steps(again) == [step]
    assert why in again.steps[0].why


def test_busy_server_of_the_right_release_is_never_restarted() -> None:
    first = planned(deployment(), host())
    silent = {"ok": False, "layers": [{"name": "answer", "ok": False, "detail": "no answer in time"}]}
    again = planned(deployment(), host(services=[deployed(first, probe=silent)]))
    assert again.services[0].action == "check"


def test_changed_arguments_are_the_reason_for_a_restart() -> None:
    first = planned(deployment(), host())
    again = planned(deployment(extra_args="--context-length 4096"), host(services=[deployed(first)]))
    assert steps(again) == ["restart"]
    assert "--context-length 4096 added" in again.steps[0].why
    assert again.services[0].outage == "requests in flight (up to 300 s), then until the new server is ready"


def test_new_digest_behind_the_same_tag_is_a_new_release() -> None:
    first = planned(deployment(), host())
    moved = ResolvedImage(IMAGE.ref, "lmsysorg/sglang@sha256:" + "cd" * 32, 5, "0.5.23")
    again = plan([Wanted(deployment(), moved)], host(services=[deployed(first)]), Settings())
    assert steps(again) == ["image", "restart"]
    assert "sglang@abababababab → sglang@cdcdcdcdcdcd" in again.steps[1].why


def test_secret_changes_the_release_but_is_nowhere_in_the_plan() -> None:
    wanted = deployment(env_vars={"MY_API_KEY": "host:MY_API_KEY"})
    one = planned(wanted, host(), secrets=Secrets.of(wanted, {"MY_API_KEY": "canary-1"}))
    two = planned(wanted, host(), secrets=Secrets.of(wanted, {"MY_API_KEY": "canary-2"}))
    assert one.services[0].release != two.services[0].release
    assert "canary" not in repr(one.as_dict())
    assert one.services[0].secrets == ("MY_API_KEY",)
    assert f"releases/{one.services[0].release}/secrets.env" in one.services[0].unit


def test_unset_reference_is_refused() -> None:
    wanted = deployment(env_vars={"A": "host:NOT_SET"})
    made = planned(wanted, host(), secrets=Secrets.of(wanted, {}))
    assert "NOT_SET is not set" in made.errors[0].message


def test_hub_token_fetches_but_is_not_handed_to_an_offline_server() -> None:
    wanted = deployment(env_vars={"HF_TOKEN": "host:HF_TOKEN"})
    made = planned(wanted, host(), secrets=Secrets.of(wanted, {"HF_TOKEN": "hf_x"}))
    assert made.services[0].secrets == ()
    assert "HF_TOKEN" not in made.services[0].unit


def test_hub_falls_back_to_the_checkpoint_and_says_so() -> None:
    wanted = deployment(checkpoint_path="/models/m")
    made = planned(wanted, host(models=[REFUSED], checkpoints={"/models/m": {}}))
    assert "--model-path /checkpoint" in made.services[0].unit
    assert "source=/models/m,target=/checkpoint,readonly" in made.services[0].unit
    assert "serving /models/m instead" in made.warnings[0]
    neither = planned(wanted, host(models=[REFUSED], checkpoints={"/models/m": None}))
    assert ["needs a token" in neither.errors[0].message, "no config.json" in neither.errors[1].message] == [True, True]


OUT_OF_REACH = {"repo": "org/m", "hub": MODEL["hub"], "error": "cannot be reached", "out_of_reach": True}


def test_a_hub_out_of_reach_is_no_refusal_as_long_as_another_host_may_have_the_model() -> None:
    assert planned(deployment(), host(models=[OUT_OF_REACH])).undecided
    assert not planned(deployment(), host(models=[REFUSED])).undecided  # nobody else may have it either
    assert not planned(deployment(), host(models=[OUT_OF_REACH], gpus=0)).services
    checkpoint = host(models=[OUT_OF_REACH], checkpoints={"/models/m": {}})
    assert not planned(deployment(checkpoint_path="/models/m"), checkpoint).undecided


def test_what_one_host_holds_another_one_plans_with() -> None:
    files = {"config": {"model_type": "llama"}, "weight_bytes": 400}
    (held,) = planned(deployment(), host(models=[MODEL | {"files": files}])).holds
    hostvars = {"a": {registered.RESULT: {"sglang_ops": {"plan": {"holds": [held]}}}}, "b": {}}
    offer = fleet.offers(hostvars, ["a", "b"])["org/m", "main"]
    assert offer == {"commit": COMMIT, "bytes": 500, "files": files}
    made = planned(deployment(), host(models=[MODEL | offer | {"cached": False, "offered": True}]))
    assert made.errors == ()
    assert (made.models[0]["commit"], made.models[0]["offered"]) == (COMMIT, 500)
    assert made.steps[0].why == "not in the cache, 0.0 MB, which another host has"


def test_foreign_listener_and_neighbours_port_are_refused() -> None:
    listener = {"port": 8000, "pid": 812, "process": "nginx"}
    made = planned(deployment(), host(listeners=[listener]))
    assert "taken by nginx (pid 812)" in made.errors[0].message
    other = {"name": "sglang-other", "release": "x", "record": {"port": 8000, "gpus": []}, "state": "active"}
    made = planned(deployment(), host(services=[other]))
    assert "belongs to sglang-other" in made.errors[0].message


def test_own_listener_is_no_clash() -> None:
    first = planned(deployment(), host())
    listener = {"port": 8000, "pid": 9, "process": "python3"}
    assert planned(deployment(), host(services=[deployed(first)], listeners=[listener])).errors == ()


def test_disk_counts_image_and_model_together_on_one_file_system() -> None:
    disks = [
        {"path": "/var/lib/docker", "free_bytes": 2_500_400, "device": 1},
        {"path": "/var/lib/sglang-ops/huggingface/hub", "free_bytes": 2_500_400, "device": 1},
    ]
    models = [{**MODEL, "cached": False}]
    made = planned(deployment(), host(images={}, models=models, disks=disks))
    assert made.errors[0].check == "disk"
    disks[1] |= {"device": 2}
    assert planned(deployment(), host(images={}, models=models, disks=disks)).errors == ()


def test_old_docker_gets_the_devices_spelled_out_unless_the_driver_needs_hooks() -> None:
    engine = {"name": "docker", "path": "/usr/bin/docker", "version": "20.10.24", "running": True}
    made = planned(deployment(), host(engine=engine))
    assert "--device /dev/nvidia0:/dev/nvidia0" in made.services[0].unit
    assert "--env A=1" in made.services[0].unit
    assert "nvidia.com/gpu" not in made.services[0].unit
    made = planned(deployment(), host(engine=engine, cdi=cdi(4, hooks=True)))
    assert "does not know CDI" in made.errors[0].message


def test_engine_that_cannot_be_made_ready_is_refused() -> None:
    made = planned(deployment(), host(engine={"name": "docker", "refusal": "docker must be restarted."}))
    assert made.errors[0].message == "gpu-1: docker must be restarted."


def test_missing_cdi_device_is_refused_with_the_command() -> None:
    made = planned(deployment(), host(cdi=[]))
    assert "nvidia-ctk cdi generate" in made.errors[0].message


def test_settings_reach_the_unit_and_the_gate() -> None:
    times = {"drain_timeout": 7, "restart_delay": 3, "start_timeout": 11, "soak": 2}
    settings = Settings(**times, ulimits=(), container_args=("--cap-add=SYS_NICE",))
    service = planned(deployment(), host(), settings).services[0]
    assert "stop --time 7 %N" in service.unit
    assert "TimeoutStopSec=67" in service.unit
    assert "RestartSec=3" in service.unit
    assert "--ulimit" not in service.unit
    assert "--cap-add=SYS_NICE" in service.unit
    assert (service.gate["start_timeout"], service.gate["soak"]) == (11, 2)


def test_podman_unit_needs_no_daemon() -> None:
    engine = {"name": "podman", "path": "/usr/bin/podman", "version": "5.4.2", "running": True}
    unit = planned(deployment(), host(engine=engine), Settings(container_engine="podman")).services[0].unit
    assert "docker" not in unit
    assert "ExecStart=/usr/bin/podman run --rm" in unit


def test_bind_address_is_where_the_gate_asks_and_the_endpoint_points() -> None:
    service = planned(deployment(extra_args="--host 127.0.0.1"), host()).services[0]
    assert service.gate["address"] == "127.0.0.1"
    assert service.endpoint == "http://127.0.0.1:8000"
    assert "--host 0.0.0.0" not in service.unit


def test_secret_that_is_no_text_is_refused_by_name() -> None:
    wanted = deployment(env_vars={"A_KEY": "host:GARBLED"})
    made = planned(wanted, host(), secrets=Secrets.of(wanted, {"GARBLED": "a\udcff"}))
    assert "host:GARBLED, whose value is not UTF-8" in made.errors[0].message


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("python3 -m server --model-path 'a b'", ("python3", "-m", "server", "--model-path", "a b")),
        ("FAST=1 python3 -m server", ("bash", "-c", "FAST=1 python3 -m server")),
        ("exec python3 -m server", ("bash", "-c", "exec python3 -m server")),
        ("cd /x && run", ("bash", "-c", "cd /x && run")),
        (["run", "$HOME; x"], ("run", "$HOME; x")),
    ],
)
def test_command_goes_to_a_shell_only_where_it_needs_one(command: object, argv: tuple[str, ...]) -> None:
    assert tuple(planned(deployment(command=command), host()).services[0].content["argv"]) == argv


def test_the_reason_names_what_changed_and_not_what_follows_from_it() -> None:
    first = planned(deployment(extra_args="--context-length 4096 --enable-metrics"), host())
    changed = deployment(port=9000, extra_args="--context-length 8192 --log-level debug")
    (step,) = planned(changed, host(services=[deployed(first)])).steps
    assert step.why == (
        "--port 8000 → 9000, --context-length 4096 → 8192, --enable-metrics removed, --log-level debug added"
    )


def test_outage_is_expected_to_be_that_of_the_last_start() -> None:
    first = planned(deployment(), host())
    again = planned(deployment(port=9000), host(services=[deployed(first) | {"start_seconds": 62}]))
    assert again.services[0].outage == "requests in flight (up to 300 s), then about 62 s, as the last start took"
