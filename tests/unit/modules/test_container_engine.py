"""What an engine lacks, and that the module does no more and no less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_api as api
from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils.sglang_host_command import Output
from module_testing import FakeEngine, load, run

module = load("container_engine")
Current, Desired = engines.Current, engines.Desired

LAB = "198.18.0.2:5000"
DEBIAN_12 = {"docker.io": "20.10.24", "ca-certificates": "20230311"}
DEBIAN_13 = {"docker.io": "26.1.5", "docker-cli": "26.1.5", "ca-certificates": "20250419"}
RUNNING = Current(version="26.1.5", active=True, insecure=(LAB,), cdi=True)
WANTED = Desired("docker", (LAB,), wants_cdi=True)
DAEMON_JSON = {"insecure-registries": [LAB], "features": {"cdi": True}}


class TestDocker:
    """plan() for docker."""

    def test_a_blank_host_gets_configuration_packages_and_service(self) -> None:
        needed = engines.plan(Current(candidates=DEBIAN_13), WANTED)
        assert needed.packages == ("docker.io", "docker-cli", "ca-certificates")
        assert json.loads(needed.after) == DAEMON_JSON
        assert needed.steps == (
            "write /etc/docker/daemon.json", "install docker.io, docker-cli, ca-certificates", "start docker",
        )  # fmt: skip

    def test_packages_that_are_there_or_unknown_are_not_asked_for(self) -> None:
        current = Current(candidates=DEBIAN_12, installed=frozenset({"ca-certificates"}))
        assert engines.plan(current, WANTED).packages == ("docker.io",)

    def test_a_docker_too_old_for_cdi_is_not_told_of_it(self) -> None:
        needed = engines.plan(Current(candidates=DEBIAN_12), WANTED)
        assert json.loads(needed.after) == {"insecure-registries": [LAB]}
        running = replace(RUNNING, version="20.10.24", cdi=False)
        assert not engines.plan(running, WANTED).changed

    def test_an_engine_that_is_ready_stays_as_it_is(self) -> None:
        assert not engines.plan(RUNNING, WANTED).changed
        assert not engines.plan(replace(RUNNING, insecure=(), cdi=False), Desired("docker")).changed

    def test_a_setting_made_by_other_means_is_not_written_again(self) -> None:
        # dockerd refuses to start when its command line and daemon.json name the same setting
        assert engines.plan(replace(RUNNING, config=None), WANTED).after is None

    def test_settings_of_others_are_kept(self) -> None:
        config = '{"log-level": "warn", "features": {"buildkit": true}, "insecure-registries": ["old:5000"]}'
        needed = engines.plan(Current(version="26.1.5", config=config), WANTED)
        assert json.loads(needed.after) == {
            "log-level": "warn",
            "features": {"buildkit": True, "cdi": True},
            "insecure-registries": ["old:5000", LAB],
        }

    @pytest.mark.parametrize(
        ("current", "service"),
        [
            (replace(RUNNING, active=False), "start"),
            (replace(RUNNING, enabled=False), "enable"),
            (replace(RUNNING, insecure=()), "reload"),
            (replace(RUNNING, insecure=(), containers=3), "reload"),
            (replace(RUNNING, cdi=False), "restart"),
            (replace(RUNNING, cdi=False, insecure=()), "restart"),
        ],
    )
    def test_the_service_is_disturbed_no_more_than_needed(self, current: Any, service: str) -> None:
        assert engines.plan(current, WANTED).service == service

    def test_written_but_not_in_effect(self) -> None:
        needed = engines.plan(replace(RUNNING, cdi=False, config=json.dumps(DAEMON_JSON)), WANTED)
        assert (needed.after, needed.service) == (None, "restart")

    def test_a_docker_that_runs_containers_is_never_restarted(self) -> None:
        needed = engines.plan(replace(RUNNING, cdi=False, containers=2), WANTED)
        assert not needed.changed
        assert "runs 2 of them" in needed.refusal
        assert "sudo systemctl restart docker" in needed.refusal

    @pytest.mark.parametrize("config", ["{,", "[]", '"x"'])
    def test_a_broken_daemon_json_is_not_touched(self, config: str) -> None:
        needed = engines.plan(Current(version="26.1.5", config=config), WANTED)
        assert needed.refusal.startswith("/etc/docker/daemon.json is not valid")
        assert not needed.changed

    def test_no_apt_no_installation(self) -> None:
        needed = engines.plan(Current(has_apt=False), WANTED)
        assert needed.refusal == "docker is missing and this system has no apt. Install docker, then deploy again."
        assert not engines.plan(replace(RUNNING, has_apt=False), WANTED).refusal

    @pytest.mark.parametrize(
        ("version", "knows"),
        [("20.10.24", False), ("24.0.9", False), ("25.0.0", True), ("28.2.2", True), (None, True)],
    )
    def test_which_docker_knows_cdi(self, version: str | None, knows: bool) -> None:
        assert engines.knows_cdi(Current(version=version)) is knows


class TestPodman:
    """plan() for podman."""

    def test_a_blank_host(self) -> None:
        candidates = dict.fromkeys(engines.PACKAGES["podman"], "1")
        needed = engines.plan(Current(candidates=candidates), Desired("podman", (LAB,)))
        assert needed.packages == ("podman", "crun", "catatonit", "netavark", "ca-certificates")
        assert f'location = "{LAB}"\ninsecure = true\n' in needed.after
        assert needed.service == ""

    def test_what_init_needs_is_added_to_a_podman_of_others(self) -> None:
        assert engines.plan(Current(version="4.9.3", has_init=False), Desired("podman")).packages == ("catatonit",)
        assert not engines.plan(Current(version="4.9.3"), Desired("podman")).changed

    def test_registries_of_earlier_runs_stay(self) -> None:
        first = engines.registries_conf(None, ("a:1",))
        second = engines.registries_conf(first, ("b:2",))
        assert second.count("[[registry]]") == 2
        assert engines.registries_conf(second, ("a:1", "b:2")) is None


class TestObserve:
    """Looking at a host."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs = {"apt-get"}
        self.outputs: dict[str, str] = {}
        monkeypatch.setattr(engines.shutil, "which", lambda name: f"/usr/bin/{name}" if name in self.programs else None)
        monkeypatch.setattr(engines, "run", lambda *argv: Output(0, self.outputs.get(" ".join(argv[:2]), "")))
        monkeypatch.setattr(engines, "DAEMON_JSON", str(tmp_path / "daemon.json"))
        monkeypatch.setattr(engines, "REGISTRIES_CONF", str(tmp_path / "registries.conf"))
        monkeypatch.setattr(api, "DOCKER_SOCKET", str(tmp_path / "docker.sock"))
        self.engine = FakeEngine(tmp_path / "docker.sock")
        self.daemon_json = tmp_path / "daemon.json"
        self.wants = tmp_path / "multi-user.target.wants"
        monkeypatch.setattr(engines, "ENABLED", str(tmp_path / "*.wants" / "docker.service"))

    def test_a_blank_host(self) -> None:
        self.outputs["apt-cache -o"] = (
            "docker.io:\n  Installed: (none)\n  Candidate: 26.1.5+dfsg1-9\n  Version table:\n"
            "docker-cli:\n  Installed: (none)\n  Candidate: 26.1.5+dfsg1-9\n"
        )
        self.outputs["dpkg-query --show"] = "installed ca-certificates\nconfig-files docker.io\n"
        current = engines.observe("docker")
        assert current.version is None
        assert current.candidates == {"docker.io": "26.1.5", "docker-cli": "26.1.5"}
        assert current.installed == {"ca-certificates"}
        assert engines.facts("docker", [], False) == {
            "name": "docker", "path": "", "version": "26.1.5", "running": False, "data_root": "/var/lib/docker",
            "pending": ["install docker.io, docker-cli", "start docker"], "refusal": "",
        }  # fmt: skip

    def test_a_host_whose_package_lists_were_never_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        release = 'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="12"\n'
        monkeypatch.setattr(engines, "read_text", lambda path: release if path == "/etc/os-release" else None)
        needed = engines.plan(engines.observe("docker"), WANTED)
        assert needed.packages == ("docker.io", "ca-certificates")
        assert engines.facts("docker", [], True)["version"] == "20.10.24"

    def test_a_running_docker_tells_what_is_in_effect(self) -> None:
        self.programs |= {"docker", "dockerd"}
        self.daemon_json.write_text("{}")
        self.engine.answers["/info"] = (200, {
            "ServerVersion": "26.1.5+dfsg1", "ContainersRunning": 2, "DockerRootDir": "/data/docker",
            "CDISpecDirs": ["/etc/cdi"],
            "RegistryConfig": {"IndexConfigs": {"docker.io": {"Secure": True}, LAB: {"Secure": False}}},
        })  # fmt: skip
        self.wants.mkdir()
        (self.wants / "docker.service").symlink_to("/usr/lib/systemd/system/docker.service")
        with self.engine.serving():
            assert engines.observe("docker") == Current(
                version="26.1.5", active=True, enabled=True, containers=2, insecure=(LAB,), cdi=True, config="{}",
                data_root="/data/docker",
            )  # fmt: skip

    def test_a_stopped_docker(self) -> None:
        self.programs |= {"docker", "dockerd"}
        self.daemon_json.write_text('{"data-root": "/data/docker"}')
        self.outputs["docker --version"] = "Docker version 26.1.5+dfsg1, build a72d7cd\n"
        current = engines.observe("docker")
        assert (current.version, current.active, current.data_root) == ("26.1.5", False, "/data/docker")
        assert engines.facts("docker", [], False)["pending"] == ["start docker"]

    def test_an_installation_that_was_cut_off_counts_as_none(self) -> None:
        self.programs |= {"docker", "dockerd"}
        self.outputs["dpkg-query --show"] = "half-configured"
        assert engines.observe("docker").version is None

    def test_podman(self) -> None:
        self.programs.add("podman")
        self.outputs["podman --version"] = "podman version 5.4.2\n"
        current = engines.observe("podman")
        assert (current.version, current.active, current.data_root) == ("5.4.2", True, "/var/lib/containers/storage")


class TestModule:
    """main()."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before = Current(candidates=DEBIAN_13)
        self.after = RUNNING
        self.done: list[str] = []
        self.path = tmp_path / "etc" / "docker" / "daemon.json"
        test = self

        class Apt:
            def __init__(self, _progress: Any) -> None:
                pass

            def refresh(self) -> None:
                test.done.append("refresh")

            def install(self, packages: tuple[str, ...]) -> None:
                assert test.path.exists(), "docker would start without its configuration"
                test.done.append("install " + " ".join(packages))

        def observe(_engine: str) -> Any:
            return self.after if any(step.startswith("tell") for step in self.done) else self.before

        monkeypatch.setattr(engines, "DAEMON_JSON", str(self.path))
        monkeypatch.setattr(engines, "observe", observe)
        monkeypatch.setattr(module, "Apt", Apt)
        monkeypatch.setattr(module, "tell", lambda word: self.done.append(f"tell {word}"))
        monkeypatch.setattr(module, "READY_SECONDS", 0)
        self.arguments = {"insecure_registries": [LAB], "wants_cdi": True}

    def test_check_mode_says_it_all_and_does_nothing(self) -> None:
        left = run(module, check=True, **self.arguments)
        assert not left.failed
        assert left.result["changed"]
        assert left.result["sglang_ops"]["kind"] == "engine"
        assert "install docker.io, docker-cli" in left.result["sglang_ops"]["detail"]
        assert json.loads(left.result["diff"][0]["after"]) == DAEMON_JSON
        assert (self.done, self.path.exists()) == ([], False)

    def test_what_check_mode_announces_is_done(self) -> None:
        announced = run(module, check=True, **self.arguments).result["diff"]
        left = run(module, **self.arguments)
        assert left.result["diff"] == announced
        assert self.done == ["refresh", "install docker.io docker-cli ca-certificates", "tell start"]
        assert json.loads(self.path.read_text()) == DAEMON_JSON
        assert left.result["sglang_ops"] == {"kind": "engine", "detail": "docker 26.1.5 ready"}

    @pytest.mark.parametrize("check", [True, False])
    def test_a_second_run_changes_nothing(self, check: bool) -> None:
        self.before = RUNNING
        left = run(module, check=check, **self.arguments)
        assert (left.failed, left.result["changed"], left.result["diff"], self.done) == (False, False, [], [])

    @pytest.mark.parametrize("check", [True, False])
    def test_a_refusal_touches_nothing(self, check: bool) -> None:
        self.before = replace(RUNNING, cdi=False, containers=1)
        left = run(module, check=check, **self.arguments)
        assert left.failed
        assert left.result["exit_hint"] == 7
        assert (self.done, self.path.exists()) == ([], False)

    def test_an_engine_that_does_not_get_ready_is_an_error(self) -> None:
        self.after = replace(RUNNING, cdi=False)
        left = run(module, **self.arguments)
        assert left.failed
        assert "docker is not ready after 0 s, still to do:" in left.result["msg"]
        assert "restart docker" in left.result["msg"]
        assert "exit_hint" not in left.result
