"""Write the list of the harness's tasks that is shipped: `python tools/tasks.py` where lm_eval is installed.

The harness reads 15,000 files to know its own tasks, which takes a minute; the list is read in milliseconds.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks._index import Kind, TaskIndex

TARGET = Path(__file__).parents[1] / "sglang_ops" / "evaluation"


def main() -> None:
    root = Path(lm_eval.tasks.__file__).parent
    generating: dict[str, Any] = {}
    other: list[str] = []
    for name, entry in sorted(TaskIndex.build([root]).items()):
        if entry.kind is not Kind.TASK or entry.cfg.get("output_type", "generate_until") != "generate_until":
            other.append(name)
        elif not entry.cfg.get("unsafe_code"):
            generating[name] = [str(entry.yaml_path.relative_to(root)), entry.cfg.get("dataset_path")]
    content = json.dumps({"generating": generating, "other": other}, separators=(",", ":"))
    target = TARGET / f"lm_eval-{importlib.metadata.version('lm_eval')}.json.gz"
    target.write_bytes(gzip.compress(content.encode(), mtime=0))
    print(f"{target.name}: {len(generating)} tasks that generate text, {len(other)} others")


if __name__ == "__main__":
    main()
