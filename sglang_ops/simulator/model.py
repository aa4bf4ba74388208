"""Which model is meant by `--model-path`: a directory or a repository in the cache, and nothing invented.

Where the engine would not find its model, the simulator does not either, and says so in the engine's words.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


@dataclass(frozen=True)
class Model:
    """What the server tells about its model."""

    path: str  # as written on the command line
    directory: Path
    model_type: str
    architectures: list[str]
    context_tokens: int


class ModelError(Exception):
    """The configuration cannot be read: the engine dies of a Python exception, exit code 1."""


class WeightsError(Exception):
    """The weights cannot be read: the engine's scheduler dies and takes the server along."""


def find_model(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Model:
    """The model of these arguments. Raises ModelError with the type and text of the engine's exception."""
    directory = Path(arguments.model_path)
    if not directory.is_dir():
        directory = _snapshot(arguments.model_path, arguments.revision or "main", environment)
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"ValueError: Unrecognized model in {arguments.model_path}. "
            "Should have a `model_type` key in its config.json."
        ) from error
    return Model(
        path=arguments.model_path,
        directory=directory,
        model_type=model_type,
        architectures=config.get("architectures", []),
        context_tokens=arguments.context_length or config.get("max_position_embeddings", 4096),
    )


def check_weights(model: Model, arguments: argparse.Namespace) -> None:
    """Look whether there are weights to load. Raises WeightsError with the engine's text."""
    if arguments.load_format == "dummy":
        return
    # `exists` follows the cache's links: a file that was never downloaded is a link to nowhere.
    if not any(path.exists() for pattern in _WEIGHTS for path in model.directory.glob(pattern)):
        raise WeightsError(f"RuntimeError: Cannot find any model weights with `{model.path}`")


def _snapshot(repository: str, revision: str, environment: Mapping[str, str]) -> Path:
    """The directory of a cached revision, found the way huggingface_hub finds it."""
    if not _REPOSITORY.fullmatch(repository):
        raise ModelError(
            "OSError: Repo id must use alphanumeric chars, '-', '_' or '.'. The name cannot start or end with "
            f"'-' or '.' and the maximum length is 96: '{repository}'."
        )
    cached = _hub_cache(environment) / f"models--{repository.replace('/', '--')}"
    reference = cached / "refs" / revision
    commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
    directory = cached / "snapshots" / commit
    if directory.is_dir():
        return directory
    if environment.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        endpoint = environment.get("HF_ENDPOINT", "https://huggingface.co")
        raise ModelError(
            f"OSError: We couldn't connect to '{endpoint}' to load the files, "
            "and couldn't find them in the cached files."
        )
    raise ModelError(
        f"OSError: {repository} at revision {revision} is not in the cache, and the simulator downloads nothing."
    )


def _hub_cache(environment: Mapping[str, str]) -> Path:
    if "HF_HUB_CACHE" in environment:
        return Path(environment["HF_HUB_CACHE"])
    home = environment.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")  # noqa: PTH111, PTH118
    return Path(home) / "hub"
