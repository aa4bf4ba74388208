"""A model must really be there, in a directory or in the hub's cache, or the server does not start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sglang_ops.simulator.arguments import parse
from sglang_ops.simulator.model import Model, ModelError, WeightsError, check_weights, find_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, model: Path) -> Path:
    """A cache that holds lab/tiny-llama the way huggingface_hub lays it out."""
    cached = tmp_path / "hub" / "models--lab--tiny-llama"
    shutil.copytree(model, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    return tmp_path


def find(*arguments: str, **environment: str) -> Model:
    return find_model(parse(["--model-path", *arguments]), environment)


def test_a_directory(model: Path) -> None:
    found = find(str(model))
    assert (found.directory, found.model_type, found.context_tokens) == (model, "llama", 4096)
    assert found.architectures == ["LlamaForCausalLM"]
    assert find(str(model), "--context-length", "1k").context_tokens == 1000


def test_a_cached_repository(hub: Path) -> None:
    snapshot = hub / "hub" / "models--lab--tiny-llama" / "snapshots" / COMMIT
    assert find("lab/tiny-llama", HF_HOME=str(hub)).directory == snapshot
    assert find("lab/tiny-llama", "--revision", COMMIT, HF_HOME=str(hub)).directory == snapshot
    assert find("lab/tiny-llama", HF_HUB_CACHE=str(hub / "hub")).directory == snapshot


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("/nonexistent",), "OSError: Repo id must use alphanumeric chars, '-', '_' or '.'."),
        (("lab/absent",), "OSError: We couldn't connect to 'http://hub' to load the files, and couldn't find them"),
        (("lab/tiny-llama", "--revision", "v2"), "OSError: We couldn't connect to 'http://hub'"),
    ],
)
def test_a_model_that_is_not_there(hub: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ModelError) as refused:
        find(*arguments, HF_HOME=str(hub), HF_HUB_OFFLINE="1", HF_ENDPOINT="http://hub")
    assert str(refused.value).startswith(words)


def test_nothing_is_downloaded(hub: Path) -> None:
    with pytest.raises(ModelError, match="the simulator downloads nothing"):
        find("lab/absent", HF_HOME=str(hub))


@pytest.mark.parametrize("config", [None, "{}", "no json", "[]"])
def test_a_directory_without_a_model(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"ValueError: Unrecognized model in .* Should have a `model_type` key"):
        find(str(tmp_path))


def test_weights_that_were_never_downloaded(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(tmp_path / "blob")
    given = parse(["--model-path", str(copy)])
    with pytest.raises(WeightsError, match="Cannot find any model weights"):
        check_weights(find_model(given, {}), given)
    dummy = parse(["--model-path", str(copy), "--load-format", "dummy"])
    check_weights(find_model(dummy, {}), dummy)
    (tmp_path / "blob").write_bytes(b"weights")
    check_weights(find_model(given, {}), given)
