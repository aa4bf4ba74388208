"""What the facts report of a model for memory planning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_files as files
from module_testing import http_server

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}


class Hub(BaseHTTPRequestHandler):
    asked: list[tuple[str, str | None]]
    body: bytes

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        found = self.path.endswith("/config.json")
        self.send_response(200 if found else 404)
        body = self.body if found else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked, Hub.body = [], json.dumps(CONFIG).encode()
    with http_server(Hub) as address:
        yield f"http://{address}"


def source(**sizes: int) -> dict[str, Any]:
    names = {name.replace("__", "."): size for name, size in sizes.items()}
    return {"commit": "c" * 40, "files": [{"name": name, "size": size, "blob": ""} for name, size in names.items()]}


def model(directory: Path, **contents: str) -> str:
    for name, text in contents.items():
        (directory / name.replace("__", ".")).write_text(text)
    return str(directory)


def test_no_model_there(tmp_path: Path) -> None:
    assert files.of_directory(str(tmp_path)) is None
    assert files.of_directory(str(tmp_path / "absent")) is None


def test_a_model_of_several_files_has_an_index(tmp_path: Path) -> None:
    index = json.dumps({"metadata": {"total_size": 12345}, "weight_map": {}})
    path = model(tmp_path, config__json=json.dumps(CONFIG), model__safetensors__index__json=index)
    (tmp_path / "model-00001.safetensors").write_bytes(b"w" * 50)
    assert files.of_directory(path) == {"config": CONFIG, "weight_bytes": 12345}


@pytest.mark.parametrize("index", ["{", "[]", '{"metadata": {}}', '{"metadata": {"total_size": "?"}}'])
def test_without_a_usable_index_the_files_are_summed(tmp_path: Path, index: str) -> None:
    path = model(tmp_path, config__json="{}", model__safetensors__index__json=index)
    (tmp_path / "model-1.safetensors").write_bytes(b"w" * 50)
    (tmp_path / "consolidated.safetensors").write_bytes(b"w" * 99)  # the same weights once more
    (tmp_path / "pytorch_model.bin").write_bytes(b"w" * 99)
    assert files.of_directory(path) == {"config": {}, "weight_bytes": 50}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"'])
def test_a_broken_configuration_is_none(tmp_path: Path, text: str) -> None:
    assert files.of_directory(model(tmp_path, config__json=text)) == {"config": None, "weight_bytes": 0}


def test_a_configuration_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    assert files.of_directory(str(tmp_path)) == {"config": None, "weight_bytes": 0}


@pytest.mark.parametrize(
    ("sizes", "total"),
    [
        ({"model-1.safetensors": 5, "model-2.safetensors": 6, "onnx/model.safetensors": 99}, 11),
        ({"weights.safetensors": 5, "pytorch_model.bin": 7}, 5),
        ({"pytorch_model-1.bin": 5, "training_args.bin": 7}, 5),
        ({"m-Q4.gguf": 5, "m-Q8.gguf": 9}, 9),  # one of them is loaded
        ({"README.md": 5}, 0),
    ],
)
def test_files_that_hold_weights(sizes: dict[str, int], total: int) -> None:
    assert files.summed(sizes) == total


def test_long_lists_stay_on_the_host() -> None:
    long = {**CONFIG, "id2label": {str(number): "x" * 50 for number in range(3000)}, "layer_types": ["full"] * 64}
    long["quantization_config"] = {"quant_method": "fp8", "ignored_layers": ["model.layer"] * 5000}
    sent = files.configuration(json.dumps(long))
    assert sent == {**CONFIG, "layer_types": ["full"] * 64, "quantization_config": {"quant_method": "fp8"}}
    assert files.configuration(json.dumps({str(number): 0 for number in range(20000)})) is None


def test_a_model_on_the_hub_costs_one_small_request(hub: str) -> None:
    found = files.of_hub(source(config__json=20, model__safetensors=5000), "org/m", hub, "secret")
    assert found == {"config": CONFIG, "weight_bytes": 5000}
    assert Hub.asked == [(f"/org/m/resolve/{'c' * 40}/config.json", "Bearer secret")]


def test_a_hub_model_without_a_readable_configuration(hub: str) -> None:
    Hub.body = b"<html>"
    assert files.of_hub(source(config__json=6), "org/m", hub, None)["config"] is None
    assert files.of_hub(source(model__gguf=9), "org/m", hub, None) == {"config": None, "weight_bytes": 9}
    assert files.of_hub(source(config__json=6), "org/m", "http://127.0.0.1:9", None)["config"] is None
