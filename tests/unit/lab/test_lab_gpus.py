"""The pretended GPUs: the CDI specification, and the stand-in for nvidia-smi, which runs here as it does on a host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_ops.lab import gpus


class Smi:
    """The stand-in, with a file of answers of its own."""

    def __init__(self, directory: Path, count: int = 2) -> None:
        self.answers = directory / "gpus.json"
        self.answers.write_text(gpus.answers("lab-1", count))
        self.program = directory / "nvidia-smi"
        self.program.write_text(gpus.smi().replace(gpus.ANSWERS, str(self.answers)))

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", str(self.program), *arguments],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        assert done.stderr == ""
        return done.returncode, done.stdout

    def query(self, fields: str, form: str = "csv,noheader,nounits") -> list[str]:
        code, out = self.run(f"--query-gpu={fields}", f"--format={form}")
        assert code == 0
        return out.splitlines()

    def change(self, index: int | None = None, **values: Any) -> None:
        known = json.loads(self.answers.read_text())
        (known if index is None else known["gpus"][index]).update(values)
        self.answers.write_text(json.dumps(known))


@pytest.fixture
def smi(tmp_path: Path) -> Smi:
    return Smi(tmp_path)


def test_list(smi: Smi) -> None:
    code, out = smi.run("-L")
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith("GPU 0: NVIDIA H200 (UUID: GPU-")
    assert first.partition("UUID")[2] != second.partition("UUID")[2]


def matrix(smi: Smi, **environment: str) -> list[list[str]]:
    code, out = smi.run("topo", "-m", **environment)
    assert code == 0
    header, *rows = out.partition("\n\nLegend:")[0].splitlines()
    names = [line.split("\t")[0] for line in rows]
    affinities = ["CPU Affinity", "NUMA Affinity", "GPU NUMA ID\x1b[0m"]
    assert header.removeprefix("\t\x1b[4m").split("\t") == [*names, *affinities]
    return [line.split("\t")[1 : len(rows) + 1] for line in rows]


def test_nvlink_joins_all_gpus_or_those_of_an_island(tmp_path: Path) -> None:
    smi = Smi(tmp_path, 4)
    assert matrix(smi)[0] == [" X ", "NV18", "NV18", "NV18"]
    smi.change(islands=[[0, 2], [1, 3]])
    assert matrix(smi)[:2] == [[" X ", "SYS", "NV18", "SYS"], ["SYS", " X ", "SYS", "NV18"]]
    # A container with GPUs 1 to 3 of the host: numbered anew, joined as before.
    given = {f"SGLANG_LAB_GPU_{gpu}": "1" for gpu in (1, 2, 3)}
    assert matrix(smi, **given) == [[" X ", "SYS", "NV18"], ["SYS", " X ", "SYS"], ["NV18", "SYS", " X "]]


def test_uuids_stay_and_differ_between_hosts() -> None:
    def uuids(host: str) -> list[str]:
        return [gpu["uuid"] for gpu in json.loads(gpus.answers(host, 2))["gpus"]]

    assert uuids("lab-1") == uuids("lab-1")
    assert not set(uuids("lab-1")) & set(uuids("lab-2"))


def test_query_prints_what_the_file_says(smi: Smi) -> None:
    smi.change(1, memory_used=5000, utilization=87)
    fields = "index,name,memory.total,memory.used,memory.free,utilization.gpu,driver_version,compute_cap"
    assert smi.query(fields) == [
        "0, NVIDIA H200, 143771, 0, 143771, 0, 580.95.05, 9.0",
        "1, NVIDIA H200, 143771, 5000, 138771, 87, 580.95.05, 9.0",
    ]


def test_query_with_header_and_units(smi: Smi) -> None:
    assert smi.query("index,memory.total,power.draw", "csv") == [
        "index, memory.total [MiB], power.draw [W]",
        "0, 143771 MiB, 76.50 W",
        "1, 143771 MiB, 76.50 W",
    ]


@pytest.mark.parametrize("field", ["pci.bus_id", "temperature.gpu", "ecc.errors.uncorrected.volatile.total", "uuid"])
def test_other_fields_are_known(smi: Smi, field: str) -> None:
    assert all(smi.query(field))


def test_unknown_field_is_refused_like_the_real_one(smi: Smi) -> None:
    code, out = smi.run("--query-gpu=index,colour", "--format=csv")
    assert (code, out) == (2, 'Field "colour" is not a valid field to query.\n\n')


def test_processes(smi: Smi) -> None:
    arguments = ("--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits")
    assert smi.run(*arguments) == (0, "")
    smi.change(1, processes=[{"pid": 4711, "used": 900}])
    uuid = smi.query("uuid")[1]
    assert smi.run(*arguments) == (0, f"{uuid}, 4711, 900\n")


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("no-devices", 6, "No devices were found"),
        ("no-driver", 9, "couldn't communicate with the NVIDIA driver"),
        ("version-mismatch", 18, "Driver/library version mismatch"),
    ],
)
def test_faults_of_the_host(smi: Smi, fault: str, code: int, words: str) -> None:
    smi.change(fault=fault)
    found, out = smi.run("-L")
    assert found == code
    assert words in out


def test_a_lost_gpu_spoils_the_whole_answer(smi: Smi) -> None:
    smi.change(1, lost=True)
    code, out = smi.run("--query-gpu=index", "--format=csv")
    assert code == 15
    assert "GPU is lost.  Reboot the system to recover this GPU" in out
    assert smi.run("--query-gpu=index", "--format=csv,noheader", "-i", "0") == (0, "0\n")


def test_old_driver(smi: Smi) -> None:
    smi.change(driver_version="535.104.05")
    assert smi.query("driver_version") == ["535.104.05"] * 2
    assert "Driver Version: 535.104.05" in smi.run()[1]


def test_a_container_sees_its_own_gpus_from_zero(smi: Smi) -> None:
    outside = smi.query("uuid")
    code, out = smi.run("--query-gpu=index,uuid", "--format=csv,noheader", SGLANG_LAB_GPU_1="1")
    assert (code, out) == (0, f"0, {outside[1]}\n")


def test_no_such_gpu(smi: Smi) -> None:
    assert smi.run("-L", "-i", "7") == (6, "No devices were found\n")


def test_cdi_names_every_gpu_and_all_of_them() -> None:
    spec = yaml.safe_load(gpus.cdi_spec(3))
    assert spec["kind"] == "nvidia.com/gpu"
    assert [device["name"] for device in spec["devices"]] == ["0", "1", "2", "all"]
    one, everything = spec["devices"][1]["containerEdits"], spec["devices"][3]["containerEdits"]
    assert one == {"deviceNodes": [{"path": "/dev/nvidia1"}], "env": ["SGLANG_LAB_GPU_1=1"]}
    assert [node["path"] for node in everything["deviceNodes"]] == ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2"]
    assert "hooks" not in gpus.cdi_spec(3)


def test_every_device_of_the_specification_is_made_at_boot() -> None:
    made = {line.split()[1] for line in gpus.device_nodes(2).splitlines()}
    assert made == {"/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"}
