"""What memory planning reads of a model: its configuration, the size of its weights. Python 3.8, standard library."""

from __future__ import annotations

import fnmatch
import json
import os

from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.sglang_host_state import read_text

CONFIG = "config.json"
_LARGEST_CONFIG = 64 * 1024  # bytes that go to the controller; what is larger lists things that nobody plans with
_LARGEST_LIST = 4 * 1024
# Weights that SGLang loads, the first kind that is there; files of the same weights in another order are left out.
_KINDS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin", "*.gguf", "*.pt")


def of_directory(path: str) -> dict | None:
    """{"config", "weight_bytes"} of a model's directory; None where there is no model (no config.json)."""
    text = _text(os.path.join(path, CONFIG))
    if text is None:
        return None
    entries = [name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name))]
    sizes = {name: os.path.getsize(os.path.join(path, name)) for name in entries}
    indices = sorted(name for name in sizes if name.endswith(".index.json"))
    index = _text(os.path.join(path, indices[0])) if indices else None
    return {"config": configuration(text), "weight_bytes": indexed(index) or summed(sizes)}


def _text(path: str) -> str | None:
    """The file's text, "" where it is none, None where there is no such file."""
    try:
        return read_text(path)
    except ValueError:
        return ""


def of_hub(source: dict, repo: str, endpoint: str | None, token: str | None) -> dict:
    """The same of a model that is only on the hub, described by `inspect_source`: one small request more."""
    sizes = {item["name"]: item["size"] for item in source["files"]}
    text = None
    if CONFIG in sizes:
        try:
            text = models.text_of(repo, source["commit"], CONFIG, endpoint, token)
        except models.SourceError:
            text = None  # the model can still be had; it is planned without its memory
    return {"config": configuration(text), "weight_bytes": summed(sizes)}


def configuration(text: str | None) -> dict | None:
    """A configuration without what is too long to send; None where it is no JSON object. Pure."""
    try:
        config = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(config, dict):
        return None
    if len(text or "") <= _LARGEST_CONFIG:
        return config
    short = _without_long_lists(config)
    return short if len(json.dumps(short)) <= _LARGEST_CONFIG else None


def _without_long_lists(value: dict) -> dict:
    kept = {}
    for key, item in value.items():
        if isinstance(item, dict) and key not in ("id2label", "label2id"):
            kept[key] = _without_long_lists(item)
        elif not isinstance(item, (dict, list, str)) or len(json.dumps(item)) <= _LARGEST_LIST:
            kept[key] = item
    return kept


def indexed(text: str | None) -> int:
    """Bytes of weights by the index of a checkpoint of several files, 0 where it does not say. Pure."""
    try:
        total = json.loads(text or "{}").get("metadata", {}).get("total_size", 0)
        return int(total)
    except (ValueError, TypeError, AttributeError):
        return 0


def summed(sizes: dict) -> int:
    """Bytes of the files that hold the weights. `sizes` by name, relative to the model's directory. Pure."""
    for kind in _KINDS:
        found = [size for name, size in sizes.items() if "/" not in name and fnmatch.fnmatch(name, kind)]
        if found:
            return max(found) if kind == "*.gguf" else sum(found)
    return 0
