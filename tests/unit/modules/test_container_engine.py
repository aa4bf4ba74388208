"""What an engine lacks, and that the module does no more and no less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_api as api
from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_engine_packages as supplies
from ansible.module_utils import sglang_host_engine_setup as setup
from ansible.module_utils import sglang_host_toolkit as toolkits
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

    def test_settings_of_the_user_are_laid_over(self) -> None:
        config = '{"log-level": "warn", "log-opts": {"max-file": "3"}, "labels": ["a"]}'
        asked = Desired("docker", daemon={"log-opts": {"max-size": "50m"}, "labels": ["b"]})
        needed = engines.plan(replace(RUNNING, config=config), asked)
        assert json.loads(needed.after) == {
            "log-level": "warn", "log-opts": {"max-file": "3", "max-size": "50m"}, "labels": ["b"],
        }  # fmt: skip
        assert needed.service == "restart"
        assert engines.plan(replace(RUNNING, config=needed.after), asked) == engines.EnginePlan(
            path=engines.DAEMON_JSON, before=needed.after)  # fmt: skip

    @pytest.mark.parametrize(
        ("daemon", "waiting", "restart", "service", "pending"),
        [
            ({"debug": True}, (), False, "reload", ()),
            ({"log-opts": {}}, (), False, "", ("log-opts",)),
            ({"log-opts": {}, "debug": True}, (), False, "reload", ("log-opts",)),
            ({"features": {"buildkit": True}}, (), False, "", ("features",)),
            ({}, ("log-opts",), False, "", ("log-opts",)),
            ({"log-opts": {}}, (), True, "restart", ()),
            ({}, ("log-opts",), True, "restart", ()),
            ({}, (), True, "", ()),
        ],
    )
    def test_what_a_docker_with_containers_cannot_take_waits(
        self, daemon: dict[str, Any], waiting: tuple[str, ...], restart: bool, service: str, pending: tuple[str, ...]
    ) -> None:
        busy = replace(RUNNING, containers=2, waiting=waiting)
        needed = engines.plan(busy, Desired("docker", daemon=daemon, restart=restart))
        assert (needed.service, needed.pending, needed.refusal) == (service, pending, "")
        assert bool(needed.after) == bool(daemon)

    def test_what_waits_takes_effect_once_no_container_runs(self) -> None:
        assert engines.plan(replace(RUNNING, waiting=("log-opts",)), Desired("docker")).service == "restart"

    def test_a_restart_that_was_asked_for_is_made_for_gpus(self) -> None:
        busy = replace(RUNNING, cdi=False, containers=2)
        assert engines.plan(busy, replace(WANTED, restart=True)).service == "restart"

    def test_no_apt_no_installation(self) -> None:
        needed = engines.plan(Current(has_apt=False), WANTED)
        assert needed.refusal.startswith("docker is missing and this system has no apt. Run `sglang-ops provision`")
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


class TestWhole:
    """decide(): engine, packages and toolkit together."""

    RELEASE = {"ID": "debian", "VERSION_ID": "12"}  # noqa: RUF012
    GPUS = toolkits.Found(gpus=(("0", "GPU-aa"),), lacking={"/etc/nvidia.sources": "text"})

    def decide(self, current: Any, found: Any = None, source: str = "distribution", **desired: Any) -> Any:
        wish = setup.Wish(Desired("docker", **desired), supplies.Origin(source), "auto")
        return setup.decide(setup.Seen(current, supplies.Shelf(self.RELEASE), found), wish)

    def test_the_toolkit_wants_a_docker_that_resolves_its_devices(self) -> None:
        whole = self.decide(replace(RUNNING, cdi=False), self.GPUS)
        assert json.loads(whole.engine.after) == {"features": {"cdi": True}}
        assert whole.changed
        shown = {part["after_header"]: part["after"] for part in whole.diff}
        assert list(shown) == [
            "/etc/nvidia.sources", "/etc/docker/daemon.json", "packages", "packages on hold", "units",
            "CDI specification",
        ]  # fmt: skip
        assert shown["packages"].count("=1.20.1-1\n") == 4

    def test_it_is_refused_where_docker_must_be_restarted_for_it_and_may_not(self) -> None:
        assert "runs 2 of them" in self.decide(replace(RUNNING, cdi=False, containers=2), self.GPUS).refusal

    def test_dockers_own_is_newer_than_what_the_distribution_would_give(self) -> None:
        blank = Current(candidates=DEBIAN_12)
        own = self.decide(blank, self.GPUS, "docker")
        assert json.loads(own.engine.after) == {"features": {"cdi": True}}
        assert own.notes == ()
        (note,) = self.decide(blank, self.GPUS).notes
        assert note.startswith("docker 20.10.24 knows no CDI, which GPUs need. Set container_engine_source: docker")

    def test_nothing_is_said_of_what_is_not_wanted(self) -> None:
        whole = self.decide(replace(RUNNING, version="20.10.24", cdi=False), wants_cdi=True)
        assert (whole.changed, whole.notes, whole.diff, whole.steps) == (False, (), [], ())


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

        class Packages:
            def refresh(self, force: bool = False) -> None:
                test.done.append("refresh")

            def install(self, packages: tuple[str, ...]) -> None:
                assert test.path.exists(), "docker would start without its configuration"
                test.done.append("install " + " ".join(packages))

        def observe(_engine: str) -> Any:
            now = self.after if any(step.startswith("tell") for step in self.done) else self.before
            return replace(now, config=self.path.read_text()) if self.path.exists() else now

        monkeypatch.setattr(engines, "DAEMON_JSON", str(self.path))
        monkeypatch.setattr(engines, "observe", observe)
        monkeypatch.setattr(supplies.managers, "os_release", lambda: {"ID": "debian", "VERSION_ID": "13"})
        monkeypatch.setattr(setup, "WAITING", str(tmp_path / "waiting.json"))
        monkeypatch.setattr(setup, "PID_FILE", str(tmp_path / "docker.pid"))
        monkeypatch.setattr(setup, "manager_of", lambda family, progress=None: Packages())
        monkeypatch.setattr(setup, "run", self.run)
        monkeypatch.setattr(setup, "tell", lambda word: self.done.append(f"tell {word}"))
        monkeypatch.setattr(setup, "READY_SECONDS", 0)
        self.judgement = Output(127)
        self.arguments = {"insecure_registries": [LAB], "wants_cdi": True}

    def run(self, *argv: str, **_: Any) -> Output:
        if argv[0] == "dockerd":
            return self.judgement
        self.done.append(" ".join(argv))
        return Output(0)

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
        assert left.result["sglang_ops"]["detail"] == "docker 26.1.5 ready"

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
        assert not self.path.exists(), "a docker that does not start with it would not start tomorrow either"
        assert self.done[-1] == "systemctl start docker.service"

    def test_a_daemon_json_that_docker_does_not_take_is_refused(self) -> None:
        self.before = replace(RUNNING, config='{"debug": true}')
        self.judgement = Output(1, stderr="unable to configure the Docker daemon with file /tmp/x.json: the following "
                                          "directives don't match any configuration option: log-opt\n")  # fmt: skip
        left = run(module, daemon={"log-opt": "x"})
        assert left.result["exit_hint"] == 7
        assert left.result["msg"].endswith("option: log-opt. Correct container_engine_daemon.")
        assert (self.done, self.path.exists()) == ([], False)

    def test_a_docker_too_old_to_judge_its_configuration_gets_it(self) -> None:
        self.before = replace(RUNNING, config="{}")
        self.after = replace(RUNNING, config='{\n  "debug": true\n}\n')
        self.judgement = Output(125, stderr="unknown flag: --validate\n")
        left = run(module, daemon={"debug": True})
        assert (left.failed, self.done) == (False, ["tell reload"])

    def test_what_waits_is_said_again_until_docker_was_started_anew(self, tmp_path: Path) -> None:
        (tmp_path / "docker.pid").write_text("77")
        self.before = self.after = replace(RUNNING, containers=1, config="{}")
        first = run(module, daemon={"log-opts": {"max-size": "9m"}})
        assert first.result["changed"]
        for left in (first, run(module, daemon={"log-opts": {"max-size": "9m"}})):
            (warning,) = left.result["sglang_ops"]["warnings"]
            assert warning.startswith("log-opts in ")
        assert not left.result["changed"]
        (tmp_path / "docker.pid").write_text("88")
        assert run(module, daemon={"log-opts": {"max-size": "9m"}}).result["sglang_ops"]["warnings"] == []
