"""The lab's model is what it says it is; that SGLang loads it is shown in the lab."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.lab.model import GATED_MODEL, OPEN_MODEL, ensure_model, model_files


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return model_files()


@pytest.fixture(scope="module")
def tensors(files: dict[str, bytes]) -> dict[str, Any]:
    return dict(read_safetensors(files["model.safetensors"]))


def read_safetensors(content: bytes) -> list[tuple[str, Any]]:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    read: list[tuple[str, Any]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        halves = struct.unpack(f"<{(end - start) // 2}H", data[start:end])
        values = [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves]
        read.append((name, (entry["shape"], values)))
    assert max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__") == len(data)
    return read


def test_the_bytes_never_change(files: dict[str, bytes]) -> None:
    assert model_files() == files
    digests = {name: hashlib.sha256(content).hexdigest()[:8] for name, content in files.items()}
    assert digests["config.json"] == "e9bbd490"
    assert digests["model.safetensors"] == "f8a86a81"


def test_shapes_fit_the_configuration(files: dict[str, bytes], tensors: dict[str, Any]) -> None:
    config = json.loads(files["config.json"])
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    assert vocabulary == len(json.loads(files["tokenizer.json"])["model"]["vocab"])
    assert tensors["model.embed_tokens.weight"][0] == [vocabulary, hidden]
    assert tensors["model.layers.1.self_attn.k_proj.weight"][0] == [
        config["num_key_value_heads"] * config["head_dim"],
        hidden,
    ]
    assert tensors["model.norm.weight"][0] == [hidden]
    assert len(tensors) == 3 + config["num_hidden_layers"] * 9
    assert all(len(values) == shape[0] * (shape[1] if len(shape) > 1 else 1) for shape, values in tensors.values())


def test_every_byte_has_its_token(files: dict[str, bytes]) -> None:
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    letters = [token for token, at in vocabulary.items() if 3 <= at < 3 + 256]
    assert len(set(letters)) == 256
    assert [vocabulary[letter] - 3 for letter in ("A", "\u0120", "\u010a", "\u00ff")] == [65, 32, 10, 255]


def test_the_words_point_at_each_other(files: dict[str, bytes], tensors: dict[str, Any]) -> None:
    """Without attention and MLP, which add little, the most likely successors make the sentence."""
    tokens = {at: token for token, at in json.loads(files["tokenizer.json"])["model"]["vocab"].items()}
    _, embedding = tensors["model.embed_tokens.weight"]
    _, output = tensors["lm_head.weight"]

    def successor(token: int) -> int:
        hidden = embedding[token * 64 : token * 64 + 64]
        scores = [sum(map(float.__mul__, hidden, output[at * 64 : at * 64 + 64])) for at in tokens]
        return max(tokens, key=lambda at: scores[at])

    said, token = [], 3 + ord("\n")
    while len(said) < 30 and tokens[token := successor(token)] != "<|im_end|>":
        said.append(tokens[token].replace("\u0120", " "))
    assert "".join(said) == "Hello from your lab: I am a tiny model of two layers, served by the real SGLang."


def test_ensure_model_writes_both_and_mends(tmp_path: Path, files: dict[str, bytes]) -> None:
    root = ensure_model(tmp_path)
    assert root == tmp_path / "models"
    for repository in (OPEN_MODEL, GATED_MODEL):
        assert {path.name: path.read_bytes() for path in (root / repository).iterdir()} == files
    untouched = (root / OPEN_MODEL / "config.json").stat().st_mtime_ns
    (root / OPEN_MODEL / "tokenizer.json").write_text("broken")
    ensure_model(tmp_path)
    assert (root / OPEN_MODEL / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    assert (root / OPEN_MODEL / "config.json").stat().st_mtime_ns == untouched
