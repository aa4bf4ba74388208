"""NVIDIA's toolkit: four packages of one version, held; a CDI specification that fits driver and GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils import sglang_host_toolkit as toolkits
from ansible.module_utils.sglang_host_command import Output
from ansible.module_utils.sglang_host_packages import PackageError

Found, Wanted = toolkits.Found, toolkits.Wanted
GPUS = (("0", "GPU-aa"), ("1", "GPU-bb"))
# As nvidia-ctk writes it.
SPEC = """---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
    - name: "1"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia1
    - name: all
containerEdits:
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
    mounts:
        - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05
"""
RUN, ETC = "/var/run/cdi/nvidia.yaml", "/etc/cdi/nvidia.yaml"
READY = Found(
    installed=dict.fromkeys(toolkits.PACKAGES, "1.20.1-1"), held=frozenset(toolkits.PACKAGES), units=True,
    enabled=True, gpus=GPUS, driver="580.95.05", specs=((RUN, SPEC),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("family", "machine", "lines"),
    [
        ("debian", "x86_64", ["URIs: https://nvidia.github.io/libnvidia-container/stable/deb/amd64", "Suites: /"]),
        ("debian", "aarch64", ["URIs: https://nvidia.github.io/libnvidia-container/stable/deb/arm64", "Suites: /"]),
        ("redhat", "x86_64", ["baseurl=https://nvidia.github.io/libnvidia-container/stable/rpm/$basearch",
                              "repo_gpgcheck=1", "gpgcheck=0"]),
    ],
)  # fmt: skip
def test_its_repository_on_each_family(family: str, machine: str, lines: list[str]) -> None:
    repository = toolkits.repository(Wanted(), family, machine)
    ((path, text),) = repositories.files(repository, family).items()
    assert Path(path).stem == "nvidia-container-toolkit"
    assert set(lines) <= set(text.splitlines())
    assert repository.key == "https://nvidia.github.io/libnvidia-container/gpgkey"


@pytest.mark.parametrize("family", ["debian", "redhat"])
def test_a_blank_host_gets_four_packages_of_one_version(family: str) -> None:
    planned = toolkits.plan(Found(family, gpus=GPUS, lacking={"x": "y"}), Wanted())
    assert planned.packages == tuple(f"{name}=1.20.1-1" for name in toolkits.PACKAGES)
    assert (planned.hold, planned.enable, planned.stale) == (toolkits.PACKAGES, True, "there is none")
    assert planned.files == {"x": "y"}
    assert [step.split()[0] for step in planned.steps] == ["write", "install", "hold", "enable", "write"]


def test_a_host_that_is_ready_stays_as_it_is() -> None:
    planned = toolkits.plan(READY, Wanted())
    assert (planned.steps, planned.notes, planned.repository) == ((), (), None)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"held": frozenset()}, "hold"),
        ({"enabled": False}, "enable"),
        ({"specs": ()}, "write the CDI specification (there is none)"),
        ({"driver": "580.105.08"}, "is for driver 580.95.05, and 580.105.08 runs"),
        ({"gpus": (*GPUS, ("2", "GPU-cc"))}, "it lacks GPU 2"),
        ({"specs": ((ETC, SPEC), (RUN, SPEC.replace("580.95.05", "570.1.2")))}, f"{RUN} is for driver 570.1.2"),
    ],
)
def test_what_is_lacking_is_mended_and_nothing_else(changes: dict[str, Any], step: str) -> None:
    (only,) = toolkits.plan(replace(READY, **changes), Wanted()).steps
    assert step in only


@pytest.mark.parametrize(
    "changes",
    [
        {"specs": ((ETC, SPEC.replace("580.95.05", "570.1.2")), (RUN, SPEC))},  # the last directory counts
        {"specs": ((RUN, SPEC.replace('"1"', '"1:0"')),)},  # MIG
        {"specs": ((RUN, SPEC.replace('"1"', "GPU-bb")),)},  # named by UUID
        {"specs": ((ETC, '{"kind": "nvidia.com/gpu", "devices": [{"name": "0"}, {"name": "1"}]}'),)},  # by hand
    ],
)
def test_a_specification_that_fits_is_left_alone(changes: dict[str, Any]) -> None:
    assert not toolkits.plan(replace(READY, **changes), Wanted()).stale


def test_an_older_toolkit_is_brought_up_and_a_newer_one_stays() -> None:
    older = replace(READY, installed=dict.fromkeys(toolkits.PACKAGES, "1.17.8-1"))
    assert toolkits.plan(older, Wanted()).packages[0] == "nvidia-container-toolkit=1.20.1-1"
    newer = replace(READY, installed=dict.fromkeys(toolkits.PACKAGES, "1.21.0-1"))
    planned = toolkits.plan(newer, Wanted())
    assert (planned.packages, planned.version) == ((), "1.21.0-1")
    assert "1.21.0-1 stays: it is newer than container_engine_toolkit_version 1.20.1-1" in planned.notes[0]


def test_packages_that_drifted_apart_become_one_version() -> None:
    drifted = replace(READY, installed=READY.installed | {"libnvidia-container1": "1.21.0-1"})
    assert set(toolkits.plan(drifted, Wanted()).packages) == {f"{name}=1.21.0-1" for name in toolkits.PACKAGES}
    torn = replace(READY, installed={"libnvidia-container1": "1.20.1-1"})
    assert set(toolkits.plan(torn, Wanted()).packages) == {f"{name}=1.20.1-1" for name in toolkits.PACKAGES}


@pytest.mark.parametrize(("given", "meant"), [("1.20.1", "1.20.1-1"), ("1.20.1-2", "1.20.1-2")])
def test_a_version_may_be_given_without_its_revision(given: str, meant: str) -> None:
    assert toolkits.plan(Found(gpus=GPUS), Wanted(given)).version == meant


@pytest.mark.parametrize("given", ["latest", "", "1.20", "v1.20.1"])
def test_what_is_no_version_is_refused(given: str) -> None:
    assert f"'{given}' is no version such as 1.20.1-1" in toolkits.plan(READY, Wanted(given)).refusal


def test_a_system_without_apt_and_dnf_is_refused() -> None:
    assert "Set container_engine_toolkit: false" in toolkits.plan(Found(""), Wanted()).refusal


def test_versions_sort_as_they_were_released() -> None:
    mixed = ["1.20.1-1", "1.18.0-2", "1.18.0~rc.2-1", "1.9.0-1", "1.18.0-1", "1.18.0~rc.1-1"]
    assert sorted(mixed, key=toolkits.order) == [
        "1.9.0-1", "1.18.0~rc.1-1", "1.18.0~rc.2-1", "1.18.0-1", "1.18.0-2", "1.20.1-1"]  # fmt: skip


def test_without_a_driver_there_is_nothing_to_specify() -> None:
    planned = toolkits.plan(replace(READY, gpus=(), driver="", specs=()), Wanted())
    assert (planned.steps, planned.stale) == ((), "")
    assert "once the driver runs" in planned.notes[0]


class TestHost:
    """Looking and doing."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.smi = Output(0, "0, GPU-aa, 580.95.05\n1, GPU-bb, 580.95.05\n")
        self.spec = tmp_path / "etc" / "nvidia.yaml"
        monkeypatch.setattr(toolkits, "CDI_DIRECTORIES", (str(tmp_path / "etc"), str(tmp_path / "run")))
        monkeypatch.setattr(toolkits, "OWN_SPEC", str(self.spec))
        monkeypatch.setattr(toolkits, "_UNIT_PATHS", (str(tmp_path / "units"),))
        monkeypatch.setattr(toolkits, "run", self.run)
        monkeypatch.setattr(toolkits.nvidia, "pci", lambda: ([], []))
        self.folder = tmp_path

    def run(self, *argv: str, **_: Any) -> Output:
        self.ran.append(" ".join(argv))
        if argv[0] == "nvidia-smi":
            return self.smi
        if argv[0] == "nvidia-ctk":
            Path(argv[-1].partition("=")[2]).write_text(SPEC)
        return Output(0)

    def found(self) -> Any:
        gpus, driver = toolkits.shown_gpus()
        return Found(gpus=gpus, driver=driver, specs=toolkits.specifications())

    def test_what_nvidia_smi_says(self) -> None:
        assert toolkits.shown_gpus() == (GPUS, "580.95.05")
        assert toolkits.has_gpus()
        self.smi = Output(9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n")
        assert toolkits.shown_gpus() == ((), "")
        assert not toolkits.has_gpus()

    def test_a_gpu_without_a_driver_counts_as_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.smi = Output(127)
        monkeypatch.setattr(toolkits.nvidia, "pci", lambda: ([{"address": "0000:1b:00.0", "driver": ""}], []))
        assert toolkits.has_gpus()

    def test_an_old_toolkit_writes_the_specification_in_one_move(self) -> None:
        toolkits.renew(self.found)
        assert self.spec.read_text() == SPEC
        assert [path.name for path in self.spec.parent.iterdir()] == ["nvidia.yaml"]
        assert not any(line.startswith("systemctl") for line in self.ran)
        ran = len(self.ran)
        toolkits.renew(self.found)
        assert not any(line.startswith("nvidia-ctk") for line in self.ran[ran:])

    def test_units_write_it_where_there_are_any_else_the_program_does(self) -> None:
        (self.folder / "units").mkdir()
        (self.folder / "units" / toolkits.UNITS[0]).touch()
        toolkits.renew(self.found)
        asked = [line for line in self.ran if not line.startswith("nvidia-smi")]
        assert asked[0] == "systemctl restart nvidia-cdi-refresh.service"
        assert asked[1].startswith("nvidia-ctk cdi generate")
        assert self.spec.read_text() == SPEC

    def test_a_specification_is_not_believed_unseen(self) -> None:
        self.smi = Output(0, "0, GPU-aa, 580.95.05\n7, GPU-hh, 580.95.05\n")
        with pytest.raises(PackageError, match=r"not as it should be after it was written anew: it lacks GPU 7\. See"):
            toolkits.renew(self.found)
