"""How the lab's hosts are dealt out, and what the peers are told."""

from __future__ import annotations

import json
from pathlib import Path

from bench.fleet import Lab, slices, variables, write_inventory

DIGEST = "sha256:" + "ab" * 32


def lab(folder: Path) -> Lab:
    deployment = folder / "deployment.yaml"
    deployment.write_text(
        "deployment:\n"
        f"  image: 198.18.0.2:5000/sglang@{DIGEST}\n"
        "  hf_model_handle: lab/tiny\n  served_model_name: tiny\n  port: 8000\n"
    )
    hosts = {f"bench-{number}": {"ansible_host": f"198.18.0.{10 + number}"} for number in range(1, 7)}
    shared = {
        "container_engine_insecure_registries": ["198.18.0.2:5000"],
        "sglang_server_hf_endpoint": "http://198.18.0.2:8080",
    }
    return Lab(folder / "inventory.yml", {"all": {"hosts": hosts, "vars": shared}}, deployment)


def test_every_host_has_one_contender(tmp_path: Path) -> None:
    hosts = lab(tmp_path).hosts
    parts = slices(hosts, 3)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert sorted(host for part in parts for host in part) == sorted(hosts)


def test_peers_run_the_same_server_as_the_deployment_file_says(tmp_path: Path) -> None:
    told = variables(lab(tmp_path))
    assert told["sglang_image"] == f"198.18.0.2:5000/sglang@{DIGEST}"
    assert (told["sglang_model"], told["sglang_served_model_name"], told["sglang_port"]) == ("lab/tiny", "tiny", 8000)
    assert told["sglang_hf_endpoint"] == "http://198.18.0.2:8080"


def test_an_inventory_of_a_part_has_its_hosts_only_and_all_variables(tmp_path: Path) -> None:
    path = write_inventory(tmp_path / "part.json", lab(tmp_path), ["bench-2", "bench-5"], {"sglang_port": 8000})
    content = json.loads(path.read_text())["all"]
    assert content["hosts"] == {
        "bench-2": {"ansible_host": "198.18.0.12"},
        "bench-5": {"ansible_host": "198.18.0.15"},
    }
    assert content["vars"]["sglang_port"] == 8000
    assert content["vars"]["sglang_server_hf_endpoint"] == "http://198.18.0.2:8080"
