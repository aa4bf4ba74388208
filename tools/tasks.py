"""Write the list of the harness's tasks that is shipped: `python tools/tasks.py` where lm_eval is installed.

The harness reads 15,000 files to know its own tasks, which takes a minute; the list is read in milliseconds.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks._index import Kind, TaskIndex

TARGET = Path(__file__).parents[1] / "sglang_ops" / "evaluation"


def main() -> None:
    root = Path(lm_eval.tasks.__file__).parent
    generating: dict[str, Any] = {}
    other: list[str] = []
    index = TaskIndex.build([root])
    for name, entry in sorted(index.items()):
        if entry.kind is not Kind.TASK or entry.cfg.get("output_type", "generate_until") != "generate_until":
            other.append(name)
        elif not entry.cfg.get("unsafe_code"):
            generating[name] = [str(entry.yaml_path.relative_to(root)), entry.cfg.get("dataset_path")]
    groups = {name: group for name in other if (group := _group(name, index, generating))}
    listed = {"generating": generating, "groups": groups, "other": [name for name in other if name not in groups]}
    content = json.dumps(listed, separators=(",", ":"))
    target = TARGET / f"lm_eval-{importlib.metadata.version('lm_eval')}.json.gz"
    target.write_bytes(gzip.compress(content.encode(), mtime=0))
    print(f"{target.name}: {len(generating)} tasks that generate text, {len(groups)} groups, {len(other)} others")


def _group(name: str, index: Mapping[str, Any], generating: Collection[str]) -> list[Any] | None:
    """[members, means] of a group or tag all of whose tasks generate text. A mean is [metric, filters, by size]."""
    entry = index[name]
    if entry.kind is Kind.TAG:
        members: list[str] | None = sorted(entry.tags)
    elif entry.kind is Kind.GROUP:
        members = _members(entry.cfg["task"], index)
    else:
        return None
    if not members or any(member not in generating for member in members):
        return None
    listed = (entry.cfg or {}).get("aggregate_metric_list") or []
    means = [
        [one["metric"], one.get("filter_list"), one.get("weight_by_size", True)]
        for one in ([listed] if isinstance(listed, dict) else listed)
        if one.get("aggregation", "mean") == "mean"
    ]
    return [members, means]


def _members(written: Any, index: Mapping[str, Any]) -> list[str] | None:
    """The tasks of a group's `task:`, groups and tags in it resolved; None where it changes a task's settings."""
    found: list[str] = []
    for one in [written] if isinstance(written, (str, dict)) else written:
        if isinstance(one, dict):
            inner = _members(one["task"], index) if "group" in one else None
        elif one not in index:
            inner = None
        elif index[one].kind is Kind.TAG:
            inner = sorted(index[one].tags)
        elif index[one].kind is Kind.GROUP:
            inner = _members(index[one].cfg["task"], index)
        else:
            inner = [one]
        if inner is None:
            return None
        found += inner
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    main()
