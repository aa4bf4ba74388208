"""NVIDIA's evaluation containers: `nemo-evaluator` as it is, asked through the proxy, its own files read back."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import samples
from .lmeval import lay_out, link
from .store import Store
from .task import Problem, Task, write

PROGRAM = "nemo-evaluator"
FOR_EVER = 30 * 24 * 3600  # seconds: the proxy knows how long an answer may take, and retries
SYSTEM_MESSAGE = "You are a helpful assistant."  # of simple-evals' add_system_prompt
_ROUNDING = 1e-6
_JSON = 2  # mode of values in simple-evals' cache
_EXPECTED = re.compile(r"<p>Correct Answer: (.*?)</p>", re.DOTALL)


class NvidiaTask(Task):
    """A task of one of NVIDIA's containers. It cannot ask every n-th item: a task is one host's, by its place."""

    def check(self) -> dict[str, Any]:
        program = shutil.which(PROGRAM)
        if not program:
            raise Problem(f"the image has no {PROGRAM}. Name NVIDIA's container in evaluation.nvidia_images.")
        self._lay_out()
        known = self._looked(_python(program))
        if "problem" in known:
            raise Problem(known["problem"])
        items = known["dataset"].pop("items")
        items = None if items is None else min(self.item.get("limit") or items, items)
        if items == 0:
            raise Problem("its data set has no items.")
        if self.item["extra"].get("downsampling_ratio"):
            items = None  # how many it takes is the harness's
        return {
            "harness": {"name": self.item["nvidia"]["distribution"], "version": known["version"]},
            "items": items,
            "here": (items or 0) if self._ours else 0,
            "repeats": self.item["repeats"],
            "dataset": known["dataset"],
            "primary": self.item.get("primary") or "",
        }

    def ask(self, proxy: str, store: Store) -> tuple[list[Any], Iterable[dict[str, Any]]]:
        if not self._ours:
            return [], []
        self._lay_out()
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)  # its own caches: what was answered is in the store
        config = self.work / "run_config.json"
        write(config, json.dumps(self._config(f"{proxy}/{self.name}/0", out)))  # JSON is YAML
        samples.begin(f"{proxy}/{self.name}/0")
        environment = {"NEMO_EVALUATOR_TELEMETRY_LEVEL": "0", **os.environ}
        command = [PROGRAM, "run_eval", "--run_config", str(config)]
        subprocess.run(command, cwd=self.work, env=environment, stdin=subprocess.DEVNULL, check=True)
        results = out / "results.yml"
        if not results.exists():
            raise RuntimeError(f"{self.name}: {PROGRAM} ended without results.yml")
        target = self.directory / "results" / self.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results, target / "results.yml")
        answers = [answer for _, answer in store.of_task(self.name)]
        cache = out / self.item["harness_task"] / "cache" / "cache.sqlite"
        rows = simple_evals(cache, self.item["repeats"]) if cache.is_dir() else lm_eval(out)
        return [{"results.yml": results.read_text()}], list(samples.joined(rows, answers, str(self.job["host"])))

    @property
    def _ours(self) -> bool:
        place = int(self.item["nvidia"]["place"])
        return any(place % count == index for index, count in self.item["shards"])

    def _lay_out(self) -> None:
        """A working directory in which the harness finds the task's data, if there is some."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.data.is_dir():
            return
        known = self.item["nvidia"].get("data")
        directories = [path for path in sorted(self.data.iterdir()) if path.is_dir()]
        if known and not directories:
            lay_out(self.item, self.data, self.work, *known)
        else:
            link(directories, self.work)  # named like the data sets' ids on the hub

    def _looked(self, python: str) -> dict[str, Any]:
        """What the Python of the evaluator knows: its version, the task, its data."""
        asked = {**self.item["nvidia"], "task": self.item["harness_task"]}
        package = str(__package__)
        root = Path(__file__).resolve().parents[package.count(".") + 1]
        done = subprocess.run(
            [*shlex.split(python), "-m", f"{package}.nvidia_look", json.dumps(asked)],
            cwd=self.work, env={**os.environ, "PYTHONPATH": str(root)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        try:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise Problem(f"{python} of the image could not look at its data: see the log.") from None
        return found

    def _config(self, url: str, out: Path) -> dict[str, Any]:
        generation = dict(self.item["generation"])
        params = {
            "parallelism": int(self.item["parallelism"]),
            "request_timeout": FOR_EVER,
            "max_retries": 1,
            "temperature": generation.get("temperature"),
            "top_p": generation.get("top_p"),
            "max_new_tokens": generation.get("max_gen_toks"),
            "limit_samples": self.item.get("limit"),
            "extra": dict(self.item["extra"]),
        }
        endpoint = {
            "url": f"{url}/v1/chat/completions",
            "model_id": self.job["model"],
            "type": "chat",
            "api_key_name": "OPENAI_API_KEY",
            # Its own proxy listens on a port of the host; without one, it asks ours directly.
            "adapter_config": self.item["nvidia"].get("adapter_config") or {"mode": "client"},
        }
        kept = {name: value for name, value in params.items() if value not in (None, {})}
        config = {"type": self.item["harness_task"], "output_dir": str(out), "params": kept}
        return {"config": config, "target": {"api_endpoint": endpoint}}


def _python(program: str) -> str:
    """The interpreter that a Python program names in its first line, else the one that runs here."""
    with Path(program).open("rb") as stream:
        first = stream.readline().decode("utf-8", "replace").strip()
    named = first[2:].strip() if first.startswith("#!") else ""
    return named if "python" in named else sys.executable


def simple_evals(cache: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """What simple-evals kept of each answer, from its cache: an SQLite file, with long values in files beside it."""
    connection = sqlite3.connect(f"file:{cache / 'cache.db'}?mode=ro", uri=True)
    rows = connection.execute("SELECT key, mode, filename, value FROM Cache").fetchall()
    connection.close()
    kept: dict[int, dict[str, Any]] = {}
    for key, mode, filename, value in rows:
        text = (cache / filename).read_bytes() if filename else value
        if mode != _JSON:
            raise RuntimeError(f"{cache}: a value of mode {mode}, and {_JSON} is known")
        kept[int(key)] = json.loads(text)
    items = max(1, len(kept) // max(1, repeats))
    for at, one in sorted(kept.items()):
        asked = one["convo"][:-1]
        found = _EXPECTED.search(one.get("html") or "")
        values = {"score": one["score"], **(one.get("metrics") or {})}
        yield {
            "id": str(at % items),
            "repeat": at // items,
            "category": None,
            "prompt": "\n\n".join(str(message.get("content")) for message in asked),
            "expected": html.unescape(found[1]) if found else None,
            "asked": [{"messages": asked}, {"messages": [{"role": "system", "content": SYSTEM_MESSAGE}, *asked]}],
            "text": str(one["convo"][-1].get("content") or ""),
            "scores": {name: float(value) for name, value in values.items() if isinstance(value, (bool, int, float))},
            "weights": {},
        }


def lm_eval(out: Path) -> Iterator[dict[str, Any]]:
    """What NVIDIA's lm-evaluation-harness logged: a file for each task, of which a group has several."""
    files = sorted(out.rglob("samples_*.jsonl"))
    tasks = {path: re.sub(r"^samples_(.*)_\d{4}-\d\d-\d\dT[\d.-]+\.jsonl$", r"\1", path.name) for path in files}
    for path in files:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        filters = {entry["filter"] for entry in entries}
        together = scored_together(entries, _aggregated(path, tasks[path]))
        by_item: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in entries:
            by_item[entry["doc_id"]].append(entry)
        for item, several in sorted(by_item.items()):
            first = several[0]
            given = first["arguments"]["gen_args_0"]["arg_0"]
            asked, prompt = samples.asked(given[0] if isinstance(given, list) else given)
            yield {
                "id": str(item) if len(files) == 1 else f"{tasks[path]}:{item}",
                "repeat": 0,
                "category": samples.category(first["doc"]) if len(files) == 1 else tasks[path],
                "prompt": prompt,
                "expected": samples.expected(None if first["target"] == "0" else first["target"]),
                "asked": [asked],
                "text": str(first["resps"][0][0]),
                **samples.scored(several, several_filters=len(filters) > 1, without=together),
            }


def scored_together(entries: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> set[str]:
    """The metrics of which the harness has another value than the mean over items, such as bleu."""
    found = set()
    for name in {f"{metric},{entry['filter']}" for entry in entries for metric in entry["metrics"]}:
        metric, _, kind = name.rpartition(",")
        seen = [samples.scored([entry], several_filters=False) for entry in entries if entry["filter"] == kind]
        pairs = [(one["scores"][metric], one["weights"].get(metric, 1.0)) for one in seen if metric in one["scores"]]
        if pairs and isinstance(told.get(name), (int, float)):
            mean = sum(score * weight for score, weight in pairs) / sum(weight for _, weight in pairs)
            if abs(mean - told[name]) > _ROUNDING:
                found.add(metric)
    return found


def _aggregated(log: Path, task: str) -> dict[str, Any]:
    """What the harness itself says of a task, in the file beside the log of its samples."""
    for path in sorted(log.parent.glob("results_*.json")):
        found: dict[str, Any] = json.loads(path.read_text()).get("results", {}).get(task, {})
        if found:
            return found
    return {}
