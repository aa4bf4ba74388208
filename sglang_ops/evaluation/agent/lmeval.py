"""The harness's own process: lm-evaluation-harness as it is, pass by pass, with its own scorers.

Two halves: `check` sees that every task can be asked and scored, before anything is asked; `run` asks and scores.
What comes of it is written to the run's directory; nothing is said to the network but to the proxy on loopback (and
to the hub, for data that is not there).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import samples
from .store import Store

SEED = 0  # the harness's own, without which its tasks shuffle their choices differently each time
_COMMIT = re.compile(r"hf://datasets/[^@]+@([0-9a-f]{40})/")
_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class Problem(Exception):
    """Why a task cannot be asked or scored, in one sentence."""


def main(directory: Path, proxy: str, environments: Mapping[str, Mapping[str, str]]) -> int:
    """Check every task, and if all can be had, run them. 0 done, 7 refused: see checked.json.

    `environments` are the variables of single tasks, set while that task is at work.
    """
    job = json.loads((directory / "job.json").read_text())
    wanted = [_Task(item, job, directory, environments.get(item["name"], {})) for item in job["tasks"]]
    problems: list[str] = []
    checked: dict[str, Any] = {"harness": {}, "tasks": {}}
    try:
        checked["harness"] = {"name": "lm-evaluation-harness", "version": importlib.metadata.version("lm_eval")}
    except importlib.metadata.PackageNotFoundError:
        problems.append("The image has no lm_eval. Name one that has it in evaluation.harness_image.")
    for task in wanted if not problems else ():
        try:
            with task.environment():
                checked["tasks"][task.name] = task.check()
        except Problem as problem:
            problems.append(f"{task.name}: {problem}")
    _write(directory / "checked.json", json.dumps(checked | {"problems": problems}))
    if problems:
        return 7
    store = Store(directory / "answers.sqlite")
    for task in wanted:
        with task.environment():
            task.run(proxy, store)
    return 0


class _Task:
    """One task of the run."""

    def __init__(
        self, item: Mapping[str, Any], job: Mapping[str, Any], directory: Path, variables: Mapping[str, str]
    ) -> None:
        self.item, self.job, self.directory, self.variables = item, job, directory, variables
        self.name: str = item["name"]
        self.indices: list[int] = []

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.update(self.variables)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def check(self) -> dict[str, Any]:
        """Items, data and primary metric of the task. Raises Problem."""
        if self.item["harness_task"] == "ifeval":
            _check_sentences()
        loaded = self._load()
        if loaded.get_config("output_type") != "generate_until":
            kind = loaded.get_config("output_type")
            raise Problem(f"it needs {kind}, which SGLang's API does not offer. Choose a task that generates text.")
        total = len(list(loaded.eval_docs))
        limit = min(self.item.get("limit") or total, total)
        self.indices = sorted({at for index, count in self.item["shards"] for at in range(index, limit, count)})
        if not total:
            raise Problem("its data set has no items.")
        metrics = [str(metric["metric"]) for metric in loaded.config.metric_list or [] if "metric" in metric]
        return {
            "items": limit,
            "here": len(self.indices),
            "repeats": self.item["repeats"],
            "dataset": self._dataset(loaded),
            "primary": self.item.get("primary") or (metrics[0] if metrics else ""),
        }

    def _load(self) -> Any:
        """The task, from the directory that defines it: the harness's index of all its tasks takes a minute."""
        from lm_eval.tasks import TaskManager  # noqa: PLC0415 - the image has it, not this machine

        random.seed(SEED)
        source, work = self._source(), self.directory / "work" / self.name
        _lay_out(self.item, self.directory / "data" / self.name, work, None if self._own() else source)
        os.chdir(work)
        try:
            tasks = TaskManager(include_defaults=False).load(str(source))["tasks"]
        except Exception as error:
            raise Problem(_cause(error, str(self.item.get("dataset") or ""))) from error
        (loaded,) = tasks.values()
        return loaded

    def _own(self) -> Path | None:
        """The definition of a task of the user's: a YAML file beside its data."""
        data = self.directory / "data" / self.name
        pattern = re.compile(rf"^task:\s*[\"']?{re.escape(self.item['harness_task'])}[\"']?\s*$", re.MULTILINE)
        found = sorted(path for path in data.glob("*.yaml") if pattern.search(path.read_text(errors="replace")))
        return found[0] if found else None

    def _source(self) -> Path:
        own = self._own()
        if own:
            return own
        import lm_eval.tasks  # noqa: PLC0415

        known = Path(lm_eval.tasks.__file__).parent / str(self.item.get("path") or "-")
        if known.is_file():
            return known
        raise Problem(f"lm_eval {importlib.metadata.version('lm_eval')} has no task {self.item['harness_task']}.")

    def _dataset(self, loaded: Any) -> dict[str, Any]:
        split = loaded.config.test_split or loaded.config.validation_split or loaded.config.training_split
        rows = loaded.dataset[split]
        hashed = hashlib.sha256()
        for row in rows:
            hashed.update(json.dumps(row, sort_keys=True, default=str).encode())
        sums = (getattr(rows, "info", None) and rows.info.download_checksums) or {}
        commits = [found[1] for found in map(_COMMIT.match, sums) if found]
        name = self.item.get("dataset") or loaded.config.dataset_path
        return {"name": str(name), "revision": commits[0] if commits else None, "sha256": hashed.hexdigest()}

    def run(self, proxy: str, store: Store) -> None:
        """Ask and score every item; what is in the store is not asked. Nothing is done for a task that is over."""
        target = self.directory / "results" / self.name
        if (target / "samples.jsonl").exists():
            return
        started, clock = _now(), time.monotonic()
        rows: list[dict[str, Any]] = []
        raw: list[Any] = []
        try:
            self._command("pre_cmd")
            for repeat in range(self.item["repeats"] if self.indices else 0):
                outcome = self._pass(proxy, repeat)
                raw.append(outcome["results"])
                answers = [answer for key, answer in store.of_task(self.name) if key.repeat == repeat]
                rows += samples.lines(outcome["samples"], repeat, answers, str(self.job["host"]))
        finally:
            self._command("post_cmd")
            store.spend(self.name, started, _now(), time.monotonic() - clock)
        target.mkdir(parents=True, exist_ok=True)
        _write(target / "harness.json", json.dumps({"results": raw, "timings": store.spent(self.name)}, default=str))
        _write(target / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))

    def _command(self, name: str) -> None:
        for text in filter(None, self.item.get(name) or ()):
            subprocess.run(["/bin/sh", "-ec", text], check=True)

    def _pass(self, proxy: str, repeat: int) -> dict[str, Any]:
        from lm_eval import simple_evaluate  # noqa: PLC0415

        chat = self.item["endpoint_type"] == "chat"
        base = f"{proxy}/{self.name}/{repeat}"
        _post(f"{base}/begin")
        loaded = self._load()
        outcome: dict[str, Any] = simple_evaluate(
            model="local-chat-completions" if chat else "local-completions",
            model_args={
                "base_url": f"{base}/v1/{'chat/' if chat else ''}completions",
                "model": self.job["model"],
                "num_concurrent": max(2, int(self.item["parallelism"])),  # 1 would take its other, blocking path
                "max_retries": 1,  # the proxy retries
                "timeout": 30 * 24 * 3600,  # and it knows how long an answer may take
                "tokenizer_backend": None,
                "tokenized_requests": False,
                "seed": int(self.item.get("seed", 1234)) + repeat,
            },
            tasks=[loaded],
            num_fewshot=self.item.get("num_fewshot"),
            gen_kwargs=dict(self.item["generation"]) or None,
            system_instruction=self.item.get("system_instruction"),
            samples={loaded.config.task: self.indices},
            apply_chat_template=chat,
            bootstrap_iters=0,
            random_seed=SEED,
        )  # fmt: skip
        return outcome


def _lay_out(item: Mapping[str, Any], data: Path, work: Path, source: Path | None) -> None:
    """A directory in which the task's data is found: for a task of the user's its files, for one of the harness's a
    directory with the hub id of its data set, which the data sets library takes before the hub."""
    work.mkdir(parents=True, exist_ok=True)
    if not data.is_dir():
        return
    if source is None:
        _link(sorted(data.iterdir()), work)
        return
    from lm_eval.tasks._yaml_loader import load_yaml  # noqa: PLC0415

    config = load_yaml(source, resolve_func=False)
    place = work / str(config["dataset_path"])
    files = sorted(path for path in data.iterdir() if path.suffix in _FORMATS)
    if not files:
        raise Problem(f"{item['dataset_dir']} holds no file of a data set (.jsonl, .json, .csv or .parquet).")
    split = config.get("test_split") or config.get("validation_split") or config.get("training_split") or "test"
    place.mkdir(parents=True, exist_ok=True)
    _link(files, place)
    chosen = [path.name for path in files if str(split) in path.stem] or [path.name for path in files]
    name = config.get("dataset_name") or "default"
    entry = {"config_name": name, "data_files": [{"split": str(split), "path": chosen}]}
    # JSON is YAML, which the head of this file is.
    (place / "README.md").write_text(f"---\nconfigs: {json.dumps([entry])}\n---\n")


def _link(files: Sequence[Path], place: Path) -> None:
    for path in files:
        link = place / path.name
        if not link.is_symlink():
            link.symlink_to(path)


def _check_sentences() -> None:
    """IFEval's scorer splits sentences with NLTK's data, which it misses only after everything was asked."""
    import nltk  # noqa: PLC0415

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        try:
            if os.environ.get("HF_HUB_OFFLINE") != "1":
                nltk.download("punkt_tab", quiet=True)
        except Exception:  # noqa: BLE001 - the next lines say what is missing
            traceback.print_exc()
    try:
        if len(nltk.sent_tokenize("It works. It really does.")) != 2:
            raise Problem("NLTK's punkt_tab does not split sentences. Bring the official data.")
    except LookupError as error:
        remedy = "Mount a directory with tokenizers/punkt_tab (execution.mounts.evaluation) and set NLTK_DATA to it."
        raise Problem(
            f"its scorer needs NLTK's punkt_tab, which is neither here nor can be fetched. {remedy}"
        ) from error


def _cause(error: Exception, dataset: str) -> str:
    """Why a task's data cannot be loaded, and what to do."""
    text = " ".join(str(error).split())
    gated = ("gated", "401", "403", "Unauthorized", "restricted")
    absent = ("Couldn't reach", "couldn't find", "Couldn't find", "ConnectionError", "offline", "LocalEntryNotFound")
    if any(word in text for word in gated):
        return f"its data set {dataset} is gated. Set HF_TOKEN: host:HF_TOKEN in evaluation.env_vars, or dataset_dir."
    if any(word in text or word in type(error).__name__ for word in absent):
        return f"its data set {dataset} is not on the host and cannot be reached. Set dataset_dir: {text[:200]}"
    return f"{type(error).__name__}: {text[:300]}"


def _post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST")) as response:  # noqa: S310
        response.read()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - for Python 3.10


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.load(sys.stdin)))
