"""The harness's own process: sees that every task can be asked and scored before anything is asked, then runs them.

What comes of it is written to the run's directory; nothing is said to the network but to the proxy on loopback (and
to the hub, for data that is not there).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .lmeval import LmEvalTask
from .nvidia import NvidiaTask
from .store import Store
from .task import Problem, Task, read, write

CHECK, RUN, BOTH = "check", "run", "both"
AGAIN = "again"  # by `evaluate resume`, which waits for the check: what failed is asked once more, all is scored anew


def main(directory: Path, proxy: str, what: str, stage: int, environments: Mapping[str, Mapping[str, str]]) -> int:
    """Check (`what`: check, both) and run (run, both) the tasks of one stage, which is one image. 0 done, 7 refused:
    see checked.json.

    `environments` are the variables of single tasks, set while that task is at work.
    """
    job = json.loads((directory / "job.json").read_text())
    chosen = [item for item in job["tasks"] if item.get("stage", 0) == stage]
    wanted = [_task(item, job, directory, environments.get(item["name"], {})) for item in chosen]
    if what in (CHECK, BOTH) and not _check(directory, wanted):
        return 7
    if what in (RUN, BOTH):
        store = Store(directory / "answers.sqlite")
        if (directory / AGAIN).exists():  # not before every check has passed: what was scored stays where one does not
            store.forget_failed()
            shutil.rmtree(directory / "results", ignore_errors=True)
            (directory / AGAIN).unlink()
        for task in wanted:
            with task.environment():
                task.run(proxy, store)
    return 0


def _task(item: Mapping[str, Any], job: Mapping[str, Any], directory: Path, variables: Mapping[str, str]) -> Task:
    kind = NvidiaTask if item.get("nvidia") else LmEvalTask
    return kind(item, job, directory, variables)


def _check(directory: Path, wanted: Sequence[Task]) -> bool:
    """Write to checked.json, beside what other stages wrote, what is known of the tasks and what is wrong with them."""
    checked: dict[str, Any] = {"tasks": {}, "problems": [], **read(directory / "checked.json")}
    for task in wanted:
        try:
            with task.environment():
                checked["tasks"][task.name] = task.check()
        except Problem as problem:
            checked["problems"].append(f"{task.name}: {problem}")
    checked["problems"] = list(dict.fromkeys(checked["problems"]))
    write(directory / "checked.json", json.dumps(checked))
    return not checked["problems"]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), json.load(sys.stdin)))
