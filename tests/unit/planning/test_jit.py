"""Compiled kernels: where they are kept, who shares them, and which of them go with a purge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_jit as jit
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils.sglang_host_command import Output
from situations import IMAGE, deployed, deployment, host, planned

from sglang_ops.planning import HostFacts, ResolvedImage, Secrets, ServicePlan, Settings, Wanted, plan
from sglang_ops.planning.jit import SHARED

DIRECTORY = "/var/lib/sglang-ops/jit/abababababab-NVIDIA-H200-org-m"


def h200(gpus: int = 4, **changes: Any) -> HostFacts:
    devices = [{"index": number, "uuid": f"GPU-{number}", "name": "NVIDIA H200"} for number in range(gpus)]
    return host(**{"gpus": gpus, **changes}).model_copy(update={"gpus": HostFacts.model_validate(
        {"host": "h", "address": "h", "gpus": devices}).gpus})


def service(facts: HostFacts | None = None, settings: Settings | None = None, **changes: Any) -> ServicePlan:
    made = planned(deployment(**changes), facts or h200(), settings)
    assert made.errors == ()
    return made.services[0]


def test_directory_is_that_of_image_gpu_and_model_and_is_mounted() -> None:
    made = service(tensor_parallel_size=2)
    assert made.jit == DIRECTORY
    assert DIRECTORY in made.directories
    assert f"--mount type=bind,source={DIRECTORY},target=/jit" in made.unit
    assert made.content["environment"]["TRITON_CACHE_DIR"] == "/jit/triton"
    assert made.content["environment"]["SGLANG_CACHE_DIR"] == "/jit/sglang-m-gpu0-1"
    assert set(SHARED) < set(made.content["environment"])


HELD = {"key": DIRECTORY.rpartition("/")[2], "machine": "m", "path": DIRECTORY, "parts": sorted(SHARED.values())}


class TestHandedOn:
    """Which caches a host can use from another one, and which it has to give."""

    def facts(self, **changes: Any) -> HostFacts:
        return h200().model_copy(update={"machine": "m", **changes})

    def running(self, **changes: Any) -> HostFacts:
        """The host as it is once the deployment serves, with something compiled."""
        made = planned(deployment(), h200())
        record = deployed(made)["record"] | {"jit": made.services[0].jit}
        services = HostFacts.model_validate(
            {"host": "h", "address": "h", "services": [deployed(made, record=record, **changes)]}
        ).services
        return self.facts(services=services, kernels=(DIRECTORY,))

    def test_a_first_start_lacks_them(self) -> None:
        made = planned(deployment(), self.facts())
        assert (made.kernels, made.compiled) == ((HELD,), ())
        assert "sglang-m-gpu0" not in HELD["parts"]

    def test_where_they_are_nothing_is_lacking(self) -> None:
        made = planned(deployment(), self.facts(kernels=(DIRECTORY,)))
        assert (made.kernels, made.compiled) == ((), ())  # no server has shown that they are good

    def test_a_server_that_serves_gives_them(self) -> None:
        made = planned(deployment(), self.running())
        assert (made.kernels, made.compiled) == ((), (HELD,))
        assert planned(deployment(), self.running(probe={"ok": False})).compiled == ()

    def test_a_running_server_keeps_the_directory_that_it_has(self) -> None:
        """It is about to be restarted with other arguments, and has compiled nothing yet."""
        facts = self.running().model_copy(update={"kernels": ()})
        made = planned(deployment(extra_args="--log-requests"), facts)
        assert made.services[0].action == "restart"
        assert made.kernels == ()

    def test_another_image_lacks_them_again(self) -> None:
        other = ResolvedImage(IMAGE.ref, "lmsysorg/sglang@sha256:" + "cd" * 32, 1, "0.5.23")
        images = {other.digest_ref: True}
        made = plan([Wanted(deployment(), other, Secrets())], self.running().model_copy(update={"images": images}),
                    Settings())  # fmt: skip
        assert [item["key"][:12] for item in made.kernels] == ["cd" * 6]

    def test_hosts_that_share_nothing_are_told_nothing(self) -> None:
        settings = Settings(peer_port=0)
        assert planned(deployment(), self.facts(), settings).kernels == ()
        assert planned(deployment(), self.running(), settings).compiled == ()


def test_neighbours_share_what_is_compiled_and_nothing_else() -> None:
    both = [deployment(name=name, port=port) for name, port in (("a", 8000), ("b", 8001))]
    made = plan([Wanted(item, IMAGE, Secrets()) for item in both], h200(), Settings())
    one, two = (item.content["environment"] for item in made.services)
    assert {item.jit for item in made.services} == {DIRECTORY}
    assert {name for name in one if one[name] != two[name]} == {"SGLANG_CACHE_DIR"}


def test_same_service_on_other_gpus_does_not_read_what_was_true_of_the_first() -> None:
    first = service(env_vars={"CUDA_VISIBLE_DEVICES": "0,1"}, tensor_parallel_size=2)
    second = service(env_vars={"CUDA_VISIBLE_DEVICES": "0,3"}, tensor_parallel_size=2)
    caches = [made.content["environment"]["SGLANG_CACHE_DIR"] for made in (first, second)]
    assert caches == ["/jit/sglang-m-gpu0-1", "/jit/sglang-m-gpu0-3"]


@pytest.mark.parametrize(
    "changes",
    [
        {"extra_args": "--device cpu"},
        {"env_vars": {"SGLANG_CACHE_DIR": "/mine"}},
        {"mounts": {"/fast/triton": "/root/.triton/"}},
        {"mounts": {"/fast/jit": "/jit"}},
    ],
)
def test_none_on_the_cpu_and_where_the_file_has_its_own(changes: dict[str, Any]) -> None:
    made = service(**changes)
    assert made.jit == ""
    assert "/jit/" not in made.unit
    assert not set(SHARED) & set(made.content["environment"])


def test_variables_of_the_file_win() -> None:
    made = service(env_vars={"TRITON_CACHE_DIR": "/mine", "TVM_FFI_CACHE_DIR": "runtime:TVM"},
                   facts=h200(runtime={"TVM": "mark"}))
    assert made.content["environment"]["TRITON_CACHE_DIR"] == "/mine"
    assert "TVM_FFI_CACHE_DIR" not in made.content["environment"]
    assert made.jit == DIRECTORY


def test_role_variable_moves_it_and_switches_it_off() -> None:
    assert service(settings=Settings(jit_cache="/fast/jit/")).jit == "/fast/jit/abababababab-NVIDIA-H200-org-m"
    assert service(settings=Settings(jit_cache="")).jit == ""


@pytest.mark.parametrize(("release", "moved"), [("0.5.3.post3", False), ("0.5.4", True), ("0.5.23", True), ("", True)])
def test_old_images_keep_the_kernels_that_they_bring(release: str, moved: bool) -> None:
    image = ResolvedImage(IMAGE.ref, IMAGE.digest_ref, release=release)
    made = plan([Wanted(deployment(), image, Secrets())], h200(), Settings(asked=True)).services[0]
    assert ("FLASHINFER_WORKSPACE_BASE" in made.content["environment"]) is moved
    assert "TRITON_CACHE_DIR" in made.content["environment"]


@pytest.mark.parametrize("name", ["-..-", "mödel 1", "a" * 300, "/", "%n $(x)"])
def test_any_path_makes_the_name_of_a_file(name: str) -> None:
    path = f"/models/{name}"
    facts = h200(checkpoints={path: {"config": None}})
    made = service(facts, hf_model_handle=None, checkpoint_path=path)
    parent, _, key = made.jit.rpartition("/")
    assert parent == "/var/lib/sglang-ops/jit"
    assert jit._KEY.fullmatch(key)
    assert len(key) < 200


def test_purge_deletes_what_nobody_uses_and_what_has_no_image() -> None:
    names = ["a" * 12 + "-gpu-m", "b" * 12 + "-gpu-m", "c" * 12 + "-gpu-m", "lost+found", "notes.txt"]
    own, other, orphan = names[:3]
    assert jit.unused(names, {own}, {other}, {"a" * 12}) == [own, orphan]
    assert jit.unused(names, {own, other}, {other}, {"a" * 12, "c" * 12}) == [own]
    assert jit.unused(names, {own}, {other}, None) == [own]
    assert jit.unused(["notes.txt"], {"notes.txt"}, set(), set()) == []


def test_prune_looks_at_every_kept_release_of_every_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STATE", str(tmp_path / "services"))
    root = tmp_path / "jit"
    own, older, orphan = (root / f"{digit * 12}-gpu-m" for digit in "abc")
    for directory in (own, older, orphan, root / "keep me"):
        directory.mkdir(parents=True)
    store.write_release("sglang-other", "r1", "unit", {"jit": str(older)}, {})
    store.write_release("sglang-other", "r2", "unit", {"jit": ""}, {})
    store.write_state("sglang-other", {"release": "r2", "stable": "r2"})
    store.write_release("sglang-gone", "r1", "unit", {"jit": str(own)}, {})
    removed = jit.named_by(["sglang-gone"])
    assert removed == {str(own)}
    store.forget("sglang-gone")
    monkeypatch.setattr(jit, "run", answers([["repo@sha256:" + "d" * 64], None]))
    jit.prune(removed, "docker")
    assert sorted(path.name for path in root.iterdir()) == [older.name, "keep me"]


def test_prune_spares_orphans_where_the_engine_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STATE", str(tmp_path / "services"))
    own, orphan = (tmp_path / f"{digit * 12}-gpu-m" for digit in "ac")
    for directory in (own, orphan):
        directory.mkdir()
    monkeypatch.setattr(jit, "run", lambda *argv: Output(1, stderr="no daemon"))
    jit.prune({str(own)}, "docker")
    assert [path.name for path in tmp_path.iterdir()] == [orphan.name]


def answers(digests: Sequence[list[str] | None]) -> Any:
    """An engine with one image for each entry."""
    lines = "\n".join(json.dumps(item) for item in digests)
    return lambda *argv: Output(0, lines if "inspect" in argv else "\n".join(f"id{n}" for n in range(len(digests))))
