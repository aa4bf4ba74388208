"""lm-evaluation-harness as it is, pass by pass, with its own scorers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import samples
from .store import Store
from .task import Problem, Task
from .together import kept, scored_together, spread

SEED = 0  # the harness's own, without which its tasks shuffle their choices differently each time
NAME = "lm-evaluation-harness"
_COMMIT = re.compile(r"hf://datasets/[^@]+@([0-9a-f]{40})/")
_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class LmEvalTask(Task):
    """A task of lm-evaluation-harness, or of the user's for it."""

    def __init__(
        self, item: Mapping[str, Any], job: Mapping[str, Any], directory: Path, variables: Mapping[str, str]
    ) -> None:
        super().__init__(item, job, directory, variables)
        self.indices: list[int] = []

    def check(self) -> dict[str, Any]:
        """Items, data and primary metric of the task. Raises Problem."""
        try:
            version = importlib.metadata.version("lm_eval")
        except importlib.metadata.PackageNotFoundError:
            raise Problem("the image has no lm_eval. Name one that has it in evaluation.harness_image.") from None
        if self.item["harness_task"] == "ifeval":
            check_sentences()
        loaded = self._load()
        if loaded.get_config("output_type") != "generate_until":
            kind = loaded.get_config("output_type")
            raise Problem(f"it needs {kind}, which SGLang's API does not offer. Choose a task that generates text.")
        limit = self._indices(loaded)
        if not limit:
            raise Problem("its data set has no items.")
        metrics = kept(loaded.aggregation())
        if not metrics:
            raise Problem("the harness does not score it: another program is meant to. Choose a task that it scores.")
        return {
            "harness": {"name": NAME, "version": version},
            "items": limit,
            "here": len(self.indices),
            "repeats": self.item["repeats"],
            "dataset": self._dataset(loaded),
            "primary": self.item.get("primary") or next(iter(metrics), ""),
        }

    def _indices(self, loaded: Any) -> int:
        """Find this host's share; items of the task, with its limit. What is judged together is not shared."""
        total = len(list(loaded.eval_docs))
        limit = min(self.item.get("limit") or total, total)
        shards = self.item["shards"]
        if scored_together(kept(loaded.aggregation())):
            shards = [(0, 1)] if any(index == 0 for index, _ in shards) else []
        self.indices = sorted({at for index, count in shards for at in range(index, limit, count)})
        return int(limit)

    def _load(self) -> Any:
        """The task, from the directory that defines it: the harness's index of all its tasks takes a minute."""
        from lm_eval.tasks import TaskManager  # noqa: PLC0415 - the image has it, not this machine

        random.seed(SEED)
        source = self._source()
        _lay_out(self.item, self.data, self.work, None if self._own() else source)
        os.chdir(self.work)
        try:
            tasks = TaskManager(include_defaults=False).load(str(source))["tasks"]
        except Exception as error:
            raise Problem(cause(error, str(self.item.get("dataset") or ""))) from error
        (loaded,) = tasks.values()
        return loaded

    def _own(self) -> Path | None:
        """The definition of a task of the user's: a YAML file beside its data."""
        pattern = re.compile(rf"^task:\s*[\"']?{re.escape(self.item['harness_task'])}[\"']?\s*$", re.MULTILINE)
        found = sorted(path for path in self.data.glob("*.yaml") if pattern.search(path.read_text(errors="replace")))
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
        return described(str(self.item.get("dataset") or loaded.config.dataset_path), loaded.dataset[split])

    def ask(self, proxy: str, store: Store) -> tuple[list[Any], Iterable[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        raw: list[Any] = []
        if not self.indices:
            self._indices(self._load())
        for repeat in range(self.item["repeats"] if self.indices else 0):
            outcome = self._pass(proxy, repeat)
            raw.append(outcome["results"])
            answers = [answer for key, answer in store.of_task(self.name) if key.repeat == repeat]
            lines = samples.lines(outcome["samples"], repeat, answers, str(self.job["host"]), outcome["left_out"])
            rows += [line | {"category": None} for line in lines] if outcome["together"] else lines
        return raw, rows

    def _pass(self, proxy: str, repeat: int) -> dict[str, Any]:
        from lm_eval import simple_evaluate  # noqa: PLC0415

        chat = self.item["endpoint_type"] == "chat"
        base = f"{proxy}/{self.name}/{repeat}"
        samples.begin(base)
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
        known = loaded.aggregation()
        together = scored_together(kept(known))
        logged = {name: spread(entries, together) for name, entries in outcome["samples"].items()}
        left_out = known.keys() - kept(known).keys()
        return {**outcome, "samples": logged, "left_out": left_out, "together": bool(together)}


def _lay_out(item: Mapping[str, Any], data: Path, work: Path, source: Path | None) -> None:
    """A directory in which the task's data is found: for a task of the user's its files, for one of the harness's a
    directory with the hub id of its data set, which the data sets library takes before the hub."""
    work.mkdir(parents=True, exist_ok=True)
    if not data.is_dir():
        return
    if source is None:
        link(sorted(data.iterdir()), work)
        return
    from lm_eval.tasks._yaml_loader import load_yaml  # noqa: PLC0415

    config = load_yaml(source, resolve_func=False)
    split = config.get("test_split") or config.get("validation_split") or config.get("training_split") or "test"
    lay_out(item, data, work, str(config["dataset_path"]), str(config.get("dataset_name") or "default"), str(split))


def lay_out(item: Mapping[str, Any], data: Path, work: Path, dataset: str, name: str, split: str) -> None:
    """Below `work`, a directory with the hub id `dataset`, its configuration `name` and its `split` from `data`."""
    place = work / dataset
    files = sorted(path for path in data.iterdir() if path.suffix in _FORMATS)
    if not files:
        raise Problem(f"{item['dataset_dir']} holds no file of a data set (.jsonl, .json, .csv or .parquet).")
    place.mkdir(parents=True, exist_ok=True)
    link(files, place)
    chosen = [path.name for path in files if split in path.stem] or [path.name for path in files]
    entry = {"config_name": name, "data_files": [{"split": split, "path": chosen}]}
    # JSON is YAML, which the head of this file is.
    (place / "README.md").write_text(f"---\nconfigs: {json.dumps([entry])}\n---\n")


def described(name: str, rows: Any) -> dict[str, Any]:
    """A data set as it was read: {"name", "revision", "sha256"}."""
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(json.dumps(row, sort_keys=True, default=str).encode())
    sums = (getattr(rows, "info", None) and rows.info.download_checksums) or {}
    commits = [found[1] for found in map(_COMMIT.match, sums) if found]
    return {"name": name, "revision": commits[0] if commits else None, "sha256": hashed.hexdigest()}


def link(files: Sequence[Path], place: Path) -> None:
    for path in files:
        if not (place / path.name).is_symlink():
            (place / path.name).symlink_to(path)


def check_sentences() -> None:
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


def cause(error: Exception, dataset: str) -> str:
    """Why a task's data cannot be loaded, and what to do."""
    text = " ".join(str(error).split())
    gated = ("gated", "401", "403", "Unauthorized", "restricted")
    absent = ("Couldn't reach", "couldn't find", "Couldn't find", "ConnectionError", "offline", "LocalEntryNotFound")
    if any(word in text for word in gated):
        return f"its data set {dataset} is gated. Set HF_TOKEN: host:HF_TOKEN in evaluation.env_vars, or dataset_dir."
    if any(word in text or word in type(error).__name__ for word in absent):
        return f"its data set {dataset} is not on the host and cannot be reached. Set dataset_dir: {text[:200]}"
    return f"{type(error).__name__}: {text[:300]}"
